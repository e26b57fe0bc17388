"""A row per value: what is measured, its number, its step, and in some exports the run that it is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from handbook_utils.diagnosis.table import Table, to_number

# names of the columns, in small letters: MLflow's, TensorBoard's, Comet's, Neptune's
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "name": ("key", "metric", "tag", "name", "metricname", "metric_name", "path", "attribute_path"),
    "value": ("value", "metricvalue", "metric_value", "float_value"),
    "step": ("step", "iteration", "iter"),
    "run": ("run_id", "run_uuid", "run", "run_name", "experimentkey", "experiment_key", "sys/id", "run id"),
}
# a folder of a tracker in front of the name
_FOLDER = "metrics/"


def places_of_long(names: Sequence[str]) -> dict[str, int]:
    """Where name, value, step and run stand in a row per value; {} where the columns are of another table.

    >>> places_of_long(["run_id", "key", "value", "step"])
    {'name': 1, 'value': 2, 'step': 3, 'run': 0}
    """
    lowered = [str(name).strip().lower() for name in names]
    found = {
        what: next((lowered.index(name) for name in theirs if name in lowered), -1)
        for what, theirs in COLUMNS.items()
    }
    known = {what: place for what, place in found.items() if place >= 0}
    return known if {"name", "value"} <= known.keys() else {}


def add_long(table: Table, rows: Iterable[Sequence[Any]], places: Mapping[str, int]) -> None:
    """Add rows of one value each: those of one step are one record; of several runs the longest is read.

    Args:
        table: grows by the records.
        rows: cells, as text or numbers.
        places: where in a row name, value, step and run stand.
    """
    name, value, step, run = places["name"], places["value"], places.get("step"), places.get("run")
    runs: dict[str, dict[float, dict[str, float]]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        if len(row) <= max(places.values()):
            continue
        by_step = runs.setdefault(str(row[run]) if run is not None else "", {})
        number = to_number(str(row[value]))
        at = to_number(str(row[step])) if step is not None else float(len(by_step))
        if number is not None and at is not None:
            by_step.setdefault(at, {"step": at})[str(row[name]).removeprefix(_FOLDER)] = number
            counts[str(row[run]) if run is not None else ""] += 1
    if not counts:
        return
    longest = max(counts, key=lambda own: len(runs[own]))
    if len(counts) > 1:
        table.remark(f"rows of {len(counts)} runs in one file; read is the longest, '{longest}'")
    for at in sorted(runs[longest]):
        table.add(runs[longest][at])
