"""The built pages in a real browser: no error, nothing missing, search answers, narrow and dark readable."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from book_pages import built, pages
from build_book import HTML

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = [f"{name}.html" for name in pages()]
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# a container has neither a GPU nor the rights Chromium's sandbox wants; the rest keeps it from calling home
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]


def find_browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", MAC)
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return found
    if os.environ.get("HANDBOOK_REQUIRE_BROWSER") == "1":
        pytest.fail("no Chromium or Chrome found, and HANDBOOK_REQUIRE_BROWSER=1 asks for one")
    pytest.skip("no Chromium or Chrome found: the pages were not opened in a browser")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The built book on a free port of this machine."""
    assert built().returncode == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, site: str, complaints: list[str]) -> Iterator[Page]:
    """A page that reaches this machine only and writes down every error and missing resource."""
    context = browser.new_context(base_url=site)
    context.set_default_timeout(20_000)

    def only_here(route: Any) -> None:
        if route.request.url.startswith(site):
            route.continue_()
        else:
            complaints.append(f"asks for {route.request.url}")
            route.abort()

    context.route("**/*", only_here)
    opened = context.new_page()
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 400 else None
    )
    yield opened
    context.close()


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
def test_page_opens_without_error_or_missing_resource(page: Page, complaints: list[str], path: str) -> None:
    page.goto(path, wait_until="networkidle")
    assert page.locator("article h1").count() == 1
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert complaints + broken == []


@pytest.mark.parametrize("path", PAGES)
def test_page_does_not_scroll_sideways_on_a_narrow_screen(page: Page, path: str) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    page.goto(path, wait_until="networkidle")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_formulas_and_code_are_readable(page: Page, mode: str) -> None:
    page.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    page.goto("book/sft.html", wait_until="networkidle")
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    for selector in ("article p", "article math", "article pre span", "article table td p", "article h2"):
        assert contrast(page, selector) >= 4.5, selector


def test_formulas_are_drawn_with_their_numbers(page: Page) -> None:
    page.goto("book/sft.html", wait_until="networkidle")
    formula = page.locator("div.math math").first
    assert formula.bounding_box()["height"] > 20
    assert page.locator("div.math .eqno").first.inner_text().startswith("(1)")


@pytest.mark.parametrize("term", ["perplexity", "shuffled", "run_pipeline"])
def test_search_finds_a_term(page: Page, complaints: list[str], term: str) -> None:
    page.goto(f"search.html?q={term}", wait_until="networkidle")
    results = page.locator("ul.search li")
    results.first.wait_for()
    assert results.count() >= 1
    assert complaints == []


def test_solutions_are_folded_until_asked_for(page: Page) -> None:
    page.goto("book/sft.html", wait_until="networkidle")
    solution = page.locator("details:has-text('Solution')").first
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()


def test_a_missing_browser_is_a_failure_where_one_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("test_pages.MAC", "no-such-browser")
    monkeypatch.delenv("HANDBOOK_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not opened"):
        find_browser()
    monkeypatch.setenv("HANDBOOK_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="asks for one"):
        find_browser()
