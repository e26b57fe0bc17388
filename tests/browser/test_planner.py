"""The planner on the page against `handbook plan`; from disk, by keyboard, and without JavaScript."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from build_book import HTML
from test_pages import PHONE, contrast

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "tools"))
import planner_table as table

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CELLS = 12


@pytest.fixture
def from_disk(browser: Browser, site: str) -> Iterator[Page]:
    """The page opened as a file; it may ask for files only."""
    opened = browser.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((HTML / "book" / "scaling.html").as_uri())
    yield opened
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def choose(page: Page, cell: tuple[str, str, str, int, int]) -> int:
    """MiB that the page shows for a cell."""
    for name, value in zip(("model", "stage", "method", "rows", "tokens"), cell, strict=True):
        page.locator(f".planner [name={name}]").select_option(str(value))
    return int(page.locator(".planner-total").get_attribute("data-mib") or "0")


def test_what_the_page_shows_is_what_the_command_says(from_disk: Page, tmp_path: Path) -> None:
    seed = time.time_ns() % 2**32
    draw = random.Random(seed)
    for number in range(CELLS):
        model = draw.choice(list(table.MODELS))
        stage, method = draw.choice(list(table.STAGES)), draw.choice(list(table.METHODS))
        rows, tokens = draw.choice(table.ROWS), draw.choice(table.TOKENS)
        folder = tmp_path / str(number)
        table.write_config(folder, model)
        planned = sum(table.parts_of(folder, stage, method, rows, tokens).values())
        shown = choose(from_disk, (model, stage, method, rows, tokens))
        # each part is rounded to a MiB
        assert shown == pytest.approx(planned, abs=10), f"{seed}: {model} {stage} {method} {rows} {tokens}"


def test_it_is_used_by_keyboard(from_disk: Page) -> None:
    from_disk.locator(".planner [name=model]").focus()
    before = from_disk.locator(".planner-total").inner_text()
    from_disk.keyboard.press("ArrowDown")
    assert from_disk.locator(".planner-total").inner_text() != before
    for name in ("stage", "method", "tokens", "rows"):
        from_disk.keyboard.press("Tab")
        assert from_disk.evaluate("document.activeElement.name") == name
    assert from_disk.get_by_label("Tokens per row").count() == 1


def test_without_javascript_the_table_is_there_and_the_form_is_not(browser: Browser, site: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"{site}/book/scaling.html")
    assert not plain.locator(".planner").is_visible()
    assert plain.locator(".planner-table tbody tr").count() == len(table.MODELS) * len(table.STAGES)
    context.close()


def test_it_reads_well_on_a_phone_and_in_the_dark(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(PHONE)
    page.goto("book/scaling.html", wait_until="networkidle")
    box = page.locator(".planner").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= PHONE["width"]
    for selector in (".planner label", ".planner select", ".planner-total", ".planner-parts i"):
        assert contrast(page, selector) > 4.5, selector
    assert (HTML / "book" / "scaling.html").stat().st_size < 2**20
