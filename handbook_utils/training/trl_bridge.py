"""TRL's trainers and what we rely on in them. Importing it costs about 8 seconds: do it inside functions.

Read from TRL 1.16; what we rely on is held by tests/contract/test_trl_*.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from datasets import IterableDataset
from peft import PeftModel
from transformers import PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from handbook_utils.errors import RecipeError, TrainingError
from handbook_utils.libraries.exact_json import exact_json
from handbook_utils.libraries.transformers_internals import use_one_device
from handbook_utils.libraries.versions import version_advice
from handbook_utils.schema.sections import WITHOUT_REFERENCE
from handbook_utils.shared_prefix.batching import LengthBatches
from handbook_utils.training.arguments import RENAMED
from handbook_utils.training.reference.models import frozen_copy, restore_adapter, trained_weights
from handbook_utils.training.rows.batches import LengthBatchSampler
from handbook_utils.training.rows.lengths import with_answers

with warnings.catch_warnings():
    # torch.fx, which TRL's imports pull in, still decorates with torch.jit
    warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        KTOConfig,
        KTOTrainer,
        RewardConfig,
        RewardTrainer,
        RLOOConfig,
        SFTConfig,
        SFTTrainer,
    )
    from trl.import_utils import TRLExperimentalWarning
    from trl.trainer import utils as trl_utils

    # ORPO and CPO may change or go with any release: a contract test tells
    warnings.filterwarnings("ignore", category=TRLExperimentalWarning)
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# plain language modelling is SFT on a "text" column, so `pretrain` shares SFT's trainer and fields
CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "cpo": CPOConfig,
    "kto": KTOConfig,
    # their trainers are built in `online/`
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
}
TRAINERS: dict[str, Any] = {
    "sft": SFTTrainer,
    "reward": RewardTrainer,
    "dpo": DPOTrainer,
    "orpo": ORPOTrainer,
    "cpo": CPOTrainer,
    "kto": KTOTrainer,
}
WITH_REFERENCE = ("dpo", "kto")


class CheckedTrainer:
    """What is different in every trainer here: each loss is checked, and no model card is drafted."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: TRL drafts one beside every checkpoint, and the run folder says more."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one batch; the loss is checked here because logs average over steps."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise TrainingError(bad_loss_message(float(loss), self.state.global_step + 1))  # type: ignore[attr-defined]
        return loss


class _HandbookTrainer(CheckedTrainer):
    """A trainer on rows that exist before it starts: they may stand in batches of like length."""

    length_batches: LengthBatches | None = None
    _rows: tuple[int, ...] = ()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.length_batches is None:
            return super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        return LengthBatchSampler(self.length_batches, self.args.process_index)  # type: ignore[attr-defined]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one step, and remember how many rows each has."""
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._rows = tuple(_rows_of(batch) for batch in batches)
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute a batch's loss, by its share of the step's rows where batches differ in size."""
        share = 1.0
        # a loss over all tokens of the step, as in SFT, has them counted already
        if model.training and kwargs.get("num_items_in_batch") is None and len(set(self._rows)) > 1:
            share = _rows_of(inputs) * len(self._rows) / sum(self._rows)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return loss if share == 1.0 else loss * share


def _rows_of(batch: Any) -> int:
    """Rows of a batch; of pairs twice as many, which changes no share."""
    return len(next(iter(batch.values())))


def bad_loss_message(loss: float, step: int) -> str:
    """What to say when a loss is not a number."""
    cause = "a learning rate that is too high"
    if step == 1:
        cause = "broken weights, or a row without a single token to learn"
    return (
        f"the loss is {loss} at step {step}, and training on would only spoil the model. "
        f"The likely cause: {cause}. Try a tenth of training.learning_rate, more training.warmup_steps or a "
        "lower training.max_grad_norm; in half precision, bf16 instead of fp16."
    )


class _GivenReference:
    """DPO whose reference's log-probabilities, where they are computed in advance, are handed to it later."""

    def _precompute_ref_logps(self, dataset: Any, *rest: Any) -> Any:
        plugin = self.accelerator.state.deepspeed_plugin  # type: ignore[attr-defined]
        if plugin is not None and plugin.zero_stage == 3:
            # a layer's weights are gathered from all processes, which have to make the same passes: TRL's do
            return super()._precompute_ref_logps(dataset, *rest)  # type: ignore[misc]
        # TRL 1.16 keeps no reference then; under FSDP it has loaded one all the same, and drops it now
        return dataset


def installed_names(config: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a config class, by the names that the installed release gives them.

    Raises:
        RecipeError: it has no such field, by either name.
    """
    known = {field.name for field in fields(config) if field.init}
    older = {new: old for old, new in RENAMED.items()}
    named = {key if key in known else older.get(key, key): value for key, value in arguments.items()}
    if unknown := sorted(named.keys() - known):
        raise RecipeError(
            f"training.{unknown[0]}: {config.__name__} of the installed trl and transformers has no such "
            f"field. {version_advice()}"
        )
    return named


_CHECKED = {
    name: type(trainer.__name__, (_HandbookTrainer, trainer), {}) for name, trainer in TRAINERS.items()
}
_CHECKED["dpo"] = type(DPOTrainer.__name__, (_HandbookTrainer, _GivenReference, DPOTrainer), {})


def make_trainer(
    name: str,
    *,
    arguments: dict[str, Any],
    model: Any,
    tokenizer: Any,
    data: tuple[Any, Any],
    callbacks: Sequence[Any],
) -> Any:
    """Build one of TRL's trainers.

    Args:
        name: a key of `TRAINERS`.
        arguments: fields of its config.
        model: what is trained; as it is now it is also the reference of "dpo" and "kto": a copy of it, or of
            an adapter that is trained on, or the base of one that is still untrained. With
            `precompute_ref_log_probs` "dpo" keeps none: see `add_reference_logps`.
        tokenizer: with a chat template where the data is conversations.
        data: training and evaluation datasets in TRL's form; the former may be a stream, which is then
            gone through again and again; the latter may be None.
        callbacks: beside the trainer's own, whose printing of every log is dropped.
    """
    train, evaluation = data
    extra: dict[str, Any] = {}
    has_adapter = isinstance(model, PeftModel)
    if name in WITH_REFERENCE and not has_adapter and not arguments.get("precompute_ref_log_probs"):
        # left to itself TRL reloads the reference by the model's name: another revision, or another dtype
        extra["ref_model"] = frozen_copy(model, arguments)
    if has_adapter:
        complete_head(model)
    config = CONFIGS[name](**installed_names(CONFIGS[name], arguments))
    use_one_device(config)
    trained = {key: weight.detach().clone() for key, weight in trained_weights(model)} if has_adapter else {}
    trainer = _CHECKED[name](
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=list(callbacks),
        **extra,
    )
    if isinstance(trainer.train_dataset, IterableDataset):
        # after TRL has dropped what is too long: a trainer that resumes skips batches of one pass only
        trainer.train_dataset = trainer.train_dataset.repeat(None)
    if name in WITHOUT_REFERENCE:
        trainer.train_dataset = with_answers(trainer.train_dataset)
        trainer.eval_dataset = with_answers(trainer.eval_dataset)
    trainer.remove_callback(PrinterCallback)
    if has_adapter:
        is_given = name == "dpo" and config.precompute_ref_log_probs
        restore_adapter(trainer, trained, needs_reference=not is_given)
    return trainer


def complete_head(model: Any) -> None:
    """Give an output head whose tokens PEFT trains one by one the bias that TRL 1.16 asks each head for."""
    head = model.get_output_embeddings()
    if head is not None and hasattr(head, "token_adapter") and not hasattr(head, "bias"):
        head.__dict__["bias"] = getattr(head.original_module, "bias", None)  # not as a second parameter


def collect_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The whole model's weights in process 0, where they are spread over processes; None where they are not.

    Every process has to call it, for each may hold a part.
    """
    # ZeRO-3 splits every model that is loaded from now on, also one that a single process loads
    unset_hf_deepspeed_config()
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        return None
    wrapped = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(wrapped)
    return state


@contextmanager
def training_conditions() -> Iterator[None]:
    """Hide warnings that no caller can avoid, skip what carries no loss in the head, keep numbers exact."""
    with warnings.catch_warnings(), _head_on_answers_only(), exact_json():
        # trl/models/utils.py reads and switches it around every reference pass of DPO
        older = "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated"
        warnings.filterwarnings("ignore", older, FutureWarning)
        # PEFT prepares for adapters on the experts of a mixture, which get none; DPO's copy says so again
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not", RuntimeWarning)
        yield


@contextmanager
def _head_on_answers_only() -> Iterator[None]:
    """On a CPU, project only positions that carry a loss, as TRL does on a GPU.

    TRL 1.16 projects every prompt and padding position there, for the sake of devices that compile a kernel
    for each shape. Skipping them gives the same losses in about two thirds of the time (SFT 0.65, DPO 0.6).
    """
    original = getattr(trl_utils, "_use_triton", None)
    if original is None:  # another TRL; a contract test tells that this is slower now
        yield
        return

    def skips(device: torch.device) -> bool:
        return device.type == "cpu" or bool(original(device))

    trl_utils._use_triton = skips
    try:
        yield
    finally:
        trl_utils._use_triton = original
