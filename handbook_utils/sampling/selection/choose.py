"""One selection from a table of scored samples: the rows chosen, and a random control of the same size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.records import REJECTED
from handbook_utils.sampling.selection import strategies
from handbook_utils.sampling.selection.distinct import first_of_each_text, first_of_the_alike
from handbook_utils.sampling.selection.groups import Bools, Floats, Groups, Ints, group_rows, text_codes
from handbook_utils.schema.sampling import PAIRS, Distinct, Strategy, check_selection


@dataclass(frozen=True)
class Rule:
    """How to select.

    Attributes:
        strategy: "best", "top_k", "threshold", "rso" (statistical rejection sampling), "pairs" (best and
            worst), "rso_pairs" (what "rso" accepts, paired at random), or "random".
        k: samples per prompt; 1 unless told, for "rso_pairs" 2, for "threshold" no limit.
        threshold: for "threshold": the lowest score that is kept.
        beta: for "rso" and "rso_pairs": their temperature, in units of the score.
        distinct: "text" leaves out repeated texts of a prompt, "near" also texts that are nearly the same;
            the better one stays.
        max_similarity: for "near": highest share of common runs of three words (Jaccard).
        seed: of ties and of every random choice.

    Raises:
        RecipeError: unknown strategy, or an option that does not go with it.
    """

    strategy: Strategy = "best"
    k: int | None = None
    threshold: float | None = None
    beta: float | None = None
    distinct: Distinct = "none"
    max_similarity: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for value, known in ((self.strategy, Strategy), (self.distinct, Distinct)):
            if value not in get_args(known):
                what = "strategy" if known is Strategy else "distinct"
                raise RecipeError(f"unknown {what} '{value}'. {suggest(value, get_args(known))}")
        try:
            check_selection(self.strategy, k=self.k, threshold=self.threshold, beta=self.beta)
        except ValueError as error:
            raise RecipeError(str(error)) from None

    @property
    def takes(self) -> int:
        """Samples that a prompt must have."""
        if self.strategy == "rso_pairs":
            return self.k or 2
        return 1 if self.strategy in ("threshold", "pairs") else self.k or 1

    @property
    def makes_pairs(self) -> bool:
        """Whether pairs are chosen, not samples."""
        return self.strategy in PAIRS


@dataclass(frozen=True)
class Choice:
    """Row numbers of a table.

    Attributes:
        chosen: (rows,); for pairs (pairs, 2), the chosen beside the rejected.
        control: of the same shape and the same prompts, drawn at random from the same scored samples.
        unscored: rows without a finite score, which nothing was chosen from.
    """

    chosen: Ints
    control: Ints
    unscored: Ints


def choose(table: pa.Table, by: str, rule: Rule) -> Choice:
    """Select from a table of samples; it does not depend on the order of the table's rows.

    Answers that speculative rejection stopped take no part; the control is drawn from the finished ones too.

    Args:
        table: with the columns `prompt_id`, `sample_index`, `completion` and the score.
        by: the score's column; "random" does not look at it.
        rule: what to select.
    Raises:
        DataError: no such score, a sample twice, or a prompt with fewer than k samples.
    """
    groups = group_rows(table["prompt_id"], table["sample_index"].to_numpy())
    finished = _finished(table)
    groups = groups.subset(finished[groups.rows])
    _check_enough(groups, rule)
    by_row = _scores(table, by) if rule.strategy != "random" else np.zeros(len(table))
    scored = np.isfinite(by_row) & finished
    pool = groups.subset(scored[groups.rows])
    unscored = np.flatnonzero(~scored & finished)
    if not len(pool.rows):
        nothing = np.empty((0, 2) if rule.makes_pairs else 0, dtype=np.int64)
        return Choice(nothing, nothing, unscored)
    narrowed = _distinct(pool, by_row, table["completion"], rule)
    if rule.makes_pairs:
        chosen, control = _pairs(pool, narrowed, by_row, table["completion"], rule)
    else:
        chosen = narrowed.rows[_places(narrowed, by_row[narrowed.rows], rule)]
        control = _control(pool, chosen, rule.seed)
    return Choice(chosen, control, unscored)


def _places(groups: Groups, scores: Floats, rule: Rule) -> Ints:
    if rule.strategy == "random":
        return strategies.random_control(groups, rule.k or 1, seed=rule.seed)
    if rule.strategy == "threshold":
        assert rule.threshold is not None  # held by the rule
        return strategies.at_least(groups, scores, threshold=rule.threshold, k=rule.k, seed=rule.seed)
    if rule.strategy == "rso":
        assert rule.beta is not None  # held by the rule
        return strategies.statistical_rejection(groups, scores, k=rule.k or 1, beta=rule.beta, seed=rule.seed)
    return strategies.top(groups, scores, k=rule.k or 1, seed=rule.seed)


def _control(pool: Groups, chosen: Ints, seed: int) -> Ints:
    """As many random samples of each prompt as were chosen of it."""
    place_of = np.empty(int(pool.rows.max()) + 1, dtype=np.int64)
    place_of[pool.rows] = np.arange(len(pool.rows))
    return pool.rows[strategies.random_control(pool, pool.counts(place_of[chosen]), seed=seed)]


def _pairs(
    pool: Groups, narrowed: Groups, by_row: Floats, completions: pa.ChunkedArray, rule: Rule
) -> tuple[Ints, Ints]:
    """Pairs and random pairs of the same prompts, each (pairs, 2) row numbers."""
    codes, scores = text_codes(completions), by_row[narrowed.rows]
    texts = codes[narrowed.rows]
    if rule.strategy == "rso_pairs":
        assert rule.beta is not None  # held by the rule
        chosen, rejected = strategies.rejection_pairs(
            narrowed, scores, texts, k=rule.takes, beta=rule.beta, seed=rule.seed
        )
    else:
        chosen, rejected = strategies.best_and_worst(narrowed, scores, texts, seed=rule.seed)
    # a filter keeps a sample of every prompt, so both number the prompts alike
    first, second = strategies.random_pairs(pool, codes[pool.rows], narrowed.counts(chosen), seed=rule.seed)
    return (
        np.stack([narrowed.rows[chosen], narrowed.rows[rejected]], axis=1),
        np.stack([pool.rows[first], pool.rows[second]], axis=1),
    )


def _distinct(pool: Groups, by_row: Floats, completions: pa.ChunkedArray, rule: Rule) -> Groups:
    """The pool without repeated texts, where the rule says so."""
    if rule.distinct == "none":
        return pool
    order = strategies.ranked(pool, by_row[pool.rows], seed=rule.seed)
    if rule.distinct == "text":
        return pool.subset(first_of_each_text(pool, order, text_codes(completions)[pool.rows]))
    texts = completions.take(pa.array(pool.rows)).to_pylist()
    return pool.subset(first_of_the_alike(pool, order, texts, max_similarity=rule.max_similarity))


def _finished(table: pa.Table) -> Bools:
    """(rows,) False for what speculative rejection stopped."""
    if "finish_reason" not in table.column_names:  # anyone's rows
        return np.ones(len(table), dtype=np.bool_)
    return np.asarray(pc.not_equal(table["finish_reason"], REJECTED).to_numpy(), dtype=np.bool_)


def _scores(table: pa.Table, by: str) -> Floats:
    """(rows,) float64, NaN where a score is missing."""
    if by not in table.column_names:
        numbers = [field.name for field in table.schema if _is_number(field.type)]
        known = [name for name in numbers if name not in ("sample_index", "tokens", "logprob")]
        hint = suggest(by, known) if known else "The samples have not been scored."
        raise DataError(f"there is no score '{by}'. {hint}")
    if not _is_number(table[by].type):
        raise DataError(f"the column '{by}' holds {table[by].type}, not scores.")
    return np.asarray(table[by].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _check_enough(groups: Groups, rule: Rule) -> None:
    few = np.flatnonzero(groups.sizes < rule.takes)
    if len(few):
        raise DataError(
            f"prompt '{groups.prompt_ids[few[0]]}' has {groups.sizes[few[0]]} samples, so {rule.takes} "
            "cannot be selected. Lower k or sample more answers per prompt."
        )
