"""Diagnose a training run by its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.diagnosis.curves import RunLog, run_log
from handbook_utils.diagnosis.finding import Diagnosis, Finding, Verdict, worst_first
from handbook_utils.diagnosis.keys import KINDS
from handbook_utils.diagnosis.reading.logs import read_log, read_together
from handbook_utils.diagnosis.rules import every_run, looks, losses, online, preferences
from handbook_utils.diagnosis.signals import FEWEST, span
from handbook_utils.diagnosis.table import Table
from handbook_utils.errors import DataError, suggest

RULES: tuple[Callable[[RunLog], Iterator[Finding]], ...] = (
    every_run.check_finite,
    every_run.check_zero_loss,
    every_run.check_learning_rate,
    losses.check_divergence,
    losses.check_flat,
    losses.check_spikes,
    losses.check_held_out,
    losses.check_memorised,
    looks.check_looks,
    preferences.check_reference,
    preferences.check_displacement,
    preferences.check_accuracy,
    preferences.check_chance,
    online.check_reward,
    online.check_variance,
    online.check_hacking,
    online.check_length,
    online.check_entropy,
    online.check_kl,
    online.check_parts,
    every_run.check_restarts,
    losses.check_level,
)
# evaluations are means over many rows: as many as show a turn
EVALUATIONS = 3
# all that is said of a log whose task is not known
OF_ANY_TASK = (every_run.check_finite, every_run.check_learning_rate)


def diagnose(log: str | Path | Iterable[Mapping[str, Any]], *, kind: str | None = None) -> Diagnosis:
    """Say what a training run is, and what is wrong with it, from its log alone.

    Args:
        log: a run folder; a log file: metrics.jsonl, trainer_state.json, trainer_log.jsonl, TensorBoard's
            event files and CSV, a tracker's CSV, a notebook, the text that training printed; or records, such
            as `trainer.state.log_history`. Keys may be those of any release.
        kind: what the run trains: "sft", "dpo", "kto", "orpo", "reward", "grpo" or "ppo". By default the
            log says it; where it logs only a loss, that is a guess, and the diagnosis says so.
    Returns:
        The kind of run, a verdict, and findings with their evidence, the worst first. A log with too few
        records for any verdict is "too_short", unless a fault shows in them.
    Raises:
        DataError: there is no log, it cannot be read as records, or there is no such kind.

    >>> records = [{"step": n, "loss": 2.0 / n, "learning_rate": 1e-5} for n in range(1, 41)]
    >>> diagnose(records).verdict
    'caution'
    >>> diagnose(records[:3] + [{"step": 4, "loss": float("nan"), "learning_rate": 1e-5}]).findings[0].rule
    'nan'
    """
    check_kind(kind)
    if isinstance(log, str | Path):
        return diagnose_table(read_log(Path(log)), kind)
    table = Table()
    for record in log:
        table.add(record)
    return diagnose_table(table, kind)


def check_kind(kind: str | None) -> None:
    """Refuse a kind of run that no rule knows.

    Raises:
        DataError: there is none of that name.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"'{kind}' is no kind of run. {suggest(kind, KINDS)}")


def diagnose_files(paths: Sequence[Path], kind: str | None = None) -> Diagnosis:
    """The diagnosis of files that make one log together, such as TensorBoard's CSV per tag."""
    return diagnose(paths[0], kind=kind) if len(paths) == 1 else diagnose_table(read_together(paths), kind)


def diagnose_table(table: Table, kind: str | None = None) -> Diagnosis:
    """The diagnosis of records that were read."""
    if not table.records:
        return Diagnosis("unknown", "too_short", remarks=tuple(table.remarks))
    log = run_log(table, kind)
    known = log.kind != "other"
    findings = [finding for rule in (RULES if known else OF_ANY_TASK) for finding in rule(log)]
    every = [span(curve) for curve in log.curves.values() if len(curve)]
    steps = (min(first for first, _ in every), max(last for _, last in every)) if every else None
    return Diagnosis(
        kind=log.kind if known else "unknown",
        verdict=_verdict(log, findings),
        findings=worst_first(findings),
        records=log.records,
        steps=steps,
        remarks=log.remarks,
        unit=log.unit,
        guess=log.guess,
    )


def _verdict(log: RunLog, findings: list[Finding]) -> Verdict:
    severities = {finding.severity for finding in findings}
    if "fault" in severities:
        return "faulty"
    if log.kind == "other":
        return "unknown"
    evaluations = max(len(log["eval_loss"].finite), len(log["eval_accuracy"].finite))
    if len(log.main.finite) < FEWEST and evaluations < EVALUATIONS:
        return "too_short"
    return "caution" if "caution" in severities else "healthy"
