"""Choosing among scored samples, and the random control of the same size; pure functions.

Ties are broken by a permutation of each prompt's samples drawn from (seed, prompt id), so a choice depends
neither on the order of the rows nor on which other prompts there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeVar, get_args

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.records import Completion, PreferencePair, ScoredCompletion
from handbook_utils.sampling.noise import keyed_generator

Row = TypeVar("Row", bound=Completion)
Strategy = Literal["best", "random", "top_k"]


def select(
    completions: Sequence[ScoredCompletion],
    *,
    by: str,
    strategy: Strategy = "best",
    k: int = 1,
    seed: int = 0,
) -> list[ScoredCompletion]:
    """Choose answers by one of the strategies below.

    Args:
        completions: scored samples, in any order.
        by: the score column that selects; "random" does not look at it.
        strategy: "best", "random" or "top_k".
        k: answers a prompt for "random" and "top_k"; "best" takes one.
        seed: of ties and of the random choice.
    Raises:
        RecipeError: unknown strategy.
        DataError: unknown score, a score that is NaN, or fewer than k samples of a prompt.
    """
    if strategy == "best":
        return select_best(completions, by, seed=seed)
    if strategy == "top_k":
        return select_top_k(completions, by, k=k, seed=seed)
    if strategy == "random":
        return select_random(completions, k=k, seed=seed)
    raise RecipeError(f"unknown strategy '{strategy}'. {suggest(strategy, get_args(Strategy))}")


def select_best(completions: Sequence[ScoredCompletion], by: str, *, seed: int = 0) -> list[ScoredCompletion]:
    """The sample with the highest score of each prompt (best-of-n). Control: `select_random`.

    >>> scores = [{"proxy": 1.0}, {"proxy": 3.0}, {"proxy": 2.0}]
    >>> rows = [ScoredCompletion("p", i, [], "", 1, "stop", 0.0, s) for i, s in enumerate(scores)]
    >>> [row.sample_index for row in select_best(rows, "proxy")]
    [1]
    """
    return select_top_k(completions, by, k=1, seed=seed)


def select_top_k(
    completions: Sequence[ScoredCompletion], by: str, *, k: int, seed: int = 0
) -> list[ScoredCompletion]:
    """The k samples with the highest scores of each prompt, best first. Control: `select_random` with k.

    Raises:
        DataError: unknown score, a NaN score, or a prompt with fewer than k samples.
    """
    return [row for rows in _ranked(completions, by, seed) for row in _first(rows, k)]


def select_random(
    completions: Sequence[ScoredCompletion], *, k: int = 1, seed: int = 0
) -> list[ScoredCompletion]:
    """k distinct samples of each prompt, drawn uniformly: the control that any selection has to beat.

    Raises:
        DataError: a prompt has fewer than k samples.
    """
    return [row for rows in by_prompt(completions) for row in _first(_shuffled(rows, "random", seed), k)]


def select_pairs(completions: Sequence[ScoredCompletion], by: str, *, seed: int = 0) -> list[PreferencePair]:
    """Best and worst sample of each prompt as a preference pair. Control: `select_random_pairs`.

    A prompt whose best and worst are the same text, or score alike, says nothing and gives no pair.

    Raises:
        DataError: unknown score or a NaN score.
    """
    pairs = []
    for rows in _ranked(completions, by, seed):
        best, worst = rows[0], rows[-1]
        if best.scores[by] > worst.scores[by] and best.completion != worst.completion:
            pairs.append(_pair(best, worst))
    return pairs


def select_random_pairs(
    completions: Sequence[ScoredCompletion], by: str, *, seed: int = 0
) -> list[PreferencePair]:
    """For the prompts that `select_pairs` keeps, two samples with different texts in random order."""
    kept = {pair.prompt_id for pair in select_pairs(completions, by, seed=seed)}
    pairs = []
    for rows in by_prompt(completions):
        if rows[0].prompt_id in kept:
            first, *rest = _shuffled(rows, "random", seed)
            pairs.append(_pair(first, next(row for row in rest if row.completion != first.completion)))
    return pairs


def by_prompt(completions: Sequence[Row]) -> list[list[Row]]:
    """Each prompt's samples by sample index; prompts in the order in which they first occur.

    Raises:
        DataError: a prompt has the same sample index twice.
    """
    groups: dict[str, list[Row]] = {}
    for row in completions:
        groups.setdefault(row.prompt_id, []).append(row)
    ordered = [sorted(rows, key=lambda row: row.sample_index) for rows in groups.values()]
    for rows in ordered:
        for one, other in pairwise(rows):
            if one.sample_index == other.sample_index:
                raise DataError(
                    f"prompt '{one.prompt_id}' has sample {one.sample_index} twice. The same samples were "
                    "probably given twice, or two prompts share an id."
                )
    return ordered


def score_of(row: ScoredCompletion, by: str) -> float:
    """A row's score, checked.

    Raises:
        DataError: there is no such score, or it is NaN.
    """
    if by not in row.scores:
        raise DataError(
            f"prompt '{row.prompt_id}', sample {row.sample_index}: there is no score '{by}'. "
            f"{suggest(by, row.scores) if row.scores else 'The samples have not been scored.'}"
        )
    value = row.scores[by]
    if value != value:
        raise DataError(
            f"prompt '{row.prompt_id}', sample {row.sample_index}: the score '{by}' is NaN, so it has no "
            "rank. Score these samples again, or leave the row out."
        )
    return value


def _ranked(completions: Sequence[ScoredCompletion], by: str, seed: int) -> list[list[ScoredCompletion]]:
    """Each prompt's samples from best to worst."""
    return [
        # a stable sort of shuffled rows: among equal scores the permutation decides
        sorted(_shuffled(rows, "ties", seed), key=lambda row: -score_of(row, by))
        for rows in by_prompt(completions)
    ]


def _shuffled(rows: list[ScoredCompletion], purpose: str, seed: int) -> list[ScoredCompletion]:
    generator = keyed_generator(purpose, seed, prompt_id=rows[0].prompt_id)
    return [rows[place] for place in generator.permutation(len(rows))]


def _first(rows: list[ScoredCompletion], k: int) -> list[ScoredCompletion]:
    if not 1 <= k <= len(rows):
        raise DataError(
            f"prompt '{rows[0].prompt_id}' has {len(rows)} samples, so {k} cannot be selected. "
            "Lower k or sample more answers a prompt."
        )
    return rows[:k]


def _pair(chosen: ScoredCompletion, rejected: ScoredCompletion) -> PreferencePair:
    return PreferencePair(chosen.prompt_id, chosen.prompt, chosen.completion, rejected.completion)
