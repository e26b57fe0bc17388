"""A look at data as an HTML page of its own: it needs no other file, and nothing that rows say acts in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from handbook_utils.chat.view import printable
from handbook_utils.curation.look import PERCENTILES, SHOWN_COLUMNS, Look, ShownRow

# longer texts are cut in the page, and it says so
SHOWN_CHARACTERS = 20_000
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.message { border-left: .25rem solid var(--line); background: var(--soft); margin: .5rem 0;
  padding: .4rem .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.learned { border-left-color: rgb(64,160,96); }
.speaker { font-weight: 600; }
.problem { overflow-wrap: anywhere; }
"""


def page_html(looks: Sequence[Look]) -> str:
    """The page.

    Args:
        looks: one for each source.
    """
    title = "Data: " + ", ".join(look.label for look in looks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{_text(title)}</h1>\n{''.join(map(_section, looks))}</body></html>\n"
    )


def _section(look: Look) -> str:
    parts = [
        f"<section><h2>{_text(look.label)}</h2>",
        f"<p><code>{_text(look.name)}</code>: {look.rows:,} rows of {_text(look.kind)} data, "
        f"{look.readable:,} of them readable.</p>",
        f"<p>Read as {_text(look.recognised)}.</p>" if look.recognised else "",
        _columns(look),
        _problems(look),
        _lengths(look),
        _bias(look),
        *map(_row, look.shown),
    ]
    return "\n".join(filter(None, parts)) + "</section>\n"


def _columns(look: Look) -> str:
    names = ", ".join(f"<code>{_text(name)}</code>" for name, _ in look.columns.most_common(SHOWN_COLUMNS))
    more = len(look.columns) - SHOWN_COLUMNS
    return f"<p>Columns: {names}{f' and {more:,} more' if more > 0 else ''}.</p>"


def _problems(look: Look) -> str:
    if not look.problems:
        return ""
    items = "".join(f'<li class="problem">{_text(why)}</li>' for _, why in look.problems)
    return f"<h3>Rows that training would refuse: {look.rows - look.readable:,}</h3><ul>{items}</ul>"


def _lengths(look: Look) -> str:
    rows = [
        [f"{part}, {unit}", *(f"{found[name]:,.0f}" for name, _ in PERCENTILES)]
        for part, units in look.lengths.items()
        for unit, found in units.items()
    ]
    note = f"<p>Tokens are counted in {look.sampled:,} rows.</p>" if look.sampled is not None else ""
    return _table(["length per row", *(name for name, _ in PERCENTILES)], rows) + note if rows else ""


def _bias(look: Look) -> str:
    if look.length_bias is None:
        return ""
    found = look.length_bias["longer_chosen"]
    return (
        f"<p>The longer answer is the chosen one in {found['value']:.1%} of {found['n']:,} pairs "
        f"[{found['low']:.1%}, {found['high']:.1%}].</p>"
    )


def _row(row: ShownRow) -> str:
    parts = [f"<h3>Row {row.number:,}</h3>"]
    if row.problem:
        parts.append(f'<p class="problem">{_text(row.problem)}</p>')
    if row.rendered:
        # its tokens are escaped there
        parts += [f'<div class="wide">{one._repr_html_()}</div>' for one in row.rendered]
    else:
        parts += [_message(*said) for said in row.messages]
    return "".join(parts)


def _message(speaker: str, text: str, learned: bool) -> str:
    cut = "" if len(text) <= SHOWN_CHARACTERS else f"\n(cut here: {len(text):,} characters)"
    classes = "message learned" if learned else "message"
    learns = " (learned)" if learned else ""
    return (
        f'<div class="{classes}"><span class="speaker">{_text(speaker)}{learns}</span>\n'
        f"{_text(text[:SHOWN_CHARACTERS] + cut)}</div>"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(text: str) -> str:
    return escape(printable(text))
