"""Tokens to look at, in a terminal or a notebook. Whatever they say is text: nothing in it acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

# legible on light and dark pages alike; the underline says the same without colour
_LOSS = "background:rgba(64,160,96,.30);border-bottom:2px solid rgb(64,160,96)"
_NO_LOSS = "background:rgba(128,128,128,.14)"
_PIECE = "padding:1px 0;margin-right:1px;border-radius:2px"
_ROW = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:1.7"
_LEGEND = f'<span style="{_LOSS}">carries loss</span> <span style="{_NO_LOSS}">given</span>'


def printable(text: str) -> str:
    """Text without control characters, so that a model cannot steer the terminal.

    >>> printable("a\\x1b[31mb\\nc")
    'a\\\\x1b[31mb\\nc'
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def row_text(pieces: Sequence[str], loss: Sequence[bool]) -> str:
    """A row as plain text: what carries loss stands in double angle quotes, tokens are split by bars.

    >>> print(row_text(["<user>", "Hi", "<bot>", "Hello", "<end>"], [False, False, False, True, True]))
    <user>|Hi|<bot>|«Hello|<end>»
    """
    groups = [(counts, "|".join(map(_shown, run))) for counts, run in _runs(pieces, loss)]
    return "|".join(f"«{text}»" if counts else text for counts, text in groups)


def row_html(pieces: Sequence[str], loss: Sequence[bool]) -> str:
    """A row for a notebook: one box per token, coloured and underlined where it carries loss."""
    boxes = "".join(
        f'<span style="{_PIECE};{_LOSS if counts else _NO_LOSS}">{escape(_shown(piece))}</span>'
        for piece, counts in zip(pieces, loss, strict=True)
    )
    return f'<div style="{_ROW}">{boxes}</div><p>{_LEGEND} ({sum(loss)} of {len(loss)} tokens)</p>'


def row_markup(pieces: Sequence[str], loss: Sequence[bool]) -> list[tuple[str, str]]:
    """A row for rich: (text, style), neighbouring tokens alternately shaded."""
    styles = {True: ("black on green", "black on bright_green"), False: ("dim", "dim reverse")}
    return [
        (_shown(piece), styles[counts][place % 2])
        for place, (piece, counts) in enumerate(zip(pieces, loss, strict=True))
    ]


def _runs(pieces: Sequence[str], loss: Sequence[bool]) -> Iterable[tuple[bool, list[str]]]:
    for counts, run in groupby(zip(pieces, loss, strict=True), key=lambda pair: pair[1]):
        yield counts, [piece for piece, _ in run]


def _shown(piece: str) -> str:
    return printable(piece).replace("\n", "↵\n")
