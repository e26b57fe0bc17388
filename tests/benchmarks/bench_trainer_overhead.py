"""What our SFT, reward and DPO stages cost over TRL's trainer called directly, on the same work.

Three trainers take turns, one step each, in one process: ours (the stage's trainer with its checks, records
and checkpoints), TRL's as it comes, and TRL's with the output head patched as ours is. A machine that slows
down for a while so slows all three. Start-up, tokenising and compilation are left out: time runs from
`on_train_begin` to `on_train_end`, and is the trainer's own CPU time on its one thread. Each round trains
fresh copies.
"""

from __future__ import annotations

import copy
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _record import record
from _turns import Conditions, Turn, in_turns
from transformers import PrinterCallback, Trainer

from handbook_utils.data.load import load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder, open_run
from handbook_utils.schema.recipe import load_recipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.callbacks import RecordMetrics
from handbook_utils.training.plan import make_plan
from handbook_utils.training.trl_bridge import CONFIGS, TRAINERS, make_trainer, training_conditions

STEPS, ROUNDS, GOAL = 20, 8, 1.03
DATA = {
    "sft": ("pocket:demonstrations", "conversation"),
    "reward": ("pocket:preferences", "preference"),
    "dpo": ("pocket:preferences", "preference"),
}
# under which conditions each side's steps run
SIDES: dict[str, Conditions] = {
    "ours": training_conditions,
    "TRL, same head": training_conditions,
    "TRL": nullcontext,
}


def one_round(stage: str, work: dict[str, Any], run: RunFolder, folder: Path) -> dict[str, float]:
    """CPU seconds of each side for the same steps, done in turns."""

    def build(side: str, turn: Turn) -> Trainer:
        return make(stage, side, work, run, folder / side.replace(",", ""), turn)

    with quiet_libraries():
        turns, trainers = in_turns(SIDES, build)
    seen = {trainer.state.num_input_tokens_seen for trainer in trainers.values()}
    if len(seen) != 1 or 0 in seen:
        raise RuntimeError(f"the sides did not train on the same tokens: {seen}")
    return {side: turn.seconds for side, turn in turns.items()}


def make(stage: str, side: str, work: dict[str, Any], run: RunFolder, folder: Path, turn: Turn) -> Trainer:
    """A fresh trainer of one side."""
    model = copy.deepcopy(work["model"])
    arguments = work["arguments"] | {"output_dir": str(folder)}
    with turn.conditions():
        if side == "ours":
            return make_trainer(
                stage,
                arguments=arguments,
                model=model,
                tokenizer=work["tokenizer"],
                data=(work["rows"], None),
                callbacks=[RecordMetrics(run), turn],
            )
        reference = {"ref_model": copy.deepcopy(model)} if stage == "dpo" else {}
        trainer = TRAINERS[stage](
            model=model,
            args=CONFIGS[stage](**arguments),
            processing_class=work["tokenizer"],
            train_dataset=work["rows"],
            callbacks=[turn],
            **reference,
        )
        trainer.remove_callback(PrinterCallback)  # ours does not print either
        return trainer


def prepare(stage: str) -> dict[str, Any]:
    """The same model, rows and arguments for every side."""
    rows, kind = DATA[stage]
    recipe = load_recipe(f"pocket/{stage}", overrides={"training.max_steps": STEPS, "eval_data": []})
    head = "reward" if stage == "reward" else "causal"
    return {
        "tokenizer": load_tokenizer("pocket:base"),
        "model": load_model("pocket:base", head=head),
        "rows": load_dataset(rows, kind=kind, split=f"train[:{STEPS * recipe.global_batch_size}]"),
        "arguments": trainer_arguments(recipe, make_plan(recipe, STEPS * recipe.global_batch_size), Path()),
        "recipe": recipe,
    }


def ratio(mine: list[float], theirs: list[float]) -> Estimate:
    """Geometric mean over rounds of our time over theirs, with its interval."""
    logs = [math.log(a / b) for a, b in zip(mine, theirs, strict=True)]
    found = mean_estimate(logs, unit="log ratio")
    return Estimate(
        *(math.exp(x) for x in (found.value, found.low, found.high)),
        level=found.level,
        n=found.n,
        unit="x",
        method=found.method,
        seed=found.seed,
    )


def measure(stage: str) -> None:
    """Alternate the sides and record our time over TRL's with the same head."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    work = prepare(stage)
    with tempfile.TemporaryDirectory() as name, open_run(Path(name) / "run", work["recipe"]) as run:
        for round_number in range(ROUNDS + 1):
            spent = one_round(stage, work, run, Path(name) / str(round_number))
            if round_number:  # the first round warms up
                for side, seconds in spent.items():
                    times[side].append(seconds)
    found = ratio(times["ours"], times["TRL, same head"])
    stock = ratio(times["ours"], times["TRL"])
    print(f"{stage}: {found} of TRL's time with the same head, {stock} of TRL's as it comes")
    record(
        name=f"{stage}_time_over_trl",
        value=found.value,
        spread=(found.high - found.low) / 2,
        unit="x",
        goal=GOAL,
        peer={"name": "our time over TRL's as it comes", "value": stock.value},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in DATA:
        measure(each)
