"""Sampling and scoring in parts: each a file that is whole or absent.

Which prompts make up a part follows from the recipe and its inputs alone. So a run that was killed goes on
with the first missing part, and ends with the same files as a run that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from handbook_utils.data.load import Locator, load_sources
from handbook_utils.errors import RecipeError
from handbook_utils.models.load import load_pair, options_of
from handbook_utils.recipe_schema import SamplingRecipe
from handbook_utils.recipe_sections import ModelSection
from handbook_utils.records import Completion, ScoredCompletion
from handbook_utils.run_folder import RunFolder
from handbook_utils.sampling.generate import Prompt, generate
from handbook_utils.sampling.progress import answer_bar
from handbook_utils.sampling.score import load_scorer, score
from handbook_utils.sampling.tables import SAMPLES, completions_of, samples_table, scores_table


def write_samples(recipe: SamplingRecipe, run: RunFolder) -> None:
    """Write the parts of samples/ that are missing; also the first half of an `evaluate` run.

    Raises:
        DataError: no prompts, or a prompt too long for the model.
        ModelError: the model cannot be loaded or decoded from.
    """
    prompts = load_prompts(recipe, run)
    size = recipe.prompts_per_part
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    missing = [number for number in range(len(parts)) if not run.has(part_name("samples", number))]
    if not missing:
        return
    model, tokenizer = load_pair(run.locate(recipe.model), **options_of(recipe.model))
    todo = recipe.samples * sum(len(parts[number]) for number in missing)
    total = recipe.samples * len(prompts)
    with answer_bar("sampling", total, done=total - todo, show=run.progress) as advance:
        for number in missing:
            completions = generate(
                model,
                tokenizer,
                parts[number],
                n=recipe.samples,
                max_new_tokens=recipe.max_new_tokens,
                temperature=recipe.temperature,
                top_p=recipe.top_p,
                seed=recipe.seed,
                rows_per_batch=recipe.rows_per_batch,
                progress=advance,
            )
            write_part(run, "samples", number, samples_table(completions))
            _account(run, number, completions)


def write_scores(
    parts: Iterable[Sequence[ScoredCompletion]],
    run: RunFolder,
    *,
    scorers: Mapping[str, ModelSection],
    rows_per_batch: int,
) -> None:
    """Write the parts of scores/ that are missing, one for each part of samples.

    Raises:
        RecipeError: an unknown scorer, or one named like a column of samples.
        DataError: a score is not a number.
    """
    for name in scorers:
        if name in (*SAMPLES.names, "words"):
            raise RecipeError(f"scorers.{name}: samples have a column '{name}' already. Use another name.")
    listed = list(parts)
    loaded = [
        load_scorer(name, section, location=run.locate(section), rows_per_batch=rows_per_batch)
        for name, section in scorers.items()
    ]
    with answer_bar("scoring", sum(len(part) for part in listed), show=run.progress) as advance:
        for number, part in enumerate(listed):
            if not run.has(part_name("scores", number)):
                scored = part
                for scorer in loaded:
                    scored = score(scored, scorer)
                write_part(run, "scores", number, scores_table(scored))
            advance(0, len(part))


def own_parts(run: RunFolder, table: str = "samples") -> list[list[ScoredCompletion]]:
    """Parts this run wrote itself, such as the samples that `evaluate` goes on to score."""
    names = sorted(file.name for file in (run.path / table).glob("*.parquet"))
    return [completions_of(run.read_table(f"{table}/{name}"), where=f"{table}/{name}") for name in names]


def load_prompts(recipe: SamplingRecipe, locator: Locator) -> list[Prompt]:
    """The prompts of a recipe's data as (prompt id, messages)."""
    rows = load_sources(recipe.data, locator, kind="prompt", seed=recipe.seed)
    return list(zip(rows["prompt_id"], rows["prompt"], strict=True))


def part_name(table: str, number: int) -> str:
    """The file of a part.

    >>> part_name("samples", 3)
    'samples/part-00003.parquet'
    """
    return f"{table}/part-{number:05d}.parquet"


def write_part(run: RunFolder, table: str, number: int, content: pa.Table) -> None:
    """Write a part unless an earlier sitting did."""
    if not run.has(part_name(table, number)):
        run.write_table(part_name(table, number), content)


def _account(run: RunFolder, number: int, completions: Sequence[Completion]) -> None:
    tokens = sum(row.tokens for row in completions)
    cut = sum(row.finish_reason == "length" for row in completions)
    run.count_tokens(tokens)
    run.log_metrics(
        {
            "step": number + 1,
            "answers": len(completions),
            "tokens_per_answer": tokens / len(completions),
            "truncated_rate": cut / len(completions),
        }
    )
