"""Held-out prompts answered every few steps of training: score, win rate against the start, KL, length.

What is sampled is fixed: the same prompts with the same noise at every look, so looks differ by the weights
alone. The state of all random generators is put back, so training goes on as if nobody had looked.
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from handbook_utils.data.prompts import Prompt, iterate_prompts
from handbook_utils.errors import DataError
from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.statistics import CoverageWarning, mean_estimate, with_cautions
from handbook_utils.evaluation.win_rate import compare_paired, scores_by_prompt
from handbook_utils.models.logprobs import sequence_logprob_sums
from handbook_utils.pipeline.evaluate import KL_ROWS_PER_BATCH, answer_sequences
from handbook_utils.records import Estimate, ScoredCompletion
from handbook_utils.runs.atomic import explained_os_errors, sync, temporary_name
from handbook_utils.runs.folder import RunFolder
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.generate import TransformersEngine
from handbook_utils.sampling.scoring.score import Scorer, score
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.sampling.scoring.stage import check_names
from handbook_utils.sampling.tables import completions_of, scores_table
from handbook_utils.schema.sampling import HeldOutSamples
from handbook_utils.schema.training import PolicyRecipe, TrainingRecipe
from handbook_utils.training.callbacks import Beside
from handbook_utils.training.fit import CHECKPOINTS

LOGGER = logging.getLogger("handbook_utils")
FOLDER, BEST = "held_out", "best.safetensors"
# fewer prompts give no interval worth its name
FEWEST_PROMPTS = 8
OnLook = Callable[[Path], None]


def beside_training(recipe: TrainingRecipe, run: RunFolder, on_look: OnLook | None = None) -> Beside:
    """What a recipe wants done beside training; what can be wrong with it is found before a model is loaded.

    Args:
        recipe: of a training stage.
        run: its open run folder.
        on_look: called with the run folder after each look, such as a `LivePlot`.
    Raises:
        DataError: the prompts cannot be read, or are too few.
        RecipeError, ModelError: as `load_scorers`.
    """
    section = recipe.held_out_samples if isinstance(recipe, PolicyRecipe) else None
    if section is None or not run.is_main:
        return ()
    prompts = list(iterate_prompts(section.data, run, seed=recipe.seed))
    if len(prompts) < FEWEST_PROMPTS:
        raise DataError(
            f"held_out_samples.data: {len(prompts)} prompts, and an interval needs {FEWEST_PROMPTS} at least."
        )
    check_names(section.scorers)
    scorers = load_scorers(section.scorers, run, rows_per_batch=section.rows_per_batch)
    return [
        lambda model, tokenizer: SampleHeldOut(
            section, run, prompts, scorers, model, tokenizer, seed=recipe.seed, on_look=on_look
        )
    ]


class SampleHeldOut(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Samples the held-out prompts every few steps, and keeps what it finds in the run folder.

    `held_out/step-N.parquet` holds answers and scores, metrics.jsonl the figures: `held_out/score` (mean of
    the first scorer) with `held_out/low` and `/high`, the paired `held_out/gain` over the start,
    `held_out/win_rate` against it, `held_out/kl` in nats per answer, `held_out/words`, `/tokens`, `/cut`.

    Args:
        section: of the recipe.
        run: the open run folder.
        prompts: what is asked.
        scorers: of the section, in its order.
        model: as training starts.
        tokenizer: with a chat template.
        seed: of the answers and of the resampling.
        on_look: called with the run folder after each look.
    """

    def __init__(
        self,
        section: HeldOutSamples,
        run: RunFolder,
        prompts: Sequence[Prompt],
        scorers: Sequence[Scorer],
        model: Any,
        tokenizer: Any,
        *,
        seed: int,
        on_look: OnLook | None = None,
    ) -> None:
        self._section, self._run, self._prompts, self._scorers = section, run, prompts, scorers
        self._tokenizer, self._seed, self._on_look = tokenizer, seed, on_look
        self._by = next(iter(section.scorers), None)
        self._start = _trained_weights(model) if section.kl else {}
        self._best = run.path / CHECKPOINTS / BEST
        self._looked, self._looks, self._seconds, self._began = -1, 0, 0.0, time.monotonic()
        self._cautions: dict[str, None] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Look at the start, which a resumed run has done."""
        self._began = time.monotonic()
        if not self._run.has(_table_name(0)):
            self._look(model, 0)
        self._looked = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Look where it is time to."""
        if state.global_step % self._section.every == 0:
            self._look(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Look at the end, put the best weights back where they are wanted, and say what it took."""
        if self._looked < state.global_step or not self._run.has(_table_name(state.global_step)):
            self._look(model, state.global_step)
        for caution in self._cautions:
            warnings.warn(f"held-out samples: {caution}", CoverageWarning, stacklevel=2)
        whole = max(time.monotonic() - self._began, 1e-9)
        share = self._seconds / whole
        notes = {"looks": self._looks, "seconds": round(self._seconds, 3), "share": round(share, 4)}
        LOGGER.info(
            "held-out samples: %d looks took %.1f s, %.1f %% of the training time",
            self._looks,
            self._seconds,
            100 * share,
        )
        if self._section.keep == "best":
            notes |= self._restore_best(model)
        self._run.note(held_out_samples=notes)

    def _look(self, model: Any, step: int) -> None:
        began = time.monotonic()
        with _undisturbed(model):
            record, cautions = with_cautions(lambda: self._measured(model, step))
        self._cautions.update(dict.fromkeys(cautions))
        self._run.log_metrics({"step": step, **record})
        if self._section.keep == "best":
            self._keep_if_best(model, step, record["held_out/score"])
        self._looked, self._looks = step, self._looks + 1
        self._seconds += time.monotonic() - began
        self._tell()

    def _measured(self, model: Any, step: int) -> dict[str, float]:
        section = self._section
        settings = SamplingSettings(
            section.samples, section.max_new_tokens, 1.0, 1.0, self._seed, section.rows_per_batch
        )
        answers = TransformersEngine(model, self._tokenizer, long_prompts="skip").answer(
            self._prompts, settings
        )
        rows: list[ScoredCompletion] = []
        for scorer in self._scorers or [lambda completions: {}]:
            rows = score(rows or answers.completions, scorer)
        self._run.write_table(_table_name(step), scores_table(rows))
        figures = self._lengths(rows) | self._scores(rows, step)
        if section.kl:
            figures["held_out/kl"] = self._kl(model, rows).value if step else 0.0
        return {name: round(value, 6) for name, value in figures.items()}

    def _lengths(self, rows: Sequence[ScoredCompletion]) -> dict[str, float]:
        return {
            "held_out/words": float(np.mean([row.scores["words"] for row in rows])),
            "held_out/tokens": float(np.mean([row.tokens for row in rows])),
            "held_out/cut": float(np.mean([row.finish_reason == "length" for row in rows])),
        }

    def _scores(self, rows: Sequence[ScoredCompletion], step: int) -> dict[str, float]:
        if self._by is None:
            return {}
        ids = [row.prompt_id for row in rows]
        means = {
            name: mean_estimate([row.scores[name] for row in rows], clusters=ids, seed=self._seed)
            for name in self._section.scorers
        }
        found = _with_bounds("score", means[self._by], low="low", high="high")
        found |= {f"held_out/{name}": each.value for name, each in means.items() if name != self._by}
        if step == 0:
            return found
        start = completions_of(self._run.read_table(_table_name(0)), where=_table_name(0))
        compared = compare_paired(_by_prompt(start, self._by), _by_prompt(rows, self._by), seed=self._seed)
        return (
            found
            | _with_bounds("gain", compared.difference, low="gain_low", high="gain_high")
            | _with_bounds("win_rate", compared.win_rate, low="win_low", high="win_high")
        )

    def _kl(self, model: Any, rows: Sequence[ScoredCompletion]) -> Estimate:
        sequences = answer_sequences(self._tokenizer, rows)

        def logprobs() -> Any:
            return sequence_logprob_sums(
                model, sequences, pad_token_id=self._tokenizer.pad_token_id, batch_size=KL_ROWS_PER_BATCH
            )[0]

        with torch.no_grad():
            policy = logprobs()
            now = _trained_weights(model)
            try:
                _put(model, self._start)
                reference = logprobs()
            finally:
                _put(model, now)
        return estimate_kl(policy, reference, clusters=[row.prompt_id for row in rows], seed=self._seed)

    def _keep_if_best(self, model: Any, step: int, found: float) -> None:
        if self._best.exists() and _best_of(self._best)[1] >= found:
            return
        temporary = temporary_name(self._best)
        with explained_os_errors(self._best):
            self._best.parent.mkdir(parents=True, exist_ok=True)
            save_file(_trained_weights(model), temporary, {"step": str(step), "score": repr(found)})
            sync(temporary)
            temporary.replace(self._best)

    def _restore_best(self, model: Any) -> dict[str, Any]:
        step, found = _best_of(self._best)
        with safe_open(self._best, "pt") as stored:
            _put(model, {name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        LOGGER.info("held-out samples: the model of step %d is kept, with a mean score of %.4g", step, found)
        return {"kept_step": step, "kept_score": found}

    def _tell(self) -> None:
        if self._on_look is None:
            return
        try:
            self._on_look(self._run.path)
        except Exception as error:  # noqa: BLE001 - a picture that cannot be drawn is no reason to stop training
            LOGGER.warning("held-out samples: on_look failed and is not called again: %s", error)
            self._on_look = None


def _table_name(step: int) -> str:
    return f"{FOLDER}/step-{step:06d}.parquet"


def _by_prompt(rows: Sequence[ScoredCompletion], name: str) -> Mapping[str, Any]:
    indices = [row.sample_index for row in rows]
    values = [row.scores[name] for row in rows]
    return scores_by_prompt([row.prompt_id for row in rows], values, sample_indices=indices)


def _with_bounds(name: str, found: Estimate, *, low: str, high: str) -> dict[str, float]:
    return {
        f"held_out/{name}": found.value,
        f"held_out/{low}": found.low,
        f"held_out/{high}": found.high,
    }


def _trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of what is trained, in main memory."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


@torch.no_grad()
def _put(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a model other weights, in place: the optimiser goes on with the same tensors."""
    for name, weight in model.named_parameters():
        if name in weights:
            weight.copy_(weights[name])


def _best_of(path: Path) -> tuple[int, float]:
    with safe_open(path, "pt") as stored:
        said = stored.metadata()
    return int(said["step"]), float(said["score"])


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Evaluate a model, and leave it and all random generators as they were."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        random.setstate(states[0])
        np.random.set_state(states[1])
