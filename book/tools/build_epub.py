"""Build the book as one file for e-readers, `_build/epub/alignment-handbook.epub`, and check it.

python book/tools/build_epub.py                             from the outputs stored in notebooks/
python book/tools/build_epub.py --notebooks runs/notebooks   from executed copies

`make book` then links the file from the first page. Formulas are MathML, which readers draw by themselves;
there is no script in the file. Title, author and address are those of `_config.yml`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import build_book
import yaml

import handbook_utils

ROOT = build_book.ROOT
WORK = ROOT / "_build" / "epub-work"
# what needs a browser: buttons, scripts, and a theme that is one page's frame
BROWSER_ONLY = {"sphinx_book_theme", "sphinx_togglebutton", "sphinx_copybutton"}
XHTML = "{http://www.w3.org/1999/xhtml}"
# what a page's entry has to say that it holds
DRAWN = {"mathml": "{http://www.w3.org/1998/Math/MathML}math", "svg": "{http://www.w3.org/2000/svg}svg"}
OPF = "{http://www.idpf.org/2007/opf}"
DC = "{http://purl.org/dc/elements/1.1/}"
OLD_ROLE = b' role="doc-biblioentry"'  # out of use, and Sphinx still writes it
LATE_STYLE = re.compile(rb"<link [^>]*mystnb\.[^>]*>")  # myst-nb writes it when the file is closed
PAGE = ".xhtml"
MIMETYPE = "mimetype"
PACKAGE = "content.opf"
NAVIGATION = "nav.xhtml"
OLD_CONTENTS = "toc.ncx"  # for readers of EPUB 2


class BrokenEpubError(ValueError):
    """The file would not open in a reader, or would show a page without its pictures or formulas."""


def epub_config(config: dict[str, Any]) -> dict[str, Any]:
    """The book's configuration for e-readers.

    Args:
        config: `_config.yml` as read.
    Returns:
        A copy that leaves out what needs a browser, with an identifier made of the repository's address.

    >>> sphinx = {"config": {"extensions": ["myst_nb", "sphinx_book_theme"]}}
    >>> book = {"repository": {"url": "https://example.org/a"}, "launch_buttons": {}, "sphinx": sphinx}
    >>> epub_config(book)["sphinx"]["config"]["extensions"]
    ['myst_nb']
    """
    sphinx = config["sphinx"]["config"]
    address = config["repository"]["url"]
    kept = [name for name in sphinx["extensions"] if name not in BROWSER_ONLY]
    made = sphinx | {"extensions": kept, "project": config["title"], "version": handbook_utils.__version__}
    made |= {"epub_identifier": address, "epub_contributor": config["author"]}
    without = {key: value for key, value in config.items() if key != "launch_buttons"}
    return without | {"sphinx": config["sphinx"] | {"config": made}}


def build(notebooks: Path, epub: Path = build_book.EPUB) -> subprocess.CompletedProcess[str]:
    """Build the file; `returncode` is 0 only when there was no warning.

    Args:
        notebooks: folder of the notebooks whose outputs are shown; nothing is executed.
        epub: where the file goes; it is written under another name, then renamed.
    Raises:
        BrokenEpubError: the file was built and would not open.
    """
    shutil.rmtree(WORK, ignore_errors=True)  # all that lies in the output goes into the file
    source = build_book.lay_out(notebooks, WORK / "source")
    config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    (source / "_config.yml").write_text(yaml.safe_dump(epub_config(config)), encoding="utf-8")
    shutil.rmtree(source / "book" / "_static" / "katex")
    (source / "book" / "_static" / "handbook_math.js").unlink()
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", source, "--path-output", WORK, "--builder", "custom"]
    command += ["--custom-builder", "epub", "-W", "-n", "--keep-going", "--all"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode == 0:
        (built,) = (WORK / "_build" / "epub").glob("*.epub")
        epub.parent.mkdir(parents=True, exist_ok=True)
        part = epub.with_suffix(".part")
        finish(built, part)
        if wrong := faults(part):
            raise BrokenEpubError(f"{part}: " + "; ".join(wrong))
        part.replace(epub)
    return done


def finish(built: Path, to: Path) -> None:
    """Copy a file that Sphinx made, and mend what it leaves out of the standard (EPUB 3.3).

    The list of contents says which pages hold formulas or drawings, and both lists name the book alike.
    """
    with zipfile.ZipFile(built) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr(MIMETYPE, old.read(MIMETYPE), zipfile.ZIP_STORED)  # first, and not compressed
        for name in old.namelist():
            if name != MIMETYPE:
                new.writestr(name, _mended(old, name))


def _mended(book: zipfile.ZipFile, name: str) -> bytes:
    content = book.read(name)
    if name == PACKAGE:
        return _with_properties(book)
    if name == OLD_CONTENTS:
        identifier = ElementTree.fromstring(book.read(PACKAGE)).findtext(f".//{DC}identifier", "")
        return re.sub(rb'(name="dtb:uid" content=")[^"]*', rb"\g<1>" + escape(identifier).encode(), content)
    return LATE_STYLE.sub(b"", content.replace(OLD_ROLE, b"")) if name.endswith(PAGE) else content


def _with_properties(book: zipfile.ZipFile) -> bytes:
    for prefix, space in (("", OPF), ("dc", DC)):
        ElementTree.register_namespace(prefix, space.strip("{}"))
    package = ElementTree.fromstring(book.read(PACKAGE))
    for item in package.iter(f"{OPF}item"):
        if item.get("media-type") == "application/xhtml+xml":
            name = unquote(item.get("href", ""))
            try:
                page = ElementTree.fromstring(book.read(name))
            except ElementTree.ParseError as error:
                raise BrokenEpubError(f"'{name}' is not well-formed: {error}") from error
            if held := [name for name, tag in DRAWN.items() if next(page.iter(tag), None) is not None]:
                item.set("properties", " ".join([*filter(None, [item.get("properties")]), *held]))
    return ElementTree.tostring(package, encoding="utf-8", xml_declaration=True)


def faults(epub: Path) -> list[str]:
    """Why a reader would not open the file, or would show less than the book holds; empty if it is sound."""
    with zipfile.ZipFile(epub) as book:
        if damaged := book.testzip():
            return [f"'{damaged}' is damaged"]
        names = book.namelist()
        found = [] if names[0] == MIMETYPE else [f"'{MIMETYPE}' is not first"]
        listed = {unquote(item.get("href", "")) for item in _items(book)}
        found += [f"'{name}' is listed and missing" for name in sorted(listed - set(names))]
        found += [f"'{name}' is not listed" for name in sorted(set(names) - listed) if name.endswith(PAGE)]
        pages = [name for name in names if name.endswith(PAGE)]
        for name in pages:
            found += _faults_of_page(name, book.read(name), set(names))
        found += _faults_of_order(book)
        if not any(b"<math" in book.read(name) for name in pages):
            found.append("no page holds a formula")
    return found


def _items(book: zipfile.ZipFile) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(book.read(PACKAGE)).iter(f"{OPF}item"))


def _faults_of_order(book: zipfile.ZipFile) -> list[str]:
    """Pages that the reading order or the contents name in vain, or leave out."""
    package = ElementTree.fromstring(book.read(PACKAGE))
    known = {item.get("id"): unquote(item.get("href", "")) for item in _items(book)}
    order = [reference.get("idref") for reference in package.iter(f"{OPF}itemref")]
    found = [f"the reading order names '{name}', which is not listed" for name in order if name not in known]
    if NAVIGATION in book.namelist():
        links = ElementTree.fromstring(book.read(NAVIGATION)).iter(f"{XHTML}a")
        named = {urldefrag(unquote(link.get("href", "")))[0] for link in links}
        chapters = {known.get(name, "") for name in order if known.get(name, "").startswith("book/")}
        found += [f"the contents leave out '{name}'" for name in sorted(chapters - named)]
    return found


def _faults_of_page(name: str, text: bytes, names: set[str]) -> list[str]:
    try:
        page = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        return [f"'{name}' is not well-formed: {error}"]
    found = [f"'{name}' holds a script" for _ in page.iter(f"{XHTML}script")]
    for tag, attribute in (("img", "src"), ("a", "href"), ("link", "href")):
        for element in page.iter(f"{XHTML}{tag}"):
            target = unquote(urldefrag(element.get(attribute, ""))[0])
            if target and ":" not in target and _beside(name, target) not in names:
                found.append(f"'{name}' leads to '{target}', which is not there")
    return found


def _beside(page: str, target: str) -> str:
    """A link's target as a path inside the file.

    >>> _beside("book/sft.xhtml", "../_images/sft.svg")
    '_images/sft.svg'
    """
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / target).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER")
    try:
        done = build(parser.parse_args().notebooks)
    except BrokenEpubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if done.returncode == 0:
        print(f"The book for e-readers is {build_book.EPUB}")
    else:
        print(done.stdout, done.stderr, *build_book.complaints(done), sep="\n", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
