"""Agreement between people: published examples, limits worked by hand, and how often intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handbook_utils.errors import DataError
from handbook_utils.evaluation.agreement import cohen_kappa, krippendorff_alpha, plain_agreement

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
PUBLISHED = np.array([[math.nan if c == "." else float(c) for c in row.split()] for row in OBSERVERS]).T


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    nominal, interval = (krippendorff_alpha(PUBLISHED, distance=d) for d in ("nominal", "interval"))
    assert (round(nominal.value, 3), round(interval.value, 3)) == (0.743, 0.849)
    assert nominal.n == 11  # the last unit has one judgement, which can agree with none
    assert nominal.low < 0.743 < nominal.high < 1


def test_kappa_is_that_of_a_table_worked_by_hand() -> None:
    # 45 yes-yes, 15 yes-no, 25 no-yes, 15 no-no of 100: observed .60; by chance .6 * .7 + .4 * .3 = .54
    first = [1] * 60 + [0] * 40
    second = [1] * 45 + [0] * 15 + [1] * 25 + [0] * 15
    assert cohen_kappa(first, second).value == pytest.approx((0.60 - 0.54) / (1 - 0.54))
    assert cohen_kappa([*first, 1], [*second, math.nan]).n == 100


def test_agreement_beyond_chance_is_none_of_people_who_answer_at_random() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (4000, 3)).astype(float)
    alpha = krippendorff_alpha(values)
    assert alpha.low < 0 < alpha.high
    assert plain_agreement(values).value == pytest.approx(1 / 3, abs=0.02)


def test_full_agreement_on_few_items_is_not_called_certain() -> None:
    values = np.array([[0.0, 0.0]] * 5 + [[1.0, 1.0]] * 5)
    alpha, kappa = krippendorff_alpha(values), cohen_kappa(*values.T)
    assert alpha.value == kappa.value == alpha.high == 1
    # no item of ten differs: at most 1 - 0.05 ** (1 / 10) = 25.9 % of all do; chance differs in half of them
    assert kappa.low == pytest.approx(1 - (1 - 0.05**0.1) / 0.5)
    assert alpha.method == "exact bound"
    few = krippendorff_alpha([[0, 0], [1, 1], [0, 1]])
    # three pairs of judgements, 3 zeros and 3 ones: chance differs in 3 * 3 * 2 / (6 * 5) = .6 of all
    assert few.low == pytest.approx(1 - 1 / 0.6)  # nothing is lower than everybody disagreeing


def test_what_has_no_value_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match="1 items were judged by two people"):
        krippendorff_alpha([[0, 1], [0, math.nan]])
    with pytest.raises(DataError, match="all judgements are the same one"):
        cohen_kappa([1, 1, 1], [1, 1, 1])
    with pytest.raises(DataError, match="Did you mean 'interval'"):
        krippendorff_alpha([[0, 1]], distance="intervall")
    with pytest.raises(DataError, match="lists of the same length"):
        cohen_kappa([1, 2], [1])


def planted(rng: np.random.Generator, items: int, noise: float, people: int = 2) -> np.ndarray:
    """Judgements of one truth, each replaced by a random one at the rate `noise`."""
    draw = lambda shape: rng.choice(3, size=shape, p=[0.45, 0.45, 0.1]).astype(float)  # noqa: E731
    truth = draw(items)[:, None]
    return np.where(rng.random((items, people)) < noise, draw((items, people)), truth)


@pytest.mark.parametrize("noise", [0.1, 0.5])
@pytest.mark.parametrize("items", [20, 60])
def test_intervals_hold_the_true_agreement_about_as_often_as_they_say(noise: float, items: int) -> None:
    # two judgements agree by truth in (1 - noise)^2, else by chance: both coefficients are (1 - noise)^2
    truth, rng = (1 - noise) ** 2, np.random.default_rng(1)
    found = [planted(rng, items, noise) for _ in range(400)]
    for estimates in ([krippendorff_alpha(v) for v in found], [cohen_kappa(*v.T) for v in found]):
        share = np.mean([each.low <= truth <= each.high for each in estimates])
        assert 0.92 <= share <= 0.985  # the standard error of the share is 0.011
