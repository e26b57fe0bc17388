"""What a stage that samples, scores or selects would do, for `--dry-run`: it refuses what the run refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from handbook_utils.curation.rules.private_data import in_words, private_data
from handbook_utils.data.load import Locator, ResolvedInputs
from handbook_utils.data.prompts import LeftOut
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import DataError, ModelError
from handbook_utils.models.load import load_tokenizer, read_config
from handbook_utils.models.places import is_hub_name
from handbook_utils.sampling.execution.parts import load_prompts, warn_of_left_out
from handbook_utils.sampling.generation.engines.interface import Prompt
from handbook_utils.sampling.generation.rendering import fit_prompts
from handbook_utils.sampling.private_data import host_elsewhere, prompt_text
from handbook_utils.sampling.scoring.scorers.load import check_scorers
from handbook_utils.sampling.scoring.stage import check_names
from handbook_utils.sampling.selection.choose import choose
from handbook_utils.sampling.selection.stage import check_chosen, rule_of
from handbook_utils.sampling.tables import sample_tables
from handbook_utils.schema.engines import EndpointSection, TransformersSection
from handbook_utils.schema.stages import (
    AnnotateRecipe,
    EvaluateRecipe,
    SamplingRecipe,
    ScoreRecipe,
    SelectRecipe,
)

# prompts tokenized at once
BATCH = 1000


def plan_sampling(
    recipe: SamplingRecipe | ScoreRecipe | SelectRecipe | AnnotateRecipe, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Plan a stage before there is a run folder: data and tokenizer are read, no model is.

    Args:
        recipe: of the stage.
        inputs: the run folder each `from:` of the recipe names.
    Returns:
        What goes in and would come out, in numbers.
    Raises:
        DataError, RecipeError, TemplateError: as the run would, as far as that takes no model.
    """
    run = ResolvedInputs(inputs)
    if isinstance(recipe, SamplingRecipe):
        return _plan_prompts(recipe, run)
    if isinstance(recipe, SelectRecipe):
        return _plan_selection(recipe, run)
    if isinstance(recipe, ScoreRecipe):
        check_names(recipe.scorers)
        check_scorers(recipe.scorers, run)
    return {"samples": sum(len(table) for _, table in sample_tables(recipe.data, run))}


def _plan_prompts(recipe: SamplingRecipe, run: Locator) -> dict[str, Any]:
    if isinstance(recipe, EvaluateRecipe):
        check_names(recipe.scorers)
        check_scorers(recipe.scorers, run)
    left_out = LeftOut()
    skipped = shortened = prompts = 0
    for batch, lost, cut in _fitted(recipe, run, load_prompts(recipe, run, left_out=left_out)):
        prompts, skipped, shortened = prompts + batch, skipped + lost, shortened + cut
    left_out.warn(prompts)
    warn_of_left_out(skipped, shortened, len(left_out.bad), "the run will list them in shards.json")
    if prompts == skipped:
        raise DataError(f"none of {prompts} prompts could be answered: each is too long for the model.")
    return {
        "prompts": prompts,
        "repeated_prompts": left_out.repeated,
        "left_out_prompts": len(left_out.bad),
        "skipped_prompts": skipped,
        "shortened_prompts": shortened,
        "answers": (prompts - skipped) * recipe.samples,
        "max_new_tokens": recipe.max_new_tokens,
        **_private(recipe, run),
    }


def _private(recipe: SamplingRecipe, run: Locator) -> dict[str, str]:
    """What the prompts hold that a server elsewhere would get; nothing where they stay on this machine."""
    host = host_elsewhere(recipe.engine.url) if isinstance(recipe.engine, EndpointSection) else None
    if host is None:
        return {}
    found = private_data(map(prompt_text, load_prompts(recipe, run, left_out=LeftOut())))
    return {f"prompts go to {host}": f"they hold {in_words(found)}" if found else "nothing private was found"}


def _fitted(
    recipe: SamplingRecipe, run: Locator, prompts: Iterable[Prompt]
) -> Iterator[tuple[int, int, int]]:
    """How many prompts each batch has, and how many of them would be skipped or cut as too long."""
    tokenizer, positions = _window(recipe, run)
    rest = iter(prompts)
    while batch := list(islice(rest, BATCH)):
        if tokenizer is None:
            yield len(batch), 0, 0
            continue
        with quiet_libraries():
            fitted = fit_prompts(
                tokenizer,
                batch,
                positions=positions,
                max_new_tokens=recipe.max_new_tokens,
                long_prompts=recipe.long_prompts,
            )
        yield len(batch), len(fitted.skipped), len(fitted.shortened)


def _window(recipe: SamplingRecipe, run: Locator) -> tuple[Any, int | None]:
    """The model's tokenizer and its positions; nothing of a server's model, or one not yet downloaded."""
    if not isinstance(recipe.engine, TransformersSection):
        return None, None
    place, revision = run.locate(recipe.model), recipe.model.revision
    try:
        tokenizer, config = load_tokenizer(place, revision=revision), read_config(place, revision=revision)
    except ModelError:
        if not is_hub_name(place):
            raise
        return None, None
    return tokenizer, getattr(config, "max_position_embeddings", None)


def _plan_selection(recipe: SelectRecipe, run: Locator) -> dict[str, Any]:
    rule = rule_of(recipe)
    samples = chosen = unscored = 0
    for _, table in sample_tables(recipe.data, run):
        choice = choose(table, recipe.by, rule)
        samples, chosen = samples + len(table), chosen + len(choice.chosen)
        unscored += len(choice.unscored)
    check_chosen(recipe, samples=samples, chosen=chosen, unscored=unscored)
    return {"samples": samples, "selected": chosen, "unscored": unscored}
