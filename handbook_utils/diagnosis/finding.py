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
    """A curve in one line of text: the mean of each of at most `width` stretches; `×`: nothing finite in it.

    >>> import numpy as np
    >>> sparkline(Curve(np.arange(4.0), np.array([0.0, 1.0, float("nan"), 2.0])))
    '▁▅×█'
    >>> sparkline(Curve(np.arange(4.0), np.array([0.0, float("nan"), 2.0, 2.0])), width=2)
    '▁█'
    """
    if not len(curve):
        return ""
    chunks = np.array_split(curve.values, min(width, len(curve)))
    # the evidence counts what is not finite; the picture shows what the rest does
    kept = [chunk[np.isfinite(chunk)] for chunk in chunks]
    means = [float(np.mean(chunk)) if len(chunk) else np.nan for chunk in kept]
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
        unit: what `steps` count: "step"; "epoch" or "record" for a log without steps.
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
    unit: str = "step"

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names that programs read; `unit` only where it is not "step"."""
        found: dict[str, Any] = {
            "rule": self.rule,
            "severity": self.severity,
            "steps": [_whole(step) for step in self.steps],
            "evidence": self.evidence,
            "confidence": self.confidence,
            "try": self.remedy,
        }
        return found if self.unit == "step" else found | {"unit": self.unit}


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
        unit: what `steps` count: "step"; "epoch" or "record" for a log without steps.
        guess: why `kind` is a guess; "" where the log, or the caller, says it.
    """

    kind: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    records: int = 0
    steps: tuple[float, float] | None = None
    remarks: tuple[str, ...] = field(default_factory=tuple)
    unit: str = "step"
    guess: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values: kind, verdict, and findings with rule, severity, steps, evidence, confidence, try.

        Where there is something to say: `guess` (why the kind is a guess) and `remarks`.
        """
        found: dict[str, Any] = {
            "kind": self.kind,
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
        }
        if self.guess:
            found["guess"] = self.guess
        return found | ({"remarks": list(self.remarks)} if self.remarks else {})

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.verdict} ({self.records} records)"]
        lines += [f"  {one.severity}: {one.rule}: {one.evidence}" for one in self.findings]
        return "\n".join(lines)


def _whole(step: float) -> int | float:
    return int(step) if float(step).is_integer() else round(float(step), 4)


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings by severity, then in the order of the rules."""
    return tuple(sorted(findings, key=lambda one: -SEVERITIES.index(one.severity)))
