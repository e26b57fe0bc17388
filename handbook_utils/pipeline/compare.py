"""Two runs on the same prompts: is B better than A, by how much, how sure, and what else changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.evaluation.statistics import with_cautions
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.pipeline.tables import run_scores
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import differences, read_manifest


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
        a: the baseline's folder.
        b: the other's folder.
        by: the score compared.
        verdict: one sentence.
        metrics: `difference` (B minus A, paired by prompt) and `win_rate` of B.
        p_value: two-sided, by flipping the signs of prompts' differences.
        changes: how the runs' recipes, library versions and hardware differ, one line each.
        cautions: what to know before relying on the intervals.
    """

    a: Path
    b: Path
    by: str
    verdict: str
    metrics: dict[str, Estimate]
    p_value: float
    changes: list[str]
    cautions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": str(self.a),
            "b": str(self.b),
            "by": self.by,
            "verdict": self.verdict,
            "metrics": {name: figure.to_json() for name, figure in self.metrics.items()},
            "p_value": self.p_value,
            "changes": self.changes,
            "cautions": list(self.cautions),
        }


def compare_runs(run_a: str | Path, run_b: str | Path, *, by: str = "gold", seed: int = 0) -> Comparison:
    """Compare two finished `evaluate` or `score` runs, paired by prompt.

    Args:
        run_a: the baseline.
        run_b: the other, on the same prompts.
        by: the score column to compare.
        seed: seed of the resampling.
    Raises:
        RunFolderError: a folder is no finished run.
        DataError: the column is missing, or the prompts are not the same.
    """
    a, b = Path(run_a), Path(run_b)
    for path in (a, b):
        read_result(path)
    scores_a, scores_b = run_scores(a, by), run_scores(b, by)
    found, cautions = with_cautions(lambda: compare_paired(scores_a, scores_b, unit=by, seed=seed))
    sure = f"p = {found.p_value:.2g}, {found.n} prompts"
    verdict = f"{found.verdict}: {by} of B minus A is {found.difference} ({sure})"
    metrics = {"difference": found.difference, "win_rate": found.win_rate}
    return Comparison(a, b, by, verdict, metrics, found.p_value, _changes(a, b), cautions)


def _changes(a: Path, b: Path) -> list[str]:
    first, second = read_manifest(a), read_manifest(b)
    lines = differences({"recipe": first["recipe"]}, second["recipe"], {})
    for what in ("versions", "hardware"):
        lines += differences({"recipe": {what: first[what]}}, {what: second[what]}, {})
    return lines
