"""Sampling and scoring in parts: each a file that is whole or absent.

Which prompts make up a part follows from the recipe and its inputs alone. So a run that was killed goes on
with the first missing part, and ends with the same files as a run that was not.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from handbook_utils.data.load import Locator, load_sources
from handbook_utils.models.load import load_pair, options_of
from handbook_utils.recipe_schema import SamplingRecipe
from handbook_utils.records import Completion
from handbook_utils.run_folder import RunFolder
from handbook_utils.sampling.generate import Prompt, generate
from handbook_utils.sampling.progress import answer_bar
from handbook_utils.sampling.tables import samples_table


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
