"""What storing, scoring and selecting cost beside the generation of the answers, in the pocket world.

An SFT model answers held-out prompts 16 times each, in three stages: generate, score, select. Time in the
engine is generation. Bookkeeping is all else: prompts cut, shards written, checksummed and proved, manifests,
scores put beside answers, the selection and its control, figures with their intervals. Loading the model and
what the scorer itself computes are neither. Both are measured in the same runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import record
from bench_sampling import SFT_STEPS

from handbook_utils.pipeline.stages import run_stage
from handbook_utils.sampling.execution import parts
from handbook_utils.sampling.generation.generate import TransformersEngine
from handbook_utils.sampling.scoring.scorers.gold import GoldScorer
from handbook_utils.schema.recipe import check_recipe

PROMPTS, SAMPLES, ROUNDS = 256, 16, 3


class Clock:
    """Seconds spent in the functions that it times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with each call's time added."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def run_three(folder: Path, model: Path, prompts: int) -> None:
    """Generate, score and select into a folder."""
    generate = {
        "stage": "generate",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": f"test[:{prompts}]"}],
        "samples": SAMPLES,
    }
    score = {
        "stage": "score",
        "data": [{"name": str(folder / "samples")}],
        "scorers": {"gold": {"name": "pocket:gold"}},
    }
    select = {"stage": "select", "data": [{"name": str(folder / "scores")}], "by": "gold"}
    for name, recipe in (("samples", generate), ("scores", score), ("best", select)):
        run_stage(check_recipe(recipe, name), folder / name, progress=False)


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    generation, neither = Clock(), Clock()
    TransformersEngine.answer = generation.timed(TransformersEngine.answer)  # type: ignore[method-assign]
    GoldScorer.__call__ = neither.timed(GoldScorer.__call__)  # type: ignore[method-assign]
    parts.load_engine = neither.timed(parts.load_engine)
    sides = []
    with tempfile.TemporaryDirectory(prefix="bench-bookkeeping-") as scratch:
        model = Path(scratch) / "sft"
        run_stage("pocket/sft", model, overrides=SFT_STEPS, progress=False)
        run_three(Path(scratch) / "warm", model, 16)  # the first run pays for imports
        for number in range(ROUNDS):
            generation.seconds = neither.seconds = 0.0
            start = time.perf_counter()
            run_three(Path(scratch) / str(number), model, PROMPTS)
            whole = time.perf_counter() - start
            sides.append((whole - generation.seconds - neither.seconds, generation.seconds))
    shares = np.array([bookkeeping / generating for bookkeeping, generating in sides])
    record(
        name="sampling_bookkeeping_share",
        value=float(np.median(shares)) * 100,
        spread=float(np.ptp(shares)) * 50,
        unit="% of generation",
        goal=5.0,
    )
    print(f"{PROMPTS} prompts x {SAMPLES}: (bookkeeping, generation) {np.round(sides, 2).tolist()} s")


if __name__ == "__main__":
    main()
