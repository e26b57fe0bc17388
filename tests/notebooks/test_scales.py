"""What a notebook does at a scale that is not `pocket` really runs, on shrunk models and made-up rows."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
from run_notebooks import find_notebooks

from handbook_utils.errors import RecipeError
from handbook_utils.schema import recipe
from handbook_utils.schema.recipe import SCALES, check_recipe, find_recipe, read_recipe_file, recipe_for_scale
from handbook_utils.schema.stages import RejectionRecipe
from handbook_utils.schema.training import TrainingRecipe
from tests.recipes.shrunk import small_round, tiny_models, two_steps

HEADING = "## On a real model"
# what the last section needs of the cells before it, besides imports and functions
NEEDED = {"NS", "SCALE", "SEED", "conversation"}
REAL_SCALES = [scale for scale in SCALES if scale != "pocket"]
# run folders that each notebook's last section leaves, and the stage each is of
MADE = {
    "chat_templates": {},
    "data": {},
    "dpo": {"dpo": "dpo", "evaluate-dpo": "evaluate"},
    "scaling": {"sft": "sft"},
    "objective": {"sft": "sft", "reward": "reward"},
    "online_rl": {"sft": "sft", "reward": "reward", "grpo": "grpo"},
    "metrics": {"sft": "sft"},
    "lora": {"rank-1": "sft", "rank-16": "sft"},
    "overoptimisation": {"sft": "sft", "reward": "reward"},
    "rejection_sampling": {"sft": "sft", "reward": "reward", "rejection": "rejection"},
    "reward_models": {"sft": "sft", "reward": "reward"},
    "sft": {"sft": "sft", "shuffled": "sft"},
    "variants": {"dpo": "dpo", "apo": "dpo"},
}

NOTEBOOKS = {path.stem: path for path in find_notebooks()}
every_notebook = pytest.mark.parametrize("name", MADE)


def cells_of(name: str) -> tuple[list[str], list[str]]:
    """Code before the last section, and in it."""
    cells = nbformat.read(NOTEBOOKS[name], as_version=4).cells
    (start,) = (place for place, cell in enumerate(cells) if cell.source.startswith(HEADING))
    parts = cells[:start], cells[start:]
    before, section = ([cell.source for cell in part if cell.cell_type == "code"] for part in parts)
    return before, section


def prelude(sources: list[str]) -> str:
    """Imports, functions and the few values that the last section needs; no experiment."""
    kept = []
    for node in (node for source in sources[1:] for node in ast.parse(source).body):
        names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)) or names & NEEDED:
            kept.append(ast.unparse(node))
    return "\n".join(["import os", *kept])


@pytest.fixture(scope="module")
def shrunk_recipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that finds a packaged recipe's file, shrunk where it is a training recipe."""
    folder = tmp_path_factory.mktemp("scales")
    shrunk = tiny_models(folder / "models")

    def find(name: str) -> Path:
        packaged = find_recipe(name)
        loaded = check_recipe(read_recipe_file(packaged), name)
        if not isinstance(loaded, TrainingRecipe | RejectionRecipe):
            return packaged
        file = folder / f"{name}.yaml"
        if isinstance(loaded, RejectionRecipe):
            content = small_round(loaded, folder / "data" / name)
        else:
            content = two_steps(loaded, shrunk, folder / "data" / name, held_out=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    return find


# few steps on few rows: small samples and words that mean nothing are what this asks for
@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
@pytest.mark.filterwarnings("ignore::handbook_utils.training.rows.labelled.TemplateWarning")
@pytest.mark.filterwarnings("ignore::handbook_utils.online.rewards.EqualRewardsWarning")
@pytest.mark.parametrize("scale", REAL_SCALES)
@every_notebook
def test_the_last_section_runs_at_every_scale(
    name: str,
    scale: str,
    shrunk_recipes: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matplotlib.use("agg")
    asked: list[str] = []

    def find(wanted: str) -> Path:
        asked.append(wanted)
        return shrunk_recipes(wanted)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANDBOOK_SCALE", scale)
    monkeypatch.setattr(recipe, "find_recipe", find)
    before, section = cells_of(name)
    space: dict[str, Any] = {}
    exec("\n".join([prelude(before), *section]), space)
    runs = tmp_path / "runs" / f"{name}-{scale}-0"
    stages = {
        folder: json.loads((runs / folder / "manifest.json").read_text())["stage"] for folder in MADE[name]
    }
    assert stages == MADE[name]
    theirs = {"dpo": "dpo", "overoptimisation": "reward", "reward_models": "reward", "online_rl": "grpo"}
    theirs["variants"] = "dpo"
    assert recipe_for_scale(theirs.get(name, "sft"), scale) in asked or f"{SCALES[scale]}/sft-qlora" in asked
    assert not any(wanted.startswith("pocket/") and "evaluate" not in wanted for wanted in asked)


def test_every_notebook_has_a_last_section_for_real_models() -> None:
    assert set(NOTEBOOKS) == set(MADE)


@every_notebook
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_named_with_its_recipe_at_the_top(
    name: str, scale: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANDBOOK_SCALE", scale)
    exec(f"import os\n{scale_cell(name)}", {})
    assert f"{scale}: the last section" in (said := capsys.readouterr().out)
    assert f"{SCALES[scale]}/" in said


@every_notebook
def test_a_misspelt_scale_stops_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDBOOK_SCALE", "pokcet")
    with pytest.raises(RecipeError, match=r"unknown scale .pokcet.\. Did you mean .pocket."):
        exec(f"import os\n{scale_cell(name)}", {})


def scale_cell(name: str) -> str:
    before, _ = cells_of(name)
    (cell,) = (source for source in before if "SCALE = os.environ" in source)
    assert before.index(cell) == 1, "the scale is chosen right after the installation"
    return cell
