"""The list of data formats, made from the package's own list, so that the book cannot claim another one.

```{data-formats}
```
"""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.recognise import FORMATS, Format

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


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("data-formats", FormatsList)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
