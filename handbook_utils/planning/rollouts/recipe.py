"""From a recipe of an online stage to the run whose memory is asked for: prompts, scorers, looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from handbook_utils.data.load import Locator
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import load_training_data
from handbook_utils.errors import HandbookError, RecipeError
from handbook_utils.models.precision import DTYPES
from handbook_utils.planning.lengths import Lengths
from handbook_utils.planning.memory import Setup
from handbook_utils.planning.recipe import SAMPLE, Measured, config_at, is_elsewhere, planned_split
from handbook_utils.planning.rollouts.layout import Asked, step_shares
from handbook_utils.planning.rollouts.run import OnlineRun
from handbook_utils.planning.skeleton import Step
from handbook_utils.sampling.generation.rendering import fit_prompts
from handbook_utils.sampling.scoring.scorers.load import POCKET_SCORERS, models_of
from handbook_utils.schema.training import OnlineRecipe
from handbook_utils.training.initial_model import start_tokenizer

# tokens of a prompt that cannot be read here
UNKNOWN_PROMPT = 1024


def measure_prompts(
    recipe: OnlineRecipe, located: Locator, config: Any, *, all_rows: bool = False
) -> tuple[Measured, Measured | None]:
    """Tokens of a recipe's prompts, and of those it answers while training; answers as long as they may be.

    More than 2,000 prompts are drawn from, by the recipe's seed, unless all are asked for. Where data or
    tokenizer cannot be read here, each prompt is taken to have 1,024 tokens.

    Raises:
        DataError: there are no prompts, or one is too long for the model's window.
    """
    try:
        with quiet_libraries():
            tokenizer = start_tokenizer(recipe, located.locate(recipe.model))
            data = load_training_data(recipe, located)
            train = _measured(recipe, tokenizer, data.train, config, all_rows=all_rows)
            looks = recipe.held_out is not None and data.evaluation is not None
            seen = _measured(recipe, tokenizer, data.evaluation, config, all_rows=True) if looks else None
            return train, seen
    except HandbookError as error:
        if not is_elsewhere(recipe):
            raise
        said = f"prompts could not be read here, so each is taken to be {UNKNOWN_PROMPT:,} tokens long"
        alike = np.full(recipe.prompts_per_step, UNKNOWN_PROMPT)
        assumed = Measured(_with_answers(recipe, alike), None, f"{said} ({str(error)[:200]})")
        return assumed, assumed if recipe.held_out is not None else None


def online_run(
    recipe: OnlineRecipe, setup: Setup, located: Locator, train: Measured, looked_at: Measured | None
) -> OnlineRun:
    """A recipe's run, its groups split over the processes as `train` splits them.

    Raises:
        RecipeError: the groups cannot be split so, or there are fewer prompts than a step takes.
        ModelError: a reward model has no configuration that can be read.
    """
    per_device, accumulation, processes = planned_split(recipe, setup.processes, on_cpu=setup.on_cpu)
    if train.rows is not None and train.rows < recipe.prompts_per_step:
        raise RecipeError(
            f"`prompts_per_step` is {recipe.prompts_per_step}, and `data` has {train.rows} distinct prompts "
            "that fit: add prompts, or ask for fewer per step."
        )
    prompts = _longest_step(train.lengths.prompts, recipe.prompts_per_step // processes, recipe.seed)
    asked = Asked(prompts, recipe.samples, recipe.max_new_tokens, recipe.rows_per_batch)
    held_out = None
    if recipe.held_out is not None and looked_at is not None:
        longest = sorted(looked_at.lengths.prompts.tolist(), reverse=True)
        held_out = Asked(longest, recipe.held_out.samples, recipe.max_new_tokens, recipe.rows_per_batch)
    return OnlineRun(
        setup,
        train.lengths,
        per_device,
        accumulation,
        shares=recipe.shared_prefix != "off" and step_shares(setup.step),
        seed=recipe.seed,
        asked=asked,
        looked_at=held_out,
        scorers=tuple(_scorer_steps(recipe, located, on_cpu=setup.on_cpu)),
    )


def online_assumptions(run: OnlineRun, train: Measured) -> list[str]:
    """What a plan takes for granted, in sentences."""
    batch, setup = run.batch, run.setup
    said = [f"Prompts: {train.said}. Every answer is taken to be {run.asked.new_tokens:,} tokens long."]
    said.append(f"The highest moment is {run.memory.moment}.")
    if batch.cached is not None:
        said.append("Learning: a prompt fills a cache once, and its answers go on from copies of it.")
    elif batch.shared is not None:
        said.append("Learning: a prompt and some of its answers are one row of the decoder.")
    else:
        said.append("Learning: a prompt is computed for each of its answers.")
    if setup.lora is not None and setup.reference == "none":
        said.append("The reference is the base without its adapter: no second copy is held.")
    if not setup.on_cpu:
        said.append("The margin stands for what only a GPU shows: workspaces, fragmentation. Not measured.")
    if setup.processes > 1:
        said.append(f"What {setup.processes} processes share is arithmetic: not measured.")
    return said


def _measured(recipe: OnlineRecipe, tokenizer: Any, rows: Any, config: Any, *, all_rows: bool) -> Measured:
    kept = rows if isinstance(rows, Dataset) else list(rows)
    found = {row["prompt_id"]: row["prompt"] for row in kept}
    there, names = len(found), list(found)
    said = f"all {there:,} of them"
    if there > SAMPLE and not all_rows:
        drawn = np.random.default_rng(recipe.seed).choice(there, SAMPLE, replace=False)
        names = [names[place] for place in np.sort(drawn)]
        said = f"{SAMPLE:,} of {there:,}, drawn by seed {recipe.seed}; --all-rows counts all"
    fitted = fit_prompts(
        tokenizer,
        [(name, found[name]) for name in names],
        positions=getattr(config.get_text_config(), "max_position_embeddings", None),
        max_new_tokens=recipe.max_new_tokens,
        long_prompts=recipe.long_prompts,
    )
    counts = np.array([len(prompt.token_ids) for prompt in fitted.tokens], np.int64)
    return Measured(_with_answers(recipe, counts), there - len(fitted.skipped), said)


def _with_answers(recipe: OnlineRecipe, prompts: NDArray[np.int64]) -> Lengths:
    return Lengths(prompts, np.full((len(prompts), recipe.samples), recipe.max_new_tokens))


def _longest_step(prompts: NDArray[np.int64], size: int, seed: int) -> list[int]:
    """Tokens of the prompts of one step, the longest first: of the step with the longest of all."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    steps = (
        prompts[order[: len(order) // size * size]].reshape(-1, size)
        if len(prompts) >= size
        else prompts[None]
    )
    longest: list[int] = sorted(steps[steps.max(axis=1).argmax()].tolist(), reverse=True)
    return longest


def _scorer_steps(recipe: OnlineRecipe, located: Locator, *, on_cpu: bool) -> Iterator[Step]:
    """How each reward model computes, of rewards and of second opinions: in the format it is held in."""
    sections = [*recipe.scorers.values(), *(recipe.held_out.scorers.values() if recipe.held_out else ())]
    for model in (model for section in sections for model in models_of(section)):
        place = located.locate(model)
        if place in POCKET_SCORERS:
            continue
        yield Step(
            config_at(place, revision=model.revision, attention=model.attention),
            "reward",
            held_in=DTYPES.get(model.dtype, torch.float32 if on_cpu else torch.bfloat16),
            quantization="none" if model.quantization == "auto" else model.quantization,
            folds=not on_cpu,
        )
