"""The planner on a page: what `handbook plan` says of every choice that a form offers.

```{planner}
```

`book/results/planner.json` is written by `book/tools/planner_table.py`. The page shows a table of some
choices, which needs no JavaScript, and a form that looks the others up (`book/_static/planner.js`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from handbook_results import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.planning.picture import FILLS

FILE = Path(__file__).resolve().parents[1] / "results" / "planner.json"
# rows and tokens of the table that is always shown
ROWS, TOKENS = 1, 2048


def read_table() -> dict[str, Any]:
    """The stored table, with the colours of its parts."""
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return stored | {"fills": FILLS}


def cell_of(
    stored: Mapping[str, Any], model: str, stage: str, method: str, rows: int, tokens: int
) -> list[int]:
    """MiB of each part."""
    place = stored["rows"].index(rows) * len(stored["tokens"]) + stored["tokens"].index(tokens)
    found: list[int] = stored["entries"][f"{model}|{stage}|{method}"]["cells"][place]
    return found


class planner(nodes.General, nodes.Element):  # noqa: N801 - docutils' own form
    """The form; hidden until its script shows it."""


class Planner(SphinxDirective):
    """A table of what common models take, and the form beside it."""

    def run(self) -> list[nodes.Node]:
        """Build both."""
        stored = read_table()
        self.env.note_dependency(str(FILE))
        return [planner("", table=stored), _table(stored)]


def _table(stored: Mapping[str, Any]) -> nodes.Node:
    stages, methods = stored["stages"], stored["methods"]
    rows = [
        [
            model,
            stages[stage],
            *(f"{sum(cell_of(stored, model, stage, method, ROWS, TOKENS)) / 1024:.1f}" for method in methods),
        ]
        for model in stored["models"]
        for stage in stages
    ]
    caption = f"GiB on one GPU: {ROWS} row of {TOKENS:,} tokens per pass (of DPO and reward models, a pair)"
    built = table(["Model", "Stage", *methods.values()], rows)
    built.insert(0, nodes.title("", caption))
    built["classes"].append("planner-table")
    return built


def visit(translator: Any, node: planner) -> None:
    """Write the form and its data."""
    stored = node["table"]
    choices = {
        "model": ("Model", dict(zip(stored["models"], stored["models"], strict=True))),
        "stage": ("Stage", stored["stages"]),
        "method": ("What is trained", stored["methods"]),
    }
    fields = "".join(_choice(name, label, options) for name, (label, options) in choices.items())
    for name, label, first in (("tokens", "Tokens per row", TOKENS), ("rows", "Rows per pass", ROWS)):
        fields += _choice(name, label, {str(n): f"{n:,}" for n in stored[name]}, str(first))
    # "<" must not end the element early
    data = json.dumps(stored, separators=(",", ":")).replace("<", "\\u003c")
    translator.body.append(
        '<form class="planner" aria-label="Memory planner" hidden>\n'
        f'<div class="planner-fields">{fields}</div>\n'
        '<div class="planner-answer" role="status">\n'
        '<p class="planner-total"></p>\n<div class="planner-bar" aria-hidden="true"></div>\n'
        '<ul class="planner-parts" aria-label="Memory by part"></ul>\n<p class="planner-gpus"></p>\n</div>\n'
        f'<script type="application/json" class="planner-data">{data}</script>\n</form>\n'
    )


def _choice(name: str, label: str, options: Mapping[str, str], chosen: str = "") -> str:
    listed = "".join(
        f'<option value="{escape(key)}"{" selected" if key == chosen else ""}>{escape(text)}</option>'
        for key, text in options.items()
    )
    return f'<label>{escape(label)}<select name="{name}">{listed}</select></label>'


def depart(translator: Any, node: planner) -> None:
    """Everything is written."""


def load_script(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the script on pages that hold the form."""
    if doctree and any(doctree.findall(planner)):
        app.add_js_file("planner.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_node(planner, html=(visit, depart))
    app.add_directive("planner", Planner)
    app.connect("html-page-context", load_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
