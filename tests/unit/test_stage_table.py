"""The one list of stages: its rows are true, everybody reads them, and nobody keeps a list of their own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import handbook_utils
from handbook_utils.errors import RecipeError
from handbook_utils.pipeline.run import run_pipeline
from handbook_utils.pipeline.stages import stage_function
from handbook_utils.reporting.report import write_report
from handbook_utils.runs.folder import open_run
from handbook_utils.schema.recipe import load_recipe, recipe_names
from handbook_utils.schema.stage_table import STAGES, stages_of, training_stages

PACKAGE = Path(handbook_utils.__file__).parent
# the names of TRL's trainers, of which pretrain and sft share one; public functions, some named as stages;
# what other tools call their methods; and of which method a log is, whoever wrote it
OTHER_NAMES = {PACKAGE / "training" / "trl_bridge.py", PACKAGE / "__init__.py"}
OTHER_NAMES |= {PACKAGE / "convert" / "tables.py", PACKAGE / "convert" / "foreign.py"}
OTHER_NAMES |= {PACKAGE / "diagnosis" / "rules" / "preferences.py", PACKAGE / "diagnosis" / "keys.py"}
EXAMPLES = {load_recipe(name).stage: name for name in recipe_names()}
each_example = pytest.mark.parametrize(("stage", "name"), EXAMPLES.items())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_the_name_that_its_recipes_say(name: str) -> None:
    assert get_args(STAGES[name].recipe.model_fields["stage"].annotation) == (name,)


@pytest.mark.parametrize("name", [name for name in STAGES if STAGES[name].entry_point])
def test_the_function_of_a_stage_is_there(name: str) -> None:
    assert callable(stage_function(name))


def test_only_the_pipeline_turns_module_and_function_into_a_function() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(isinstance(n, ast.Attribute) and n.attr == "entry_point" for n in ast.walk(tree(path)))
    }
    assert users == {"pipeline/stages.py"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named_stages(node: ast.AST) -> set[str]:
    """Stages that a display of Python lists, by their names or by their recipes' types."""
    items: list[ast.expr | None] = []
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items = list(node.elts)
    elif isinstance(node, ast.Dict):
        items = node.keys
    types = {stage.recipe.__name__: name for name, stage in STAGES.items()}
    strings = {item.value for item in items if isinstance(item, ast.Constant)} & STAGES.keys()
    return strings | {types[item.id] for item in items if isinstance(item, ast.Name) and item.id in types}


def test_there_is_no_second_list_of_stages() -> None:
    lists = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} lists {sorted(named_stages(node))}"
        for path in PACKAGE.rglob("*.py")
        if path not in OTHER_NAMES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.expr) and len(named_stages(node)) > 2
    ]
    assert lists == []
    assert len(named_stages(ast.parse('["sft", "dpo", "kto"]', mode="eval").body)) == 3


@each_example
def test_the_command_of_a_card_runs_its_recipe(handbook, stage: str, name: str) -> None:
    code, out, _ = handbook("recipes", name)
    assert code == 0
    command = out.rpartition("run it: handbook ")[2].split()[0]
    assert stage in stages_of(command)
    assert handbook(command, "--help")[0] == 0


@each_example
def test_who_runs_one_stage_as_a_pipeline_is_told_the_command_of_that_stage(stage: str, name: str) -> None:
    if stage == "pipeline":
        return
    with pytest.raises(RecipeError) as caught:
        run_pipeline(name, "never-made")
    assert f"`handbook {STAGES[stage].command} {name}`" in str(caught.value)


def test_a_pipelines_plan_ends_with_a_command_that_shows_one_stage(handbook) -> None:
    out = handbook("run", "pocket/pipeline", "--dry-run")[1]
    command, name, flag = out.rpartition("one stage in full: handbook ")[2].split()
    assert (load_recipe(name).stage in stages_of(command), flag) == (True, "--dry-run")


def test_the_help_of_train_names_every_training_stage(handbook) -> None:
    out = handbook("train", "--help")[1]
    assert all(stage in out for stage in training_stages())


@pytest.mark.parametrize("stage", training_stages())
def test_the_report_draws_the_curves_of_every_training_stage(stage: str, tmp_path: Path) -> None:
    curves = STAGES[stage].curves
    assert curves is not None
    assert bool(curves.rewards) == (STAGES[stage].kind in ("preference", "feedback", "prompt"))
    keys = ["loss", *curves.rewards, *curves.moves, *([curves.accuracy] if curves.accuracy else [])]
    with open_run(tmp_path / "run", load_recipe(EXAMPLES[stage])) as run:
        for step in (1, 2):
            run.log_metrics({"step": step, **dict.fromkeys(keys, 0.5)})
        run.finish({})
    page = write_report(tmp_path / "run", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "loss over optimiser steps" in page
    assert ("rewards and accuracy over optimiser steps" in page) == bool(curves.rewards)
