"""A training plan as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The numbers of a `TrainingPlan`, as a dictionary, with the batch's arithmetic written out."""
    table = Table("plan", "", box=None, header_style="bold")
    for name, text in _lines(plan).items():
        table.add_row(name, text)
    return table


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print the table on stderr."""
    Console(stderr=True, highlight=False).print(plan_table(plan))


def _lines(plan: Mapping[str, Any]) -> dict[str, str]:
    rows = _number(plan["rows"])
    if plan["rows"] is not None and plan["rows"] != plan["examples"]:
        rows += " after packing and leaving out"
    batch = f"{plan['per_device_batch']} per device x {plan['accumulation']} accumulated"
    batch += f" x {plan['processes']} process{'es' if plan['processes'] != 1 else ''}"
    if plan.get("max_tokens_per_batch") is not None:
        batch = f"{plan['accumulation']} passes x {plan['processes']} processes"
        batch += f", at most {plan['max_tokens_per_batch']:,} tokens in each,"
    return {
        "examples": _number(plan["examples"]),
        "rows": rows,
        "tokens": _number(plan["tokens"]),
        "steps per epoch": _number(plan["steps_per_epoch"]),
        "epochs": f"{plan['epochs']:g}",
        "total steps": _number(plan["steps"]),
        "warm-up steps": _number(plan["warmup_steps"]),
        "learning rate": f"{plan['learning_rate']:g}, {plan['schedule']}",
        "batch per step": f"{batch} = {plan['effective_batch']}",
        "device": plan["device"],
        **_looks(plan.get("held_out_samples")),
        **_sources(plan),
    }


def _looks(counts: Mapping[str, int] | None) -> dict[str, str]:
    """What is sampled while training, which takes time beside it."""
    if counts is None:
        return {}
    text = (
        f"{counts['looks']:,} looks, {counts['answers']:,} answers, at most {counts['most_tokens']:,} tokens"
    )
    return {"held-out samples": text}


def _sources(plan: Mapping[str, Any]) -> dict[str, str]:
    """What each source gives, which only a dry run tells: a run keeps it in its manifest."""
    if "sources" not in plan:
        return {}
    counts = ("test_rows_left_out", "rows_left_out", "rows_cut")
    online = ("answers", "longest_prompt")  # of stages that sample while they train
    counts = ("test_rows_left_out", *online) if "answers" in plan else counts
    return {
        "sources": "\n".join(plan["sources"]),
        **{name.replace("_", " "): _number(plan.get(name)) for name in counts},
    }


def _number(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"
