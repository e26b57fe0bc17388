"""Write the commented tree of the package into ARCHITECTURE.md, from the first sentence of each docstring.

python book/tools/package_tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, PAGE = ROOT / "handbook_utils", ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- tree:begin (written by `python book/tools/package_tree.py` from the docstrings) -->"
END = "<!-- tree:end -->"


def main() -> None:
    """Refresh the tree."""
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tree(page: str) -> str:
    """The page with a fresh tree between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tree()}\n\n{END}{rest.partition(END)[2]}"


def tree() -> str:
    """One line per folder and module, indented as a block of code."""
    return "\n".join(["    handbook_utils/", *_lines(PACKAGE, indent="      ")])


def _lines(folder: Path, *, indent: str) -> list[str]:
    modules = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    folders = sorted(path.parent for path in folder.glob("*/__init__.py"))
    lines = []
    for path in (*folders, *modules):
        name = f"{path.name}/" if path.is_dir() else path.name
        start = f"{indent}{name:<{32 - len(indent)}} "
        lines.append(start + first_sentence(path / "__init__.py" if path.is_dir() else path))
        lines += _lines(path, indent=f"{indent}  ") if path.is_dir() else []
    return lines


def first_sentence(module: Path) -> str:
    """What the docstring of a module says first."""
    said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[a-z`)])\. ", said.partition("\n")[0])[0].removesuffix(".")


if __name__ == "__main__":
    main()
