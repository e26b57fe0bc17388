"""Held-out figures of KTO, ORPO and CPO, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from handbook_utils.training import metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*:handbook_utils.evaluation.statistics.CoverageWarning")


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture
def marked() -> Dataset:
    rows = [(f"question {number}", number % 2 == 0) for number in range(4)]
    return Dataset.from_list(
        [{"prompt": message("user", p), "completion": message("assistant", p), "label": m} for p, m in rows]
    )


def test_feedback_figures_are_the_rewards_of_good_and_bad_answers(
    marked: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    logps = {"policy": [-1.0, -4.0, -3.0, -1.0], "reference": [-2.0, -2.0, -2.0, -2.0]}
    monkeypatch.setattr(metrics, "response_logprobs", lambda model, *_: np.array(logps[model]))
    found = metrics.feedback_metrics(("policy", "reference"), None, marked, beta=0.5, seed=0)
    # log-ratios 1, -2, -1, 1; rewards 0.5, -1, -0.5, 0.5; rows 0 and 2 are good, 1 and 3 bad
    assert found["reward_good"].value == pytest.approx((0.5 - 0.5) / 2)
    assert found["reward_bad"].value == pytest.approx((-1 + 0.5) / 2)
    # right: row 0 (good, up) and row 1 (bad, down)
    assert found["accuracy"].value == pytest.approx(2 / 4)


def test_only_good_answers_have_no_figure_of_bad_ones(
    marked: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "response_logprobs", lambda *_: np.zeros(2))
    found = metrics.feedback_metrics(("a", "b"), None, marked.select([0, 2]), beta=0.5, seed=0)
    assert "reward_bad" not in found
    # a reward of exactly zero decides nothing
    assert found["accuracy"].value == 0


@pytest.fixture
def one_pair(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A pair of which the chosen answer has two tokens and the rejected one has one."""
    sums: dict[str, Any] = {"c": (2 * np.log(0.8), 2), "r": (np.log(0.5), 1)}
    monkeypatch.setattr(
        metrics,
        "response_logprob_sums",
        lambda model, tokenizer, rows: tuple(np.array([value], float) for value in sums[rows[0][1]]),
    )
    sides = {"chosen": message("assistant", "c"), "rejected": message("assistant", "r")}
    return Dataset.from_list([{"prompt": message("user", "q"), **sides}])


@pytest.mark.parametrize(("per_token", "gap"), [(True, 0.8 / 0.5), (False, 0.8**2 / 0.5)])
def test_likelihoods_are_compared_as_sums_or_as_means_over_tokens(
    one_pair: Dataset, per_token: bool, gap: float
) -> None:
    found = metrics.likelihood_metrics(None, None, one_pair, per_token=per_token, beta=2.0, seed=0)
    assert found["margin"].value == pytest.approx(2 * np.log(gap))
    assert found["accuracy"].value == 1


def test_odds_ratio_figures_take_the_mean_over_an_answers_tokens(one_pair: Dataset) -> None:
    found = metrics.odds_ratio_metrics(None, None, one_pair, seed=0)
    # odds 0.8/0.2 = 4 and 0.5/0.5 = 1, so the log odds ratio is log 4
    assert found["log_odds_ratio"].value == pytest.approx(np.log(4))
    assert found["accuracy"].value == 1


def test_a_tie_is_no_right_answer_of_a_reward_model_or_an_implicit_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = {"prompt": "q", "chosen": "c", "rejected": "r"}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    row = {name: message(roles[name], text) for name, text in sides.items()}
    pairs = Dataset.from_list([{**row, "prompt": message("user", f"q{number}")} for number in range(4)])
    # one pair is right, one wrong, and two are ties
    scores = {"c": np.array([1.0, 0.0, 2.0, 2.0]), "r": np.array([0.0, 1.0, 2.0, 2.0])}
    monkeypatch.setattr(metrics, "reward_scores", lambda model, tokenizer, rows: scores[rows[0][1]])
    assert metrics.reward_accuracy(None, None, pairs, seed=0)["accuracy"].value == 1 / 4
    policy = {"policy": scores, "reference": dict.fromkeys("cr", np.zeros(4))}
    monkeypatch.setattr(
        metrics, "response_logprobs", lambda model, tokenizer, rows: policy[model][rows[0][1]]
    )
    found = metrics.implicit_reward_metrics(("policy", "reference"), None, pairs, beta=0.5, seed=0)
    # margins 0.5 * (1, -1, 0, 0)
    assert (found["accuracy"].value, found["margin"].value) == (1 / 4, 0)
