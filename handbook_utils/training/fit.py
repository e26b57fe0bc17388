"""What all training stages share: load, train or resume, save whole, tidy up."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import set_seed

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import TrainingData, load_training_data
from handbook_utils.errors import DataError, TrainingError
from handbook_utils.models.adapters import save_adapter
from handbook_utils.models.generation_settings import settle_generation
from handbook_utils.models.load import check_vocabulary, load_model
from handbook_utils.models.multimodal import copy_processor
from handbook_utils.models.padding import warn_if_end_pads
from handbook_utils.models.precision import Head
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.arguments import evaluates, step_arguments, trainer_arguments
from handbook_utils.training.callbacks import Beside, RecordMetrics, ShowProgress
from handbook_utils.training.checkpoints import newest_checkpoint
from handbook_utils.training.distributed import decided_by_main, wait_for_all
from handbook_utils.training.initial_model import Start, check_start, start_model, start_tokenizer
from handbook_utils.training.metrics import Measure
from handbook_utils.training.plan import TrainingPlan, batch_plan, make_plan
from handbook_utils.training.plan_table import show_plan
from handbook_utils.training.reference.logps import add_reference_logps, reference_store
from handbook_utils.training.rows.batches import check_shared_prefix, length_batches, without_waste
from handbook_utils.training.rows.labelled import check_samples, labels_itself, training_rows
from handbook_utils.training.rows.lengths import check_stream_lengths, report_lengths
from handbook_utils.training.rows.packing import keep_rows_apart, with_packing
from handbook_utils.training.rows.prepared import count_rows
from handbook_utils.training.watch import WatchLog

LOGGER = logging.getLogger("handbook_utils")
MODEL, CHECKPOINTS = "model", "checkpoints"


def load_rows(recipe: TrainingRecipe, run: RunFolder) -> TrainingData:
    """Training and held-out rows of a recipe; batch size and start model are checked first.

    What each source gave goes into the manifest.
    """
    batch_plan(recipe)
    source = run.locate(recipe.model)
    check_start(recipe, source)
    check_shared_prefix(recipe, source)
    reference_store(recipe, source, run.path)  # refuses one that is another model's
    data = load_training_data(recipe, run)
    run.note(**data.notes())
    return data


def fit(
    recipe: TrainingRecipe,
    run: RunFolder,
    data: TrainingData,
    *,
    measure: Measure,
    head: Head = "causal",
    beside: Beside = (),
) -> dict[str, Estimate]:
    """Train a model into `model/` of the run folder, from its newest checkpoint where there is one.

    Args:
        recipe: the stage's recipe.
        run: the open run folder.
        data: training examples in TRL's form, in memory or as a stream; held-out ones are used while training
            only where `training.eval_strategy` asks for it.
        measure: makes the metrics of (model as saved, tokenizer, held-out examples).
        head: "causal" or "reward".
        beside: makes callbacks of the model as it starts, and the tokenizer.
    Returns:
        The metrics; none without held-out examples, and none of a process that is not the main one.
    Raises:
        ModelError: the start model cannot be loaded.
        TemplateError: the chat template would spoil training; no model is loaded then.
        TrainingError: a loss, or in the end a weight, is not a number.
    """
    train, evaluation = data.train, data.evaluation
    source = run.locate(recipe.model)
    recipe, packing = with_packing(recipe, source)
    run.note(**packing)
    plan = make_plan(recipe, len(train) if isinstance(train, Dataset) else None)
    for_chat = recipe.stage != "pretrain"
    tokenizer = start_tokenizer(recipe, source)
    if not decided_by_main(lambda: run.has(MODEL)):
        with quiet_libraries():
            if for_chat:
                check_samples(tokenizer, data.samples, has_marks=labels_itself(recipe))
            if isinstance(train, IterableDataset):
                check_stream_lengths(recipe, tokenizer, train)
            rows = training_rows(recipe, tokenizer, train)
            held_out = None if evaluation is None else training_rows(recipe, tokenizer, evaluation)
            set_seed(recipe.seed)  # a new score head or adapter is drawn from the global generator
            start = start_model(recipe, run, head)
            check_vocabulary(start.model, tokenizer, source)
            if head == "reward":
                warn_if_end_pads(tokenizer, source)
            settle_generation(start.model, tokenizer, name=source)
            run.note(**start.facts(recipe.model.adapter))
            _train(recipe, run, plan, start, tokenizer, (rows, held_out), beside)
    if run.is_main:
        # a kill between saving and tidying up leaves them as well
        shutil.rmtree(run.path / CHECKPOINTS, ignore_errors=True)
    if evaluation is None or not run.is_main:
        return {}
    section = recipe.model
    model = load_model(str(run.path / MODEL), head=head, dtype=section.dtype, attention=section.attention)
    return measure(model, tokenizer, evaluation)


def _train(
    recipe: TrainingRecipe,
    run: RunFolder,
    plan: TrainingPlan,
    start: Start,
    tokenizer: Any,
    data: tuple[Dataset | IterableDataset, Dataset | None],
    beside: Beside,
) -> None:
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    arguments = trainer_arguments(recipe, plan, run.path / CHECKPOINTS)
    data = (data[0], data[1] if evaluates(arguments) else None)
    bar = ShowProgress(recipe.stage) if run.progress else None
    callbacks = [RecordMetrics(run), WatchLog(bar.say if bar else None), *([bar] if bar else [])]
    callbacks += [make(start.model, tokenizer) for make in beside]
    with training_conditions():
        trainer = make_trainer(
            recipe.trainer,
            arguments=arguments,
            model=start.model,
            tokenizer=tokenizer,
            data=data,
            callbacks=callbacks,
        )
        keep_rows_apart(trainer)
        if isinstance(data[0], Dataset):
            given = (data[0], data[1])
            found = report_lengths(trainer, given, end=tokenizer.eos_token_id, quiet=not run.is_main)
            if found is not None:
                run.note(rows_left_out=found.left_out, rows_cut=found.cut)
        store = reference_store(recipe, run.locate(recipe.model), run.path)
        if store is not None:
            run.note(reference_logps=add_reference_logps(trainer, store))
        trainer.length_batches = length_batches(recipe, plan, trainer)
        _settle_plan(recipe, run, trainer, examples=plan.examples)
        train_or_resume(trainer, run, bar, without_waste(recipe, run, trainer))
    if isinstance(data[0], IterableDataset) and trainer.state.global_step == 0:
        raise DataError(
            f"the stream gave no row that fits into training.max_length = {trainer.args.max_length} tokens: "
            "nothing was trained. Raise it, or look at the data."
        )
    save_model(trainer, tokenizer, run, start)


def train_or_resume(
    trainer: Any, run: RunFolder, bar: ShowProgress | None, *within: AbstractContextManager[None]
) -> None:
    """Train from the newest whole checkpoint of the run, or from the start.

    Args:
        trainer: TRL's, over prepared rows.
        run: the open run folder.
        bar: is closed in the end, whatever ends it.
        within: what holds while it trains.
    """
    # process 0 also deletes broken ones, so no other may look meanwhile
    checkpoint = decided_by_main(lambda: newest_checkpoint(run.path / CHECKPOINTS))
    if checkpoint is not None:
        LOGGER.info("going on from %s", checkpoint.name)
    try:
        with ExitStack() as stack:
            # again: building a trainer turns transformers' own messages back on
            for each in (quiet_libraries(), *within):
                stack.enter_context(each)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if bar is not None:
            bar.close()


def _settle_plan(recipe: TrainingRecipe, run: RunFolder, trainer: Any, *, examples: int | None) -> None:
    """Plan again with the rows the trainer has prepared, show it, and log and save by its steps."""
    counted = None if examples is None else count_rows(trainer)  # a stream has no end to count to
    plan = make_plan(recipe, examples, counted=counted)
    passes = {"gradient_accumulation_steps": plan.accumulation}
    for name, value in (step_arguments(recipe, plan.steps) | passes).items():
        setattr(trainer.args, name, value)
    run.note(plan=asdict(plan))
    if run.progress:
        show_plan(asdict(plan))


def save_model(trainer: Any, tokenizer: Any, run: RunFolder, start: Start) -> None:
    """Write the trained model, whole or as an adapter, into `model/` of the run folder.

    Raises:
        TrainingError: a weight is not a number.
    """
    from handbook_utils.training.trl_bridge import collect_weights

    assert isinstance(run.recipe, TrainingRecipe)  # a run of a training stage
    section = run.recipe.model
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = collect_weights(trainer)
    named = model.named_parameters() if weights is None else weights.items()
    broken = [name for name, weight in named if not torch.isfinite(weight).all()]
    if broken:
        raise TrainingError(
            f"after the last step {len(broken)} weights, such as {broken[0]}, are not numbers; no model was "
            "saved. Try a tenth of training.learning_rate."
        )
    if run.is_main:
        with run.folder(MODEL) as folder:
            if start.base is None:
                model.save_pretrained(folder, state_dict=weights)
            else:
                save_adapter(model, folder, start.base, final=run.path / MODEL, weights=weights)
            tokenizer.save_pretrained(folder)
            copy_processor(run.locate(section), folder, revision=section.revision)
    wait_for_all()  # the others have written to the last checkpoint before it is deleted
