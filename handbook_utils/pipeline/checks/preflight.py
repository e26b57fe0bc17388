"""All that can be known before training: checks that are green, amber or red, each with its remedy."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.mixture import LeakedRowsWarning
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import TrainingData, load_training_data
from handbook_utils.errors import DataError, HandbookError
from handbook_utils.pipeline.checks.findings import (
    Finding,
    Findings,
    Light,
    Preflight,
    disk_findings,
    existing_folder,
    memory_findings,
    resolved_inputs,
    split_text,
    template_findings,
    unchecked,
    version_findings,
)
from handbook_utils.pipeline.checks.online import online_preflight
from handbook_utils.planning.gpus import GIB, Gpu
from handbook_utils.planning.recipe import Measured, lengths_of, planned_on_cpu, planned_split
from handbook_utils.planning.whole import plan_training_memory
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.training import OnlineRecipe, TrainingRecipe
from handbook_utils.training.initial_model import check_start, start_tokenizer
from handbook_utils.training.plan import make_plan, planned_processes, setting
from handbook_utils.training.rows.batches import check_shared_prefix
from handbook_utils.training.rows.labelled import check_samples, labels_itself

# of the tokens that carry loss, `max_length` may take so much before it is amber, and before it is red
SOME_LOST, MOST_LOST = 0.01, 0.5
# a label that is rarer than this among marked answers is hardly learned
RARE = 0.05

# checks that need others to have passed: the first of them that is red is the reason
NEEDS = {
    "batch": ("inputs",),
    "model": ("inputs",),
    "data": ("inputs",),
    "overlap": ("inputs", "data"),
    "steps": ("inputs", "batch", "data"),
    "template": ("inputs", "tokenizer"),
    "masks": ("inputs", "data", "tokenizer"),
    "lengths": ("inputs", "data", "tokenizer"),
    "memory": ("inputs", "batch", "data", "tokenizer", "lengths"),
    "disk": ("inputs", "batch", "data", "tokenizer", "lengths", "memory"),
}


class DiskWarning(UserWarning):
    """The disk has no room for what a run writes."""


def preflight(
    recipe: TrainingRecipe, out: Path, *, gpu: Gpu | None = None, all_rows: bool = False
) -> Preflight:
    """Check a recipe of a training stage; no weight is loaded, and nothing written.

    A check that another one's failure makes impossible is named as not checked.

    Args:
        recipe: of a training stage.
        out: the run folder it would write.
        gpu: that it is to fit; None: its memory is shown, and compared with nothing.
        all_rows: count the tokens of all rows instead of a sample.
    """
    if isinstance(recipe, OnlineRecipe):
        return online_preflight(recipe, out, gpu=gpu, all_rows=all_rows)
    findings = Findings()
    tried, needs = findings.tried, _needs(recipe)
    findings += version_findings()
    inputs = tried("inputs", lambda: resolved_inputs(recipe, out))
    if inputs is None:
        return Preflight((*findings, *unchecked(needs, findings)))
    located = ResolvedInputs(inputs)
    source = located.locate(recipe.model)
    on_cpu = planned_on_cpu(recipe, gpu)
    split = tried("batch", lambda: planned_split(recipe, planned_processes(recipe), on_cpu=on_cpu))
    if split is not None:
        findings.append(Finding("batch", "green", split_text(recipe, split, on_cpu=on_cpu)))
    if tried("model", lambda: _start(recipe, source)) is not None:
        findings.append(Finding("model", "green", f"{source}: can be trained as the recipe says"))
    data = tried("data", lambda: _data(recipe, located))
    tokenizer = tried("tokenizer", lambda: start_tokenizer(recipe, source))
    measured = None
    if data is not None:
        findings += [*_rows(recipe, data), *_steps(recipe, data, can_split=split is not None)]
    if tokenizer is not None and recipe.stage != "pretrain":
        findings += template_findings(tokenizer)
    if data is not None and tokenizer is not None:
        if recipe.stage != "pretrain":
            findings += _masks(recipe, tokenizer, data)
        measured = tried("lengths", lambda: lengths_of(recipe, tokenizer, data, all_rows=all_rows))
    if measured is not None:
        findings += _lengths(recipe, measured)
    plan = None
    if measured is not None and split is not None:
        plan = tried(
            "memory",
            lambda: plan_training_memory(recipe, located, gpu=gpu, measured=measured, processes=split[2]),
        )
    if plan is not None:
        findings += [*memory_findings(plan), *disk_findings(recipe, plan, out)]
    findings += unchecked(needs, findings)
    return Preflight(tuple(findings), plan)


def _needs(recipe: TrainingRecipe) -> Mapping[str, Sequence[str]]:
    """The checks of a recipe, and what each builds on."""
    left_out = ("template", "masks") if recipe.stage == "pretrain" else ()
    return {check: before for check, before in NEEDS.items() if check not in left_out}


def warn_before_training(recipe: TrainingRecipe, located: ResolvedInputs, out: Path) -> None:
    """The cheap part, which `train` does by itself: warn where the disk is too small. Refuses nothing."""
    place = Path(located.locate(recipe.model)).expanduser()
    place = place / "model" if (place / "manifest.json").exists() else place
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    free = shutil.disk_usage(existing_folder(out)).free
    # the model that is saved; checkpoints of an adapter are small, and others come on top of it
    if recipe.lora is None and weights > free:
        warn_and_log(
            f"the model takes {weights / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free where the run "
            "writes. Free some, or write elsewhere (--out).",
            DiskWarning,
        )


def _start(recipe: TrainingRecipe, source: str) -> bool:
    check_start(recipe, source)
    check_shared_prefix(recipe, source)
    return True


def _data(recipe: TrainingRecipe, located: ResolvedInputs) -> TrainingData:
    with quiet_libraries(), warnings.catch_warnings():
        # told as a finding
        warnings.simplefilter("ignore", LeakedRowsWarning)
        data = load_training_data(recipe, located)
    if isinstance(data.train, Dataset) and not len(data.train):
        raise DataError("there are no rows to train on: look at `data` of the recipe, its `split` first.")
    return data


def _rows(recipe: TrainingRecipe, data: TrainingData) -> Iterator[Finding]:
    """Rows by source, those that are tested on, labels, and whether there is a full step."""
    for report in data.sources:
        yield Finding("data", "green", str(report))
    if data.left_out:
        yield Finding(
            "overlap",
            "amber",
            f"{data.left_out:,} training rows have a prompt of `eval_data`: they are left out",
            "Nothing, or take another split. Near-duplicates are not looked for here.",
        )
    elif recipe.eval_data:
        yield Finding("overlap", "green", "no training row has a prompt of `eval_data`")
    else:
        yield Finding(
            "overlap",
            "amber",
            "no `eval_data`: the run measures nothing on held-out rows",
            "Add `eval_data`, such as a slice of the same source that `data` leaves out.",
        )
    if not isinstance(data.train, Dataset):
        return
    if len(data.train) < recipe.global_batch_size:
        yield Finding(
            "batch",
            "amber",
            f"{len(data.train):,} rows are less than one step of {recipe.global_batch_size}",
            "Lower `global_batch_size`, or add rows.",
        )
    if "label" in data.train.column_names:
        yield from _labels(data.train["label"])


def _steps(recipe: TrainingRecipe, data: TrainingData, *, can_split: bool) -> Iterator[Finding]:
    if not can_split or not isinstance(data.train, Dataset):
        return
    steps = make_plan(recipe, len(data.train)).steps
    if steps is not None:
        few = steps < 10
        yield Finding(
            "steps",
            "amber" if few else "green",
            f"{steps:,} steps of the optimiser",
            "Few steps move a model little: more epochs or a smaller `global_batch_size`." if few else "",
        )


def _labels(labels: Any) -> Iterator[Finding]:
    counts = Counter(map(bool, labels))
    good, bad = counts[True], counts[False]
    share = min(good, bad) / max(1, good + bad)
    says = f"{good:,} answers are marked good and {bad:,} bad"
    if share == 0:
        remedy = "Add answers of the other mark: kto compares the two."
        yield Finding("labels", "red", f"{says}: one label only", remedy)
    elif share < RARE:
        remedy = "Set `training.desirable_weight` and `undesirable_weight` to even them out, or add rows."
        yield Finding("labels", "amber", says, remedy)
    else:
        yield Finding("labels", "green", says)


def _masks(recipe: TrainingRecipe, tokenizer: Any, data: TrainingData) -> Iterator[Finding]:
    """Whether the first rows of each source are learned as they are written."""
    with warnings.catch_warnings(record=True) as said, quiet_libraries():
        warnings.simplefilter("always")
        try:
            check_samples(tokenizer, data.samples, has_marks=labels_itself(recipe))
        except HandbookError as error:
            yield Finding(
                "masks", "red", str(error), "Another template (`model.chat_template`), or other rows."
            )
            return
    rows = sum(len(sample.rows) for sample in data.samples)
    for warning in said:
        if not str(warning.message).startswith("chat template, "):  # said above
            yield Finding("masks", "amber", str(warning.message))
    yield Finding("masks", "green", f"the answers of the first {rows:,} rows carry loss")


def _lengths(recipe: TrainingRecipe, measured: Measured) -> Iterator[Finding]:
    limit = setting(recipe, "max_length")
    longest = int(measured.lengths.sequences.max())
    typical = int(np.median(measured.lengths.sequences))
    says = f"{measured.said}: half have up to {typical:,} tokens, the longest {longest:,}"
    if not limit or longest <= limit:
        yield Finding("lengths", "green", says if not limit else f"{says}; max_length {limit:,} cuts none")
        return
    lost = measured.lengths.lost(int(limit))
    over = float((measured.lengths.sequences.max(axis=1) > limit).mean())
    light: Light = "red" if lost > MOST_LOST else "amber" if lost > SOME_LOST else "green"
    yield Finding(
        "lengths",
        light,
        f"{says}; max_length {limit:,} is shorter than {over:.1%} of them, and {lost:.1%} of the tokens that "
        "carry loss are behind it",
        "Raise `training.max_length` (`handbook plan` says what that takes), or shorten the rows.",
    )
