"""What came of a sabotage: one record per claim and break, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Outcome:
    """What a claim did under one break.

    Attributes:
        claim: the claim's id.
        place: the stage or notebook that was broken.
        says: how it was broken.
        result: "failed" (as it must), "survived" (the claim is a defect) or "error" (nothing was shown).
        detail: what was measured, or the error.
        held_before: whether the claim held before the break; None where it was not looked at.
        runtime_s: seconds of the rerun, shared by all claims under the same break.
    """

    claim: str
    place: str
    says: str
    result: str
    detail: str
    held_before: bool | None
    runtime_s: float

    @property
    def is_fine(self) -> bool:
        """Whether the claim failed as it must."""
        return self.result == "failed"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """A table for the terminal, one line per claim and break."""
    table = Table(title="Sabotage: every claim has to fail")
    for heading in ("claim", "broken", "how", "the claim", "measured", "s"):
        table.add_column(heading, justify="right" if heading == "s" else "left")
    for each in outcomes:
        word = Text(each.result, style="green" if each.is_fine else "bold red")
        if each.held_before is False:
            word.append(" (and did not hold unbroken)", style="yellow")
        # Text, not markup: an error may hold brackets
        cells = (each.claim, each.place, each.says)
        table.add_row(*map(Text, cells), word, Text(each.detail), Text(f"{each.runtime_s:.0f}"))
    return table
