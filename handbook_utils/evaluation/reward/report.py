"""Every figure on reward models from scores of compared answers; arrays in, plain records out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.prompt_rows import prompt_means
from handbook_utils.evaluation.reward.bias import length_bias, position_bias
from handbook_utils.evaluation.reward.calibration import Calibration, calibration
from handbook_utils.evaluation.reward.comparisons import Comparisons, Scores, check_scores
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference, with_cautions
from handbook_utils.records import Estimate

_HISTOGRAM = 20


@dataclass(frozen=True)
class Compared:
    """Two scorers on the same rows.

    Attributes:
        a: the first.
        b: the other.
        subset: the part of the benchmark; "" for all rows.
        difference: accuracy of `b` minus that of `a`, paired by prompt.
        p_value: of "no difference": the sign test over prompts (McNemar's, exact, where prompts have one
            row).
        p_holm: the same, corrected for all comparisons of the report.
    """

    a: str
    b: str
    subset: str
    difference: Estimate
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class ModelReport:
    """What is known of one model.

    Attributes:
        figures: `accuracy`, `margin`, `gain_over_length_ruler`, those of `bias`, and with gold rewards
            `agreement_with_gold`.
        subsets: accuracy by part of the benchmark.
        calibration: None where rows are not pairs, of which σ(margin) says nothing.
        distribution: of all scores: mean, sd, share tied, edges and counts of a histogram on either side.
    """

    figures: dict[str, Estimate]
    subsets: dict[str, Estimate]
    calibration: Calibration | None
    distribution: dict[str, Any]


@dataclass(frozen=True)
class RewardReport:
    """A report on one or several reward models.

    Attributes:
        rows: compared rows.
        prompts: distinct prompts.
        models: by name.
        rulers: accuracy of both rulers, over all rows ("") and by subset.
        comparisons: of every two models, over all rows and by subset, with Holm's correction.
        ensemble: how several models differ; {} for one.
        cautions: what to know before relying on the intervals.
    """

    rows: int
    prompts: int
    models: dict[str, ModelReport]
    rulers: dict[str, dict[str, Estimate]]
    comparisons: list[Compared]
    ensemble: dict[str, Any]
    cautions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(_plain(asdict_shallow(self)))


def asdict_shallow(record: Any) -> dict[str, Any]:
    """A record's fields, not copied."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, Calibration):
        temperature = value.temperature if math.isfinite(value.temperature) else None
        return {
            "bins": [asdict(b) for b in value.bins],
            "error": value.error.to_json(),
            "temperature": temperature,
        }
    if isinstance(value, ModelReport | RewardReport | Compared):
        return _plain(asdict_shallow(value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def reward_report(rows: Comparisons) -> RewardReport:
    """Report on the models of some compared answers.

    Raises:
        DataError: no rows, a score that is not finite, or a model that gives every answer the same score.
    """
    for name, scores in rows.models.items():
        check_scores(name, scores)
    report, cautions = with_cautions(lambda: _report(rows))
    return replace(report, cautions=cautions)


def _report(rows: Comparisons) -> RewardReport:
    parts = rows.subset_rows()
    rulers = {
        name: {"": _accuracy(rows, scores)} | _by_part(rows, scores, parts)
        for name, scores in rows.rulers.items()
    }
    models = {name: _model(rows, scores, parts) for name, scores in rows.models.items()}
    comparisons = compare_models(rows, parts)
    number = len(np.unique(rows.prompts))
    return RewardReport(len(rows.prompts), number, models, rulers, comparisons, _ensemble(rows))


def _model(rows: Comparisons, scores: Scores, parts: Mapping[str, NDArray[np.intp]]) -> ModelReport:
    length = next(iter(rows.rulers.values()))
    figures = {
        "accuracy": _accuracy(rows, scores),
        "margin": mean_estimate(scores.margin, clusters=rows.prompts, unit="score"),
        "gain_over_length_ruler": paired_difference(
            length.correct, scores.correct, clusters=rows.prompts, unit="rate"
        ),
    }
    figures |= length_bias(rows, scores) | position_bias(rows, scores)
    if rows.gold is not None:
        known = rows.gold.margin != 0
        if known.any():
            agrees = (np.sign(scores.margin) * np.sign(rows.gold.margin) + 1)[known] / 2
            figures["agreement_with_gold"] = mean_estimate(agrees, clusters=rows.prompts[known], unit="rate")
    found = calibration(scores, rows.prompts) if rows.is_pair else None
    return ModelReport(figures, _by_part(rows, scores, parts), found, _distribution(rows, scores))


def _accuracy(rows: Comparisons, scores: Scores) -> Estimate:
    return mean_estimate(scores.correct, clusters=rows.prompts, unit="rate")


def _by_part(rows: Comparisons, scores: Scores, parts: Mapping[str, NDArray[np.intp]]) -> dict[str, Estimate]:
    correct = scores.correct
    return {
        name: mean_estimate(correct[at], clusters=rows.prompts[at], unit="rate") for name, at in parts.items()
    }


def _distribution(rows: Comparisons, scores: Scores) -> dict[str, Any]:
    both = np.concatenate([scores.right, scores.wrong])
    edges = np.histogram_bin_edges(both, _HISTOGRAM)
    found: dict[str, Any] = {
        "mean": float(both.mean()),
        "sd": float(both.std(ddof=1)),
        "tied": float(np.mean(scores.margin == 0)),
        "edges": [float(edge) for edge in edges],
        "right": np.histogram(scores.right, edges)[0].tolist(),
        "wrong": np.histogram(scores.wrong, edges)[0].tolist(),
    }
    if rows.gold is not None:
        gold = np.concatenate([rows.gold.right, rows.gold.wrong])
        if np.ptp(gold):
            found["rank_correlation_with_gold"] = float(stats.spearmanr(both, gold).statistic)
    return found


def compare_models(rows: Comparisons, parts: Mapping[str, NDArray[np.intp]]) -> list[Compared]:
    """Every two models on all rows and on each part, with p-values corrected for all of these by Holm."""
    everything = {"": np.arange(len(rows.prompts)), **parts}
    found = []
    for (a, first), (b, second) in itertools.combinations(rows.models.items(), 2):
        for part, at in everything.items():
            x, y, prompts = first.correct[at], second.correct[at], rows.prompts[at]
            difference = paired_difference(x, y, clusters=prompts, unit="rate")
            found.append((a, b, part, difference, sign_test(prompt_means(y - x, prompts))))
    corrected = holm([row[-1] for row in found])
    return [Compared(*row, p_holm=p) for row, p in zip(found, corrected, strict=True)]


def sign_test(differences: Array) -> float:
    """Two-sided exact p-value of "as many prompts go up as down"; prompts without a difference say nothing.

    Source: Dixon & Mood 1946; for one row of right or wrong per prompt this is McNemar's exact test.

    >>> sign_test(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, -1.0]))
    0.21875
    """
    up, down = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected so that the chance of any false finding among them keeps its level.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _ensemble(rows: Comparisons) -> dict[str, Any]:
    if len(rows.models) < 2:
        return {}
    margins = np.array([scores.margin for scores in rows.models.values()])
    scales = margins.std(axis=1, keepdims=True)
    votes = np.sign(margins).sum(axis=0)
    unanimous = np.abs(votes) == len(margins)
    joint = (np.sign((margins / np.where(scales > 0, scales, 1)).mean(axis=0)) + 1) / 2
    found: dict[str, Any] = {
        "models": list(rows.models),
        "correlation_of_margins": np.corrcoef(margins).tolist(),
        "unanimous": mean_estimate(unanimous * 1.0, clusters=rows.prompts, unit="rate"),
        "accuracy_of_mean": mean_estimate(joint, clusters=rows.prompts, unit="rate"),
    }
    for name, there in (("accuracy_where_unanimous", unanimous), ("accuracy_where_split", ~unanimous)):
        if there.sum() >= 2:
            found[name] = mean_estimate(joint[there], clusters=rows.prompts[there], unit="rate")
    return found
