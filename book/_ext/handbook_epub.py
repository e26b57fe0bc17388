"""The book as one file for e-readers: pages that are XHTML, and a link to the file where there is one.

```{book-epub}
The whole book for e-readers       a link with this text, if `make epub` has made the file; else nothing
```
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.epub3 import Epub3Builder
from sphinx.util.docutils import SphinxDirective

EPUB = "epub"  # the name of Sphinx's builder
FILE = "book/files/alignment-handbook.epub"  # where build_book.py puts it, if there is one
CHECKBOX = re.compile(r"<input[^>]*checkbox[^>]*>")
VOID = re.compile(r"<(br|hr|img|input|wbr)\b([^>]*?)\s*/?>")


def as_xhtml(html: str) -> str:
    """HTML as a page of an e-book needs it: elements without content closed, drawings named as such.

    >>> as_xhtml('a<br>b <input type="checkbox" disabled> c')
    'a<br/>b ☐ c'
    >>> as_xhtml('<svg width="9"></svg>')
    '<svg xmlns="http://www.w3.org/2000/svg" width="9"></svg>'
    """
    html = CHECKBOX.sub("\N{BALLOT BOX}", html)
    html = re.sub(r"<svg(?![^>]*xmlns)", '<svg xmlns="http://www.w3.org/2000/svg"', html)
    return VOID.sub(r"<\1\2/>", html)


def rewrite_raw(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make XHTML of what notebooks and task lists wrote as HTML."""
    if app.builder.name != EPUB:
        return
    for raw in list(doctree.findall(nodes.raw)):
        if "html" in raw.get("format", ""):
            text = as_xhtml(raw.astext())
            raw.replace_self(nodes.raw(text, text, format="html"))


class BookBuilder(Epub3Builder):
    """Sphinx's builder for e-books, for a book whose first page lies in a folder."""

    def get_toc(self) -> None:
        """Collect the contents; pages outside that folder are listed by their own path, not by `book/../`."""
        super().get_toc()
        for entry in self.refnodes:
            entry["refuri"] = posixpath.normpath(entry["refuri"])


class EpubLink(SphinxDirective):
    """A link to the book as one file."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Build the link, or nothing."""
        if not (Path(self.env.srcdir) / FILE).is_file():
            return []
        text = " ".join(self.content)
        link = addnodes.download_reference(text, text, reftarget=f"/{FILE}", refdoc=self.env.docname)
        return [nodes.paragraph("", "", link)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the builder, the directive, and what is done to pages of an e-book."""
    app.add_builder(BookBuilder, override=True)
    app.add_directive("book-epub", EpubLink)
    app.connect("doctree-resolved", rewrite_raw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
