"""Break one line of code on purpose: of a notebook, or of a function in a copy of the package.

A break has to be of a mechanism: what is learned from, under which mask, against which reference. A run that
learns nothing (learning rate 0, a step or two, no data) fails every claim about an effect and proves none, so
those are refused.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import handbook_utils
from handbook_utils.errors import DataError, suggest

PACKAGE = Path(handbook_utils.__file__).parent
_NO_MECHANISM = {
    "learning rate 0": re.compile(r"learning_rate\W*0(?:\.0*)?(?![\w.])"),
    "max_steps": re.compile(r"max_steps"),
    "empty data": re.compile(r"(?<!eval_)data\W*\[\s*\]|\[:0\]"),
}


def check_mechanism(text: str, where: str) -> None:
    """Refuse a break that only keeps a run from learning.

    Raises:
        DataError: names what is refused and where.
    """
    for name, pattern in _NO_MECHANISM.items():
        if pattern.search(text):
            raise DataError(
                f"{where}: {name} breaks no mechanism; any effect fails under it. Break what the claim rests "
                "on: the pairs, the mask, the template, the reference, the control."
            )


def replace_once(source: str, old: str, new: str, where: str) -> str:
    """The source with one line changed.

    Raises:
        DataError: the text spans lines, changes nothing, or does not occur exactly once.
    """
    if "\n" in old or "\n" in new or old == new:
        raise DataError(f"{where}: a break changes one line.")
    count = source.count(old)
    if count != 1:
        raise DataError(f"{where} holds {old!r} {count} times; it has to be once.")
    return source.replace(old, new)


def break_package(target: str, old: str, new: str, folder: Path, *, package: Path = PACKAGE) -> Path:
    """Copy the package into a folder with one line of one function changed.

    Args:
        target: "module:function" or "module:Class.method", the module without the package's name.
        old: text in that function; it occurs there once.
        new: what stands in its place.
        folder: gets the copy; a process that has it first in PYTHONPATH runs the broken code.
        package: what is copied.
    Returns:
        A file that the broken function makes when it is called: a break that nothing runs shows nothing.
    Raises:
        DataError: no such module or function, or the text does not occur in it exactly once.
    """
    module, _, function = target.partition(":")
    inside = Path(*module.split(".")).with_suffix(".py")
    if not (package / inside).is_file():
        near = [".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py")]
        raise DataError(f"no module '{module}' to break. {suggest(module, near)}")
    called = folder / "called"
    broken = broken_module((package / inside).read_text(encoding="utf-8"), function, old, new, called, target)
    copy = folder / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / inside).write_text(broken, encoding="utf-8")
    return called


def broken_module(source: str, function: str, old: str, new: str, called: Path, where: str) -> str:
    """A module's source with one line of a function changed; the function leaves a file when it is called."""
    node = _find(ast.parse(source), function, where)
    lines = source.splitlines(keepends=True)
    before, body = lines[: node.lineno - 1], "".join(lines[node.lineno - 1 : node.end_lineno])
    broken = replace_once(body, old, new, where)
    first = next(each for each in node.body if not _is_docstring(each))
    marker = f"{' ' * first.col_offset}__import__('pathlib').Path({str(called)!r}).touch()\n"
    parts = broken.splitlines(keepends=True)
    parts.insert(first.lineno - node.lineno, marker)
    changed = "".join([*before, *parts, *lines[node.end_lineno :]])
    ast.parse(changed)  # a break that is no Python would show nothing
    return changed


def broken_environment(folder: Path) -> dict[str, str]:
    """Environment variables under which a process imports the broken copy in a folder."""
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([known] if known else [])])}


def _find(tree: ast.Module, function: str, where: str) -> ast.FunctionDef:
    found: Mapping[str, ast.FunctionDef] = {
        f"{prefix}{node.name}": node
        for prefix, body in [("", tree.body), *((f"{c.name}.", c.body) for c in _classes(tree))]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }
    if function not in found:
        raise DataError(f"{where}: no such function to break. {suggest(function, found)}")
    return found[function]


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
