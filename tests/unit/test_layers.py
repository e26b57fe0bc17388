"""The arrows of ARCHITECTURE.md: a lower layer never imports a higher one, lazily or not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import handbook_utils

PACKAGE = Path(handbook_utils.__file__).parent
LAYERS = [
    {"errors", "records"},
    {"convert", "environment", "processes", "runs", "schema"},
    {"pocket"},
    {"chat"},
    {"data"},
    {"shared_prefix"},
    {"models"},
    {"evaluation"},
    {"training", "sampling", "launch"},
    {"pipeline"},
    {"reporting"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ROOMS_THAT_ARE_PEERS = {"training", "sampling", "launch"}


def modules() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(found) > 30
    return found


def imports_of(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names += (
                [f"{module}.{alias.name}" for alias in node.names] if module == "handbook_utils" else [module]
            )
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name.split(".")[1] for name in names if name.startswith("handbook_utils.")]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_belongs_to_a_layer():
    assert {room(path) for path in modules()} == set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_only(path):
    own = room(path)
    for imported in imports_of(path):
        if imported in ("__version__", own):
            continue
        assert LEVEL[imported] <= LEVEL[own], f"{path.name} ({own}) imports {imported}, which is above it"
        if own in ROOMS_THAT_ARE_PEERS:
            assert imported not in ROOMS_THAT_ARE_PEERS, f"{own} and {imported} are peers"


def test_only_the_bridge_knows_trl():
    users = {path.name for path in modules() if "trl" in {n.split(".")[0] for n in top_imports(path)}}
    assert users == {"trl_bridge.py"}


def top_imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found + [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_has_more_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


HEAVY = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "matplotlib",
    "pandas",
    "pyarrow",
    "pydantic",
    "numpy",
    "scipy",
)


@pytest.mark.parametrize("module", ["handbook_utils", "handbook_utils.cli"])
def test_importing_it_loads_nothing_heavy(module):
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_public_names_load_and_are_all_listed():
    assert handbook_utils.__all__ == sorted(handbook_utils._PUBLIC)
    for name in handbook_utils.__all__:
        assert getattr(handbook_utils, name).__doc__, name


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train_ppo'"):
        _ = handbook_utils.train_ppo
