"""What was found in a log: findings, the verdict they make, and how both are shown as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from handbook_utils.diagnosis.curves import Curve

Severity = Literal["note", "caution", "fault"]
Confidence = Literal["low", "medium", "high"]
Verdict = Literal["healthy", "caution", "faulty", "too_short", "unknown"]
SEVERITIES: tuple[Severity, ...] = ("note", "caution", "fault")
_BARS = "▁▂▃▄▅▆▇█"


def sparkline(curve: Curve, width: int = 40) -> str:
    """A curve in one line of text: the mean of each of at most `width` stretches; `×` is not finite.

    >>> import numpy as np
    >>> sparkline(Curve(np.arange(4.0), np.array([0.0, 1.0, float("nan"), 2.0])))
    '▁▅×█'
    """
    if not len(curve):
        return ""
    chunks = np.array_split(curve.values, min(width, len(curve)))
    # a mean of what is finite: one NaN among many is shown as it is
    means = [float(np.mean(chunk)) if np.isfinite(chunk).all() else np.nan for chunk in chunks]
    finite = [mean for mean in means if np.isfinite(mean)]
    if not finite:
        return "×" * len(means)
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if np.isfinite(high - low) and high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if np.isfinite(mean) else "×" for mean in means)


@dataclass(frozen=True)
class Finding:
    """One thing that a rule saw in a log.

    Attributes:
        rule: the rule's name, such as "overfitting".
        severity: "note" (worth knowing), "caution" (look at it), "fault" (the run is not worth its time).
        steps: first and last step that the evidence is from.
        evidence: what was seen, with its numbers.
        confidence: how sure the rule is of the cause, not of the numbers: "low", "medium", "high".
        means: what this commonly means.
        remedy: the one command or setting to try; `try` in JSON.
        source: the paper, documentation or measurement that the rule rests on.
        picture: the curve as a line of text; "" where there is none.
    """

    rule: str
    severity: Severity
    steps: tuple[float, float]
    evidence: str
    confidence: Confidence
    means: str
    remedy: str
    source: str
    picture: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names that programs read."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "steps": [_whole(step) for step in self.steps],
            "evidence": self.evidence,
            "confidence": self.confidence,
            "try": self.remedy,
        }


@dataclass(frozen=True)
class Diagnosis:
    """What a log says of its run.

    Attributes:
        kind: what is trained: "sft", "dpo", "kto", "orpo", "reward", "grpo", "ppo", or "unknown".
        verdict: "healthy", "caution", "faulty", "too_short" (too few records to tell), or "unknown" (not the
            log of a language model's training, as far as can be seen).
        findings: the worst first.
        records: how many records were read.
        steps: first and last step; None for a log without records.
        remarks: what was left out in reading, in words.
    """

    kind: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    records: int = 0
    steps: tuple[float, float] | None = None
    remarks: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain values: kind, verdict, and findings with rule, severity, steps, evidence, confidence, try."""
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.verdict} ({self.records} records)"]
        lines += [f"  {one.severity}: {one.rule}: {one.evidence}" for one in self.findings]
        return "\n".join(lines)


def _whole(step: float) -> int | float:
    return int(step) if float(step).is_integer() else round(float(step), 4)


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings by severity, then in the order of the rules."""
    return tuple(sorted(findings, key=lambda one: -SEVERITIES.index(one.severity)))
