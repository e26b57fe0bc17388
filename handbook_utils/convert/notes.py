"""What a conversion has still to read, and what it has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from handbook_utils.errors import RecipeError

BY_ITSELF = "this is the default here"
NO_VALUE = "no value, so it sets nothing."
Outcome = Literal["changed", "left out", "unknown"]


@dataclass(frozen=True)
class Note:
    """What became of one key, and why.

    Attributes:
        key: as in the file that was read.
        outcome: "changed": it lives on, elsewhere or as another value; "left out": on purpose; "unknown":
            no trainer of that stage has it, so a person has to look.
        why: where it went, or why it did not.
    """

    key: str
    outcome: Outcome
    why: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


@dataclass
class Work:
    """What is left to read of a file, and what was noted so far."""

    left: dict[str, Any]
    notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Work:
        """The work on a file; keys without a value set nothing and are noted."""
        work = cls({key: value for key, value in content.items() if value is not None})
        for key in (key for key, value in content.items() if value is None):
            work.note(str(key), "left out", NO_VALUE)
        return work

    def take(self, key: str, why: str | None = None) -> Any:
        """Remove a key and return its value; None where it is not there."""
        if key not in self.left:
            return None
        if why:
            self.note(key, "changed", why)
        return self.left.pop(key)

    def drop(self, key: str, why: str) -> None:
        """Remove a key and say why it is left out."""
        self.note(key, "left out", f"{shown(self.left.pop(key))}: {why}.")

    def note(self, key: str, outcome: Outcome, why: str) -> None:
        """Add a note."""
        self.notes.append(Note(key, outcome, why))


def expect(value: Any, kind: type | tuple[type, ...], key: str, wanted: str) -> None:
    """Refuse a value of another kind.

    Raises:
        RecipeError: names the key and what it holds.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RecipeError(f"'{key}' should be {wanted}, found {type(value).__name__} {shown(value)}.")


def shown(value: Any) -> str:
    """A value, short enough for a message.

    >>> shown(["tensorboard"])
    "['tensorboard']"
    """
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
