"""What the command line prints: plans, tables of metrics, the progress of pipelines, what to do next."""

from __future__ import annotations

import json as json_module
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbook_utils.cli.options import executor_changes
from handbook_utils.errors import RecipeError
from handbook_utils.records import Estimate, RunResult
from handbook_utils.schema.recipe import (
    find_recipe,
    load_recipe,
    read_recipe_file,
    recipe_to_dict,
    recipe_to_yaml,
)
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.stages import (
    AnnotateRecipe,
    PipelineRecipe,
    SamplingRecipe,
    ScoreRecipe,
    SelectRecipe,
)
from handbook_utils.schema.training import OnlineRecipe, StageRecipe, TrainingRecipe

if TYPE_CHECKING:
    from handbook_utils.models.merge import MergeReport
    from handbook_utils.pipeline.compare import Comparison


def say(record: Mapping[str, Any], text: str, json: bool) -> None:
    """Print a record as JSON for machines, or its text for people."""
    print(json_module.dumps(record) if json else text)


def say_next(text: str, *, to_stderr: bool = False) -> None:
    """The last line of a command: what to do next. It is never wrapped, so that a command can be copied."""
    Console(stderr=to_stderr, highlight=False).print(
        f"next: {text}", style="dim", markup=False, soft_wrap=True
    )


def next_step(stage: str, folder: Path) -> str:
    """What to do with a finished run.

    >>> next_step("sft", Path("runs/my sft"))
    "talk to the model: handbook chat 'runs/my sft'"
    """
    return STAGES[stage].next_step.format(run=shlex.quote(str(folder)))


def default_out(recipe: str) -> Path:
    """runs/<last name of the recipe>."""
    return Path("runs") / Path(recipe).stem


def load_for(command: str, recipe: str, changes: Sequence[str], seed: int | None) -> StageRecipe:
    """A recipe whose stage fits the command."""
    # before the changes, which another stage's recipe might not know
    _check_stage(command, recipe, read_recipe_file(find_recipe(recipe)).get("stage"))
    loaded = load_recipe(recipe, overrides=changes, seed=seed)
    _check_stage(command, recipe, loaded.stage)
    return loaded


def load_training(recipe: str, changes: Sequence[str], seed: int | None) -> TrainingRecipe:
    """A recipe that `handbook train` runs."""
    loaded = load_for("train", recipe, changes, seed)
    assert isinstance(loaded, TrainingRecipe)  # so says the list of stages
    return loaded


def _check_stage(command: str, recipe: str, stage: Any) -> None:
    right = STAGES[stage].command if stage in STAGES else command
    if right != command:
        raise RecipeError(
            f"{recipe}: a recipe of stage '{stage}', which `handbook {command}` does not run. "
            f"Use `handbook {right} {recipe}`."
        )


def run_recipe(
    command: str,
    recipe: str,
    *,
    out: Path | None,
    changes: Sequence[str] | None,
    seed: int | None,
    json: bool,
    overwrite: bool,
    dry_run: bool,
    executor: str | None = None,
    allow_code: bool = False,
) -> None:
    """Run a recipe of the command's stages and show its metrics; a dry run shows what it would do.

    Arguments are the command's options.
    """
    from handbook_utils.pipeline.inputs import check_code
    from handbook_utils.pipeline.stages import run_stage

    loaded = load_for(command, recipe, [*executor_changes(executor), *(changes or [])], seed)
    folder = out or default_out(recipe)
    if dry_run:
        check_code(loaded, allow_code=allow_code)
        check_out_folder(loaded, folder, overwrite=overwrite)
        show_stage_plan(loaded, folder, json)
        return
    result = run_stage(loaded, folder, progress=not json, overwrite=overwrite, allow_code=allow_code)
    show_result(result, json)


def check_out_folder(recipe: StageRecipe, folder: Path, *, overwrite: bool) -> None:
    """Refuse a run folder that the run would refuse."""
    from handbook_utils.pipeline.inputs import fingerprint_inputs, resolve_inputs
    from handbook_utils.runs.folder import check_out

    # inputs are compared with those of an earlier run, so without one they are not read
    is_there = (folder / "manifest.json").exists() and not overwrite
    prints = fingerprint_inputs(recipe, resolve_inputs(recipe, folder)) if is_there else {}
    check_out(folder, recipe, prints, overwrite=overwrite)


def show_result(result: RunResult, json: bool) -> None:
    """The metrics of one run."""
    if json:
        print(json_module.dumps(result_record(result)))
        return
    console = Console()
    if result.final_metrics:
        console.print(metrics_table(result.final_metrics))
    _show_cautions(console, _cautions(result))
    speed = f", {result.tokens_per_s:,.0f} tokens/s" if result.tokens_per_s else ""
    was = "already finished; --overwrite runs it again. It took " if result.reused else ""
    console.print(
        f"{result.path}: {was}{result.runtime_s:.1f} s, {result.peak_memory_gib:.2f} GiB{speed}", style="dim"
    )
    say_next(next_step(result.stage, result.path))


def _cautions(result: RunResult) -> list[str]:
    """What the run itself cautions of, and what of it lies outside of what its recipe gives."""
    from handbook_utils.reporting.expected import unexpected
    from handbook_utils.runs.state import read_manifest

    return [*result.cautions, *unexpected(read_manifest(result.path)["recipe"], result.final_metrics)]


def _show_cautions(console: Console, cautions: Sequence[str]) -> None:
    for caution in cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)


def result_record(result: RunResult) -> dict[str, Any]:
    """A result as plain values."""
    return {
        "stage": result.stage,
        "reused": result.reused,
        "run": str(result.path),
        "final_metrics": {name: figure.to_json() for name, figure in result.final_metrics.items()},
        "runtime_s": result.runtime_s,
        "peak_memory_gib": result.peak_memory_gib,
        "tokens_per_s": result.tokens_per_s,
        "cautions": _cautions(result),
    }


def metrics_table(metrics: Mapping[str, Estimate]) -> Table:
    """Figures with their intervals."""
    table = Table("metric", "value", "interval", "unit", "n", box=None, header_style="bold")
    for name, figure in metrics.items():
        value, _, interval = str(figure).partition(" ")
        table.add_row(
            name, value, f"{interval} {figure.level:.0%}".replace("[", r"\["), figure.unit, str(figure.n)
        )
    return table


def paired_table(rows: Iterable[tuple[str, Estimate, float, float]], *, difference: str, of: str) -> Table:
    """Figures beside a baseline's: name, difference, p-value, and p-value corrected for their number.

    Args:
        rows: as named; a difference says over how many it was taken.
        difference: heading of the differences.
        of: what they were taken over, such as "prompts".
    """
    table = Table("against the baseline", difference, "p", "p, Holm", of)
    for name, gain, p_value, corrected in rows:
        table.add_row(Text(name), str(gain), f"{p_value:.3f}", f"{corrected:.3f}", str(gain.n))
    return table


class PipelineWatcher:
    """Prints one line per stage: its place in the pipeline, its time, its first metrics."""

    def __init__(self, pipeline: str) -> None:
        loaded = load_recipe(pipeline)
        self._names = list(loaded.stages) if isinstance(loaded, PipelineRecipe) else []
        self._console = Console(highlight=False)
        self._started = time.monotonic()

    def __call__(self, name: str, result: RunResult | None) -> None:
        """Called before a stage with None, after it with its result."""
        if result is None:
            self._started = time.monotonic()
            return
        place = f"{self._names.index(name) + 1:>2}/{len(self._names)}"
        session_s = time.monotonic() - self._started
        took = f"{session_s:6.1f} s" if session_s > 0.5 else "  done  "
        first = ", ".join(f"{key} {figure}" for key, figure in list(result.final_metrics.items())[:2])
        line = Text.assemble(f"{place}  {took}  ", (f"{name:<28}", "bold"), f" {first}")
        self._console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        _show_cautions(self._console, _cautions(result))


def show_pipeline(folder: Path, report: Path, json: bool) -> None:
    """The closing table of a pipeline and the path of its report."""
    from handbook_utils.reporting.summary import summary_table

    table = summary_table(folder)
    if json:
        from handbook_utils.reporting.results import pipeline_results

        print(json_module.dumps({"report": str(report), "results": pipeline_results(folder)}))
        return
    console = Console()
    console.print(table)
    console.print(f"\nreport: {report.resolve()}", soft_wrap=True)
    say_next(STAGES["pipeline"].next_step)


def show_stage_plan(
    recipe: StageRecipe, folder: Path, json: bool, *, extra: Mapping[str, Any] | None = None
) -> None:
    """What a stage would do; `extra` is shown beside the plan."""
    plan, extra = stage_plan(recipe, folder), extra or {}
    if json:
        record = {"recipe": recipe_to_dict(recipe), "out": str(folder), "plan": plan, **extra}
        print(json_module.dumps(record))
        return
    console = Console(highlight=False)
    console.print(recipe_to_yaml(recipe), markup=False)
    console.print(_plan_table(recipe, plan))
    for key, text in extra.items():
        # a command is to be copied: no line of it may be broken
        console.print(f"{key.replace('_', ' ')}: {text}", markup=False, soft_wrap=True)
    console.print(f"would write {folder}", style="dim", soft_wrap=True)
    say_next("run it: the same command without --dry-run")


def _plan_table(recipe: StageRecipe, plan: Mapping[str, Any]) -> Table:
    if isinstance(recipe, TrainingRecipe):
        from handbook_utils.training.plan_table import plan_table

        return plan_table(plan)
    table = Table("plan", "", box=None, header_style="bold")
    for key, value in plan.items():
        table.add_row(key.replace("_", " "), _cell(value))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def stage_plan(recipe: StageRecipe, folder: Path) -> dict[str, Any]:
    """Examples, steps and batch of a stage; data is read, no model is."""
    from handbook_utils.pipeline.inputs import check_inputs, resolve_inputs

    inputs = resolve_inputs(recipe, folder)
    check_inputs(recipe, inputs)
    if isinstance(recipe, OnlineRecipe):
        from handbook_utils.online.plan import plan_online

        return plan_online(recipe, inputs)
    if isinstance(recipe, TrainingRecipe):
        from handbook_utils.training.dry_run import plan_training

        return plan_training(recipe, inputs)
    if isinstance(recipe, SamplingRecipe | ScoreRecipe | SelectRecipe | AnnotateRecipe):
        from handbook_utils.sampling.dry_run import plan_sampling

        reads = ", ".join(str(path) for path in inputs.values())
        return ({"reads": reads} if reads else {}) | plan_sampling(recipe, inputs)
    return {"reads": ", ".join(str(path) for path in inputs.values())}


def show_pipeline_plan(
    pipeline: str, changes: Sequence[str], seed: int | None, json: bool, *, allow_code: bool = False
) -> None:
    """The stages of a pipeline and what each reads."""
    from handbook_utils.pipeline.inputs import check_code
    from handbook_utils.pipeline.run import resolve_pipeline, stage_edges

    loaded, stages = resolve_pipeline(pipeline, overrides=changes, seed=seed)
    for recipe in stages.values():
        check_code(recipe, allow_code=allow_code)
    edges = stage_edges(stages)
    if json:
        plan = {
            name: {"recipe": recipe_to_dict(recipe), "reads": edges[name]} for name, recipe in stages.items()
        }
        print(json_module.dumps(plan))
        return
    table = Table("stage", "does", "reads", "recipe", box=None, header_style="bold")
    for name, recipe in stages.items():
        table.add_row(name, recipe.stage, ", ".join(edges[name]) or "-", loaded.stages[name].recipe)
    Console().print(table)
    first = next(iter(stages))
    command, recipe_name = STAGES[stages[first].stage].command, loaded.stages[first].recipe
    say_next(
        f"run it: the same command without --dry-run; one stage in full: handbook {command} {recipe_name} "
        "--dry-run"
    )


def show_merge(report: MergeReport, json: bool) -> None:
    """Where the merged model is, and how far its outputs are from those of the adapter."""
    if json:
        print(json_module.dumps({**vars(report), "folder": str(report.folder)}))
        return
    what = "scores" if report.head == "reward" else "logits"
    lines = [
        f"{report.folder}: {report.dtype} safetensors",
        f"{what} differ by at most {report.difference:.2g} of the largest (allowed: {report.tolerance:.2g})",
    ]
    if report.weights is not None:
        lines.append(
            f"{report.weights} weights read back: each is the base's, or the base's with the adapter's update"
        )
    if report.same_generations is not None:
        lines.append(
            f"greedy answers: {report.same_generations} of {report.probes} are the same, token by token"
        )
    if report.quantized_difference is not None:
        lines.append(
            f"from the adapter on its {report.quantization} base they differ by "
            f"{report.quantized_difference:.2g}, because computing with quantised weights rounds"
        )
    print("\n".join(lines))
    folder = shlex.quote(str(report.folder))
    if report.head == "reward":
        say_next(f"score answers with it: handbook score ANSWERS.jsonl --scorer proxy={folder}")
    else:
        say_next(f"talk to the merged model: handbook chat {folder}")


def show_comparison(comparison: Comparison, json: bool) -> None:
    """Is B better, by how much, how sure, what else changed."""
    if json:
        print(json_module.dumps(comparison.to_json()))
        return
    console = Console(highlight=False)
    console.print(comparison.verdict, style="bold", markup=False)
    console.print(metrics_table(comparison.metrics))
    _show_cautions(console, comparison.cautions)
    console.print("\nWhat else differs:" if comparison.changes else "\nNothing else differs.", style="bold")
    for line in comparison.changes:
        console.print(f"  {line}", markup=False)
    say_next("show several runs on one page: handbook report RUN RUN ...")
