"""Batches of like length: every row once, dealt evenly to processes, within the token budget, from a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_utils.shared_prefix.batching import LengthBatches, balanced_ends

COSTS = np.clip(np.random.default_rng(0).lognormal(5, 0.7, 1000), 8, 1500).astype(np.int64)


@st.composite
def any_batches(draw: st.DrawFn) -> LengthBatches:
    processes, passes, slots = (draw(st.integers(1, most)) for most in (3, 4, 3))
    costs = draw(st.lists(st.integers(1, 50), max_size=80))
    return LengthBatches(
        np.array(costs, dtype=np.int64),
        step_rows=processes * passes * slots,
        processes=processes,
        passes=passes,
        max_tokens=draw(st.none() | st.just(10**6)),
        seed=draw(st.integers(0, 5)),
        drop_last=draw(st.booleans()),
    )


@given(any_batches(), st.integers(0, 3))
def test_an_epoch_has_every_row_once_and_as_many_batches_as_it_says(
    batches: LengthBatches, epoch: int
) -> None:
    shares = [batches.epoch(epoch, rank) for rank in range(batches.processes)]
    assert [len(share) for share in shares] == [len(batches)] * batches.processes
    rows = [row for share in shares for batch in share for row in batch]
    full = len(batches.costs) // batches.step_rows * batches.step_rows
    if batches.drop_last:
        assert len(rows) == len(set(rows)) == full
    else:
        assert set(rows) == set(range(len(batches.costs)))
        # the last step is filled up, so that each process has a row
        assert len(rows) - len(batches.costs) == -len(batches.costs) % batches.processes


@given(any_batches())
def test_every_step_has_the_rows_it_promises_and_processes_have_as_many_in_each_pass(
    batches: LengthBatches,
) -> None:
    shares = [batches.epoch(0, rank) for rank in range(batches.processes)]
    for step in range(len(batches.costs) // batches.step_rows):
        own = [share[step * batches.passes : (step + 1) * batches.passes] for share in shares]
        assert sum(len(batch) for passes in own for batch in passes) == batches.step_rows
    for passes in zip(*shares, strict=True):
        assert len({len(batch) for batch in passes}) == 1
        assert all(batch for batch in passes)
        longest = [int(batches.costs[batch[0]]) for batch in passes]
        second = [int(batches.costs[batch[1]]) for batch in passes if len(batch) > 1]
        # dealt in turn by falling length, so no process waits for a longer row than the next one of another
        assert max(second, default=0) <= min(longest)


def test_the_order_is_the_seeds_and_another_in_each_epoch() -> None:
    batches = LengthBatches(COSTS, step_rows=8)
    assert batches.epoch(0) == batches.epoch(0)
    assert batches.epoch(0) != batches.epoch(1)
    assert batches.epoch(0) != replace(batches, seed=1).epoch(0)


def padding(batches: list[list[int]]) -> float:
    padded = sum(COSTS[batch].max() * len(batch) for batch in batches)
    return float(1 - sum(COSTS[batch].sum() for batch in batches) / padded)


def test_little_of_a_batch_is_padding_and_the_order_of_lengths_is_left_to_chance() -> None:
    batches = LengthBatches(COSTS, step_rows=8).epoch(0)
    shuffled = np.random.default_rng(1).permutation(1000).reshape(-1, 8)
    assert padding([list(rows) for rows in shuffled]) > 0.5
    assert padding(batches) < 0.06
    means = np.array([COSTS[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3, "neighbouring steps are of like length"
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3, "long rows come first, or last"


def test_with_a_budget_each_step_is_drawn_at_random_and_cut_into_passes_that_keep_it() -> None:
    batches = LengthBatches(COSTS, step_rows=64, processes=2, max_tokens=4096, seed=3)
    batches = replace(batches, passes=batches.passes_needed(epochs=2))
    assert batches.passes > 1

    def largest(batches: LengthBatches) -> int:
        made = [batch for epoch in range(2) for rank in range(2) for batch in batches.epoch(epoch, rank)]
        return max(int(COSTS[batch].max()) * len(batch) for batch in made)

    assert largest(batches) <= 4096
    assert largest(replace(batches, passes=batches.passes - 1)) > 4096, "as few passes as can be"
    steps = [
        {row for rank in range(2) for batch in each.epoch(0, rank)[: each.passes] for row in batch}
        for each in (batches, replace(batches, max_tokens=10**6, passes=1))
    ]
    assert steps[0] == steps[1], "the budget does not change which rows a step has"


def test_a_row_beyond_the_budget_is_told() -> None:
    with pytest.raises(ValueError, match=r"a row takes 1,500 tokens, and 1,000 is the most"):
        LengthBatches(np.array([3, 1500]), step_rows=2, max_tokens=1000).passes_needed(1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_cut_into_as_many_runs_has_a_smaller_largest_one(widths: list[int], parts: int) -> None:
    falling = np.array(sorted(widths, reverse=True))
    parts = min(parts, len(falling))
    ends = balanced_ends(falling, parts)
    assert len(ends) == parts
    assert ends[-1] == len(falling)
    assert all(a < b for a, b in zip([0, *ends], ends, strict=False))

    def largest(cuts: list[int]) -> int:
        return max((b - a) * int(falling[a]) for a, b in zip([0, *cuts], cuts, strict=False))

    best: dict[tuple[int, int], float] = {(0, 0): 0.0}
    for used in range(1, parts + 1):
        for end in range(1, len(falling) + 1):
            best[used, end] = min(
                max(best.get((used - 1, begin), np.inf), (end - begin) * falling[begin])
                for begin in range(end)
            )
    assert largest(ends) == best[parts, len(falling)]


@pytest.mark.parametrize("passes", [1, 4])
def test_rows_of_the_last_pool_that_is_sorted_together_are_there_too(passes: int) -> None:
    # 125 steps of 8 rows: at 64 passes a pool, the last one is not full
    batches = LengthBatches(COSTS, step_rows=8, passes=passes)
    assert sorted(row for batch in batches.epoch(0) for row in batch) == list(range(1000))
    assert len(batches.epoch(0)) == len(batches) == 125 * passes
