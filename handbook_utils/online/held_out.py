"""Held-out prompts answered while the policy trains: a second opinion, how far it moved, when to stop."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.models.logprobs import sequence_logprob_sums
from handbook_utils.online.rewards import Rewards
from handbook_utils.online.rollouts import Sampler
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.sampling.tables import scores_table
from handbook_utils.schema.training import OnlineRecipe
from handbook_utils.training.distributed import decided_by_main
from handbook_utils.training.reference.models import trained_weights

LOGGER = logging.getLogger("handbook_utils")
FOLDER, KEPT, WEIGHTS = "held_out", "kept", "weights.safetensors"
START_LOGPROB = "start_logprob"
# resamples of an interval that is shown while training
DRAWS = 1000


@dataclass(frozen=True)
class Look:
    """What held-out prompts showed at one step.

    Attributes:
        step: optimiser steps done.
        by: the score that chooses the step that is kept.
        table: samples, a column for each score, and the log-probability of each answer under the start model.
    """

    step: int
    by: str
    table: pa.Table

    @property
    def kl(self) -> Estimate:
        """Nats per answer from the start model."""
        with np.errstate(all="ignore"):
            return estimate_kl(
                self._numbers("logprob"), self._numbers(START_LOGPROB), clusters=self._prompts()
            )

    @property
    def value(self) -> float:
        """The mean of the score that chooses."""
        return float(np.nanmean(self._numbers(self.by)))

    def means(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Mean of each score over prompts; a score without any number is left out."""
        found = {}
        for name in names:
            values = self._numbers(name)
            there = np.isfinite(values)
            if there.any():
                clusters = np.asarray(self._prompts())[there]
                found[name] = mean_estimate(
                    values[there], clusters=clusters, unit=f"{name} reward", draws=DRAWS
                )
        return found

    def by_prompt(self, name: str) -> dict[str, list[float]]:
        """Finite scores of each prompt."""
        found: dict[str, list[float]] = {}
        for prompt, value in zip(self._prompts(), self._numbers(name), strict=True):
            if math.isfinite(value):
                found.setdefault(prompt, []).append(float(value))
        return found

    def _numbers(self, name: str) -> Any:
        return self.table[name].to_numpy()

    def _prompts(self) -> list[str]:
        ids: list[str] = self.table["prompt_id"].to_pylist()
        return ids


class HeldOut(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Answers held-out prompts before the first step, every few steps and after the last one.

    Each look is stored, so a run that resumes makes none twice. The weights of the step that is kept so far
    are stored, too. With several processes the first one looks, and all of them stop together.
    """

    def __init__(
        self, recipe: OnlineRecipe, run: RunFolder, sampler: Sampler, rewards: Rewards, pad_token_id: int
    ) -> None:
        assert recipe.held_out is not None
        self._recipe, self._section, self._run = recipe, recipe.held_out, run
        self._sampler, self._rewards, self._pad = sampler, rewards, pad_token_id
        self.start: Callable[[], AbstractContextManager[Any]]
        self.policy: Callable[[], Any]
        self._pending: dict[str, float] = {}
        self.looks: list[Look] = []
        self.kept = 0
        self.stopped: str | None = None

    @property
    def by(self) -> str:
        """The score that chooses: the first second opinion, or the first reward where there is none."""
        return next(iter(self._section.scorers), next(iter(self._recipe.scorers)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the start model; of a run that resumes, read what was seen up to its checkpoint."""
        for step in range(state.global_step + 1):
            if step == state.global_step == 0 or self._run.has(_file(step)):
                self._look(step, control, is_live=step == state.global_step)
        if state.global_step == 0:
            self._run.log_metrics({"step": 0, **self._pending})
        self._pending = {}  # of a step that was logged before

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look where it is time."""
        if state.global_step % self._section.every == 0 or state.global_step >= state.max_steps:
            self._look(state.global_step, control, is_live=True)
            if not control.should_log:
                self._run.log_metrics({"step": state.global_step, **self._pending})
                self._pending = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Put what was seen beside what the trainer logs of the same step: of two records one would count."""
        logs.update(self._pending)
        self._pending = {}

    def _look(self, step: int, control: Any, *, is_live: bool) -> None:
        said = decided_by_main(lambda: self._looked(step, is_live=is_live))
        if said is not None:
            self.stopped = said
            control.should_training_stop = True

    def _looked(self, step: int, *, is_live: bool) -> str | None:
        """Why training ends here, as the first process sees it; None where it goes on."""
        if not self._run.has(_file(step)):
            self._run.write_table(_file(step), self._measured(step))
        look = Look(step, self.by, self._run.read_table(_file(step)))
        self.looks.append(look)
        kl = look.kl
        if is_live:
            self._pending = self._shown(look, kl)
        limit = self._recipe.stop_at_kl
        if limit is not None and kl.value > limit:
            return f"step {step}: KL is {kl.value:.3g} nats per answer, above stop_at_kl {limit:g}"
        best = next(each for each in self.looks if each.step == self.kept)
        if step and (self._section.keep == "last" or look.value > best.value):
            self._keep(step, is_live=is_live)
        return None

    def _measured(self, step: int) -> pa.Table:
        ids = list(self._sampler.prompts)
        model = self.policy()
        sampled, completions = self._sampler.draw(model, ids, name="held out", samples=self._section.samples)
        scored = self._rewards.of(completions, step=step)
        prompts = [self._sampler.tokens[row.prompt_id] for row in completions]
        sequences = [
            ([*prompt, *row.token_ids], len(prompt)) for prompt, row in zip(prompts, sampled, strict=True)
        ]
        with self.start() as start, torch.no_grad():
            was_training = start.training
            start.eval()
            sums, _ = sequence_logprob_sums(start, sequences, pad_token_id=self._pad)
            start.train(was_training)
        return scores_table(scored).append_column(START_LOGPROB, pa.array(sums, pa.float64()))

    def _shown(self, look: Look, kl: Estimate) -> dict[str, float]:
        names = [*self._recipe.scorers, *self._section.scorers]
        cut = np.mean([reason == "length" for reason in look.table["finish_reason"].to_pylist()])
        return {
            **{f"held_out/{name}": mean.value for name, mean in look.means(names).items()},
            "held_out/kl": kl.value,
            "held_out/words": float(np.nanmean(look.table["words"].to_numpy())),
            "held_out/truncated": float(cut),
        }

    def _keep(self, step: int, *, is_live: bool) -> None:
        before, self.kept = self.kept, step
        if not is_live:  # its weights are there, or those of a later step that will be kept again
            return
        name = f"{KEPT}/step-{step:06d}"
        if not self._run.has(name):
            with self._run.folder(name) as folder:
                weights = {key: w.detach().cpu().contiguous() for key, w in trained_weights(self.policy())}
                save_file(weights, folder / WEIGHTS)
        if before:
            shutil.rmtree(self._run.path / KEPT / f"step-{before:06d}", ignore_errors=True)

    def restore(self, model: Any) -> None:
        """Give a model the weights of the step that is kept, which is not step 0."""
        weights = load_file(self._run.path / KEPT / f"step-{self.kept:06d}" / WEIGHTS)
        with torch.no_grad():
            for name, weight in trained_weights(model):
                weight.copy_(weights[name])

    def final_metrics(self) -> dict[str, Estimate]:
        """Of the kept step: each score, its gain over step 0 on the same prompts, and KL."""
        names = [*self._recipe.scorers, *self._section.scorers]
        first = self.looks[0]
        kept = next(look for look in self.looks if look.step == self.kept)
        metrics: dict[str, Estimate] = dict(kept.means(names))
        for name in names:
            before, after = first.by_prompt(name), kept.by_prompt(name)
            both = [prompt for prompt in before if prompt in after]
            if self.kept and len(both) > 1:
                compared = compare_paired(
                    {prompt: before[prompt] for prompt in both},
                    {prompt: after[prompt] for prompt in both},
                    unit=f"{name} reward",
                    seed=self._recipe.seed,
                )
                metrics[f"{name}_gain_vs_start"] = compared.difference
        return {**metrics, "kl": kept.kl}

    def notes(self) -> Mapping[str, Any]:
        """What the manifest keeps."""
        return {"kept_step": self.kept, "chosen_by": self.by, "stopped": self.stopped}


def _file(step: int) -> str:
    return f"{FOLDER}/step-{step:06d}.parquet"
