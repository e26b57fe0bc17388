"""The planner on a page: sums that `handbook plan` gave the coefficients of, added up beside the reader.

```{planner}
```

`book/results/planner.json` is written by `book/tools/planner_table.py`. The page shows a table made from it,
which needs no JavaScript, and a form that `book/_static/planner.js` fills: it adds and scales, and knows no
formula.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.planning.picture import FILLS

FILE = Path(__file__).resolve().parents[1] / "results" / "planner.json"
# of the tokens of a row (of a pair: of its one length), how many carry a loss: half of a row is its prompt
LEARNED = {"sft": 0.5, "dpo": 1.0, "reward": 0.0}
# rows and tokens of the table that is always shown
ROWS, TOKENS = 1, 2048
MOST_ROWS, FEWEST_TOKENS, MOST_TOKENS = 64, 256, 16384


def read_table() -> dict[str, Any]:
    """The stored table, with what a page needs to add it up and to draw it."""
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return stored | {"learned": LEARNED, "fills": FILLS}


def terms(stage: str, rows: int, length: int, tile: int) -> list[float]:
    """What the parts are sums over: see `book/tools/planner_table.py`."""
    learned = LEARNED[stage] * rows * length
    return [1, rows, rows * length, rows * length**2, min(learned, tile)]


def added(table: Mapping[str, Any], entry: Mapping[str, Any], stage: str, rows: int, length: int) -> float:
    """GiB of a cell in all, its margin included."""
    each = terms(stage, rows, length, table["tile"])
    highest = max(
        sum(sum(a * b for a, b in zip(coefficients, each, strict=True)) for coefficients in parts.values())
        for parts in entry["moments"].values()
    )
    counted = (sum(entry["held"].values()) + highest) / 1024
    return float(counted * (1 + table["margin"]["share"]) + table["margin"]["gib"])


class planner(nodes.General, nodes.Element):  # noqa: N801 - docutils' own form
    """The form; hidden until its script shows it."""


class Planner(SphinxDirective):
    """A table of what common models take, and the form beside it."""

    def run(self) -> list[nodes.Node]:
        """Build both."""
        stored = read_table()
        self.env.note_dependency(str(FILE))
        return [planner("", table=stored), _table(stored)]


def _table(stored: Mapping[str, Any]) -> nodes.table:
    stages, methods = stored["stages"], stored["methods"]
    rows = [
        [
            model,
            stages[stage],
            *(
                f"{added(stored, stored['entries'][f'{model}|{stage}|{method}'], stage, ROWS, TOKENS):.1f}"
                for method in methods
            ),
        ]
        for model in stored["models"]
        for stage in stages
    ]
    caption = f"GiB on one GPU: {ROWS} row of {TOKENS:,} tokens per pass (of DPO and reward models, a pair)"
    group = nodes.tgroup(cols=2 + len(methods))
    group.extend(nodes.colspec(colwidth=width) for width in (3, 3, *(2 for _ in methods)))
    for part, lines in ((nodes.thead(), [["Model", "Stage", *methods.values()]]), (nodes.tbody(), rows)):
        for line in lines:
            row = nodes.row()
            for text in line:
                row += nodes.entry("", nodes.paragraph("", "", nodes.Text(text)))
            part += row
        group += part
    return nodes.table("", nodes.title("", caption), group, classes=["planner-table"])


def visit(translator: Any, node: planner) -> None:
    """Write the form and its data."""
    stored = node["table"]
    choices = {
        "model": ("Model", dict(zip(stored["models"], stored["models"], strict=True))),
        "stage": ("Stage", stored["stages"]),
        "method": ("What is trained", stored["methods"]),
    }
    fields = "".join(_choice(name, label, options) for name, (label, options) in choices.items())
    fields += _number("tokens", "Tokens per row", TOKENS, FEWEST_TOKENS, MOST_TOKENS, step=2)
    fields += _number("rows", "Rows per pass", ROWS, 1, MOST_ROWS, step=1)
    # "<" must not end the element early
    data = json.dumps(stored, separators=(",", ":")).replace("<", "\\u003c")
    translator.body.append(
        '<form class="planner" aria-label="Memory planner" hidden>\n'
        f'<div class="planner-fields">{fields}</div>\n'
        '<p class="planner-error" role="alert"></p>\n'
        '<div class="planner-answer" role="status">\n'
        '<p class="planner-total"></p>\n<div class="planner-bar" aria-hidden="true"></div>\n'
        '<ul class="planner-parts" aria-label="Memory by part"></ul>\n<p class="planner-gpus"></p>\n</div>\n'
        f'<script type="application/json" class="planner-data">{data}</script>\n</form>\n'
    )


def _choice(name: str, label: str, options: Mapping[str, str]) -> str:
    listed = "".join(
        f'<option value="{escape(key)}">{escape(text)}</option>' for key, text in options.items()
    )
    return f'<label>{escape(label)}<select name="{name}">{listed}</select></label>'


def _number(name: str, label: str, value: int, low: int, high: int, *, step: int) -> str:
    return (
        f'<label>{escape(label)}<input type="number" name="{name}" value="{value}" min="{low}" max="{high}" '
        f'step="{step}" inputmode="numeric" required></label>'
    )


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
