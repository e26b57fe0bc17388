"""Values as other tools write them: JSON as text, lists as Python prints them; and how errors show one."""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
from typing import Any, NoReturn

_SHORT = reprlib.Repr()  # from 3.12 on it takes these as arguments
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 60, 60, 3, 3
# a text in quotes as Python prints it, or what stands between two of them
_PIECES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^'"]+""", re.DOTALL)
# beyond Python itself: arrays of numpy put no commas between objects, and tables have NaN for none
_PRINTED = (
    (re.compile(r"\}\s*\{"), "}, {"),
    (re.compile(r"\]\s*\["), "], ["),
    (re.compile(r"\barray\("), "("),
    (re.compile(r",\s*dtype=object\)"), ")"),
    (re.compile(r"\bnan\b"), "None"),
)
# longer than any conversation, shorter than what makes Python's parser slow
LONGEST = 1 << 24


# what people and tools call an answer that is wanted, and one that is not
_LIKED = {"true", "1", "1.0", "desirable", "chosen", "good", "accepted", "liked", "thumbs_up", "thumbsup"}
_DISLIKED = {"false", "0", "0.0", "undesirable", "rejected", "bad", "disliked", "thumbs_down", "thumbsdown"}


class ShapeError(ValueError):
    """What is wrong with a value, without its place: the reader of the row adds row and column."""


class LostValueError(ValueError):
    """JSON holds what would be lost in reading it: a key that comes twice, a number beyond all bounds."""


def shown(value: Any) -> str:
    """A value's type and start, short enough for an error message.

    >>> shown(["a", 1])
    "list ['a', 1]"
    """
    return f"{type(value).__name__} {_SHORT.repr(value)}"


def parse_text(text: str) -> Any:
    """What a text holds: JSON, or a list or dict as Python, pandas or numpy prints it.

    Raises:
        ShapeError: it is neither.

    >>> parse_text('{"a": null}') == parse_text("{'a': None}")
    True
    >>> parse_text("[{'a': 1}\\n {'a': nan}]")
    [{'a': 1}, {'a': None}]
    """
    try:
        return json.loads(
            text, parse_constant=_no_number, parse_float=read_float, object_pairs_hook=read_object
        )
    except LostValueError as error:
        raise ShapeError(str(error)) from None
    except (ValueError, RecursionError) as error:
        reason = str(error)
    if not text.lstrip().startswith(("[", "{")) or len(text) > LONGEST:
        raise ShapeError(f"is not JSON ({reason})")
    pieces = _PIECES.findall(text)
    try:
        if sum(map(len, pieces)) < len(text):
            raise ValueError("a quote is left open")
        if any("..." in piece for piece in pieces if piece[0] not in "'\""):
            raise ValueError("printed in part")
        return ast.literal_eval("".join(map(_as_python, pieces)).strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ShapeError(f"is neither JSON ({reason}) nor a list as Python prints it") from None


def is_liked(value: Any) -> bool | None:
    """Whether a label says that an answer is wanted; None where it says neither, as one of a topic.

    >>> is_liked("Desirable"), is_liked(0), is_liked("sports")
    (True, False, None)
    """
    plain = str(value).strip().lower().replace(" ", "_")
    return True if plain in _LIKED else False if plain in _DISLIKED else None


def list_in_text(value: Any) -> Any:
    """The list that a text holds, as in the cell of a CSV; any other value as it is.

    >>> list_in_text("[0, 1]"), list_in_text("[a note]"), list_in_text(None)
    ([0, 1], '[a note]', None)
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_text(value)
    except ShapeError:
        return value


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`.

    Raises:
        LostValueError: a key comes twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LostValueError(f"has the key '{twice}' twice in one object")
    return made


def read_float(text: str) -> float:
    """A number with a point or an exponent, for `json.loads`.

    Raises:
        LostValueError: it is too large to be kept, and would become infinity.
    """
    number = float(text)
    if math.isinf(number):
        raise LostValueError(f"has the number {text}, which is too large to be kept")
    return number


def _as_python(piece: str) -> str:
    if piece[0] in "'\"":
        return piece
    for printed, python in _PRINTED:
        piece = printed.sub(python, piece)
    return piece


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
