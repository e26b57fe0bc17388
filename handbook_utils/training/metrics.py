"""Held-out metrics of trained models, each with its interval over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from handbook_utils.chat.thinking import THINKING_KEYS
from handbook_utils.data.formats import GOLD_COLUMNS, prompt_hash
from handbook_utils.data.keys.unread import IgnoredColumnWarning
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.models.logprobs import (
    Conversation,
    Floats,
    response_logprob_sums,
    response_logprobs,
    reward_scores,
    sequence_logprob_sums,
)
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.initial_model import load_reference
from handbook_utils.training.plan import setting

# what an answer may hold beside its content
_BESIDE = ("tool_calls", *THINKING_KEYS)
# metrics of (model as saved, tokenizer, held-out rows)
Measure = Callable[[Any, Any, Dataset], dict[str, Estimate]]


def against_reference(
    recipe: TrainingRecipe, run: RunFolder, metrics: Callable[..., dict[str, Estimate]]
) -> Measure:
    """Measure by the recipe's beta against the model that training started from, loaded only then."""

    def measure(model: Any, tokenizer: Any, rows: Dataset) -> dict[str, Estimate]:
        models, beta = (model, load_reference(recipe, run)), float(setting(recipe, "beta"))
        return metrics(models, tokenizer, rows, beta=beta, seed=recipe.seed)

    return measure


def answer_loss(model: Any, tokenizer: Any, rows: Dataset, *, seed: int) -> Estimate:
    """Mean over answers of the nats per token, the end-of-turn token included.

    Each answer counts once, however long; the trainer's own loss weighs tokens alike instead.
    """
    answers = _conversations(rows, "completion")
    sums, counts = response_logprob_sums(model, tokenizer, answers)
    return mean_estimate(-sums / counts, clusters=_prompt_ids(rows), unit="nats per token", seed=seed)


def text_loss(model: Any, tokenizer: Any, texts: Sequence[str], *, seed: int) -> Estimate:
    """Mean over passages of the nats per token, the end-of-sequence token included."""
    limit = model.config.get_text_config().max_position_embeddings
    encoded = [tokenizer(text + tokenizer.eos_token)["input_ids"][:limit] for text in texts]
    sums, counts = sequence_logprob_sums(
        model, [(ids, 1) for ids in encoded], pad_token_id=tokenizer.pad_token_id
    )
    return mean_estimate(-sums / counts, unit="nats per token", seed=seed)


def reward_accuracy(model: Any, tokenizer: Any, pairs: Dataset, *, seed: int) -> dict[str, Estimate]:
    """How often the chosen answer scores higher, and where gold rewards are known, the truly better one."""
    chosen = reward_scores(model, tokenizer, _conversations(pairs, "chosen"))
    rejected = reward_scores(model, tokenizer, _conversations(pairs, "rejected"))
    metrics = {"accuracy": _accuracy(chosen, rejected, pairs, seed)}
    if set(GOLD_COLUMNS) <= set(pairs.column_names):
        gold = np.array(pairs["gold_chosen"]) - np.array(pairs["gold_rejected"])
        differ = np.flatnonzero(gold)  # of two equally good answers none is the better one
        if len(differ):
            sign = np.sign(gold[differ])
            metrics["accuracy_gold"] = _accuracy(
                chosen[differ] * sign, rejected[differ] * sign, pairs.select(differ), seed
            )
    return metrics


def implicit_reward_metrics(
    models: tuple[Any, Any], tokenizer: Any, pairs: Dataset, *, beta: float, seed: int
) -> dict[str, Estimate]:
    """Accuracy and mean margin of beta * log(policy / reference) on held-out pairs.

    Args:
        models: (policy, reference).
        tokenizer: of both.
        pairs: in the preference form.
        beta: as in training.
        seed: of the intervals' resampling.
    Source: Rafailov et al. 2023, Eq. 5.
    """
    chosen, rejected = (
        _implicit_rewards(models, tokenizer, _conversations(pairs, side), beta)
        for side in ("chosen", "rejected")
    )
    margin = chosen - rejected
    return {
        "accuracy": _accuracy(chosen, rejected, pairs, seed),
        "margin": mean_estimate(margin, clusters=_prompt_ids(pairs), unit="implicit reward", seed=seed),
    }


def feedback_metrics(
    models: tuple[Any, Any], tokenizer: Any, rows: Dataset, *, beta: float, seed: int
) -> dict[str, Estimate]:
    """Mean implicit reward of good and of bad answers, and how often its sign is the mark's.

    Args:
        models: (policy, reference).
        tokenizer: of both.
        rows: in the feedback form.
        beta: as in training.
        seed: of the intervals' resampling.
    Source: Ethayarajh et al. 2024, Eq. 7 (the reward; not its reference point).
    """
    rewards = _implicit_rewards(models, tokenizer, _conversations(rows, "completion"), beta)
    is_good = np.array(rows["label"], dtype=bool)
    prompts = np.array(_prompt_ids(rows))
    right = np.where(is_good, rewards > 0, rewards < 0).astype(float)
    metrics = {"accuracy": mean_estimate(right, clusters=prompts, unit="rate", seed=seed)}
    for name, chosen in (("reward_good", is_good), ("reward_bad", ~is_good)):
        if chosen.any():
            metrics[name] = mean_estimate(
                rewards[chosen], clusters=prompts[chosen], unit="implicit reward", seed=seed
            )
    return metrics


def odds_ratio_metrics(model: Any, tokenizer: Any, pairs: Dataset, *, seed: int) -> dict[str, Estimate]:
    """How often the chosen answer has the higher odds, and the mean log odds ratio.

    An answer's log-probability is the mean over its tokens, as in ORPO's loss, so length does not count.

    Source: Hong et al. 2024, Eq. 4 and 7.
    """
    odds = {}
    for side in ("chosen", "rejected"):
        sums, counts = response_logprob_sums(model, tokenizer, _conversations(pairs, side))
        mean = sums / counts
        odds[side] = mean - np.log(-np.expm1(mean))
    ratio = odds["chosen"] - odds["rejected"]
    return {
        "accuracy": _accuracy(odds["chosen"], odds["rejected"], pairs, seed),
        "log_odds_ratio": mean_estimate(ratio, clusters=_prompt_ids(pairs), unit="nats", seed=seed),
    }


def likelihood_metrics(
    model: Any, tokenizer: Any, pairs: Dataset, *, per_token: bool, beta: float, seed: int
) -> dict[str, Estimate]:
    """How often the chosen answer is the likelier one, and beta times the mean gap, without a reference.

    Args:
        model: the policy.
        tokenizer: of it.
        pairs: in the preference form.
        per_token: compare means over tokens, as SimPO does, and not sums, as CPO does.
        beta: as in training.
        seed: of the intervals' resampling.
    Source: Xu et al. 2024, Eq. 3; Meng, Xia and Chen 2024, Eq. 4.
    """
    likelihood = {}
    for side in ("chosen", "rejected"):
        sums, counts = response_logprob_sums(model, tokenizer, _conversations(pairs, side))
        likelihood[side] = sums / counts if per_token else sums
    margin = beta * (likelihood["chosen"] - likelihood["rejected"])
    return {
        "accuracy": _accuracy(likelihood["chosen"], likelihood["rejected"], pairs, seed),
        "margin": mean_estimate(margin, clusters=_prompt_ids(pairs), unit="reward", seed=seed),
    }


def _implicit_rewards(
    models: tuple[Any, Any], tokenizer: Any, answers: Sequence[Conversation], beta: float
) -> Floats:
    policy, reference = (response_logprobs(model, tokenizer, answers) for model in models)
    return beta * (policy - reference)


def _accuracy(higher: Floats, lower: Floats, pairs: Dataset, seed: int) -> Estimate:
    # equal scores decide nothing: they are not counted as right
    right = (higher > lower).astype(float)
    return mean_estimate(right, clusters=_prompt_ids(pairs), unit="rate", seed=seed)


def _conversations(rows: Dataset, answer: str) -> list[Conversation]:
    unheeded = {"tools", TEMPLATE_OPTIONS} & set(rows.column_names)
    unheeded |= {key for row in rows for key in row[answer][0] if key in _BESIDE and row[answer][0][key]}
    if unheeded:
        warn_and_log(
            f"held-out rows are measured without their {' and '.join(sorted(unheeded))}: compare these "
            "figures with one another only.",
            IgnoredColumnWarning,
        )
    return [(row["prompt"], row[answer][0]["content"]) for row in rows]


def _prompt_ids(rows: Dataset) -> list[str]:
    return [prompt_hash(prompt) for prompt in rows["prompt"]]
