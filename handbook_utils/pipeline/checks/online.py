"""All that can be known before an online stage: prompts, scorers, batch, memory, disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.online.checks import (
    OnlinePrompts,
    all_scorers,
    check_dropout,
    checked_prompts,
    require_prompts,
)
from handbook_utils.pipeline.checks.findings import (
    Finding,
    Findings,
    Preflight,
    disk_findings,
    memory_findings,
    resolved_inputs,
    split_text,
    template_findings,
    unchecked,
    version_findings,
)
from handbook_utils.planning.gpus import Gpu
from handbook_utils.planning.recipe import planned_on_cpu, planned_split
from handbook_utils.planning.whole import plan_training_memory
from handbook_utils.sampling.scoring.scorers.load import check_scorers
from handbook_utils.sampling.scoring.stage import check_names
from handbook_utils.schema.sampling import FunctionSection, ScorerSection
from handbook_utils.schema.training import OnlineRecipe
from handbook_utils.training.initial_model import check_start
from handbook_utils.training.plan import planned_processes

# checks that need others to have passed: the first of them that is red is the reason
NEEDS = {
    "batch": ("inputs",),
    "model": ("inputs",),
    "scorers": ("inputs",),
    "prompts": ("inputs", "batch", "model", "scorers"),
    "memory": ("inputs", "batch", "model", "scorers", "prompts"),
    "disk": ("inputs", "batch", "model", "scorers", "prompts", "memory"),
}


def online_preflight(
    recipe: OnlineRecipe, out: Path, *, gpu: Gpu | None = None, all_rows: bool = False
) -> Preflight:
    """As `preflight`, of a stage that samples what it learns from."""
    findings = Findings()
    findings += version_findings()
    findings += _second_opinion(recipe)
    recipe, code = _without_code(recipe)
    findings += [_not_run(name) for name in code]
    inputs = findings.tried("inputs", lambda: resolved_inputs(recipe, out))
    if inputs is None:
        return Preflight((*findings, *unchecked(NEEDS, findings)))
    located = ResolvedInputs(inputs)
    on_cpu = planned_on_cpu(recipe, gpu)
    split = findings.tried("batch", lambda: planned_split(recipe, planned_processes(recipe), on_cpu=on_cpu))
    if split is not None:
        findings.append(Finding("batch", "green", split_text(recipe, split, on_cpu=on_cpu)))
    checked = [
        findings.tried(check, lambda look=look: [*look(recipe, located)])  # type: ignore[misc]
        for check, look in (("model", _model), ("scorers", _scorers))
    ]
    findings += [finding for found in checked for finding in found or ()]
    plan = None
    if split is not None and None not in checked:
        findings += findings.tried("prompts", lambda: _prompts(recipe, located)) or []
        if not any(finding.light == "red" for finding in findings if finding.check == "prompts"):
            plan = findings.tried(
                "memory",
                lambda: plan_training_memory(recipe, located, gpu=gpu, all_rows=all_rows, processes=split[2]),
            )
    if plan is not None:
        findings += [*memory_findings(plan), *disk_findings(recipe, plan, out)]
    return Preflight((*findings, *unchecked(NEEDS, findings)), plan)


def _without_code(recipe: OnlineRecipe) -> tuple[OnlineRecipe, list[str]]:
    """The recipe without the Python functions that it scores by, and their names: a look runs no code."""

    def kept(scorers: Mapping[str, ScorerSection]) -> dict[str, ScorerSection]:
        return {
            name: section for name, section in scorers.items() if not isinstance(section, FunctionSection)
        }

    code = [name for name, section in all_scorers(recipe).items() if isinstance(section, FunctionSection)]
    changed: dict[str, Any] = {"scorers": kept(recipe.scorers)}
    if recipe.held_out is not None:
        changed["held_out"] = recipe.held_out.model_copy(update={"scorers": kept(recipe.held_out.scorers)})
    return recipe.model_copy(update=changed), code


def _not_run(name: str) -> Finding:
    return Finding(
        "scorers",
        "amber",
        f"{name} is a Python function, and a look runs no code: not checked",
        "`handbook train RECIPE --dry-run --allow-code` loads it.",
    )


def _model(recipe: OnlineRecipe, located: ResolvedInputs) -> Iterator[Finding]:
    source = located.locate(recipe.model)
    check_start(recipe, source)
    check_dropout(recipe, source)
    yield Finding("model", "green", f"{source}: can be trained as the recipe says")


def _scorers(recipe: OnlineRecipe, located: ResolvedInputs) -> Iterator[Finding]:
    scorers = all_scorers(recipe)
    check_names(scorers)
    check_scorers(scorers, located)
    if recipe.scorers:
        yield Finding("scorers", "green", f"{', '.join(recipe.scorers)} can reward")


def _second_opinion(recipe: OnlineRecipe) -> Iterator[Finding]:
    if recipe.held_out is None or not recipe.held_out.scorers:
        yield Finding(
            "scorers",
            "amber",
            "no second opinion: a reward that is being hacked looks like one that is earned",
            "Add `held_out` with a scorer that nothing is trained on.",
        )


def _prompts(recipe: OnlineRecipe, located: ResolvedInputs) -> list[Finding]:
    """Prompts that fit, and whatever is said of them."""
    with warnings.catch_warnings(record=True) as said, quiet_libraries():
        warnings.simplefilter("always")
        prompts = checked_prompts(recipe, located)
        if recipe.held_out is not None:
            require_prompts(prompts.held_out)
    found = [Finding("prompts", "green", _counted(recipe, prompts))]
    for text in dict.fromkeys(str(warning.message) for warning in said):
        found.append(Finding("prompts", "amber", text))
    for kind, fitted in (("data", prompts.train), ("eval_data", prompts.held_out)):
        if fitted.skipped:
            says = f"{len(fitted.skipped):,} prompts of `{kind}` are beyond the model's window: left out"
            found.append(Finding("prompts", "amber", says, "See `long_prompts`, or lower `max_new_tokens`."))
    return [*found, *template_findings(prompts.tokenizer)]


def _counted(recipe: OnlineRecipe, prompts: OnlinePrompts) -> str:
    sizes = [len(prompt.token_ids) for prompt in prompts.train.tokens]
    answers = recipe.steps * recipe.global_batch_size
    return (
        f"{len(sizes):,} distinct prompts: half have up to {int(np.median(sizes)):,} tokens, the longest "
        f"{max(sizes):,}; {recipe.steps:,} steps sample {answers:,} answers at most"
    )
