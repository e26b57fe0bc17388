"""The stage `rejection`: rounds of sampling, scoring, selecting and training, each measured beside a control.

A round is made of ordinary stages (`round_stages`), each in a run folder of its own. So a killed run goes on
where it was, and what is there already is checked and not made again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.load import Locator, ResolvedInputs
from handbook_utils.data.prompts import LeftOut
from handbook_utils.errors import DataError
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.pipeline.inputs import resolve_inputs
from handbook_utils.pipeline.round_stages import all_stages, relocated, round_stages
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.pipeline.tables import shared_scores
from handbook_utils.records import Estimate, RunResult
from handbook_utils.runs.atomic import temporary_name
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.state import run_fingerprint
from handbook_utils.sampling.execution.parts import load_prompts
from handbook_utils.sampling.scoring.scorers.load import check_scorers
from handbook_utils.sampling.scoring.stage import check_names
from handbook_utils.schema.sections import Source
from handbook_utils.schema.stages import EvaluateRecipe, RejectionRecipe
from handbook_utils.schema.training import StageRecipe, TrainingRecipe

LOGGER = logging.getLogger("handbook_utils")
START = "start-evaluate"


def run_rejection(recipe: RejectionRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Run the rounds; `model` becomes a link to the model of the last round that was kept, or to the first.

    Figures, N being a round: `start.SCORE`, `round-N.SCORE`, `round-N-control.SCORE` and their words, tokens
    and KL on held-out prompts; `round-N.SCORE_gain_vs_start`, `_previous` and `_control`, paired by prompt;
    and `round-N.selected.SCORE`, what the samples it trained on scored.

    Raises:
        RecipeError: a scorer or the start model is not what the recipe takes it for.
        DataError: a held-out prompt is sampled to train on, too.
    """
    check_inputs(recipe, run)
    recipe = relocated(recipe, lambda source: _place(source, run))
    stages = all_stages(recipe)
    metrics = _renamed("start", _run_inner(START, stages, run))
    kept, reason = 0, None
    for number in range(1, recipe.rounds + 1):
        names = [f"round-{number}-{what}" for what in round_stages(recipe, number)]
        results = {name: _run_inner(name, stages, run) for name in names}
        metrics |= _round_metrics(recipe, number, results, run)
        reason = stop_reason(recipe, number, metrics)
        if reason is not None:
            LOGGER.warning("round %d ends the rounds: %s", number, reason)
            break
        kept = number
    _leave_model(run, max(kept, 1))
    made = {name: run_fingerprint(run.path / name) for name in stages if (run.path / name).exists()}
    run.write_json("rounds.json", {"kept": kept, "stopped": reason, "runs": made})
    return metrics


def check_inputs(recipe: RejectionRecipe, run: Locator) -> None:
    """Check what every round relies on before anything is sampled: models, scorers, held-out prompts."""
    from handbook_utils.training.initial_model import check_start
    from handbook_utils.training.plan import batch_plan

    first = round_stages(recipe, 1)
    training, evaluation = first["model"], first["evaluate"]
    assert isinstance(training, TrainingRecipe)  # by their names
    assert isinstance(evaluation, EvaluateRecipe)
    check_start(training, run.locate(training.model))
    batch_plan(training)
    check_names(evaluation.scorers)
    check_scorers(evaluation.scorers, run)
    check_held_out(recipe, evaluation, run)


def check_held_out(recipe: RejectionRecipe, evaluation: EvaluateRecipe, run: Locator) -> None:
    """Refuse held-out prompts that are also sampled to train on, unless their source says `allow_test`.

    Raises:
        DataError: names the first of them.
    """
    held_out = {prompt_hash(messages): prompt_id for prompt_id, messages in load_prompts(evaluation, run)}
    asked = recipe.model_copy(update={"data": [each for each in recipe.data if not each.allow_test]})
    sampled = (prompt_hash(messages) for _, messages in load_prompts(asked, run)) if asked.data else ()
    both = [held_out[each] for each in sampled if each in held_out]
    if both:
        raise DataError(
            f"{len(both)} of {len(held_out)} prompts of `evaluate.data` are in `data` too, the first is "
            f"'{both[0]}': what is trained on cannot show a gain. Take others to evaluate on, or say "
            "`allow_test: true` beside the source in `data`."
        )


def stop_reason(recipe: RejectionRecipe, number: int, metrics: Mapping[str, Estimate]) -> str | None:
    """Why no round follows this one, and why it is not kept; None where no rule says so."""
    kl, by = metrics[f"round-{number}.kl"], recipe.select.by
    if recipe.stop.max_kl is not None and kl.value > recipe.stop.max_kl:
        return f"KL to the start is {kl.value:.3g} nats per answer, above stop.max_kl {recipe.stop.max_kl:g}"
    gain = metrics.get(f"round-{number}.{by}_gain_vs_{'start' if number == 1 else 'previous'}")
    if recipe.stop.stalled and (gain is None or gain.low <= 0):
        found = "could not be measured" if gain is None else f"is {gain}, whose interval reaches 0"
        return f"the gain in '{by}' over the previous round, on held-out prompts, {found}"
    return None


def _run_inner(name: str, stages: Mapping[str, StageRecipe], run: RunFolder) -> RunResult:
    """Run one of the stages that this run is made of, or read it where it is done."""
    if run.progress:
        place = f"{list(stages).index(name) + 1}/{len(stages)}"
        Console(stderr=True, highlight=False).print(f"[bold]{place}[/bold] {name}")
    # this run itself was let run code, or its recipe names none
    result = run_stage(stages[name], run.path / name, progress=run.progress, allow_code=True)
    run.add_inner(result)
    return result


def _round_metrics(
    recipe: RejectionRecipe, number: int, results: Mapping[str, RunResult], run: RunFolder
) -> dict[str, Estimate]:
    here = f"round-{number}"
    metrics = _renamed(here, results[f"{here}-evaluate"])
    against = {"start": START}
    if number > 1:
        against["previous"] = f"round-{number - 1}-evaluate"
    if recipe.control:
        against["control"] = f"{here}-evaluate-control"
        metrics |= _renamed(f"{here}-control", results[f"{here}-evaluate-control"])
    for name, other in against.items():
        for score in (*recipe.scorers, *recipe.evaluate.scorers):
            theirs, ours = shared_scores(run.path / other, run.path / f"{here}-evaluate", score)
            if len(ours) < 2:  # a verifier or judge had next to no numbers, which `score` has warned of
                continue
            compared = compare_paired(theirs, ours, unit=f"{score} reward", seed=recipe.seed)
            metrics[f"{here}.{score}_gain_vs_{name}"] = compared.difference
            metrics[f"{here}.{score}_win_rate_vs_{name}"] = compared.win_rate
    return metrics | _renamed(f"{here}.selected", results[f"{here}-selected"])


def _renamed(prefix: str, result: RunResult) -> dict[str, Estimate]:
    return {f"{prefix}.{name}": figure for name, figure in result.final_metrics.items()}


def _place(source: Source, run: RunFolder) -> str:
    """Where a folder inside this run's finds what the run reads; the same wherever both are moved to."""
    there = Path(run.locate(source))
    return os.path.relpath(there.parent.resolve() / there.name, run.path.resolve())


def _leave_model(run: RunFolder, number: int) -> None:
    """Make `model` a link to a round's model, in one step; models are too large for a copy."""
    link, temporary = run.path / "model", temporary_name(run.path / "model")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path(f"round-{number}-model") / "model", target_is_directory=True)
    temporary.replace(link)


def plan_rounds(recipe: RejectionRecipe, out: Path) -> dict[str, Any]:
    """What a run would do, for `--dry-run`: prompts, answers, held-out prompts; no model is loaded.

    Raises:
        RecipeError, DataError: as the run before it samples.
    """
    inputs, left_out = ResolvedInputs(resolve_inputs(recipe, out)), LeftOut()
    check_inputs(recipe, inputs)
    prompts = sum(1 for _ in load_prompts(recipe, inputs, left_out=left_out))
    left_out.warn(prompts)
    evaluation = round_stages(recipe, 1)["evaluate"]
    assert isinstance(evaluation, EvaluateRecipe)  # by its name
    held_out = sum(1 for _ in load_prompts(evaluation, inputs))
    sampled = prompts if recipe.prompts == "fresh" else prompts * recipe.rounds
    return {
        "prompts": prompts,
        "repeated prompts": left_out.repeated,
        "answers to choose from": sampled * recipe.samples,
        "held-out prompts": held_out,
        "stages": len(all_stages(recipe)),
    }
