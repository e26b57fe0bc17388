"""The only module that knows TRL's names. Importing it costs about 8 seconds: import it inside functions.

Read from TRL 1.16; what we rely on is held by tests/contract/test_trl_*.py.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from datasets import IterableDataset
from peft import PeftModel
from transformers import PrinterCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from handbook_utils.errors import TrainingError
from handbook_utils.shared_prefix.batching import LengthBatches
from handbook_utils.training.batches import LengthBatchSampler
from handbook_utils.training.references import frozen_copy, restore_adapter, trained_weights

with warnings.catch_warnings():
    # torch.fx, which TRL's imports pull in, still decorates with torch.jit
    warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
    from trl import (
        DPOConfig,
        DPOTrainer,
        KTOConfig,
        KTOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )
    from trl.import_utils import TRLExperimentalWarning
    from trl.trainer import utils as trl_utils

    # ORPO may change or go with any release: a contract test tells
    warnings.filterwarnings("ignore", category=TRLExperimentalWarning)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# plain language modelling is SFT on a "text" column, so `pretrain` shares SFT's trainer and fields
CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "kto": KTOConfig,
}
TRAINERS: dict[str, Any] = {
    "sft": SFTTrainer,
    "reward": RewardTrainer,
    "dpo": DPOTrainer,
    "orpo": ORPOTrainer,
    "kto": KTOTrainer,
}
WITH_REFERENCE = ("dpo", "kto")


class _HandbookTrainer:
    """What is different in every trainer here.

    Each loss is checked, no model card is drafted, and rows may stand in batches of like length.
    """

    length_batches: LengthBatches | None = None
    _rows: tuple[int, ...] = ()

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: TRL drafts one beside every checkpoint, and the run folder says more."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one batch; the loss is checked here because logs average over steps."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise TrainingError(bad_loss_message(float(loss), self.state.global_step + 1))  # type: ignore[attr-defined]
        return loss

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
        """Compute a batch's loss, by its share of the step's rows where batches are of unlike size."""
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
    config = CONFIGS[name](**arguments)
    # left to itself a single process that sees several GPUs splits each batch over them (DataParallel), and a
    # step is then larger than planned; several GPUs are for several processes
    config._n_gpu = min(config.n_gpu, 1)
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
    trainer.remove_callback(PrinterCallback)
    if has_adapter:
        is_given = name == "dpo" and config.precompute_ref_log_probs
        restore_adapter(trainer, trained, needs_reference=not is_given)
    return trainer


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
    """Hide the warnings no caller can avoid, and let TRL's output head skip what carries no loss."""
    with warnings.catch_warnings(), _head_on_answers_only():
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


_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", NoneType: "null"}
_HELP_CHOICES = re.compile(r"Possible values are:? (.*)")
_QUOTED = re.compile(r"`'?([a-z0-9_]+)'?`")


def config_fields(stage: str) -> dict[str, dict[str, Any]]:
    """Describe every field of a stage's TRL config, in a form that needs no TRL to be read.

    Args:
        stage: a key of `CONFIGS`.
    Returns:
        field name -> `types` (of "null", "bool", "int", "float", "str", "list", "dict"; empty: anything),
        `choices` (values a string, or a list's strings, may take; None: any) and `default`.
    """
    config = CONFIGS[stage]
    hints = get_type_hints(config)
    return {field.name: _describe(field, hints[field.name]) for field in fields(config) if field.init}


def _describe(field: Field[Any], hint: Any) -> dict[str, Any]:
    types, choices = _kinds(hint)
    if field.name == "loss_type":
        types = types | {"str"}  # DPO's config takes one loss by name as well as a list of them
    listed = field.metadata.get("choices") or choices or _choices_in_help(field)
    return {
        "types": sorted(types),
        "choices": sorted(str(choice) for choice in listed) if listed else None,
        "default": _plain_default(field),
    }


def _kinds(hint: Any) -> tuple[set[str], list[str]]:
    """Return the simple type names a hint allows and the strings its enums or literals name."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        parts = [_kinds(argument) for argument in get_args(hint)]
        return set().union(*(kinds for kinds, _ in parts)), [name for _, names in parts for name in names]
    if origin is Literal:
        return {_KINDS[type(value)] for value in get_args(hint)}, []
    if origin in _KINDS:
        return {_KINDS[origin]}, []
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"str"}, [str(member.value) for member in hint]
    return ({_KINDS[hint]}, []) if hint in _KINDS else (set(), [])


def _choices_in_help(field: Field[Any]) -> list[str]:
    # DPO's losses are listed only in the help text; a test holds that the list is found
    found = _HELP_CHOICES.search(field.metadata.get("help", ""))
    if not found or field.name not in {"loss_type", "f_divergence_type"}:
        return []
    return _QUOTED.findall(found.group(1).split(". ")[0])


def _plain_default(field: Field[Any]) -> Any:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return None
    return value.value if isinstance(value, Enum) else value
