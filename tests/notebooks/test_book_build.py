"""The book builds without a warning from the notebooks this run has executed, and its pages are complete."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import build_book
import handbook_results
import nbformat
import pytest
import readme_figures
import refresh_figures
from book_pages import ROOT, built, page
from run_notebooks import EXECUTED
from set_address import read_address

import handbook_utils
from handbook_utils.schema.cards import NOT_LOADED
from handbook_utils.schema.recipe import recipe_names


class Tags(HTMLParser):
    """Attributes of all tags of one name."""

    def __init__(self, name: str, html: str) -> None:
        super().__init__()
        self.name = name
        self.found: list[dict[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == self.name:
            self.found.append({key: value or "" for key, value in attrs})


def all_pages() -> list[Path]:
    built()
    return [p for p in build_book.HTML.rglob("*.html") if "_static" not in p.parts]


def links_to(start: str) -> list[str]:
    found = [
        tag["href"]
        for p in all_pages()
        for tag in Tags("a", p.read_text(encoding="utf-8")).found
        if "href" in tag
    ]
    return [link for link in found if link.startswith(start)]


def test_book_builds_without_a_warning() -> None:
    done = built()
    assert done.returncode == 0, "\n".join(build_book.complaints(done)) or done.stdout[-3000:]


def test_llms_txt_names_every_page_of_the_contents_and_what_it_teaches() -> None:
    built()
    listed = re.findall(
        r"^- \[(.+)\]\((.+)\): (.{5,})$", (build_book.HTML / "llms.txt").read_text("utf-8"), re.MULTILINE
    )
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert [page for _, page, _ in listed] == [
        f"{n}.html" for n in re.findall(r"- file: (book/\w+)", contents)
    ]
    assert all((build_book.HTML / page).exists() for _, page, _ in listed)
    assert not any("{" in about or "*" in about for _, _, about in listed)


def test_every_entry_of_the_contents_is_a_page() -> None:
    entries = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert len(entries) >= 6
    built()
    assert [entry for entry in entries if not (build_book.HTML / f"{entry}.html").is_file()] == []


def test_pages_show_the_outputs_of_this_run() -> None:
    built()
    cells = nbformat.read(EXECUTED / "sft.ipynb", as_version=4).cells
    printed = [o.text for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    lines = [
        line.strip() for text in printed for line in text.splitlines() if re.search(r"\d\.\d{3} \[", line)
    ]
    assert lines
    shown = page("notebooks/sft.html")
    assert [line for line in lines if line not in shown] == []


def test_every_public_name_is_on_the_api_page() -> None:
    """Autodoc over lazily loaded names can leave a page empty without a warning."""
    built()
    ids = {tag.get("id") for tag in Tags("dt", page("book/api.html")).found}
    assert handbook_utils.__all__
    homes = {f"handbook_utils.{name}" for name in handbook_utils.__all__}
    assert homes - ids == set()


def test_every_picture_has_alt_text() -> None:
    pictures = [
        (p.name, tag)
        for p in all_pages()
        for tag in Tags("img", p.read_text(encoding="utf-8")).found
        if "_images/" in tag.get("src", "")  # the theme's own icons are in _static
    ]
    assert pictures
    # without an alt of its own, Sphinx writes the file's path
    assert [where for where in pictures if len(where[1].get("alt", "").split()) < 4] == []


def test_the_page_of_recipes_shows_each_of_them_and_what_was_never_loaded() -> None:
    built()
    html = page("book/recipes.html")
    assert html.count(NOT_LOADED.partition(".")[0]) == 1
    names = recipe_names()
    assert len(names) > 80
    assert [name for name in names if name not in html] == []


def test_every_colab_link_opens_a_tracked_notebook() -> None:
    start = f"https://colab.research.google.com/github/{read_address(ROOT)}/blob/main/"
    links = links_to("https://colab.research.google.com")
    assert links
    assert [link for link in links if not link.startswith(start)] == []
    missing = [link for link in links if not (ROOT / unquote(link.removeprefix(start))).is_file()]
    assert missing == []


def test_every_edit_link_opens_a_tracked_file() -> None:
    start = f"https://github.com/{read_address(ROOT)}/edit/main/"
    links = links_to(start)
    assert links
    assert [link for link in links if not (ROOT / link.removeprefix(start)).is_file()] == []


def test_pages_load_nothing_from_elsewhere() -> None:
    outside = [
        (p.name, tag.get("src") or tag.get("href"))
        for p in all_pages()
        for kind in ("script", "img", "link")
        for tag in Tags(kind, p.read_text(encoding="utf-8")).found
        if (tag.get("src") or tag.get("href", "")).startswith(("http:", "https:", "//"))
        and tag.get("rel") != "canonical"
    ]
    assert outside == []


def test_a_warning_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate itself: a page that asks for a figure no run has written must not build."""
    source = tmp_path / "repo"
    (source / "book").mkdir(parents=True)
    (source / "notebooks").mkdir()
    shutil.copytree(ROOT / "book" / "_ext", source / "book" / "_ext")
    (source / "_toc.yml").write_text("format: jb-book\nroot: book/index\n", encoding="utf-8")
    extension = "sphinx: {local_extensions: {handbook_results: book/_ext}}\n"
    (source / "_config.yml").write_text(f"title: small\n{extension}", encoding="utf-8")
    (source / "book" / "index.md").write_text(
        "# Small\n\nGold is {result}`sft:nobody.gold`.\n", encoding="utf-8"
    )
    for name, path in {
        "ROOT": source,
        "SOURCE": tmp_path / "laid-out",
        "HTML": source / "_build/html",
    }.items():
        monkeypatch.setattr(build_book, name, path)
    done = build_book.build(source / "notebooks")
    assert done.returncode != 0
    assert any("no results 'sft'" in line for line in build_book.complaints(done))


def test_an_unknown_figure_is_named_with_its_nearest() -> None:
    results = {"models": {"evaluate-sft": {"gold": {"value": 0.5}}}}
    with pytest.raises(
        handbook_results.UnknownResultError, match=r"evaluate-stf.*Nearest: evaluate-sft\.gold"
    ):
        handbook_results.find_figure(results, "evaluate-stf.gold")


def test_results_cannot_become_markup() -> None:
    node = handbook_results.table(["a"], [["<script>alert(1)</script>"]])
    assert "<script>" in node.astext()  # kept as text; writers escape text
    assert not [child for child in node.findall() if child.tagname == "raw"]


def test_readme_shows_the_stored_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_figures.readme_block(refresh_figures.read_results("demo")) in text
