"""`handbook rejection-sample`: rounds of sampling, selecting and training, and the table they end with."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from handbook_utils.cli.options import (
    AllowCode,
    Changes,
    DryRun,
    Json,
    OnExecutor,
    Out,
    Overwrite,
    RecipeName,
    Seed,
    executor_changes,
)

if TYPE_CHECKING:
    from rich.table import Table

    from handbook_utils.records import Estimate, RunResult
    from handbook_utils.schema.stages import RejectionRecipe
    from handbook_utils.schema.training import StageRecipe


def rejection_sample(
    recipe: RecipeName,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    executor: OnExecutor = None,
    allow_code: AllowCode = False,
) -> None:
    """Rejection sampling: sample answers, keep the best by score, train on them, measure, and repeat.

    Each round's model is measured on held-out prompts and compared with three others:
    the start model, the previous round's model, and a control trained in the same way on as many samples
    chosen at random.

    The recipe names the scorer that selects, the kind of training, the number of rounds and when to stop.
    Training is sft on the best answers, or dpo on pairs of the best and the worst answer.
    --dry-run shows the stages; running the same command again resumes a killed run.

    The recipes below read two earlier runs that lie beside --out: sft, the start model, and reward, the
    scorer. `handbook run pocket/pipeline` makes both in runs/pipeline.

    Examples:

    handbook rejection-sample pocket/rejection --out runs/pipeline/rejection

    handbook rejection-sample pocket/rejection --set rounds=3 --set stop.max_kl=2 --out runs/pipeline/three

    handbook rejection-sample pocket/iterative-dpo --out runs/pipeline/iterative-dpo --dry-run
    """
    from handbook_utils.cli import view

    changes = [*executor_changes(executor), *(changes or [])]
    loaded = view.load_for("rejection-sample", recipe, changes, seed)
    folder = out or view.default_out(recipe)
    from handbook_utils.pipeline.inputs import check_code
    from handbook_utils.pipeline.stages import rejection_sample
    from handbook_utils.schema.stages import RejectionRecipe

    assert isinstance(loaded, RejectionRecipe)  # so says the list of stages
    if dry_run:
        check_code(loaded, allow_code=allow_code)
        view.check_out_folder(loaded, folder, overwrite=overwrite)
        show_rounds_plan(loaded, folder, json)
        return
    result = rejection_sample(loaded, folder, overwrite=overwrite, progress=not json, allow_code=allow_code)
    if json:
        view.show_result(result, json)
    else:
        show_rounds(loaded, result)


def show_rounds_plan(recipe: RejectionRecipe, folder: Path, json: bool) -> None:
    """The stages of every round and what each reads; data is read, no model is."""
    from rich.console import Console
    from rich.table import Table

    from handbook_utils.cli.view import say_next
    from handbook_utils.pipeline.round_stages import all_stages
    from handbook_utils.pipeline.rounds import plan_rounds
    from handbook_utils.pipeline.run import stage_edges
    from handbook_utils.schema.recipe import recipe_to_dict

    plan, stages = plan_rounds(recipe, folder), all_stages(recipe)
    edges = stage_edges(stages)
    if json:
        made = {name: {"stage": stage.stage, "reads": edges[name]} for name, stage in stages.items()}
        record = {"recipe": recipe_to_dict(recipe), "out": str(folder), "plan": plan, "stages": made}
        print(json_module.dumps(record))
        return
    table = Table("run", "does", "reads", "seed", box=None, header_style="bold")
    for name, stage in stages.items():
        table.add_row(name, _does(stage), ", ".join(edges[name]) or "-", str(stage.seed))
    console = Console(highlight=False)
    console.print(table)
    for key, value in plan.items():
        console.print(f"{key}: {value:,}", markup=False)
    console.print(f"would write {folder}", style="dim", soft_wrap=True)
    say_next("run it: the same command without --dry-run")


def _does(stage: StageRecipe) -> str:
    from handbook_utils.schema.training import TrainingRecipe

    if isinstance(stage, TrainingRecipe):
        tables = {source.subset or "selected" for source in stage.data}
        return f"{stage.stage} on {'random' if 'control' in tables else 'selected'} samples"
    return stage.stage


def show_rounds(recipe: RejectionRecipe, result: RunResult) -> None:
    """What each round's model is worth on held-out prompts, and which rule ended the rounds, if one did."""
    from rich.console import Console

    from handbook_utils.cli.view import next_step, say_next

    console = Console(highlight=False)
    record = json_module.loads((result.path / "rounds.json").read_text(encoding="utf-8"))
    console.print("On held-out prompts, with 95 % intervals", style="bold")
    for score in (*recipe.evaluate.scorers, *recipe.scorers):
        console.print(rounds_table(result.final_metrics, score))
    if record["stopped"]:
        console.print(f"stopped: {record['stopped']}", style="yellow", markup=False)
    for caution in result.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)
    kept = f"round {record['kept']}" if record["kept"] else "round 1, which a rule stopped"
    console.print(f"{result.path}/model: {kept}; {result.runtime_s:.1f} s", style="dim", soft_wrap=True)
    say_next(next_step(result.stage, result.path))


def rounds_table(metrics: Mapping[str, Estimate], score: str) -> Table:
    """One row per model: its score, its gains over start, round before and control, its words and KL."""
    from rich.table import Table

    columns = {
        score: score,
        f"{score}_gain_vs_start": "over start",
        f"{score}_gain_vs_previous": "over round before",
        f"{score}_gain_vs_control": "over control",
        "words": "words",
        "kl": "KL, nats",
    }
    table = Table("model", *columns.values(), box=None, header_style="bold")
    models = dict.fromkeys(name.partition(".")[0] for name in metrics)
    for model in models:
        cells = [metrics.get(f"{model}.{column}") for column in columns]
        table.add_row(model.replace("-", " "), *("" if cell is None else _cell(cell) for cell in cells))
    return table


def _cell(found: Estimate) -> str:
    return str(found).replace("[", r"\[")
