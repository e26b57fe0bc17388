"""A trainer of each kind on a tiny model, built as the stages build it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.plan import make_plan
from handbook_utils.training.trl_bridge import make_trainer, training_conditions


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(str(tiny_model_folder))


@pytest.fixture
def trainer_on(tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return a function of (stage, rows, batch size, training fields) that builds a trainer."""

    def build(stage: str, rows: Dataset, *, batch: int = 4, **training: Any) -> Any:
        recipe: Any = check_recipe(
            {
                "stage": stage,
                "model": {"name": str(tiny_model_folder)},
                "data": [{"name": "unused"}],
                "global_batch_size": batch,
                "training": {"use_cpu": True, "max_steps": 1, "learning_rate": 1e-2, **training},
            },
            "test",
        )
        torch.manual_seed(0)
        head = "reward" if stage == "reward" else "causal"
        with quiet_libraries(), training_conditions():
            return make_trainer(
                recipe.trainer,
                arguments=trainer_arguments(recipe, make_plan(recipe, len(rows)), tmp_path / "checkpoints"),
                model=load_model(str(tiny_model_folder), head=head, device="cpu"),  # type: ignore[arg-type]
                tokenizer=tiny_tokenizer,
                data=(rows, None),
                callbacks=[],
            )

    return build


def train(trainer: Any, **options: Any) -> list[dict[str, Any]]:
    """Train quietly and return what was logged."""
    with quiet_libraries(), training_conditions():
        trainer.train(**options)
    logged: list[dict[str, Any]] = trainer.state.log_history
    return logged
