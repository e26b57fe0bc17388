"""What a notebook holds or printed, shown in a chapter beside the sentence that speaks of it.

```{notebook-output} sft
:cell: show("evaluate-shuffled"    text that is in the source of one code cell, and of no other
:blocks: 2                         the first two blocks, which empty lines end; all without it
:skip: 2                           blocks that come before them and are left out
:matching: training loss           the lines that hold this; all without it
```
```{notebook-code} dpo
:define: dpo_margin dpo_loss       the functions as the notebook defines them, at most 15 lines together
```
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path("notebooks")
LINES = 15  # of code that a chapter shows at once


class NoOutputError(ValueError):
    """A page asks for an output that no notebook has."""


def stored_output(
    notebook: Path, cell: str, *, blocks: int | None = None, skip: int = 0, matching: str = ""
) -> str:
    """The text that one code cell of a notebook printed.

    Args:
        notebook: its file.
        cell: text that the source of this cell alone holds.
        blocks: how many blocks of it, which empty lines end; None for all.
        skip: how many blocks to leave out before them.
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
    chosen = "\n\n".join(printed.strip().split("\n\n")[skip:][:blocks])
    text = "\n".join(line.strip() for line in chosen.splitlines() if matching in line)
    if not text:
        raise NoOutputError(f"the cell of {notebook.name} with {cell!r} printed no such line: {matching!r}")
    return text


def stored_code(notebook: Path, names: list[str]) -> str:
    """Functions of a notebook as it defines them, in the order asked for.

    Args:
        notebook: its file.
        names: of functions, each defined in one code cell of it.
    Raises:
        NoOutputError: no such notebook or function, or together they are longer than a page shows.
    """
    if not notebook.is_file():
        raise NoOutputError(f"there is no notebook '{notebook.name}'")
    cells = [each.source for each in nbformat.read(notebook, as_version=4).cells if each.cell_type == "code"]
    defined = {
        node.name: "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
        for source in cells
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    if missing := [name for name in names if name not in defined]:
        raise NoOutputError(f"{notebook.name} defines no {missing[0]!r}")
    code = "\n\n\n".join(defined[name] for name in names)
    count = sum(bool(line) for line in code.splitlines())
    if count > LINES:
        raise NoOutputError(f"{count} lines of {notebook.name} are more than the {LINES} that a page shows")
    return code


class NotebookCode(SphinxDirective):
    """Functions of a notebook."""

    required_arguments = 1
    option_spec = {"define": directives.unchanged_required}  # noqa: RUF012 - docutils' own form

    def run(self) -> list[nodes.Node]:
        """Show the code, or warn."""
        notebook = Path(self.env.srcdir) / FOLDER / f"{self.arguments[0]}.ipynb"
        self.env.note_dependency(str(notebook))
        try:
            code = stored_code(notebook, self.options["define"].split())
        except NoOutputError as error:
            return [self.state.document.reporter.warning(f"{self.name}: {error}", line=self.lineno)]
        return [nodes.literal_block(code, code, language="python")]


class NotebookOutput(SphinxDirective):
    """The printed lines of one cell."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012 - docutils' own form
        "cell": directives.unchanged_required,
        "blocks": directives.positive_int,
        "skip": directives.nonnegative_int,
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
    """Register the directives."""
    app.add_directive("notebook-output", NotebookOutput)
    app.add_directive("notebook-code", NotebookCode)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
