"""Count what a trainer would train on, without the model: for `--dry-run`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.plan import TrainingPlan
from handbook_utils.training.rows.batches import length_batches
from handbook_utils.training.rows.prepared import Counted, count_rows


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
    """A model of one layer and eight numbers a token, of the right kind."""
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
