"""The arrows of ARCHITECTURE.md: a lower layer never imports a higher one, lazily or not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import handbook_utils
from handbook_utils.schema.stage_table import STAGES

PACKAGE = Path(handbook_utils.__file__).parent
# from the lowest up; those in one pair of braces do not import each other
LAYERS = [
    {"errors", "environment", "processes", "redaction"},
    {"libraries"},
    {"records"},
    {"schema"},
    {"runs", "convert"},
    {"pocket"},
    {"chat"},
    {"data"},
    {"curation"},
    {"shared_prefix"},
    {"models"},
    {"evaluation", "diagnosis"},
    {"training", "sampling", "launch"},
    {"online", "planning"},
    {"export"},
    {"benchmarks"},
    {"pipeline"},
    {"reporting"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MOST_FILES, MOST_LINES, FEWEST_LINES = 14, 400, 40
# smaller than a module should be, and why it is one
SMALL = {
    "cli/__main__.py": "what `python -m` runs",
    "cli/merge.py": "a module for each command",
    "libraries/notices.py": "called before any library is imported",
    "pocket/fingerprint.py": "loads neither torch nor the world",
    "runs/follower.py": "a run folder that is not to be written to",
    "sampling/scoring/scorers/gold.py": "a module for each scorer",
    "data/reading/placeholders.py": "asked of data and of models",
    "models/towers.py": "asked by adapters, which may not import what copies processors",
}


def modules() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(found) > 30
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in modules()}
every_module = pytest.mark.parametrize("path", modules(), ids=name_of)


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a module imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # what is imported from a folder may be a module of it
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                own = name.removeprefix("handbook_utils.")
                found |= {own} if own in MODULES else {str(node.module).removeprefix("handbook_utils.")}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("handbook_utils.") for alias in node.names}
    return found & MODULES.keys()


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_belongs_to_a_layer():
    assert {room(name) for name in MODULES} == set(LEVEL)


def is_allowed(importing: str, imported: str) -> bool:
    return importing == imported or LEVEL[imported] < LEVEL[importing]


@every_module
def test_imports_run_down_only(path):
    own = room(name_of(path))
    above = [name for name in imports_of(path) if not is_allowed(own, room(name))]
    assert not above, f"{name_of(path)} imports what is not below {own}: {above}"


def test_the_functions_of_the_stage_table_lie_where_pipeline_may_import_them():
    named = {stage.entry_point.partition(":")[0] for stage in STAGES.values() if stage.entry_point}
    assert named <= MODULES.keys()
    assert all(is_allowed("pipeline", room(name)) for name in named)


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Modules that import each other in a ring; [] where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_ring():
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]})
    assert circle({name: imports_of(path) - {name} for name, path in MODULES.items()}) == []


def test_no_folder_is_too_full_to_be_looked_through():
    folders = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(f.relative_to(PACKAGE)): n for f, n in folders.items() if n > MOST_FILES} == {}


def test_only_the_bridge_knows_trl():
    users = {path.name for path in modules() if "trl" in {n.split(".")[0] for n in top_imports(path)}}
    assert users == {"trl_bridge.py"}


def top_imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return found + [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]


@every_module
def test_no_module_is_longer_than_can_be_read_in_one_go(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_small_modules_have_a_reason():
    small = {
        str(path.relative_to(PACKAGE))
        for path in MODULES.values()
        if path.name != "__init__.py" and len(path.read_text(encoding="utf-8").splitlines()) < FEWEST_LINES
    }
    assert small == SMALL.keys()


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
