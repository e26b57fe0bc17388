"""Lists of data formats and of curation's rules, made from the package's own: the book claims no others.

```{data-formats}
```
```{curation-rules}
```
"""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.curation.rules.table import RULES
from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.known_formats import FORMATS, Format

WIDTH = 80


def format_entries() -> list[tuple[str, str, str]]:
    """Name, rows and kinds of each format; rows that could not be read as one of its kinds stop the build.

    >>> format_entries()[0]
    ('text', '{"text": "Two and two make four."}', 'text')
    """
    for known in FORMATS.values():
        for kind in known.kinds:
            normalise_rows(known.rows, kind=kind, pairs=known.pairs)
    return [(name, "\n".join(map(_as_json, known.rows)), _gives(known)) for name, known in FORMATS.items()]


def _gives(known: Format) -> str:
    kinds = ", ".join(known.kinds)
    if known.pairs is None:
        return kinds
    rating = known.pairs.rating
    by = rating if isinstance(rating, str) else f"[{', '.join(rating or [])}]"
    return f"{kinds}, with pairs: {{rating: {by}}}"


def _as_json(row: Any) -> str:
    """JSON with a line per column, and a message on a line of its own; short rows stay on one line."""
    whole = json.dumps(row)
    if len(whole) <= WIDTH:
        return whole
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_value(value)}" for key, value in row.items()) + "\n}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    return json.dumps(value)


class FormatsList(SphinxDirective):
    """Every format the package recognises: its name, the kinds it gives, a row of it."""

    def run(self) -> list[nodes.Node]:
        """Build a definition list."""
        shown = nodes.definition_list()
        for name, row, kinds in format_entries():
            code = nodes.literal_block(row, row, language="json")
            term = nodes.term("", "", nodes.literal(text=name), nodes.Text(f" gives {kinds}"))
            shown += nodes.definition_list_item("", term, nodes.definition("", code))
        return [shown]


def rule_entries() -> list[tuple[str, str, str, str]]:
    """Name, default, what it finds and why, of each rule.

    >>> rule_entries()[0][:2]
    ('unreadable', 'drop')
    """
    return [(rule.name, rule.action, rule.finds, rule.because) for rule in RULES.values()]


class RulesTable(SphinxDirective):
    """Every rule of curation: its name, what becomes of its rows, what it finds and why."""

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        head = ("Rule", "By default", "It finds", "Because")
        group = nodes.tgroup(cols=len(head))
        group.extend(nodes.colspec(colwidth=width) for width in (2, 1, 4, 4))
        for part, rows in ((nodes.thead(), [head]), (nodes.tbody(), rule_entries())):
            for cells in rows:
                row = nodes.row()
                for place, cell in enumerate(cells):
                    is_name = place == 0 and isinstance(part, nodes.tbody)
                    text = nodes.literal(cell, cell) if is_name else nodes.Text(cell)
                    row += nodes.entry("", nodes.paragraph("", "", text))
                part += row
            group += part
        return [nodes.table("", group)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("data-formats", FormatsList)
    app.add_directive("curation-rules", RulesTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
