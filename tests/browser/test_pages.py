"""The built pages in a real browser: no error, nothing missing, search answers, narrow and dark readable."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from book_pages import pages
from chrome import find_browser
from matplotlib import image

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGES = [f"{name}.html" for name in pages()]
MEASURE = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


def visit(page: Page, path: str) -> None:
    """Open a page, and wait until all of its pictures and letters are there."""
    page.goto(path, wait_until="networkidle")
    page.evaluate(
        """() => Promise.all([document.fonts.ready, ...[...document.images].filter(i => !i.complete)
            .map(i => new Promise(done => { i.onload = i.onerror = done }))]).then(() => true)"""
    )


def contrast(page: Page, selector: str) -> float:
    """Contrast ratio (WCAG) of the text of the first match against the page behind it."""
    return page.evaluate(
        """selector => {
            const light = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            let behind = document.querySelector(selector);
            const ink = light(getComputedStyle(behind).color);
            const clear = /rgba\\(0, 0, 0, 0\\)|transparent/;
            while (behind && clear.test(getComputedStyle(behind).backgroundColor))
                behind = behind.parentElement;
            const paper = light(behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)');
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("path", PAGES)
def test_page_opens_whole_and_reads_well_on_a_desk_and_on_a_phone(
    page: Page, complaints: list[str], path: str
) -> None:
    visit(page, path)
    for screen in (DESK, PHONE):
        page.set_viewport_size(screen)
        complaints += page.evaluate(MEASURE)
    assert page.locator("article h1").count() == 1
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    # nothing makes the page itself scroll sideways
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert complaints == []


WIDE = "<div style='overflow-x: auto; width: 200px'><p style='width: 300px'>x</p></div>"
LETTERS = "<table style='width: 90px; overflow-wrap: anywhere'><td>a column of long words<td>incomprehensible"
NUMBER = "<div style='overflow-x: auto'><span class=katex-display>f(x)</span></div>"
NUMBER += "<span class=eqno style='position: absolute; left: 10px; top: 10px'>(1)</span>"
LINES = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 800 90'>"
LINES += "<g transform='scale(0.09 -0.09)'/></svg>"


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        (LETTERS, "breaks .*incomprehensible"),
        (LETTERS, "a column of "),
        (WIDE, "100 px of <div>"),
        (f"<div style='position: absolute; left: 0; top: 0'>{NUMBER}</div>", "lies over its formula"),
        ("<p style='width: 50em; white-space: nowrap'><span class=katex-display><b>" + "x" * 200, "beyond"),
        ("<span class=katex-error>bad</span>", "not drawn"),
        ('<img width=342 src="/lines.svg">', "words of 3.8 px"),
        ("<h2 style='font-weight: 400'>two</h2><h3 style='font-weight: 700'>three</h3>", "h2 is lighter"),
    ],
)
def test_a_planted_fault_is_found(page: Page, planted: str, fault: str) -> None:
    page.set_viewport_size(PHONE)
    page.route("**/lines.svg", lambda route: route.fulfill(body=LINES, content_type="image/svg+xml"))
    page.route("**/planted.html", lambda route: route.fulfill(body=f"<article>{planted}</article>"))
    visit(page, "planted.html")
    found = page.evaluate(MEASURE)
    assert [line for line in found if re.search(fault, line)], found


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_formulas_code_and_charts_are_readable(page: Page, mode: str) -> None:
    page.emulate_media(color_scheme="light" if mode == "dark" else "dark")  # the reader's choice wins
    page.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    text = ("article p", "article .katex", "article pre span", "article table td p", "article h2", ".eqno")
    for path, selectors in {"book/dpo.html": (*text, "figcaption"), "notebooks/dpo.html": text[2:3]}.items():
        visit(page, path)
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        for selector in selectors:
            assert contrast(page, selector) >= 4.5, selector
        charts = page.locator("article figure img, article .cell_output img").all()
        assert charts
        for chart in charts:
            paper, ink = chart_contrast(chart.screenshot())
            assert (paper > 0.5) == (mode == "light")
            assert ink >= 4.5


def chart_contrast(screenshot: bytes) -> tuple[float, float]:
    """Luminance of a chart's commonest colour, and the contrast with it of the chart's farthest."""
    pixels = image.imread(io.BytesIO(screenshot), format="png")[..., :3].reshape(-1, 3)
    linear = np.where(pixels <= 0.03928, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    lights, counts = np.unique((linear @ [0.2126, 0.7152, 0.0722]).round(4), return_counts=True)
    paper = float(lights[counts.argmax()])
    return paper, max((lights[-1] + 0.05) / (paper + 0.05), (paper + 0.05) / (lights[0] + 0.05))


def test_operators_and_accents_of_formulas_are_in_place(page: Page) -> None:
    visit(page, "book/overoptimisation.html")
    operator = page.locator(".equation .katex-html .op-limits", has_text="max")
    below, name = operator.locator(".mathnormal").bounding_box(), operator.locator(".mop").bounding_box()
    assert operator.locator(".mop").inner_text() == "argmax"  # no star; the space is no character
    assert below["y"] > name["y"]
    letter = page.locator(".equation .katex-html .mord", has=page.locator("> .katex-accent")).first
    accented, index = (letter.locator(".mathnormal").nth(at).bounding_box() for at in (0, 1))
    assert index["x"] > accented["x"] + 0.7 * accented["width"]  # beside the letter, not below it


@pytest.mark.parametrize(("path", "part"), [("book/recipes.html", "table"), ("book/api.html", ".field-list")])
def test_long_pages_are_folded_until_asked_for(page: Page, path: str, part: str) -> None:
    height = "document.documentElement.scrollHeight"
    visit(page, path)
    open_all = "document.querySelectorAll('article details').forEach(part => part.open = true)"
    folded_height = page.evaluate(height)
    page.evaluate(open_all)
    assert page.evaluate(height) > 2.5 * folded_height, "most of the page is folded at first"
    page.reload(wait_until="networkidle")
    folded = page.locator("article details", has=page.locator(part)).first
    inside = folded.locator(part).first
    assert not inside.is_visible()
    folded.locator("summary").first.click()
    assert inside.is_visible()


# the last two stand in folded parts of the recipes and the API page
@pytest.mark.parametrize("term", ["perplexity", "shuffled", "run_pipeline", "capybara", "nucleus"])
def test_search_finds_a_term(page: Page, complaints: list[str], term: str) -> None:
    visit(page, f"search.html?q={term}")
    results = page.locator("ul.search li")
    results.first.wait_for()
    assert results.count() >= 1
    assert complaints == []


def test_solutions_are_folded_until_asked_for(page: Page) -> None:
    visit(page, "book/sft.html")
    solution = page.locator("details:has-text('Solution')").first
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()


# how bright the palest words are: 0 is black, 255 is white, as paper is
PALEST = """() => Math.max(...[...document.querySelectorAll('article :is(p, li, code, pre span, td, h2)')]
    .filter(each => each.getClientRects().length)
    .map(each => getComputedStyle(each).color.match(/\\d+/g).slice(0, 3).map(Number))
    .map(([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue))"""
CUT = """() => [...document.querySelectorAll('article *')]
    .filter(each => each.clientWidth && each.scrollWidth > each.clientWidth + 2 && !each.closest('.katex'))
    .map(each => each.tagName + '.' + each.className)"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_page_on_paper_is_whole_open_and_dark_on_white(page: Page, mode: str) -> None:
    visit(page, "book/sft.html")
    page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    page.set_viewport_size({"width": 680, "height": 960})  # about what A4 leaves between margins
    solution = page.locator("details:has-text('Solution') pre").first
    assert not solution.is_visible()
    page.emulate_media(media="print")
    assert solution.is_visible()
    assert page.evaluate(CUT) == []
    assert page.evaluate(PALEST) < 140
    assert not page.locator(".bd-sidebar-primary").is_visible()


def test_a_missing_browser_is_a_failure_where_one_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("chrome.MAC", "no-such-browser")
    monkeypatch.delenv("HANDBOOK_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not opened"):
        find_browser()
    monkeypatch.setenv("HANDBOOK_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="asks for one"):
        find_browser()
