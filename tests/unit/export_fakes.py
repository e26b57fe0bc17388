"""Finished runs of a training stage that trained nothing: a model is put where the stage would leave one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import open_run
from handbook_utils.schema.recipe import check_recipe

EVAL_LOSS = Estimate(2.4949, 2.242, 2.7826, 0.95, 200, "nats per token", "bootstrap-t", 0)


def recipe_of(stage: str, model: dict[str, Any], **more: Any) -> Any:
    kind = "demonstrations" if stage == "sft" else "annotations"
    data = [{"name": f"pocket:{kind}", "split": "train[:64]"}]
    content = {"stage": stage, "model": model, "data": data, "global_batch_size": 4, **more}
    return check_recipe(content, "test")


def finished_run(path: Path, recipe: Any, fill: Any, inputs: dict[str, Path] | None = None) -> Path:
    """A run folder as a stage leaves it, whose model `fill` writes."""
    with open_run(path, recipe, inputs=inputs, progress=False) as run:
        with run.folder("model") as folder:
            fill(folder)
        run.note(sources=[{"source": "pocket:demonstrations", "used": 64}])
        run.finish({"eval_loss": EVAL_LOSS}, ["the | of a caution in /home/ann/rows.jsonl"])
    return path
