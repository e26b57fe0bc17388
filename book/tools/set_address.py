"""Set the repository's address. It is stated once, in `_config.yml`; this writes it wherever it is derived.

python book/tools/set_address.py owner/name
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

PLACEHOLDER = "OWNER/alignment-handbook"
# text files that repeat the address, because whatever reads them cannot read _config.yml
DERIVED = ["README.md", "CITATION.cff", "book/*.md", "notebooks/*.ipynb"]


def read_address(root: Path) -> str:
    """The `owner/name` that `_config.yml` states."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"]).removeprefix("https://github.com/")


def files_with_address(root: Path) -> list[Path]:
    """Every file the address is written into, `_config.yml` first."""
    return [root / "_config.yml", *(path for pattern in DERIVED for path in sorted(root.glob(pattern)))]


def set_address(root: Path, new: str) -> list[Path]:
    """Replace the present address by `new` everywhere; returns the files that changed.

    Raises:
        ValueError: `new` is not of the form owner/name.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        raise ValueError(
            f"'{new}' is no repository address. Give owner/name, such as jane/alignment-handbook."
        )
    old, changed = read_address(root), []
    for path in files_with_address(root):
        text = path.read_text(encoding="utf-8")
        if old in text and old != new:
            path.write_text(text.replace(old, new), encoding="utf-8")
            changed.append(path)
    return changed


def main() -> int:
    """Read the command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(__file__).resolve().parents[2]
    try:
        changed = set_address(root, sys.argv[1])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(f"wrote {path.relative_to(root)}" for path in changed) or "nothing to change")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
