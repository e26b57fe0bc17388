"""The page to compare answers in a browser: two people at once, keys, a closed browser, narrow and dark."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_pages import DESK, PHONE, contrast

from handbook_utils.sampling.annotation.guideline import guideline_blocks
from handbook_utils.sampling.annotation.hand_out import HandOut
from handbook_utils.sampling.annotation.judgements import JudgementFile, read_judgement_file
from handbook_utils.sampling.annotation.pairs import AnswerPair, pair_id
from handbook_utils.sampling.annotation.server import Access, CompareServer
from handbook_utils.sampling.annotation.session import Session

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = "<img src=x onerror='window.attacked=1'><script>window.attacked=1</script>"
PAIRS = 6


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "judged.jsonl"


@pytest.fixture
def served(out: Path) -> Iterator[CompareServer]:
    known = []
    for n in range(PAIRS):
        prompt: list[Any] = [{"role": "user", "content": f"Question {n}? {ATTACK}"}]
        a, b = f"First {n} {ATTACK}\n" + "word " * 60, "Second " + "unbroken" * 40
        known.append(AnswerPair(pair_id(prompt, a, b), f"p{n}", prompt, a, b, ("sft:1", "dpo:1")))
    hand_out = HandOut([pair.id for pair in known], overlap=1.0, people=2, seed=0)
    rules = guideline_blocks(f"# Rules\n\n- Be **fair**.\n\n{ATTACK}")
    with JudgementFile(out) as file:
        server = CompareServer(Session(known, file, hand_out, seed=0), Access.to("127.0.0.1"), 0, rules)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()


class Person:
    """Somebody at a browser of their own."""

    def __init__(self, browser: Browser, server: CompareServer, **options: Any) -> None:
        self.context = browser.new_context(base_url=server.url, viewport=DESK, **options)
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto("/")

    def enter(self, name: str) -> str:
        self.page.keyboard.type(name)  # the field has the focus
        self.page.keyboard.press("Enter")
        return self.ready()

    def ready(self) -> str:
        """Wait until the page takes a verdict; the pair's id, "" where none is shown."""
        self.page.locator("body[aria-busy=false]").wait_for()
        work = self.page.locator("#work")
        return work.get_attribute("data-pair") or "" if work.is_visible() else ""

    def press(self, key: str) -> str:
        self.page.keyboard.press(key)
        return self.ready()


def verdicts(out: Path) -> list[tuple[str, str, bool]]:
    lines = read_judgement_file(out)
    return [(line.judgement.person, line.judgement.verdict, line.is_undone) for line in lines]


def test_two_people_at_once_judge_by_keys_and_see_whether_they_agree(browser, served, out) -> None:
    ann, bob = Person(browser, served), Person(browser, served)
    # both are given the same first pair, which two are to judge
    assert ann.enter("Ann") == bob.enter("Bob")
    texts = [who.page.locator("#left").inner_text()[:5] for who in (ann, bob)]
    for key in "13t2":
        assert ann.press(key)
        assert bob.press(key)
    ann.press("s")
    assert bob.press("1")
    undone = bob.press("u")
    assert undone
    assert bob.page.locator("#undo").is_enabled()
    bob.press("3")
    said = verdicts(out)
    assert len(said) == 11
    assert [verdict for name, verdict, _ in said if name == "Ann"][1:3] == ["tie", "tie"]
    first = {name: verdict for name, verdict, _ in reversed(said[:2])}
    for name, text in zip(("Ann", "Bob"), texts, strict=True):
        assert first[name] == ("a" if text == "First" else "b")
    assert [undone for name, _, undone in said if name == "Bob"] == [False] * 4 + [True, False]
    assert ann.press("2") == ""
    assert ann.page.locator("#done-title").inner_text() == "Nothing is left for you now."
    bob.press("2")
    ann.page.locator("#agreement summary").click()
    assert "Krippendorff's alpha" in bob.page.locator("#figures").text_content()
    assert "Cohen's kappa: Ann, Bob" in bob.page.locator("#figures").text_content()
    for who in (ann, bob):
        assert who.errors == []
        assert who.page.evaluate("window.attacked") is None
        assert who.page.locator("#prompt img, #answers img, #rules script, #rules img").count() == 0
        who.context.close()


def test_a_browser_closed_in_the_middle_loses_nothing_and_shows_the_same_pair_again(
    browser,
    served,
    out,
) -> None:
    ann = Person(browser, served)
    ann.enter("Ann")
    left = ann.press("1")
    ann.context.close()
    again = Person(browser, served)
    assert again.enter("ann") == left  # whatever the case of the name
    assert "1 judged by you" in again.page.locator("#progress").inner_text()
    again.page.reload()
    assert again.ready() == left  # the name is kept
    assert verdicts(out)[0][0] == "Ann"
    again.context.close()


def test_a_server_that_is_gone_is_told_and_what_was_chosen_is_kept_once_it_is_back(
    browser,
    served,
    out,
) -> None:
    ann = Person(browser, served)
    first = ann.enter("Ann")
    ann.page.route("**/api/judge", lambda route: route.abort())
    ann.page.keyboard.press("1")
    ann.page.locator("#trouble").wait_for()
    assert "cannot be reached" in ann.page.locator("#trouble").inner_text()
    assert verdicts(out) == []
    ann.page.unroute("**/api/judge")
    ann.page.locator("#again").click()
    ann.page.locator(f"#work:not([data-pair='{first}'])").wait_for()
    assert len(verdicts(out)) == 1
    ann.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_can_be_touched_and_read(browser, served, out, scheme) -> None:
    ann = Person(browser, served, has_touch=True, color_scheme=scheme)
    ann.page.set_viewport_size(PHONE)
    ann.enter("Ann")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert ann.page.evaluate(overflow) <= 0
    paper = ann.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for selector in ("#left", "#progress", ".role", "#choices .main", "#choices .plain", "summary"):
        assert contrast(ann.page, selector) >= 4.5, selector
    for button in ann.page.locator("#choices button").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    # the last line of the page ends above the buttons, which stay where they are
    ann.page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    answer, buttons = (ann.page.locator(part).bounding_box() for part in (".answer >> nth=1", "#choices"))
    assert answer is not None
    assert buttons is not None
    assert answer["y"] + answer["height"] <= buttons["y"]
    before = ann.ready()
    ann.page.locator("[data-choice=tie]").tap()
    ann.page.locator(f"#work:not([data-pair='{before}'])").wait_for()
    assert [verdict for _, verdict, _ in verdicts(out)] == ["tie"]
    # by keyboard alone: the focus can be seen, and a focused button is pressed by the space bar
    ann.ready()
    ann.page.locator("[data-choice=skip]").focus()
    ann.page.keyboard.press("Shift+Tab")
    ring = ann.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert ring == "3px"
    ann.page.keyboard.press("Space")
    ann.page.locator("#progress", has_text="2 judged by you").wait_for()
    assert ann.errors == []
    ann.context.close()
