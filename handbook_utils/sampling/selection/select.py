"""Choosing among scored samples, and the random control of the same size; pure functions of records.

Ties are broken by a permutation of each prompt's samples drawn from (seed, prompt id), so a choice depends
neither on the order of the rows nor on which other prompts there are. Tables of millions of rows are selected
from by `choose.choose`, which all of these go through.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypedDict, TypeVar, Unpack

import numpy as np
import pyarrow as pa

from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Completion, PreferencePair, ScoredCompletion
from handbook_utils.sampling.selection.choose import Choice, Rule, choose
from handbook_utils.sampling.selection.groups import group_rows
from handbook_utils.sampling.selection.strategies import random_control
from handbook_utils.schema.sampling import Distinct, Strategy

Row = TypeVar("Row", bound=Completion)
PairStrategy = Literal["pairs", "rso_pairs"]


class SelectOptions(TypedDict, total=False):
    """Options of the strategies that need them, as in `choose.Rule`."""

    k: int | None
    threshold: float | None
    beta: float | None
    distinct: Distinct
    max_similarity: float


def select(
    completions: Sequence[ScoredCompletion],
    *,
    by: str,
    strategy: Strategy = "best",
    seed: int = 0,
    **options: Unpack[SelectOptions],
) -> list[ScoredCompletion]:
    """Choose answers by a strategy. Its control: `select_control(completions, chosen)`.

    Args:
        completions: scored samples, in any order.
        by: the score column that selects; "random" does not look at it.
        strategy: "best", "top_k", "threshold", "rso" or "random"; for pairs see `select_pairs`.
        seed: of ties and of every random choice.
        options:
            - `k`: answers per prompt; 1 unless told, for "threshold" no limit.
            - `threshold`: for "threshold": the lowest score that is kept.
            - `beta`: for "rso" (Liu et al. 2023): its temperature, in units of the score.
            - `distinct`: "text" leaves out repeated texts of a prompt, "near" also texts that share more than
              `max_similarity` of their runs of three words; the better one stays.
    Raises:
        RecipeError: unknown strategy, or an option that does not go with it.
        DataError: unknown score, a score that is NaN, or fewer than k samples of a prompt.

    >>> rows = [ScoredCompletion("p", i, [], "", 1, "stop", 0.0, {"proxy": i}) for i in range(4)]
    >>> [row.sample_index for row in select(rows, by="proxy", strategy="threshold", threshold=2)]
    [3, 2]
    """
    rule = Rule(strategy, seed=seed, **options)
    if rule.makes_pairs:
        raise DataError("pairs are no answers. Call select_pairs.")
    return [completions[row] for row in _choice(completions, by, rule).chosen.tolist()]


def select_best(completions: Sequence[ScoredCompletion], by: str, *, seed: int = 0) -> list[ScoredCompletion]:
    """The sample with the highest score of each prompt (best-of-n). Control: `select_random`.

    >>> scores = [{"proxy": 1.0}, {"proxy": 3.0}, {"proxy": 2.0}]
    >>> rows = [ScoredCompletion("p", i, [], "", 1, "stop", 0.0, s) for i, s in enumerate(scores)]
    >>> [row.sample_index for row in select_best(rows, "proxy")]
    [1]
    """
    return select(completions, by=by, strategy="best", seed=seed)


def select_top_k(
    completions: Sequence[ScoredCompletion], by: str, *, k: int, seed: int = 0
) -> list[ScoredCompletion]:
    """The k samples with the highest scores of each prompt, best first. Control: `select_random` with k.

    Raises:
        DataError: unknown score, a NaN score, or a prompt with fewer than k samples.
    """
    return select(completions, by=by, strategy="top_k", k=k, seed=seed)


def select_random(
    completions: Sequence[ScoredCompletion], *, k: int = 1, seed: int = 0
) -> list[ScoredCompletion]:
    """k distinct samples of each prompt, drawn uniformly: the control that any selection has to beat.

    Raises:
        DataError: a prompt has fewer than k samples.
    """
    return select(completions, by="", strategy="random", k=k, seed=seed)


def select_control(
    completions: Sequence[ScoredCompletion], chosen: Sequence[Completion], *, seed: int = 0
) -> list[ScoredCompletion]:
    """As many samples of each prompt as were chosen of it, drawn uniformly from all of its samples.

    Args:
        completions: what was chosen from.
        chosen: what any strategy chose.
        seed: of the draw.
    """
    groups = group_rows([row.prompt_id for row in completions], [row.sample_index for row in completions])
    taken = Counter(row.prompt_id for row in chosen)
    counts = np.array([taken[name] for name in groups.prompt_ids], dtype=np.int64)
    rows = groups.rows[random_control(groups, counts, seed=seed)]
    return [completions[row] for row in rows.tolist()]


def select_pairs(
    completions: Sequence[ScoredCompletion],
    by: str,
    *,
    strategy: PairStrategy = "pairs",
    seed: int = 0,
    **options: Unpack[SelectOptions],
) -> list[PreferencePair]:
    """Preference pairs of each prompt's samples. Control: `select_random_pairs`.

    Two samples that are the same text, or score alike, say nothing and give no pair.

    Args:
        completions: scored samples, in any order.
        by: the score column; of a pair the higher one is chosen.
        strategy: "pairs": the best and the worst of each prompt; "rso_pairs": `k` samples that statistical
            rejection sampling accepts (Liu et al. 2023), paired at random.
        seed: of ties and of every random choice.
        options: as of `select`; "rso_pairs" needs `beta`, and its `k` is even.
    Raises:
        RecipeError: an option that does not go with the strategy.
        DataError: unknown score, a NaN score, or fewer than k samples of a prompt.

    >>> rows = [ScoredCompletion("p", i, [], f"{i}", 1, "stop", 0.0, {"proxy": i}) for i in range(4)]
    >>> [(pair.chosen, pair.rejected) for pair in select_pairs(rows, "proxy")]
    [('3', '0')]
    """
    rule = Rule(strategy, seed=seed, **options)
    return _pairs(completions, _choice(completions, by, rule).chosen)


def select_random_pairs(
    completions: Sequence[ScoredCompletion],
    by: str,
    *,
    strategy: PairStrategy = "pairs",
    seed: int = 0,
    **options: Unpack[SelectOptions],
) -> list[PreferencePair]:
    """As many pairs of each prompt as `select_pairs` makes, of different texts and in random order."""
    rule = Rule(strategy, seed=seed, **options)
    return _pairs(completions, _choice(completions, by, rule).control)


def by_prompt(completions: Sequence[Row]) -> list[list[Row]]:
    """Each prompt's samples by sample index; prompts in the order in which they first occur.

    Raises:
        DataError: a prompt has the same sample index twice.
    """
    groups = group_rows([row.prompt_id for row in completions], [row.sample_index for row in completions])
    rows = [completions[row] for row in groups.rows.tolist()]
    return [rows[first:end] for first, end in pairwise(groups.starts.tolist())]


def _choice(completions: Sequence[ScoredCompletion], by: str, rule: Rule) -> Choice:
    """A choice among records; unlike a table's, their scores must all be there."""
    if rule.strategy != "random":
        _check_scores(completions, by)
    table = pa.table(
        {
            "prompt_id": pa.array([row.prompt_id for row in completions], pa.string()),
            "sample_index": pa.array([row.sample_index for row in completions], pa.int64()),
            "completion": pa.array([row.completion for row in completions], pa.string()),
            by: pa.array([row.scores.get(by) for row in completions], pa.float64()),
        }
    )
    return choose(table, by, rule)


def _check_scores(completions: Sequence[ScoredCompletion], by: str) -> None:
    for row in completions:
        where = f"prompt '{row.prompt_id}', sample {row.sample_index}"
        if by not in row.scores:
            hint = suggest(by, row.scores) if row.scores else "The samples have not been scored."
            raise DataError(f"{where}: there is no score '{by}'. {hint}")
        if not math.isfinite(row.scores[by]):
            raise DataError(
                f"{where}: the score '{by}' is {row.scores[by]}, so it has no rank. Score these samples "
                "again, or leave the row out."
            )


def _pairs(completions: Sequence[ScoredCompletion], rows: np.ndarray) -> list[PreferencePair]:
    pairs = []
    for chosen, rejected in rows.tolist():
        best, worst = completions[chosen], completions[rejected]
        pairs.append(PreferencePair(best.prompt_id, best.prompt, best.completion, worst.completion))
    return pairs
