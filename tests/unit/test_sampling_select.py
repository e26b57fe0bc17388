"""Selection: what is chosen, that order does not matter, and that ties fall by the seed alone."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.records import ScoredCompletion
from handbook_utils.sampling.selection.select import (
    by_prompt,
    select,
    select_best,
    select_pairs,
    select_random,
    select_random_pairs,
    select_top_k,
)


def row(prompt_id: str, index: int, proxy: float, text: str | None = None) -> ScoredCompletion:
    answer = f"answer {index}" if text is None else text
    prompt = [{"role": "user", "content": prompt_id}]
    return ScoredCompletion(prompt_id, index, prompt, answer, 3, "stop", -1.0, {"proxy": proxy})


# few distinct scores, so that ties are common
SCORED = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=3, max_size=8), min_size=1, max_size=6
).map(
    lambda prompts: [
        row(f"p{p}", i, value) for p, values in enumerate(prompts) for i, value in enumerate(values)
    ]
)
SEEDS = st.integers(0, 5)
# the first example pays for imports
few_examples = settings(max_examples=50)


def keys(rows: list[ScoredCompletion]) -> list[tuple[str, int]]:
    return [(one.prompt_id, one.sample_index) for one in rows]


@few_examples
@given(rows=SCORED, seed=SEEDS)
def test_best_takes_one_sample_of_each_prompt_and_none_scores_higher(rows, seed):
    chosen = select_best(rows, "proxy", seed=seed)
    assert [one.prompt_id for one in chosen] == list(dict.fromkeys(one.prompt_id for one in rows))
    for one in chosen:
        assert one in rows
        assert one.scores["proxy"] == max(r.scores["proxy"] for r in rows if r.prompt_id == one.prompt_id)


@few_examples
@given(rows=SCORED, seed=SEEDS, k=st.integers(1, 3))
def test_top_k_takes_the_k_highest_scores_best_first(rows, seed, k):
    for group in by_prompt(select_top_k(rows, "proxy", k=k, seed=seed)):
        of_prompt = [r.scores["proxy"] for r in rows if r.prompt_id == group[0].prompt_id]
        assert sorted((r.scores["proxy"] for r in group), reverse=True) == sorted(of_prompt, reverse=True)[:k]
    values = [r.scores["proxy"] for r in select_top_k(rows, "proxy", k=k, seed=seed)]
    assert all(values[i] >= values[i + 1] for i in range(len(values) - 1) if (i + 1) % k)


@few_examples
@given(rows=SCORED, seed=SEEDS, k=st.integers(1, 3))
def test_the_random_control_is_as_large_as_the_selection_and_has_no_sample_twice(rows, seed, k):
    control = select_random(rows, k=k, seed=seed)
    assert Counter(r.prompt_id for r in control) == Counter(
        r.prompt_id for r in select_top_k(rows, "proxy", k=k, seed=seed)
    )
    assert len(set(keys(control))) == len(control)


@few_examples
@given(rows=SCORED, seed=SEEDS, order=st.randoms(use_true_random=False))
def test_no_selection_depends_on_the_order_of_rows(rows, seed, order: random.Random):
    shuffled = rows[:]
    order.shuffle(shuffled)
    for choose in (
        lambda given: select_best(given, "proxy", seed=seed),
        lambda given: select_top_k(given, "proxy", k=2, seed=seed),
        lambda given: select_random(given, k=2, seed=seed),
    ):
        assert set(keys(choose(rows))) == set(keys(choose(shuffled)))
    assert {p.prompt_id: p for p in select_pairs(rows, "proxy", seed=seed)} == {
        p.prompt_id: p for p in select_pairs(shuffled, "proxy", seed=seed)
    }


@few_examples
@given(rows=SCORED, seed=SEEDS)
def test_a_choice_does_not_depend_on_the_other_prompts(rows, seed):
    alone = [r for r in rows if r.prompt_id == "p0"]
    assert keys(select_best(rows, "proxy", seed=seed))[:1] == keys(select_best(alone, "proxy", seed=seed))
    assert keys(select_random(rows, seed=seed))[:1] == keys(select_random(alone, seed=seed))


@few_examples
@given(rows=SCORED, seed=SEEDS)
def test_pairs_join_the_best_and_the_worst_and_leave_out_prompts_that_score_alike(rows, seed):
    pairs = {pair.prompt_id: pair for pair in select_pairs(rows, "proxy", seed=seed)}
    for group in by_prompt(rows):
        values = {r.completion: r.scores["proxy"] for r in group}
        low, high = min(values.values()), max(values.values())
        pair = pairs.get(group[0].prompt_id)
        assert (pair is None) == (low == high)
        if pair is not None:
            assert (values[pair.chosen], values[pair.rejected]) == (high, low)


@few_examples
@given(rows=SCORED, seed=SEEDS)
def test_random_pairs_are_of_the_same_prompts_and_of_two_texts(rows, seed):
    control = select_random_pairs(rows, "proxy", seed=seed)
    assert [p.prompt_id for p in control] == [p.prompt_id for p in select_pairs(rows, "proxy", seed=seed)]
    assert all(pair.chosen != pair.rejected for pair in control)


@few_examples
@given(seed=st.integers(0, 100))
def test_the_random_control_ignores_scores(seed):
    low, high = ([row("p", i, value * i) for i in range(5)] for value in (-1.0, 1.0))
    assert keys(select_random(low, seed=seed)) == keys(select_random(high, seed=seed))


def test_ties_fall_evenly_over_seeds_and_alike_for_one_seed():
    rows = [row("p", i, 1.0) for i in range(4)]
    chosen = Counter(select_best(rows, "proxy", seed=seed)[0].sample_index for seed in range(400))
    # 400 draws of 4 alike: 100 each, standard deviation sqrt(400 * 1/4 * 3/4) = 8.7; five of them are 43
    assert all(abs(chosen[i] - 100) < 43 for i in range(4))
    assert keys(select_best(rows, "proxy", seed=7)) == keys(select_best(rows, "proxy", seed=7))


def test_ties_and_the_random_control_are_drawn_independently():
    rows = [row("p", i, 1.0) for i in range(4)]
    same = [keys(select_best(rows, "proxy", seed=s)) == keys(select_random(rows, seed=s)) for s in range(400)]
    assert 57 < sum(same) < 143


def test_equal_texts_give_no_pair_even_if_their_scores_differ():
    assert select_pairs([row("p", 0, 0.0, "same"), row("p", 1, 1.0, "same")], "proxy") == []


def test_select_takes_the_strategy_by_name():
    rows = [row("p", i, float(i)) for i in range(3)]
    assert keys(select(rows, by="proxy")) == [("p", 2)]
    assert keys(select(rows, by="proxy", strategy="top_k", k=2)) == [("p", 2), ("p", 1)]
    assert len(select(rows, by="proxy", strategy="random", k=2)) == 2
    with pytest.raises(RecipeError, match=r"unknown strategy 'bests'. Did you mean 'best'"):
        select(rows, by="proxy", strategy="bests")  # type: ignore[arg-type]


def test_a_nan_score_is_an_error_that_names_prompt_and_sample():
    with pytest.raises(DataError, match="prompt 'p', sample 1: the score 'proxy' is nan"):
        select_best([row("p", 0, 0.0), row("p", 1, math.nan)], "proxy")


def test_an_unknown_score_is_an_error_with_the_nearest_name():
    with pytest.raises(DataError, match=r"no score 'proxi'. Did you mean 'proxy'"):
        select_best([row("p", 0, 0.0)], "proxi")


def test_more_samples_than_there_are_cannot_be_selected():
    with pytest.raises(DataError, match="prompt 'p' has 2 samples, so 3 cannot be selected"):
        select_random([row("p", 0, 0.0), row("p", 1, 0.0)], k=3)


def test_a_sample_given_twice_is_an_error():
    with pytest.raises(DataError, match="prompt 'p' has sample 0 twice"):
        select_best([row("p", 0, 0.0), row("p", 0, 1.0)], "proxy")
