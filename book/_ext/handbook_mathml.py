"""Formulas as MathML, written when the book is built.

Sphinx's default loads MathJax from another host, which fails without a network and tells that host who reads.
Browsers have drawn MathML themselves since 2023, so the converter that docutils brings is enough.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

# the converter lacks these; each has a spelling it knows
SPELLINGS = {"dots": r"\\ldots", "lvert": "|", "rvert": "|", "tfrac": r"\\frac", "dfrac": r"\\frac"}
# TeX's line breaks and columns only count inside an environment
SEVERAL_LINES = re.compile(r"\\\\|(?<!\\)&")


def to_mathml(tex: str, *, block: bool) -> str:
    r"""Return TeX as a `<math>` element.

    >>> to_mathml(r"\pi", block=False)
    '<math xmlns="http://www.w3.org/1998/Math/MathML"><mi>π</mi></math>'
    """
    for unknown, known in SPELLINGS.items():
        tex = re.sub(rf"\\{unknown}(?![a-zA-Z])", known, tex)
    if block and SEVERAL_LINES.search(tex) and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        markup = latex2mathml.tex2mathml(tex, as_block=block)
    except (MathError, SyntaxError) as error:
        raise ExtensionError(f"this formula cannot become MathML ({error}): {tex}") from error
    return re.sub(r">\s+<", "><", markup)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write `$...$`."""
    translator.body.append(f'<span class="math">{to_mathml(node.astext(), block=False)}</span>')
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number and link when it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    # a wide formula scrolls by itself; it must not widen the page
    translator.body.append(f'<div class="formula">{to_mathml(node.astext(), block=True)}</div></div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name `mathml`."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
