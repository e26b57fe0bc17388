"""Scores of a benchmark: one per question, their mean with an interval, two models question by question."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handbook_utils.errors import DataError
from handbook_utils.evaluation.reward.report import holm
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.evaluation.win_rate import PairedComparison, compare_paired
from handbook_utils.records import Estimate

# how far a mean of ours may be from the harness's, for both to be the same mean: the order of a sum
SAME = 1e-12


@dataclass(frozen=True)
class BenchmarkScore:
    """One metric of one task.

    Attributes:
        task: its name.
        metric: as the harness writes it, "metric,filter".
        theirs: the harness's own figure.
        stderr: the harness's standard error of it; None where it gives none.
        mean: the same figure with our interval over questions; None where it is no mean over questions.
        values: by question, its score; {} where the harness logs none.
        higher_is_better: None where the task does not say.
    """

    task: str
    metric: str
    theirs: float
    stderr: float | None
    mean: Estimate | None
    values: Mapping[str, float]
    higher_is_better: bool | None

    @property
    def name(self) -> str:
        """Task and metric."""
        return f"{self.task}: {self.metric}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is its inverse."""
        mean = None if self.mean is None else self.mean.to_json()
        return {**asdict(self), "mean": mean, "values": dict(self.values)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> BenchmarkScore:
        """What `to_json` wrote."""
        mean = record["mean"]
        return cls(**{**record, "mean": None if mean is None else Estimate.from_json(mean)})


def scored(results: Mapping[str, Any], *, seed: int = 0) -> list[BenchmarkScore]:
    """Every metric of the tasks that the harness ran, with an interval where it is a mean over questions.

    Args:
        results: what its `simple_evaluate` returned, with samples.
        seed: of the resampling.
    Raises:
        DataError: two samples of one question under one metric.
    """
    found = []
    for task, figures in results["results"].items():
        samples = results.get("samples", {}).get(task, [])
        better = results.get("higher_is_better", {}).get(task, {})
        for key, theirs in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(theirs):
                continue
            values = _values(samples, metric, filtered, task)
            found.append(
                BenchmarkScore(
                    task=task,
                    metric=key,
                    theirs=float(theirs),
                    stderr=_number(figures.get(f"{metric}_stderr,{filtered}")),
                    mean=_mean(values, float(theirs), metric, seed),
                    values=values,
                    higher_is_better=better.get(metric),
                )
            )
    return found


def _values(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str, task: str) -> dict[str, float]:
    """Each question's score, by its number and the checksum of its text; {} where one is no number."""
    rows = [row for row in samples if row.get("filter") == filtered]
    if any(not _is_number(row.get(metric)) for row in rows):
        return {}
    values: dict[str, float] = {}
    for row in rows:
        name = f"{row['doc_id']}:{row['doc_hash']}"
        if name in values:
            raise DataError(f"{task}: question {row['doc_id']} was answered twice, so it cannot be paired")
        values[name] = float(row[metric])
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _mean(values: Mapping[str, float], theirs: float, metric: str, seed: int) -> Estimate | None:
    if not values:
        return None
    rows = list(values.values())
    if abs(math.fsum(rows) / len(rows) - theirs) > SAME:
        return None  # such as a perplexity, or a score of the whole corpus
    return mean_estimate(rows, unit=metric, seed=seed)


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two models on the same questions.

    Attributes:
        name: of task and metric.
        paired: B minus A, with its interval and p-value.
        p_holm: the p-value corrected for all metrics that are compared at once (Holm 1979).
        higher_is_better: as in `BenchmarkScore`.
    """

    name: str
    paired: PairedComparison
    p_holm: float
    higher_is_better: bool | None


def compare_benchmarks(
    a: Sequence[BenchmarkScore], b: Sequence[BenchmarkScore], *, seed: int = 0
) -> tuple[list[BenchmarkComparison], list[str]]:
    """Compare what two models scored, question by question.

    Args:
        a: of the baseline.
        b: of the other model.
        seed: of the resampling.
    Returns:
        The comparisons, and names of what only one side has or cannot be paired, with the reason.
    Raises:
        DataError: they answered other questions under one name; or nothing is comparable.
    """
    known = {score.name: score for score in a}
    left_out = [f"{name}: not measured by the other" for name in known.keys() - {score.name for score in b}]
    pairs = []
    for score in b:
        other = known.get(score.name)
        if other is None:
            left_out.append(f"{score.name}: not measured by the baseline")
        elif score.mean is None or other.mean is None:
            left_out.append(f"{score.name}: not a mean over questions")
        else:
            _check_questions(score.name, other.values, score.values)
            pairs.append((score, compare_paired(other.values, score.values, unit=score.metric, seed=seed)))
    if not pairs:
        raise DataError(
            "nothing can be compared: " + ("; ".join(sorted(left_out)) or "no metrics on either side")
        )
    corrected = holm([paired.p_value for _, paired in pairs])
    compared = [
        BenchmarkComparison(score.name, paired, p, score.higher_is_better)
        for (score, paired), p in zip(pairs, corrected, strict=True)
    ]
    return compared, sorted(left_out)


def _check_questions(name: str, a: Mapping[str, float], b: Mapping[str, float]) -> None:
    if a.keys() == b.keys():
        return
    only = sorted(a.keys() ^ b.keys(), key=lambda question: int(question.partition(":")[0]))
    raise DataError(
        f"{name}: {len(only)} questions are not the same on both sides, such as number "
        f"{only[0].partition(':')[0]}. Run both with the same task, version and --limit."
    )
