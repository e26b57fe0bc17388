"""What a training stage would do, for `--dry-run`: rows and tokens are counted without the model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.prompts import iterate_prompts
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import TrainingData, load_training_data
from handbook_utils.errors import ModelError
from handbook_utils.models.places import is_hub_name
from handbook_utils.schema.training import PolicyRecipe, TrainingRecipe
from handbook_utils.training.arguments import evaluates, trainer_arguments
from handbook_utils.training.initial_model import check_start, start_tokenizer
from handbook_utils.training.plan import TrainingPlan, batch_plan, make_plan
from handbook_utils.training.rows.batches import check_shared_prefix, length_batches
from handbook_utils.training.rows.labelled import check_samples, labels_itself, training_rows
from handbook_utils.training.rows.lengths import Shortened, check_stream_lengths, report_lengths
from handbook_utils.training.rows.packing import with_packing
from handbook_utils.training.rows.prepared import Counted, count_rows


def plan_training(recipe: TrainingRecipe, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Plan a training stage for `--dry-run`: data and tokenizer are read, no model is.

    Rows and tokens are counted by the trainer itself, built around a model of one tiny layer.

    Args:
        recipe: of a training stage.
        inputs: the run folder each `from:` of the recipe names.
    Returns:
        `TrainingPlan` as a dictionary, what each source gives (`sources`), how many examples are left out
        because they are tested on (`test_rows_left_out`), how many `max_length` leaves out or cuts
        (`rows_left_out`, `rows_cut`; None where they are not counted), and what `held_out_samples` samples.
    Raises:
        DataError: as `load_dataset`, or no row is short enough.
        TemplateError: the chat template would spoil training.
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
    counted, shortened = _counted(recipe, plan, data, locator)
    if counted is not None:
        plan = make_plan(recipe, data.rows, counted=counted)
    return asdict(plan) | {
        "sources": [str(report) for report in data.sources],
        "test_rows_left_out": data.left_out,
        "rows_left_out": None if shortened is None else shortened.left_out,
        "rows_cut": None if shortened is None else shortened.cut,
        **_looks(recipe, plan.steps, locator),
    }


def _looks(recipe: TrainingRecipe, steps: int | None, located: ResolvedInputs) -> dict[str, Any]:
    """What `held_out_samples` costs: looks, answers in all, and the most tokens that are sampled."""
    section = recipe.held_out_samples if isinstance(recipe, PolicyRecipe) else None
    if section is None or steps is None:
        return {}
    answers = section.samples * sum(1 for _ in iterate_prompts(section.data, located, seed=recipe.seed))
    looks = 1 + math.ceil(steps / section.every)
    most = looks * answers * section.max_new_tokens
    return {"held_out_samples": {"looks": looks, "answers": looks * answers, "most_tokens": most}}


def _counted(
    recipe: TrainingRecipe, plan: TrainingPlan, data: TrainingData, located: ResolvedInputs
) -> tuple[Counted | None, Shortened | None]:
    """Rows and tokens as the trainer will prepare them, checked as a run checks them.

    Nothing without the model's tokenizer at hand, and of a stream no counts.
    """
    is_chat, place = recipe.stage != "pretrain", located.locate(recipe.model)
    try:
        tokenizer = start_tokenizer(recipe, place)
    except ModelError:
        if not is_hub_name(place):
            raise
        return None, None  # not yet downloaded: the table says "not counted"
    with quiet_libraries():
        if is_chat:
            check_samples(tokenizer, data.samples, has_marks=labels_itself(recipe))
        if not isinstance(data.train, Dataset):
            check_stream_lengths(recipe, tokenizer, data.train)
            return None, None
    return counted_rows(recipe, plan, tokenizer, (data.train, data.evaluation))


def counted_rows(
    recipe: TrainingRecipe, plan: TrainingPlan, tokenizer: Any, data: tuple[Dataset, Dataset | None]
) -> tuple[Counted, Shortened | None]:
    """Rows and tokens that the trainer itself makes of the examples: tokenized, cut, packed.

    Importing TRL costs about 8 seconds; counting it ourselves would have to follow every change there.
    """
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), training_conditions():
        arguments = trainer_arguments(recipe, plan, Path(folder))
        # nothing is evaluated, and nothing has to fit a GPU
        held_out = data[1] if evaluates(arguments) else None
        arguments |= {"use_cpu": True, "bf16": False, "fp16": False, "eval_strategy": "no"}
        given = (
            training_rows(recipe, tokenizer, data[0]),
            None if held_out is None else training_rows(recipe, tokenizer, held_out),
        )
        trainer = make_trainer(
            recipe.trainer,
            arguments=arguments,
            model=_stand_in(recipe, tokenizer),
            tokenizer=tokenizer,
            data=given,
            callbacks=[],
        )
        trainer.length_batches = length_batches(recipe, plan, trainer)
        return count_rows(trainer), report_lengths(trainer, given, end=tokenizer.eos_token_id)


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
