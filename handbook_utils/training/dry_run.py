"""What a training stage would do, for `--dry-run`: rows and tokens are counted without the model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import load_training_data
from handbook_utils.errors import ModelError
from handbook_utils.models.load import load_tokenizer
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.initial_model import check_start
from handbook_utils.training.plan import TrainingPlan, batch_plan, make_plan
from handbook_utils.training.rows.batches import check_shared_prefix, length_batches
from handbook_utils.training.rows.labelled import training_rows
from handbook_utils.training.rows.packing import with_packing
from handbook_utils.training.rows.prepared import Counted, count_rows


def plan_training(recipe: TrainingRecipe, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Plan a training stage for `--dry-run`: data and tokenizer are read, no model is.

    Rows and tokens are counted by the trainer itself, built around a model of one tiny layer.

    Args:
        recipe: of a training stage.
        inputs: the run folder each `from:` of the recipe names.
    Returns:
        `TrainingPlan` as a dictionary, what each source gives (`sources`), and how many examples are left out
        because they are tested on (`test_rows_left_out`).
    Raises:
        DataError: as `load_dataset`.
        RecipeError: as `batch_plan`, `check_start` and `check_shared_prefix`.
    """
    locator = ResolvedInputs(inputs)
    batch_plan(recipe)  # before the data: what is wrong with the recipe is told at once
    source = locator.locate(recipe.model)
    check_start(recipe, source)
    check_shared_prefix(recipe, source)
    recipe, _ = with_packing(recipe, source)
    data = load_training_data(recipe, locator)
    plan = make_plan(recipe, data.rows)
    if isinstance(data.train, Dataset):
        plan = make_plan(recipe, data.rows, counted=_counted(recipe, plan, data.train, locator))
    told = {"sources": [str(report) for report in data.sources], "test_rows_left_out": data.left_out}
    return asdict(plan) | told


def _counted(
    recipe: TrainingRecipe, plan: TrainingPlan, train: Dataset, located: ResolvedInputs
) -> Counted | None:
    """Rows and tokens as the trainer will prepare them; None without the model's tokenizer at hand."""
    is_chat = recipe.stage != "pretrain"
    try:
        tokenizer = load_tokenizer(
            located.locate(recipe.model),
            revision=recipe.model.revision,
            for_chat=is_chat,
            chat_template=recipe.model.chat_template,
        )
    except ModelError:  # a hub model not yet downloaded: the table says "not counted"
        return None
    return counted_rows(recipe, plan, tokenizer, training_rows(recipe, tokenizer, train))


def counted_rows(recipe: TrainingRecipe, plan: TrainingPlan, tokenizer: Any, train: Dataset) -> Counted:
    """Rows and tokens that the trainer itself makes of the examples: tokenized, cut, packed.

    Importing TRL costs about 8 seconds; counting it ourselves would have to follow every change there.
    """
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), training_conditions():
        arguments = trainer_arguments(recipe, plan, Path(folder))
        # nothing is evaluated, and nothing has to fit a GPU
        arguments |= {"use_cpu": True, "bf16": False, "fp16": False, "eval_strategy": "no"}
        trainer = make_trainer(
            recipe.trainer,
            arguments=arguments,
            model=_stand_in(recipe, tokenizer),
            tokenizer=tokenizer,
            data=(train, None),
            callbacks=[],
        )
        trainer.length_batches = length_batches(recipe, plan, trainer)
        return count_rows(trainer)


def _stand_in(recipe: TrainingRecipe, tokenizer: Any) -> Any:
    """A model of one layer and eight numbers per token, of the right kind."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = LlamaForSequenceClassification if recipe.trainer == "reward" else LlamaForCausalLM
    with torch.random.fork_rng(devices=[]):
        return kind(config)
