"""The book for e-readers: its configuration, its finish, and the check that a reader could open it.

The book itself is built by the workflow of the pages, which fails where this check finds a fault.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import build_book
import build_epub
import handbook_epub
import handbook_math
import pytest
import yaml
from book_pages import ROOT

CONTAINER = '<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest></package>'
ITEM = '<item href="{name}" media-type="application/xhtml+xml"/>'
PAGE = '<html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
FORMULA = '<math xmlns="http://www.w3.org/1998/Math/MathML"><mi>x</mi></math>'


def book_of(folder: Path, pages: dict[str, str], *, first: str = "mimetype", listed: str = "") -> Path:
    """A small e-book; every page is listed, and so is one more name if it is given."""
    file = folder / "book.epub"
    items = "".join(ITEM.format(name=name) for name in [*pages, *filter(None, [listed])])
    with zipfile.ZipFile(file, "w") as book:
        book.writestr(first, "application/epub+zip")
        if first != "mimetype":
            book.writestr("mimetype", "application/epub+zip")
        book.writestr("content.opf", CONTAINER.format(items=items))
        for name, body in pages.items():
            book.writestr(name, PAGE.format(body=body))
    return file


def test_the_configuration_is_the_books_own_without_what_needs_a_browser() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    made = build_epub.epub_config(config)
    before, after = (each["sphinx"]["config"] for each in (config, made))
    assert set(before["extensions"]) - set(after["extensions"]) == build_epub.BROWSER_ONLY
    assert after["epub_identifier"] == config["repository"]["url"]
    assert (made["title"], made["author"]) == (config["title"], config["author"])
    assert "launch_buttons" not in made
    assert before["epub_basename"] + ".epub" == build_book.EPUB.name == Path(handbook_epub.FILE).name


def test_a_sound_book_has_no_fault_and_says_which_pages_hold_formulas(tmp_path: Path) -> None:
    made = book_of(tmp_path, {"book/a.xhtml": FORMULA, "b.xhtml": '<a href="book/a.xhtml#x">a</a>'})
    build_epub.finish(made, tmp_path / "finished.epub")
    assert build_epub.faults(made) == build_epub.faults(tmp_path / "finished.epub") == []
    with zipfile.ZipFile(tmp_path / "finished.epub") as book:
        assert book.infolist()[0].filename == "mimetype"
        assert book.infolist()[0].compress_type == zipfile.ZIP_STORED
        package = ElementTree.fromstring(book.read("content.opf"))
    held = {item.get("href"): item.get("properties") for item in package.iter(f"{build_epub.OPF}item")}
    assert held == {"book/a.xhtml": "mathml", "b.xhtml": None}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"{FORMULA}<br>", "not well-formed"),
        (f"{FORMULA}&nbsp;", "not well-formed"),
        (f"{FORMULA}<script>go()</script>", "holds a script"),
        (f'{FORMULA}<link href="../_static/lost.css"/>', "leads to '../_static/lost.css'"),
        (f'{FORMULA}<img src="../_images/lost.svg"/>', "leads to '../_images/lost.svg'"),
        ("no formula", "no page holds a formula"),
    ],
)
def test_a_page_that_a_reader_would_not_show_is_named(tmp_path: Path, body: str, said: str) -> None:
    (found,) = build_epub.faults(book_of(tmp_path, {"book/a.xhtml": body}))
    assert said in found


def test_a_page_that_is_no_xml_stops_the_build_with_its_name(tmp_path: Path) -> None:
    made = book_of(tmp_path, {"book/a.xhtml": f"{FORMULA}<br>"})
    with pytest.raises(build_epub.BrokenEpubError, match="is not well-formed"):
        build_epub.finish(made, tmp_path / "finished.epub")


def test_a_style_that_is_not_in_the_file_is_not_asked_for(tmp_path: Path) -> None:
    late = '<link rel="stylesheet" href="../_static/mystnb.11b3.css" />'
    made = book_of(tmp_path, {"book/a.xhtml": f"{late}{FORMULA}"})
    build_epub.finish(made, tmp_path / "finished.epub")
    assert build_epub.faults(made) != build_epub.faults(tmp_path / "finished.epub") == []


def test_contents_for_old_readers_name_the_book_as_the_new_ones_do(tmp_path: Path) -> None:
    made = book_of(tmp_path, {"a.xhtml": f'<p role="doc-biblioentry">{FORMULA}</p>'})
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        "<dc:identifier>https://example.org/?a&amp;b</dc:identifier></metadata></package>"
    )
    with zipfile.ZipFile(tmp_path / "other.epub", "w") as book, zipfile.ZipFile(made) as small:
        book.writestr("mimetype", small.read("mimetype"))
        book.writestr("content.opf", package)
        book.writestr("toc.ncx", '<ncx><meta name="dtb:uid" content="handbook"/></ncx>')
        book.writestr("a.xhtml", small.read("a.xhtml"))
    build_epub.finish(tmp_path / "other.epub", tmp_path / "finished.epub")
    with zipfile.ZipFile(tmp_path / "finished.epub") as book:
        assert b'content="https://example.org/?a&amp;b"' in book.read("toc.ncx")
        assert b"doc-biblioentry" not in book.read("a.xhtml")


@pytest.mark.parametrize(
    ("order", "links", "said"),
    [
        ('<itemref idref="1"/>', '<a href="book/a.xhtml#x">A</a>', []),
        ('<itemref idref="9"/>', "", ["the reading order names '9', which is not listed"]),
        ('<itemref idref="1"/>', "", ["the contents leave out 'book/a.xhtml'"]),
    ],
)
def test_a_page_that_no_reader_comes_to_is_named(
    tmp_path: Path, order: str, links: str, said: list[str]
) -> None:
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="1" href="book/a.xhtml" media-type="application/xhtml+xml"/>'
        f'<item id="2" href="nav.xhtml" media-type="application/xhtml+xml"/></manifest><spine>{order}</spine>'
        "</package>"
    )
    with zipfile.ZipFile(tmp_path / "book.epub", "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("content.opf", package)
        book.writestr("nav.xhtml", PAGE.format(body=links))
        book.writestr("book/a.xhtml", PAGE.format(body=FORMULA))
    assert build_epub.faults(tmp_path / "book.epub") == said


def test_a_book_that_no_reader_would_open_is_named(tmp_path: Path) -> None:
    found = build_epub.faults(book_of(tmp_path, {"a.xhtml": FORMULA}, first="a.css", listed="lost.css"))
    assert found == ["'mimetype' is not first", "'lost.css' is listed and missing"]


@pytest.mark.parametrize(
    ("html", "xhtml"),
    [
        ("a<br>b<hr />", "a<br/>b<hr/>"),
        ('<input class="c" disabled="disabled" type="checkbox"> done', "☐ done"),
        ('<svg width="9"/>', '<svg xmlns="http://www.w3.org/2000/svg" width="9"/>'),
    ],
)
def test_html_of_notebooks_and_lists_becomes_xhtml(html: str, xhtml: str) -> None:
    assert handbook_epub.as_xhtml(html) == xhtml


@pytest.mark.parametrize("tex", [r"\big( x \big)", r"y_1, \dots, y_n", r"\operatorname{softmax}(x)"])
def test_a_formula_becomes_xml_without_named_entities(tex: str) -> None:
    ElementTree.fromstring(handbook_math.as_mathml(tex))


def link_of(source: Path) -> list[object]:
    """What the directive of the first page makes in a folder of sources."""
    directive = handbook_epub.EpubLink.__new__(handbook_epub.EpubLink)
    environment = SimpleNamespace(srcdir=source, docname="book/index")
    directive.state = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(env=environment)))
    directive.content = ["The whole book"]  # type: ignore[assignment]
    return list(directive.run())


def test_the_first_page_links_the_file_only_where_it_is(tmp_path: Path) -> None:
    assert "```{book-epub}" in (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert link_of(tmp_path) == []
    (tmp_path / "book" / "files").mkdir(parents=True)
    (tmp_path / handbook_epub.FILE).touch()
    assert len(link_of(tmp_path)) == 1


def test_a_file_that_is_older_than_a_page_is_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book").mkdir()
    page, epub = tmp_path / "book" / "index.md", tmp_path / "a.epub"
    page.touch()
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    monkeypatch.setattr(build_book, "EPUB", epub)
    assert not build_book.epub_is_current()
    epub.touch()
    os.utime(page, (1, 1))
    assert build_book.epub_is_current()
    os.utime(epub, (0, 0))
    assert not build_book.epub_is_current()
