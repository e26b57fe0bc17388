"""Formulas: the page carries their TeX, and KaTeX draws it, from files that lie beside the pages.

Sphinx's default loads MathJax from another host, which fails without a network and tells that host who
reads. `book/_static/katex` is KaTeX 0.19.1 (MIT license, in that folder), unchanged, with the fonts that
formulas here use: bold, sans-serif, typewriter, Fraktur and script letters need fonts that are left out.
E-readers run no script, so in an EPUB a formula is MathML, made by docutils.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from handbook_epub import EPUB
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

# commands that docutils does not know, and what stands for them
SYNONYMS = {"dots": r"\ldots", "big": ""}


def as_mathml(tex: str, *, block: bool = False) -> str:
    r"""A formula as MathML.

    >>> as_mathml(r"y_1, \dots").count("…")
    1
    """
    for command, known in SYNONYMS.items():
        tex = re.sub(rf"\\{command}(?![a-zA-Z])", known.replace("\\", r"\\"), tex)
    made = str(tex2mathml(tex, as_block=block))
    # XML knows few entities by name, and MathML no size of a fraction
    made = made.replace("&ApplyFunction;", "\N{FUNCTION APPLICATION}")
    return re.sub(r"<mfrac displaystyle[^>]*>", "<mfrac>", made)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write `$...$`."""
    if translator.builder.name == EPUB:
        translator.body.append(as_mathml(node.astext()))
    else:
        translator.body.append(f'<span class="tex">{html.escape(node.astext())}</span>')
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number and link when it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="equation notranslate"))
    # a wide formula scrolls by itself; it must not widen the page, nor lie under its number
    if translator.builder.name == EPUB:
        translator.body.append(as_mathml(node.astext(), block=True))
    else:
        translator.body.append(f'<div class="tex">{html.escape(node.astext())}</div>')
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def load_katex(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load KaTeX on pages that hold a formula."""
    if app.builder.name == EPUB or doctree is None:
        return
    if any(doctree.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
        app.add_css_file("katex/katex.min.css")
        for script in ("katex/katex.min.js", "handbook_math.js"):
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name `katex`."""
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_block, None))
    app.connect("html-page-context", load_katex)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
