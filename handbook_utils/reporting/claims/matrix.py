"""What came of breaking things on purpose: claims by breaks, kept in `book/results/sabotage.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from handbook_utils.reporting.results import provenance
from handbook_utils.runs.atomic import write_json

FAILED, HELD = "failed", "held"
# the claims of the packaged pipeline, beside the notebooks' names
PIPELINE = "pipeline"


@dataclass(frozen=True)
class Tried:
    """What one break did.

    Attributes:
        claims: by id "failed", "held", or None where nothing was measured.
        stopped: errors other than a claim's own, such as an assertion that noticed the break first.
        runtime_s: seconds of the run.
    """

    claims: Mapping[str, str | None]
    stopped: Sequence[str] = field(default_factory=list)
    runtime_s: float = 0.0


def break_record(
    tried: Tried, *, mechanism: str, says: str, line: str, fails: Sequence[str], key: str
) -> dict[str, Any]:
    """A break as it is stored.

    Args:
        tried: what it did.
        mechanism: what it breaks.
        says: how, in words.
        line: the change itself, for a reader.
        fails: claims that have to fail.
        key: of what was run; another one makes the record out of date.
    """
    return {
        "mechanism": mechanism,
        "says": says,
        "line": line,
        "fails": list(fails),
        "claims": dict(tried.claims),
        "stopped": list(tried.stopped),
        "runtime_s": tried.runtime_s,
        "date": datetime.now(UTC).date().isoformat(),
        "key": key,
    }


def surviving(record: Mapping[str, Any]) -> list[str]:
    """Claims that had to fail under a break and did not.

    >>> surviving({"fails": ["a", "b"], "claims": {"a": "failed", "b": "held", "c": "held"}})
    ['b']
    """
    return [name for name in record["fails"] if record["claims"].get(name) != FAILED]


def read_matrix(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Breaks by place (a notebook's name, or "pipeline") and name; {} where nothing is stored."""
    if not path.exists():
        return {}
    places: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))["places"]
    return places


def store_break(path: Path, place: str, name: str, record: Mapping[str, Any]) -> None:
    """Add a break to the file, or put it in the place of an earlier result."""
    places = read_matrix(path)
    places.setdefault(place, {})[name] = dict(record)
    write_json(path, {**provenance(seeds=[0]), "places": places})


def drop_unknown(path: Path, known: Mapping[str, Sequence[str]]) -> None:
    """Take out breaks that nothing lists any more."""
    places = read_matrix(path)
    kept = {
        place: {name: each for name, each in breaks.items() if name in known.get(place, ())}
        for place, breaks in places.items()
    }
    if kept != places:
        write_json(path, {**provenance(seeds=[0]), "places": {p: b for p, b in kept.items() if b}})


def matrix_table(place: str, breaks: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table for the terminal, one line for each break."""
    table = Table(title=f"{place}: claims under each break")
    for heading in ("break", "mechanism", "fails, as it must", "survives", "fails too", "noticed by", "s"):
        table.add_column(heading, justify="right" if heading == "s" else "left")
    for name, record in breaks.items():
        survivors = surviving(record)
        broken = [claim for claim in record["fails"] if claim not in survivors]
        too = [c for c, found in record["claims"].items() if found == FAILED and c not in record["fails"]]
        cells = [Text(name), Text(record["mechanism"]), Text(", ".join(broken), style="green")]
        cells += [Text(", ".join(survivors), style="bold red"), Text(", ".join(too))]
        # Text, not markup: an error may hold brackets
        cells += [Text("; ".join(record["stopped"])[:80]), Text(f"{record['runtime_s']:.0f}")]
        table.add_row(*cells)
    return table
