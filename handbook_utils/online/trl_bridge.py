"""TRL's GRPO and RLOO trainers and what we rely on in them. Importing it costs about 8 seconds.

Read from TRL 1.16; what we rely on is held by tests/contract/test_trl_online.py. Answers, rewards and the
computation of log-probabilities are ours; advantages, losses and the loop of steps are TRL's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PrinterCallback

from handbook_utils.libraries.transformers_internals import use_one_device
from handbook_utils.shared_prefix.answers import AnswerRows, Layout, answer_logps, cheaper_layout
from handbook_utils.training.reference.models import (
    REFERENCE_ADAPTER,
    frozen_copy,
    restore_adapter,
    trained_weights,
)
from handbook_utils.training.trl_bridge import CONFIGS, CheckedTrainer, complete_head, installed_names

with warnings.catch_warnings():
    # torch.fx, which TRL's imports pull in, still decorates with torch.jit
    warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
    from trl import GRPOTrainer, RLOOTrainer
    from trl.trainer import grpo_trainer, rloo_trainer
    from trl.trainer.utils import add_fused_lm_head, use_adapter

_MODULES: dict[str, Any] = {"grpo": grpo_trainer, "rloo": rloo_trainer}
Row = Mapping[str, Any]


class Source(Protocol):
    """Gives a trainer its answers and their rewards; rows come prompt by prompt, `samples` rows of each."""

    def prompt_tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        """Token ids of each row's prompt, generation prompt included."""
        ...

    def answers(self, rows: Sequence[Row], *, step: int, model: Any) -> list[list[int]]:
        """Token ids of an answer for each row, drawn from the model as it is at this optimiser step."""
        ...

    def rewards(self) -> NDArray[np.float64]:
        """(rows, scorers) of the answers given last; NaN where a scorer has no number."""
        ...

    def logprobs(self) -> NDArray[np.float64] | None:
        """(rows,) log-probability of each answer given last, at temperature 1; None where it is not known."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What else to log of the answers given last."""
        ...


class _OnlineTrainer(CheckedTrainer):
    """Answers and rewards come from `source`, groups stay whole, prompts are computed once."""

    source: Source
    shares: bool = True
    layout: Layout | None = None  # None: the cheaper one, batch by batch
    stage: str
    _is_first: bool = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one step."""
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def _prepare_inputs(self, batch: Any) -> Any:
        # TRL shuffles rows, which splits groups; with one step per rollout no sum depends on the order
        with _replaced(_MODULES[self.stage], "shuffle_sequence_dict", self._in_order):
            return super()._prepare_inputs(batch)  # type: ignore[misc]

    def _in_order(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Whole groups, those with long answers first: batches of like length have little padding."""
        lengths = rows["completion_mask"].sum(1).view(-1, self.num_generations)  # type: ignore[attr-defined]
        groups = lengths.amax(1).argsort(descending=True, stable=True)
        size = lengths.shape[1]
        order = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
        return {
            name: value[order] if isinstance(value, torch.Tensor) and value.ndim else value
            for name, value in rows.items()
        }

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._rows, self._is_first = inputs, True
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: Any) -> Any:
        return self.source.prompt_tokens(self._rows), None, {}

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        ids = self.source.answers(self._rows, step=self.state.global_step, model=model)  # type: ignore[attr-defined]
        return ids if self.stage == "rloo" else (ids, None)

    def _calculate_rewards(self, *_: Any, **__: Any) -> torch.Tensor:
        found = torch.tensor(self.source.rewards(), dtype=torch.float32)
        for name, value in self.source.metrics().items():
            self._metrics["train"][name].append(value)  # type: ignore[attr-defined]
        gathered: torch.Tensor = gather(found.to(self.accelerator.device))  # type: ignore[attr-defined]
        return gathered

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        is_first, self._is_first = self._is_first, False
        sampled = self._sampled_logps() if is_first and not torch.is_grad_enabled() else None
        if sampled is not None:
            # RLOO sums an answer's old log-probabilities, so their sum may stand at its first token
            logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
            logps[:, 0] = sampled.to(logps)
            return logps, None, None
        if not self.shares or compute_aux_loss or any(value is not None for value in others.values()):
            found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (
                super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size=batch_size,
                    compute_entropy=compute_entropy,
                    compute_aux_loss=compute_aux_loss,
                    **others,
                )
            )
            return found
        rows = AnswerRows(input_ids, attention_mask, logits_to_keep)
        order = rows.by_length()
        parts = [
            self._scored(model, rows.only(chosen), compute_entropy)
            for chosen in torch.split(order, batch_size or len(order))
        ]
        back = order.argsort()
        logps = torch.cat([part[0] for part in parts])[back]
        entropies = [part[1] for part in parts if part[1] is not None]
        return logps, torch.cat(entropies)[back] if entropies else None, None

    def _sampled_logps(self) -> torch.Tensor | None:
        """(rows,) of each answer, from the engine that drew it: where that is what the loss computes."""
        args = self.args  # type: ignore[attr-defined]
        if self.stage != "rloo" or args.bf16 or args.fp16 or args.temperature != 1.0:
            return None
        found = self.source.logprobs()
        return None if found is None else torch.from_numpy(found)

    def _scored(
        self, model: Any, rows: AnswerRows, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def score(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            with self.accelerator.autocast():  # type: ignore[attr-defined]
                out = model(**inputs, fused_lm_head=True)
            return out.log_probs, out.entropy if with_entropy else None

        plain = self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]
        return answer_logps(score, plain, rows, self.layout or cheaper_layout(plain, rows))


_TRAINERS: dict[str, Any] = {
    name: type(trainer.__name__, (_OnlineTrainer, trainer), {"stage": name})
    for name, trainer in {"grpo": GRPOTrainer, "rloo": RLOOTrainer}.items()
}


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def make_online_trainer(
    stage: str,
    *,
    arguments: dict[str, Any],
    model: Any,
    tokenizer: Any,
    data: Any,
    source: Source,
    rewards: Sequence[str],
    keeps_start: bool,
    callbacks: Sequence[Any],
) -> Any:
    """Build TRL's trainer of a stage.

    Args:
        stage: "grpo" or "rloo".
        arguments: fields of its config; `beta` above 0 needs the model as it is now as the reference.
        model: what is trained, with or without an adapter.
        tokenizer: with a chat template.
        data: a dataset with the column `prompt` (messages) and whatever `source` reads of a row.
        source: gives answers and rewards.
        rewards: the name of each column that `source.rewards` gives, for logs.
        keeps_start: hold a frozen copy of the whole model also where `beta` is 0, for `start_of`.
        callbacks: beside the trainer's own, whose printing of every log is dropped.
    """
    has_adapter = isinstance(model, PeftModel)
    beta = float(arguments.get("beta", 0.0))
    start = None
    if has_adapter:
        complete_head(model)
    elif beta or keeps_start:
        # left to itself TRL reloads the reference from disk by the model's name
        start = frozen_copy(model, arguments).eval()
    config = CONFIGS[stage](
        **installed_names(CONFIGS[stage], {**arguments, "beta": beta if has_adapter else 0.0})
    )
    use_one_device(config)
    trained = {key: weight.detach().clone() for key, weight in trained_weights(model)} if has_adapter else {}
    trainer = _TRAINERS[stage](
        model=model,
        reward_funcs=[_named(name) for name in rewards],
        args=config,
        processing_class=tokenizer,
        train_dataset=data,
        callbacks=list(callbacks),
    )
    trainer.source = source
    trainer.remove_callback(PrinterCallback)
    if has_adapter:
        restore_adapter(trainer, trained, needs_reference=bool(beta) or keeps_start)
    elif start is not None:
        add_fused_lm_head(start, temperature=config.temperature)
        start = trainer.accelerator.prepare_model(start, evaluation_mode=True)
        trainer.beta = config.beta = beta
        trainer.ref_model = start if beta else None
    trainer.start_copy = start
    return trainer


def _named(name: str) -> Any:
    """A function for TRL to take the name of a reward from; it is never called."""

    def reward(**_: Any) -> list[float]:
        raise AssertionError("rewards come from the trainer's source")

    reward.__name__ = name
    return reward


@contextmanager
def start_of(trainer: Any) -> Iterator[Any]:
    """Within it, the model that training started from, to compute with: a copy, or without its adapter."""
    if trainer.start_copy is not None:
        yield trainer.accelerator.unwrap_model(trainer.start_copy)
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    has_copy = REFERENCE_ADAPTER in model.peft_config
    with use_adapter(model, adapter_name=REFERENCE_ADAPTER if has_copy else None):
        yield model
