"""The table of data formats, made from the package's own list, so that the book cannot claim another one.

```{data-formats}
```
"""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from handbook_results import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.recognise import FORMATS


def format_rows() -> list[list[str]]:
    """One line a format: its name, the columns that tell, a row of it, the kinds that it gives.

    Each example is really read as each of the kinds; one that could not be would stop the build.

    >>> format_rows()[0]
    ['text', 'text', '{"text": "Two and two make four."}', 'text']
    """
    for known in FORMATS.values():
        for kind in known.kinds:
            normalise_rows([known.example], kind=kind)
    return [
        [name, ", ".join(known.columns), json.dumps(known.example), ", ".join(known.kinds)]
        for name, known in FORMATS.items()
    ]


class FormatsTable(SphinxDirective):
    """Every format the package recognises, with an example."""

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        return [table(["format", "columns that tell", "a row", "gives"], format_rows())]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("data-formats", FormatsTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
