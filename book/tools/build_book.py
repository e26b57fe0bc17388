"""Build the book into `_build/html`, from nothing and with every warning an error.

python book/tools/build_book.py                            show the outputs stored in notebooks/
python book/tools/build_book.py --notebooks runs/notebooks   show the outputs of executed copies
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "_build" / "book-source"
HTML = ROOT / "_build" / "html"
PAGES = {".md", ".ipynb", ".json", ".svg", ".bib"}  # what the text of a page is made of
EPUB = ROOT / "_build" / "epub" / "alignment-handbook.epub"  # what build_epub.py makes


def lay_out(notebooks: Path, source: Path | None = None) -> Path:
    """Put the book's sources beside the chosen notebooks, at the paths they have in the repository.

    The paths stay, so the pages' Colab and edit links lead to the tracked files.

    Args:
        notebooks: folder of the notebooks whose outputs are shown.
        source: the folder to fill, emptied first; `_build/book-source` if not given.
    Returns:
        That folder.
    """
    source = source or SOURCE
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(ROOT / name, source / name)
    shutil.copytree(ROOT / "book", source / "book", ignore=shutil.ignore_patterns("__pycache__", "tools"))
    (source / "notebooks").mkdir()
    for path in sorted(notebooks.glob("*.ipynb")):
        shutil.copy2(path, source / "notebooks" / path.name)
    return source


def build(notebooks: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages; `returncode` is 0 only when there was no warning.

    Args:
        notebooks: folder of the notebooks whose outputs are shown; nothing is executed.
    """
    source = lay_out(notebooks)
    if epub_is_current():
        shutil.copy2(EPUB, source / "book" / "files" / EPUB.name)  # the first page links it
    # an incremental build loses the warnings of pages it does not touch
    for stale in (HTML, ROOT / "_build" / ".doctrees"):
        shutil.rmtree(stale, ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", source, "--path-output", ROOT]
    done = subprocess.run(
        [*command, "-W", "-n", "--keep-going", "--all"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if done.returncode == 0:
        write_llms()
    return done


def epub_is_current() -> bool:
    """Whether there is a file for e-readers, made after the last change of a page."""
    found = (path for folder in ("book", "notebooks") for path in (ROOT / folder).rglob("*"))
    newest = max(path.stat().st_mtime for path in found if path.suffix in PAGES)
    return EPUB.is_file() and EPUB.stat().st_mtime >= newest


def write_llms(html: Path = HTML) -> Path:
    """Write `llms.txt`: every page of the book with its title and what it teaches, for programs that read it.

    Format: https://llmstxt.org
    """
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    title, about = _title_and_first_words(ROOT / f"{contents['root']}.md")
    lines = [f"# {title}", "", f"> {about}"]
    for part in contents["parts"]:
        lines += ["", f"## {part['caption']}", ""]
        for name in _pages(part["chapters"]):
            source = ROOT / f"{name}.md"
            if source.exists():  # a notebook is reached from its chapter
                title, about = _title_and_first_words(source)
                lines.append(f"- [{title}]({name}.html): {about}")
    file = html / "llms.txt"
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


def _pages(entries: list[dict[str, Any]]) -> list[str]:
    return [name for entry in entries for name in (entry["file"], *_pages(entry.get("sections", [])))]


def _title_and_first_words(page: Path) -> tuple[str, str]:
    """A page's title and its first paragraph as plain text."""
    text = page.read_text(encoding="utf-8")
    title, _, rest = text[text.index("# ") + 2 :].partition("\n")
    first = next((part for part in rest.split("\n\n") if re.match(r"[\w*{]", part.strip())), title)
    first = re.sub(r"\{world\}`[^`]*` ", "", first)  # a number that only the package knows
    plain = re.sub(r"\{\w+\}`([^`<]*?)(?: <[^`]*>)?`", r"\1", first).replace("*", "")
    return title, " ".join(plain.split())


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a build's output that say what is wrong."""
    return [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line or "ERROR" in line]


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER")
    done = build(parser.parse_args().notebooks)
    if done.returncode == 0:
        print(f"The book is in {HTML / 'index.html'}")
    else:
        print(done.stdout, done.stderr, *complaints(done), sep="\n", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
