"""What a notebook printed, shown in a chapter beside the sentence that speaks of it.

```{notebook-output} sft
:cell: show("evaluate-shuffled"    text that is in the source of one code cell, and of no other
:blocks: 2                         the first two blocks, which empty lines end; all without it
:matching: training loss           the lines that hold this; all without it
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path("notebooks")


class NoOutputError(ValueError):
    """A page asks for an output that no notebook has."""


def stored_output(notebook: Path, cell: str, *, blocks: int | None = None, matching: str = "") -> str:
    """The text that one code cell of a notebook printed.

    Args:
        notebook: its file.
        cell: text that the source of this cell alone holds.
        blocks: how many blocks of it, which empty lines end; None for all.
        matching: what a line must hold to be shown.
    Raises:
        NoOutputError: no such notebook, not one such cell, or nothing of that kind was printed.
    """
    if not notebook.is_file():
        raise NoOutputError(f"there is no notebook '{notebook.name}'")
    cells = nbformat.read(notebook, as_version=4).cells
    found = [each for each in cells if each.cell_type == "code" and cell in each.source]
    if len(found) != 1:
        raise NoOutputError(f"{len(found)} code cells of {notebook.name} hold {cell!r}; it must be one")
    printed = "".join(out.text for out in found[0].outputs if out.output_type == "stream")
    chosen = "\n\n".join(printed.strip().split("\n\n")[:blocks])
    text = "\n".join(line.strip() for line in chosen.splitlines() if matching in line)
    if not text:
        raise NoOutputError(f"the cell of {notebook.name} with {cell!r} printed no such line: {matching!r}")
    return text


class NotebookOutput(SphinxDirective):
    """The printed lines of one cell."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012 - docutils' own form
        "cell": directives.unchanged_required,
        "blocks": directives.positive_int,
        "matching": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Show the lines, or warn."""
        notebook = Path(self.env.srcdir) / FOLDER / f"{self.arguments[0]}.ipynb"
        self.env.note_dependency(str(notebook))
        try:
            text = stored_output(notebook, **self.options)
        except NoOutputError as error:
            return [self.state.document.reporter.warning(f"{self.name}: {error}", line=self.lineno)]
        return [printed_block(text)]


def printed_block(text: str) -> nodes.literal_block:
    """Text as a program printed it; its long lines are folded."""
    return nodes.literal_block(text, text, language="text", classes=["printed"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("notebook-output", NotebookOutput)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
