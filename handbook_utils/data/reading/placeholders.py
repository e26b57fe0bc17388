"""What stands in for a file that was never fetched: pointers of Git LFS and git-annex, web pages."""

from __future__ import annotations

from pathlib import Path

# how such a file begins, and what it is
PLACEHOLDERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file: run `git lfs pull` in its repository",
    b"/annex/objects/": "a git-annex pointer, not the file itself: run `git annex get` on it",
    b"<!DOCTYPE": "a web page, not the file itself: download it again, logged in where it is a private one",
    b"<html": "a web page, not the file itself: download it again, logged in where it is a private one",
}
# bytes of a file that tell
BEGIN = 64


def placeholder(file: Path) -> str | None:
    """What stands in a file's place, with what fetches it; None where the file may be what it says."""
    with file.open("rb") as stream:
        return placeholder_of(stream.read(BEGIN))


def placeholder_of(begin: bytes) -> str | None:
    """What a file is a placeholder of, by its first bytes; None where it is none.

    >>> placeholder_of(b"version https://git-lfs.github.com/spec/v1")
    'a Git LFS pointer, not the file: run `git lfs pull` in its repository'
    """
    plain = begin.lstrip().lower()
    return next((what for sign, what in PLACEHOLDERS.items() if plain.startswith(sign.lower())), None)
