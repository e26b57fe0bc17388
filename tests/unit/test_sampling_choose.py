"""Selection on tables: every strategy beside its control, the distribution it draws from, and bad scores."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.records import ScoredCompletion
from handbook_utils.sampling.noise import keyed_generator
from handbook_utils.sampling.selection.choose import Choice, Rule, choose
from handbook_utils.sampling.selection.groups import group_rows
from handbook_utils.sampling.selection.select import select, select_control, select_pairs, select_random_pairs
from handbook_utils.sampling.selection.strategies import statistical_rejection

# the first example pays for imports
few_examples = settings(max_examples=40)
# few distinct scores and texts, so that ties and repeats are common; NaN is a score that could not be had
SAMPLES = st.lists(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, math.nan]), st.sampled_from("abc")), min_size=1, max_size=6
    ),
    min_size=1,
    max_size=5,
)
RULES = st.sampled_from(
    [
        Rule(),
        Rule("top_k", k=1, distinct="text"),
        Rule("threshold", threshold=1.0),
        Rule("threshold", threshold=1.0, k=2),
        Rule("threshold", threshold=9.0),
        Rule("rso", beta=0.5),
        Rule("pairs"),
        Rule("pairs", distinct="near"),
        Rule("rso_pairs", beta=0.5),
        Rule("rso_pairs", k=4, beta=2.0, distinct="text"),
        Rule("random", seed=3),
    ]
)


def table_of(prompts: list[list[tuple[float, str]]]) -> pa.Table:
    rows = [(f"p{p}", i, text, value) for p, row in enumerate(prompts) for i, (value, text) in enumerate(row)]
    ids, indices, texts, values = zip(*rows, strict=True)
    return pa.table({"prompt_id": ids, "sample_index": indices, "completion": texts, "proxy": values})


def scored(*values: float) -> pa.Table:
    """One prompt whose samples have different texts."""
    return table_of([[(value, f"text {i}") for i, value in enumerate(values)]])


def keys(table: pa.Table, rows: np.ndarray) -> list[tuple[str, int]]:
    ids, indices = table["prompt_id"].to_pylist(), table["sample_index"].to_pylist()
    return [(ids[row], indices[row]) for row in rows.ravel().tolist()]


def named(table: pa.Table, choice: Choice) -> dict[str, list[tuple[str, int]]]:
    return {part: sorted(keys(table, getattr(choice, part))) for part in ("chosen", "control", "unscored")}


@few_examples
@given(prompts=SAMPLES, rule=RULES)
def test_every_control_has_the_prompts_and_the_size_of_its_selection_and_no_sample_twice(prompts, rule):
    assume(min(map(len, prompts)) >= rule.takes)
    table = table_of(prompts)
    choice = choose(table, "proxy", rule)
    chosen, control = (keys(table, rows) for rows in (choice.chosen, choice.control))
    assert choice.chosen.shape == choice.control.shape
    assert Counter(prompt for prompt, _ in chosen) == Counter(prompt for prompt, _ in control)
    assert len(set(chosen)) == len(chosen)
    # where texts repeat there may be too few different ones for several pairs
    assert len(set(control)) == len(control) or rule.strategy == "rso_pairs"


@few_examples
@given(prompts=SAMPLES, rule=RULES, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_neither_selection_nor_control(prompts, rule, order):
    assume(min(map(len, prompts)) >= rule.takes)
    table = table_of(prompts)
    places = list(range(len(table)))
    order.shuffle(places)
    mixed = table.take(pa.array(places))
    assert named(table, choose(table, "proxy", rule)) == named(mixed, choose(mixed, "proxy", rule))


@few_examples
@given(prompts=SAMPLES, rule=RULES)
def test_a_missing_score_is_named_and_neither_chosen_nor_a_control(prompts, rule):
    assume(min(map(len, prompts)) >= rule.takes)
    table = table_of(prompts)
    choice = choose(table, "proxy", rule)
    bad = [row for row, value in enumerate(table["proxy"].to_pylist()) if math.isnan(value)]
    if rule.strategy == "random":  # it does not look at scores
        assert choice.unscored.tolist() == []
        return
    assert choice.unscored.tolist() == bad
    assert not {*choice.chosen.ravel().tolist(), *choice.control.ravel().tolist()} & set(bad)


def test_a_null_or_an_infinite_score_counts_as_missing():
    table = scored(0.0, math.inf, 2.0)
    assert choose(table, "proxy", Rule()).unscored.tolist() == [1]
    table = table.set_column(3, "proxy", pa.array([0.0, None, 2.0]))
    choice = choose(table, "proxy", Rule())
    assert (choice.chosen.tolist(), choice.unscored.tolist()) == ([2], [1])


def test_where_no_sample_has_a_score_nothing_is_chosen():
    choice = choose(scored(math.nan, math.nan), "proxy", Rule("pairs"))
    assert (choice.chosen.shape, choice.control.shape, choice.unscored.tolist()) == ((0, 2), (0, 2), [0, 1])


def test_one_sample_a_prompt_is_its_own_best_and_makes_no_pair():
    table = table_of([[(1.0, "a")], [(2.0, "b")]])
    assert choose(table, "proxy", Rule()).chosen.tolist() == [0, 1]
    assert choose(table, "proxy", Rule("rso", beta=1.0)).chosen.tolist() == [0, 1]
    assert len(choose(table, "proxy", Rule("pairs")).chosen) == 0


def test_a_threshold_keeps_what_reaches_it_best_first():
    table = scored(1.0, 3.0, 0.5, 2.0)
    assert choose(table, "proxy", Rule("threshold", threshold=1.0)).chosen.tolist() == [1, 3, 0]
    assert choose(table, "proxy", Rule("threshold", threshold=1.0, k=2)).chosen.tolist() == [1, 3]


def test_true_and_false_are_scores_too():
    table = scored(0.0, 1.0).set_column(3, "proxy", pa.array([False, True]))
    assert choose(table, "proxy", Rule("threshold", threshold=1)).chosen.tolist() == [1]


def test_a_pair_is_never_of_one_text_and_its_control_neither():
    prompts = [[(0.0, "a"), (1.0, "a"), (2.0, "b")], [(0.0, "a"), (1.0, "a")]]
    table = table_of(prompts)
    choice = choose(table, "proxy", Rule("pairs"))
    assert choice.chosen.tolist() == [[2, 0]]
    texts = table["completion"].to_pylist()
    assert all(texts[one] != texts[other] for one, other in choice.control.tolist())


def test_repeated_texts_leave_room_for_others():
    table = table_of([[(3.0, "a"), (3.0, "a"), (2.0, "b"), (1.0, "c")]])
    texts = np.array(table["completion"].to_pylist())
    assert sorted(texts[choose(table, "proxy", Rule("top_k", k=2)).chosen]) == ["a", "a"]
    assert texts[choose(table, "proxy", Rule("top_k", k=2, distinct="text")).chosen].tolist() == ["a", "b"]


def test_of_texts_that_are_nearly_alike_the_better_one_stays():
    base = "one two three four five six seven"
    # 5 runs of three words; changing the last word changes 1 of them: 4 shared of 6, Jaccard 0.67
    prompts = [[(1.0, f"{base}"), (2.0, base.replace("seven", "eight")), (0.0, "quite another answer here")]]
    table = table_of(prompts)
    near = Rule("top_k", k=3, distinct="near", max_similarity=0.66)
    assert choose(table, "proxy", near).chosen.tolist() == [1, 2]
    far = Rule("top_k", k=3, distinct="near", max_similarity=0.67)
    assert choose(table, "proxy", far).chosen.tolist() == [1, 0, 2]


def exact_first_two(rewards: list[float], beta: float) -> dict[tuple[int, ...], float]:
    """Probability of each set of two accepted candidates, by going through all orders, coins and rounds."""

    def rounds(order: tuple[int, ...], taken: tuple[int, ...], chance: float) -> None:
        left = [i for i in order if i not in taken]
        best = max(rewards[i] for i in left)
        odds = [math.exp((rewards[i] - best) / beta) for i in left]
        for coins in itertools.product([True, False], repeat=len(left)):
            weight = math.prod(p if heads else 1 - p for p, heads in zip(odds, coins, strict=True))
            if weight == 0:
                continue
            accepted = (*taken, *[i for i, heads in zip(left, coins, strict=True) if heads])[:2]
            if len(accepted) == 2:
                key = tuple(sorted(accepted))
                found[key] = found.get(key, 0.0) + chance * weight
            else:
                rounds(order, accepted, chance * weight)

    found: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(rewards))):
        rounds(order, (), 1 / math.factorial(len(rewards)))
    return found


def rejection_sets(rewards: list[float], *, k: int, beta: float, prompts: int) -> Counter[tuple[int, ...]]:
    """How often each set of candidates is accepted, each prompt being one trial."""
    size = len(rewards)
    groups = group_rows([f"p{p}" for p in range(prompts) for _ in rewards], list(range(size)) * prompts)
    chosen = statistical_rejection(groups, np.tile(rewards, prompts), k=k, beta=beta, seed=0)
    return Counter(tuple(sorted(row)) for row in (chosen.reshape(prompts, k) % size).tolist())


def test_rejection_sampling_accepts_sets_as_often_as_its_rounds_say():
    rewards, beta = [0.0, 0.4, 1.0, 0.9], 0.5
    expected = exact_first_two(rewards, beta)
    assert sum(expected.values()) == pytest.approx(1)
    found = rejection_sets(rewards, k=2, beta=beta, prompts=6000)
    sets = sorted(expected)
    test = stats.chisquare([found[s] for s in sets], [6000 * expected[s] for s in sets])
    assert test.pvalue > 0.001
    # and it is told from the same rounds at another beta
    other = exact_first_two(rewards, 0.4)
    assert stats.chisquare([found[s] for s in sets], [6000 * other[s] for s in sets]).pvalue < 0.001


def test_the_first_accepted_of_many_follows_the_best_policy_under_a_kl_penalty():
    policy, rewards, beta = np.array([0.5, 0.3, 0.2]), np.array([0.0, 0.5, 1.0]), 0.7
    prompts, samples = 4000, 40
    rng = np.random.default_rng(0)
    answers = rng.choice(3, size=(prompts, samples), p=policy)
    groups = group_rows(
        np.repeat([f"p{p}" for p in range(prompts)], samples), np.tile(range(samples), prompts)
    )
    chosen = statistical_rejection(groups, rewards[answers].ravel(), k=1, beta=beta, seed=0)
    # pi*(y) = pi(y) exp(r(y) / beta) / Z, the solution of max E[r] - beta KL
    target = policy * np.exp(rewards / beta)
    target /= target.sum()
    counts = np.bincount(answers.ravel()[chosen], minlength=3)
    assert stats.chisquare(counts, prompts * target).pvalue > 0.001
    assert stats.chisquare(counts, prompts * policy).pvalue < 1e-6


def test_rejection_sampling_at_beta_near_zero_takes_the_highest_and_at_a_huge_one_takes_any():
    rewards = [0.0, 3.0, 1.0, 2.0]
    assert rejection_sets(rewards, k=2, beta=1e-6, prompts=50) == {(1, 3): 50}
    found = rejection_sets(rewards, k=2, beta=1e9, prompts=3000)
    # 6 sets of 500 each
    assert stats.chisquare([found[pair] for pair in itertools.combinations(range(4), 2)]).pvalue > 0.001


def test_rejection_sampling_has_no_sample_twice_and_all_where_k_is_all():
    assert rejection_sets([0.0, 5.0, 1.0], k=3, beta=0.5, prompts=20) == {(0, 1, 2): 20}


def test_pairs_of_rejection_sampling_are_of_what_it_accepts_and_the_higher_score_is_chosen():
    # with so small a beta the two highest are accepted
    choice = choose(scored(0.0, 5.0, 1.0, 9.0), "proxy", Rule("rso_pairs", beta=1e-6))
    assert choice.chosen.tolist() == [[3, 1]]


def test_pairs_of_rejection_sampling_are_drawn_whatever_the_order_of_acceptance():
    """With so small a beta the highest is accepted first; pairing neighbours would give one pairing only."""
    table = table_of([[(float(i), f"text {i}") for i in range(4)]] * 600)
    choice = choose(table, "proxy", Rule("rso_pairs", k=4, beta=1e-6))
    pairs = np.sort(choice.chosen % 4, axis=1).reshape(600, 2, 2)
    found = Counter(tuple(sorted(map(tuple, two))) for two in pairs.tolist())
    assert set(found) == {((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))}
    assert stats.chisquare(list(found.values())).pvalue > 0.001  # 200 of each
    assert (choice.chosen[:, 0] > choice.chosen[:, 1]).all()  # a row's number is its score here


def test_no_sample_is_in_two_pairs_and_the_control_has_as_many_of_each_prompt():
    table = table_of([[(float(i), f"text {i}") for i in range(9)], [(float(i), f"{i}") for i in range(8)]])
    choice = choose(table, "proxy", Rule("rso_pairs", k=8, beta=3.0))
    for pairs in (choice.chosen, choice.control):
        assert len(set(pairs.ravel().tolist())) == 16
        assert (pairs < 9).all(axis=1).tolist() == [True] * 4 + [False] * 4
    # the control does not look at the scores
    higher = choose(
        table_of([[(float(i), f"{i}") for i in range(8)]] * 50), "proxy", Rule("rso_pairs", beta=1.0)
    )
    assert 10 < (higher.control[:, 0] > higher.control[:, 1]).sum() < 40


def test_a_pair_of_rejection_sampling_has_two_texts_and_two_scores():
    rule = Rule("rso_pairs", beta=1.0)
    assert len(choose(table_of([[(0.0, "a"), (1.0, "a")]]), "proxy", rule).chosen) == 0
    assert len(choose(table_of([[(1.0, "a"), (1.0, "b")]]), "proxy", rule).chosen) == 0
    assert choose(table_of([[(0.0, "a"), (1.0, "b")]]), "proxy", rule).chosen.tolist() == [[1, 0]]
    # two of three texts are one: the control takes the third for either side
    table = table_of([[(0.0, "a"), (1.0, "a"), (2.0, "b"), (3.0, "b"), (4.0, "b")]])
    choice = choose(table, "proxy", Rule("rso_pairs", k=4, beta=1e9, seed=1))
    texts = table["completion"].to_pylist()
    assert len(choice.chosen)
    assert all(texts[one] != texts[other] for one, other in choice.control.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "rso_pairs"}, "`strategy: rso_pairs` needs `beta`"),
        ({"strategy": "rso_pairs", "beta": 1.0, "k": 3}, "3 must be even"),
        ({"strategy": "pairs", "beta": 1.0}, "`beta` belongs to `strategy: rso` or `rso_pairs`"),
        ({"strategy": "threshold"}, "`strategy: threshold` needs `threshold`"),
        ({"strategy": "rso"}, "`strategy: rso` needs `beta`"),
        ({"strategy": "rso", "beta": 0.0}, "`beta` must be above 0"),
        ({"strategy": "best", "threshold": 1.0}, "`threshold` belongs to `strategy: threshold`"),
        ({"strategy": "best", "k": 2}, "write `top_k`"),
        ({"strategy": "top_k", "k": 0}, "`k` must be at least 1"),
        ({"strategy": "bset"}, "Did you mean 'best'"),
        ({"distinct": "texts"}, "Did you mean 'text'"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_an_error(options, message):
    with pytest.raises(RecipeError, match=message):
        Rule(**options)


def test_a_score_that_is_not_there_names_the_nearest():
    with pytest.raises(DataError, match=r"no score 'proxi'. Did you mean 'proxy'"):
        choose(scored(1.0), "proxi", Rule())
    with pytest.raises(DataError, match="holds string, not scores"):
        choose(scored(1.0), "completion", Rule())


def test_a_prompt_with_too_few_samples_is_named():
    table = table_of([[(1.0, "a"), (2.0, "b")], [(1.0, "a")]])
    with pytest.raises(DataError, match="prompt 'p1' has 1 samples, so 2 cannot be selected"):
        choose(table, "proxy", Rule("top_k", k=2))


def test_records_take_the_same_strategies_and_their_control_is_as_large():
    rows = [
        ScoredCompletion(f"p{p}", i, [], f"text {i}", 1, "stop", 0.0, {"proxy": float(i)})
        for p in range(2)
        for i in range(4)
    ]
    chosen = select(rows, by="proxy", strategy="threshold", threshold=2)
    assert [row.sample_index for row in chosen] == [3, 2, 3, 2]
    control = select_control(rows, chosen, seed=1)
    assert Counter(row.prompt_id for row in control) == {"p0": 2, "p1": 2}
    with pytest.raises(DataError, match="Call select_pairs"):
        select(rows, by="proxy", strategy="pairs")
    pairs = select_pairs(rows, "proxy", strategy="rso_pairs", k=4, beta=1.0)
    assert [pair.prompt_id for pair in pairs] == ["p0", "p0", "p1", "p1"]
    assert all(pair.chosen > pair.rejected for pair in pairs)  # text 3 before text 2
    control = select_random_pairs(rows, "proxy", strategy="rso_pairs", k=4, beta=1.0)
    assert [pair.prompt_id for pair in control] == ["p0", "p0", "p1", "p1"]
    assert any(pair.chosen < pair.rejected for pair in control)


def test_the_random_control_takes_every_sample_equally_often():
    table = table_of([[(0.0, f"text {sample}") for sample in range(4)] for _ in range(800)])
    for control in (choose(table, "proxy", Rule()).control, choose(table, "proxy", Rule("random")).chosen):
        taken = Counter(np.array(table["sample_index"])[control].tolist())
        assert stats.chisquare([taken[sample] for sample in range(4)]).pvalue > 1e-3


def test_the_streams_of_a_prompt_share_no_number():
    streams = [
        set(keyed_generator("sample", 0, prompt_id="p", stream=number).random(2000)) for number in range(4)
    ]
    assert len(set().union(*streams)) == 4 * 2000
