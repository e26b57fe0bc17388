"""What can be wrong with a recipe of online reinforcement learning, found before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.load import Locator, ResolvedInputs
from handbook_utils.data.training_data import TrainingData, load_training_data
from handbook_utils.errors import DataError, HandbookError, ModelError, RecipeError
from handbook_utils.models.load import read_config
from handbook_utils.records import Message
from handbook_utils.runs.log import warn_and_log
from handbook_utils.runs.state import read_manifest
from handbook_utils.sampling.generation.rendering import FittedPrompts, fit_prompts
from handbook_utils.sampling.scoring.scorers.load import check_scorers, models_of
from handbook_utils.sampling.scoring.stage import check_names
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sampling import ScorerSection
from handbook_utils.schema.training import OnlineRecipe, RewardRecipe, TrainingRecipe
from handbook_utils.training.initial_model import check_start, start_tokenizer
from handbook_utils.training.plan import batch_plan

# of heads and towers that take no part in what is sampled
_HARMLESS = ("classifier", "summary", "head_")


class ScorerSawPromptsWarning(UserWarning):
    """A reward model was trained on prompts that its scores are now used on."""


class RepeatedPromptsWarning(UserWarning):
    """Prompts that stand in the data more than once."""


@dataclass(frozen=True)
class OnlinePrompts:
    """Prompts of a run, tokenised.

    Attributes:
        train: trained on.
        held_out: answered while training; without prompts where the recipe has none.
        data: what the sources gave.
        tokenizer: with a chat template and an end of turn.
    """

    train: FittedPrompts
    held_out: FittedPrompts
    data: TrainingData
    tokenizer: Any


def checked_prompts(recipe: OnlineRecipe, run: Locator) -> OnlinePrompts:
    """Check a recipe, its scorers and its data, and tokenise the prompts; no weight is loaded.

    Raises:
        RecipeError: what would make the policy that samples another one than the policy that learns, a scorer
            that cannot be made, or too few prompts.
        DataError: a row that is no prompt, or a prompt too long for the model.
        TemplateError: no chat template, or no end of turn.
    """
    batch_plan(recipe)
    source = run.locate(recipe.model)
    check_start(recipe, source)
    check_dropout(recipe, source)
    scorers = all_scorers(recipe)
    check_names(scorers)
    check_scorers(scorers, run)
    data = load_training_data(recipe, run)
    assert isinstance(data.train, Dataset)  # held by the schema
    tokenizer = start_tokenizer(recipe, source)
    train = _fitted(recipe, source, tokenizer, _distinct(data.train))
    held_out = FittedPrompts()
    if data.evaluation is not None:
        held_out = _fitted(recipe, source, tokenizer, _distinct(data.evaluation))
    if len(train.prompts) < recipe.prompts_per_step:
        raise RecipeError(
            f"`prompts_per_step` is {recipe.prompts_per_step}, and `data` has {len(train.prompts)} distinct "
            "prompts that fit: add prompts, or ask for fewer per step."
        )
    _warn_of_seen(recipe, run, {prompt_hash(messages) for _, messages in train.prompts})
    return OnlinePrompts(train, held_out, data, tokenizer)


def all_scorers(recipe: OnlineRecipe) -> dict[str, ScorerSection]:
    """Scorers that reward, and those that only look."""
    return {**recipe.scorers, **(recipe.held_out.scorers if recipe.held_out else {})}


def check_dropout(recipe: OnlineRecipe, source: str) -> None:
    """Refuse a model whose attention drops weights while it learns.

    TRL's `disable_dropout` reaches layers of dropout only, and attention has a number of its own.

    Raises:
        RecipeError: names the field of the model's configuration.
    """
    try:
        config = read_config(source, revision=recipe.model.revision).get_text_config()
    except ModelError:
        return  # loading tells what is wrong
    for name, value in config.to_dict().items():
        is_rate = isinstance(value, float) and ("dropout" in name or name.endswith("pdrop"))
        if is_rate and value > 0 and not name.startswith(_HARMLESS):
            raise RecipeError(
                f"{source}: its configuration has {name} {value:g}, so the policy that learns would not be "
                f'the one that samples. Set "{name}": 0.0 in its config.json.'
            )


def _distinct(rows: Dataset) -> list[tuple[str, list[Message]]]:
    """Prompts by id, each once; repeats are said."""
    found: dict[str, list[Message]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["prompt_id"]] += 1
        found.setdefault(row["prompt_id"], row["prompt"])
    repeated = sum(count - 1 for count in counts.values())
    if repeated:
        warn_and_log(
            f"{repeated:,} rows repeat the prompt of an earlier row: left out, so no step asks it twice.",
            RepeatedPromptsWarning,
        )
    return list(found.items())


def _fitted(
    recipe: OnlineRecipe, source: str, tokenizer: Any, prompts: list[tuple[str, list[Message]]]
) -> FittedPrompts:
    try:
        positions = getattr(
            read_config(source, revision=recipe.model.revision).get_text_config(),
            "max_position_embeddings",
            None,
        )
    except ModelError:
        positions = None
    return fit_prompts(
        tokenizer,
        prompts,
        positions=positions,
        max_new_tokens=recipe.max_new_tokens,
        long_prompts=recipe.long_prompts,
    )


def _warn_of_seen(recipe: OnlineRecipe, run: Locator, asked: set[str]) -> None:
    """Warn where a reward model was trained on prompts that it now rewards: its scores flatter there."""
    for name, section in all_scorers(recipe).items():
        for model in models_of(section):
            seen = _prompts_of_run(Path(run.locate(model)))
            both = len(asked & seen)
            if both:
                warn_and_log(
                    f"scorers.{name}: the reward model was trained on {both:,} of {len(asked):,} prompts of "
                    "`data`, where its scores say more of its memory than of answers. Take other prompts.",
                    ScorerSawPromptsWarning,
                )


def _prompts_of_run(folder: Path) -> set[str]:
    """Prompts that a reward model of ours was trained on, as far as its run and its data are still there."""
    if not (folder / "manifest.json").exists():
        return set()
    try:
        recipe = check_recipe(read_manifest(folder)["recipe"], str(folder))
        if not isinstance(recipe, RewardRecipe):
            return set()
        data = load_training_data(recipe, ResolvedInputs(_inputs_of(recipe, folder)))
    except (HandbookError, KeyError):
        return set()  # a run that was moved: nothing is known of it
    rows = data.train if isinstance(data.train, Dataset) else []
    return {prompt_hash(row["prompt"]) for row in rows}


def _inputs_of(recipe: TrainingRecipe, folder: Path) -> Mapping[str, Path]:
    named = [source.from_ for source in (*recipe.data, *recipe.eval_data, recipe.model) if source.from_]
    return {name: folder.parent / name if (folder.parent / name).exists() else Path(name) for name in named}


def require_prompts(fitted: FittedPrompts) -> None:
    """Raise DataError where no held-out prompt fits."""
    if not fitted.prompts:
        raise DataError("no prompt of `eval_data` fits the model's window: see `long_prompts`.")
