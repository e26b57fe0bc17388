"""Reward models as scorers, one by one or several as an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from handbook_utils.errors import ModelError
from handbook_utils.models.adapters import LOST_HEAD, brings_score, read_base
from handbook_utils.models.load import load_pair, options_of
from handbook_utils.models.logprobs import reward_scores
from handbook_utils.models.places import ADAPTER_CONFIG, is_adapter, resolve_model
from handbook_utils.records import Completion
from handbook_utils.schema.sections import ModelSection

Combine = Literal["mean", "minimum", "mean_minus_std"]


@dataclass(frozen=True)
class RewardModelScorer:
    """A reward model's score of prompt and answer under the chat template, as it was trained on."""

    model: Any
    tokenizer: Any
    name: str = "proxy"
    rows_per_batch: int = 256

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, NDArray[np.float64]]:
        """Score answers; those cut at the length limit are scored as if they had ended there."""
        rows = [(row.prompt, row.completion) for row in completions]
        return {self.name: reward_scores(self.model, self.tokenizer, rows, batch_size=self.rows_per_batch)}


@dataclass(frozen=True)
class EnsembleScorer:
    """Several reward models of one scale as one score; `name.1`, `name.2` and so on are the members'.

    Attributes:
        members: such as reward models trained alike from different seeds: their numbers are averaged as they
            are, so they have to be in one scale.
        combine: "mean", "minimum" (the most doubtful member decides), or "mean_minus_std".
        k: for "mean_minus_std": mean - k * standard deviation between the members (of the population).
    Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization".
    """

    members: Sequence[RewardModelScorer]
    combine: Combine = "mean_minus_std"
    k: float = 1.0
    name: str = "proxy"

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, NDArray[np.float64]]:
        """Score answers by every member."""
        columns = [column for member in self.members for column in member(completions).values()]
        parts = {f"{self.name}.{number}": column for number, column in enumerate(columns, start=1)}
        return {self.name: combine_scores(np.stack(columns), self.combine, k=self.k), **parts}


def combine_scores(scores: NDArray[np.float64], combine: Combine, *, k: float = 1.0) -> NDArray[np.float64]:
    """One score of each row from several.

    Args:
        scores: (members, rows).
        combine: as in `EnsembleScorer`.
        k: standard deviations below the mean.

    >>> combine_scores(np.array([[1.0, 4.0], [3.0, 4.0]]), "mean_minus_std").tolist()
    [1.0, 4.0]
    """
    if combine == "minimum":
        return np.asarray(scores.min(axis=0))
    mean = scores.mean(axis=0)
    return np.asarray(mean if combine == "mean" else mean - k * scores.std(axis=0))


def load_reward_model(
    section: ModelSection, location: str, *, name: str, rows_per_batch: int
) -> RewardModelScorer:
    """A reward model that `check_reward_model` has nothing against.

    Raises:
        ModelError: no such model.
    """
    model, tokenizer = load_pair(location, head="reward", **options_of(section))
    return RewardModelScorer(model, tokenizer, name, rows_per_batch)


def check_reward_model(location: str, *, revision: str | None = None) -> None:
    """Refuse what has no score or several, before it is loaded: its head would be noise, or a guess.

    Raises:
        ModelError: nothing there, a language model without a score, or a classifier of several labels.
    """
    place = resolve_model(location, revision=revision)
    if is_adapter(place):
        task = json.loads((Path(place) / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("task_type")
        if task not in (None, "SEQ_CLS"):
            raise ModelError(_no_score(location, f"an adapter of a language model (task {task})"))
        if not brings_score(place):
            _check_base_scores(location, place)
        return
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        return  # loading says what is wrong with it
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(_no_score(location, ", ".join(kinds) or "of no stated kind"))
    if config.num_labels != 1:
        labels = ", ".join(map(str, list(config.id2label.values())[:4]))
        raise ModelError(
            f"{location}: a classifier with {config.num_labels} labels ({labels}); a reward model has one. "
            "Which label, or what mix of them, is the reward, cannot be told; take a model with one label."
        )


def _check_base_scores(location: str, place: str) -> None:
    """An adapter that brings no score may stand on a model that has one."""
    base = read_base(place)
    try:
        check_reward_model(base.name, revision=base.revision)
    except ModelError as error:
        raise ModelError(f"{location}: {LOST_HEAD}") from error


def _no_score(location: str, kind: str) -> str:
    return (
        f"{location}: {kind}, so it has no score. A scorer is a run of stage `reward`, or a sequence "
        "classifier with one label."
    )
