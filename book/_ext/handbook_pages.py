"""Pages for phones too: room for prose in tables, charts for narrow screens, long entries folded."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from docutils import nodes
from handbook_epub import EPUB
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset
from sphinx.writers.html5 import HTML5Translator

PROSE = 30  # characters from which a table's cell is to be read rather than looked up
FIGURES = "book/figures"
NARROW = "-narrow.svg"


class details(nodes.General, nodes.Element):  # noqa: N801 - docutils' own form
    """What is shown when a reader asks for it; a search of the book or of the page finds it all the same."""


class summary(nodes.General, nodes.TextElement):  # noqa: N801
    """What stands for the details until then."""


def fold(label: list[nodes.Node], content: list[nodes.Node]) -> details:
    """Fold content away under a label."""
    return details("", summary("", "", *label), *content)


def visit(translator: HTML5Translator, node: nodes.Element) -> None:
    """Open `<details>` or `<summary>`."""
    translator.body.append(translator.starttag(node, type(node).__name__))


def depart(translator: HTML5Translator, node: nodes.Element) -> None:
    """Close it."""
    translator.body.append(f"</{type(node).__name__}>\n")


def mark_prose(app: Sphinx, doctree: nodes.document) -> None:
    """Give long cells of tables the class `prose`."""
    for cell in doctree.findall(nodes.entry):
        if len(cell.astext()) > PROSE:
            cell["classes"].append("prose")


def fold_details(app: Sphinx, domain: str, objtype: str, content: addnodes.desc_content) -> None:
    """Of a function or class, leave signature and first paragraph in sight."""
    rest = content.children[1:]
    if rest and isinstance(content.children[0], nodes.paragraph):
        del content.children[1:]
        content += fold([nodes.Text("Details")], rest)


def narrow_chart(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a chart's upright version beside it, for narrow screens."""
    if app.builder.name == EPUB:
        return
    for picture in list(doctree.findall(nodes.image)):
        uri = picture["uri"]
        narrow = Path(app.srcdir) / f"{uri.removesuffix('.svg')}{NARROW}"
        if not uri.startswith(FIGURES) or not narrow.is_file():
            continue
        up = posixpath.relpath("_images", posixpath.dirname(docname))
        source = f'<picture class="chart"><source media="(max-width: 600px)" srcset="{up}/{narrow.name}">'
        picture.replace_self(
            [nodes.raw("", source, format="html"), picture, nodes.raw("", "</picture>", format="html")]
        )


def copy_charts(app: Sphinx, error: Exception | None) -> None:
    """Copy the upright charts to where the pages look for them."""
    if not error and app.builder.name != EPUB:
        for chart in sorted((Path(app.srcdir) / FIGURES).glob(f"*{NARROW}")):
            copy_asset(str(chart), str(Path(app.outdir) / "_images"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is done to every page."""
    app.add_node(details, html=(visit, depart))
    app.add_node(summary, html=(visit, depart))
    app.connect("doctree-read", mark_prose)
    app.connect("object-description-transform", fold_details)
    app.connect("doctree-resolved", narrow_chart)
    app.connect("build-finished", copy_charts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
