"""A claim: an interval that must clear a bound, drawn for the reader and kept as a record."""

from __future__ import annotations

import html
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from handbook_utils.errors import ClaimError, DataError
from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.records import Estimate
from handbook_utils.runs.atomic import write_json

Relation = Literal[">", "<"]

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")
_BLUE, _ORANGE = "#2b7bba", "#d1600f"  # told apart by the colour-blind, readable on white and on black


@dataclass(frozen=True)
class ClaimRecord:
    """A claim, what was measured for it, and whether it holds.

    Attributes:
        id: lower-case words joined by hyphens; the record's file name.
        says: the claim as a sentence; may be empty.
        estimate: the figure it rests on.
        relation: ">" (the interval's low end is above the bound) or "<" (its high end is below).
        bound: what the interval has to clear, in the estimate's unit.
        repeats: of a figure that was measured several times in one run, each of these.
    """

    id: str
    says: str
    estimate: Estimate
    relation: Relation
    bound: float
    repeats: tuple[Estimate, ...] = ()

    @property
    def end(self) -> float:
        """The end of the interval that is compared with the bound."""
        return self.estimate.low if self.relation == ">" else self.estimate.high

    @property
    def holds(self) -> bool:
        """Whether the interval clears the bound; touching it is not clearing it."""
        return self.end > self.bound if self.relation == ">" else self.end < self.bound

    def to_json(self) -> dict[str, Any]:
        """Return the record as `_build/claims/<id>.json` holds it; an infinite end becomes null."""
        found = self.estimate
        ends = {"value": found.value, "low": found.low, "high": found.high}
        return {
            "id": self.id,
            "says": self.says,
            **{name: end if math.isfinite(end) else None for name, end in ends.items()},
            "level": found.level,
            "n": found.n,
            "unit": found.unit,
            "method": found.method,
            "seed": found.seed,
            "relation": self.relation,
            "bound": self.bound,
            "holds": self.holds,
            **self._repeats(),
        }

    def _repeats(self) -> dict[str, Any]:
        each = [replace(self, estimate=found, repeats=()).to_json() for found in self.repeats]
        return {"repeats": [record | {"repeat": n} for n, record in enumerate(each, 1)]} if each else {}

    @property
    def measured(self) -> str:
        """The figure beside its bound, in one line."""
        relation = self.relation if self.holds else f"not {self.relation}"
        level = f"{self.estimate.level:.0%}".replace("%", " %")
        unit = f" {self.estimate.unit}" if self.estimate.unit else ""
        return f"{self.estimate}{unit} {relation} {self.bound:g} ({level} interval, n = {self.estimate.n})"

    def __str__(self) -> str:
        mark = "✔" if self.holds else "✘"
        return f"{mark} {self.id}: {self.says + ': ' if self.says else ''}{self.measured}"

    def _repr_html_(self) -> str:
        colour, mark, word = (_BLUE, "✔", "holds") if self.holds else (_ORANGE, "✘", "does not hold")
        says = f"{html.escape(self.says)}<br>" if self.says else ""
        style = f"border-left:4px solid {colour};padding:.35em .8em;margin:.5em 0"
        return (
            f'<div class="handbook-claim" style="{style}">'
            f'<strong style="color:{colour}" aria-label="{word}">{mark}</strong> {says}'
            f"<code>{html.escape(self.id)}</code> {html.escape(self.measured)}<br>{interval_svg(self)}</div>"
        )


def claim(
    claim_id: str,
    estimate: Estimate | Sequence[Estimate],
    relation: Relation,
    bound: float,
    *,
    says: str = "",
) -> Estimate:
    """Assert that an interval clears a bound; draw the claim and write its record first.

    Args:
        claim_id: lower-case words joined by hyphens, unique in the book ("dpo-beats-sft").
        estimate: the measured figure with its interval; or the figures of several repeats of what varies with
            the computer and not with the seed, such as a time: their mean is claimed, with its t interval.
        relation: ">" compares the interval's low end, "<" its high end.
        bound: what must be cleared, in the estimate's unit.
        says: the claim as a sentence for the reader; shown as text, never as markup.

    Returns:
        The estimate, so that a cell can end with the claim.

    Raises:
        ClaimError: the interval does not clear the bound. The record is written all the same.
        DataError: the id, relation or bound is not one.
    """
    record = make_claim(claim_id, estimate, relation, bound, says=says)
    show_claim(record)
    write_claim(record)
    assert_claim(record)
    return record.estimate


def assert_claim(record: ClaimRecord) -> None:
    """Raise ClaimError where the claim does not hold."""
    if not record.holds:
        raise ClaimError(
            f"claim '{record.id}' does not hold: {record.measured}. "
            "Look at the run that gave the figure before touching the bound."
        )


def make_claim(
    claim_id: str, estimate: Estimate | Sequence[Estimate], relation: str, bound: float, *, says: str = ""
) -> ClaimRecord:
    """Check the parts of a claim and put them together; nothing is asserted, drawn or written."""
    if not _ID.match(claim_id):
        raise DataError(
            f"claim id {claim_id!r} cannot name a record. "
            "Use lower-case words joined by hyphens, like 'dpo-beats-sft'."
        )
    if relation not in (">", "<"):
        raise DataError(f"claim '{claim_id}': relation {relation!r} is neither '>' nor '<'.")
    if not math.isfinite(bound):
        raise DataError(f"claim '{claim_id}': bound {bound} is no finite number.")
    repeats: tuple[Estimate, ...] = ()
    if not isinstance(estimate, Estimate):
        repeats = tuple(estimate)
        estimate = mean_over_seeds([each.value for each in repeats], unit=repeats[0].unit)
    return ClaimRecord(claim_id, says, estimate, cast(Relation, relation), float(bound), repeats)


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` that holds the book's configuration, else `start`.

    Notebooks run in `notebooks/`; their records belong beside everyone else's.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "_config.yml").is_file() and (folder / "_toc.yml").is_file():
            return folder
    return here


def claims_dir() -> Path:
    """Where records go: `$HANDBOOK_CLAIMS_DIR`, else `_build/claims` at the book's root."""
    named = os.environ.get("HANDBOOK_CLAIMS_DIR")
    return Path(named) if named else project_root() / "_build" / "claims"


def write_claim(record: ClaimRecord) -> Path:
    """Write `<id>.json` in one step, so that a reader never meets half a record."""
    path = claims_dir() / f"{record.id}.json"
    write_json(path, record.to_json())
    return path


def read_claims(folder: Path | None = None) -> list[dict[str, Any]]:
    """Read all claim records in a folder, ordered by id."""
    found = sorted((folder or claims_dir()).glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def show_claim(record: ClaimRecord) -> None:
    """Draw the claim: a block in a notebook, one line of text elsewhere."""
    shell = _notebook_shell()
    if shell is not None:
        from IPython.display import display

        show: Any = display  # IPython ships no types
        show({"text/html": record._repr_html_(), "text/plain": str(record)}, raw=True)
        return
    encoding = sys.stdout.encoding or "ascii"
    # a terminal without these signs gets a question mark, not a crash
    print(str(record).encode(encoding, errors="replace").decode(encoding))


def interval_svg(record: ClaimRecord) -> str:
    """Draw the interval beside its bound as a small picture with a text for screen readers."""
    width, found, bound = 260, record.estimate, record.bound
    finite = [x for x in (found.low, found.high, found.value, bound) if math.isfinite(x)]
    first, last = min(finite), max(finite)
    room = (last - first) * 0.15 or abs(first) * 0.1 or 1.0

    def place(x: float) -> float:
        share = (x - first + room) / (last - first + 2 * room)
        return round(min(max(share, 0.0), 1.0) * width, 1)

    colour = _BLUE if record.holds else _ORANGE
    low, high, value, mark = (place(x) for x in (found.low, found.high, found.value, bound))
    label = html.escape(f"interval {found}, bound {bound:g}")
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="18" viewBox="0 0 {width} 18" '
        'style="max-width:100%;vertical-align:middle">'
        f'<line x1="0" x2="{width}" y1="9" y2="9" stroke="currentColor" stroke-opacity=".25"/>'
        f'<line x1="{mark}" x2="{mark}" y1="1" y2="17" stroke="currentColor" stroke-dasharray="3 2"/>'
        f'<line x1="{low}" x2="{high}" y1="9" y2="9" stroke="{colour}" stroke-width="5" '
        'stroke-linecap="round"/>'
        f'<circle cx="{value}" cy="9" r="4.5" fill="{colour}"/></svg>'
    )


def _notebook_shell() -> Any:
    # looked up, not imported: outside a notebook IPython should not be loaded for this
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell if shell is not None and hasattr(shell, "kernel") else None
