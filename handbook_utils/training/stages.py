"""The training stages side by side: which rows each learns from, and what it measures on held-out ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import (
    CpoRecipe,
    DpoRecipe,
    KtoRecipe,
    OrpoRecipe,
    PretrainRecipe,
    RewardRecipe,
    SftRecipe,
)
from handbook_utils.training.callbacks import Beside
from handbook_utils.training.fit import fit, load_rows
from handbook_utils.training.metrics import (
    against_reference,
    answer_loss,
    feedback_metrics,
    implicit_reward_metrics,
    likelihood_metrics,
    odds_ratio_metrics,
    reward_accuracy,
    text_loss,
)
from handbook_utils.training.plan import setting


def run_pretrain(recipe: PretrainRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on plain text into `model/`; `training.packing` puts several passages into one row.

    Returns:
        `eval_loss` where the recipe has `eval_data`: nats per token of held-out passages.
    Raises:
        RecipeError, DataError, ModelError: before any training.
        TrainingError: the loss is no longer a number.
    """
    return fit(
        recipe,
        run,
        load_rows(recipe, run),
        measure=lambda model, tokenizer, rows: {
            "eval_loss": text_loss(model, tokenizer, rows["text"], seed=recipe.seed)
        },
    )


def run_sft(recipe: SftRecipe, run: RunFolder, *, beside: Beside = ()) -> dict[str, Estimate]:
    """Fine-tune on conversations into `model/`; each answer is learned with the token that ends it.

    Args:
        recipe: of the stage.
        run: the open run folder.
        beside: see `fit`.
    Returns:
        `eval_loss` where the recipe has `eval_data`: nats per token of held-out answers.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Book: chapter "Supervised fine-tuning".
    """
    return fit(
        recipe,
        run,
        load_rows(recipe, run),
        measure=lambda model, tokenizer, rows: {
            "eval_loss": answer_loss(model, tokenizer, rows, seed=recipe.seed)
        },
        beside=beside,
    )


def run_reward(recipe: RewardRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train a reward model on preference pairs into `model/`.

    The loss is -log sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952).

    Returns:
        Where the recipe has `eval_data`: `accuracy` against the annotator, and `accuracy_gold` where the
        pairs have gold rewards.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    """
    measure = partial(reward_accuracy, seed=recipe.seed)
    return fit(recipe, run, load_rows(recipe, run), measure=measure, head="reward")


def run_dpo(recipe: DpoRecipe, run: RunFolder, *, beside: Beside = ()) -> dict[str, Estimate]:
    """Train on preference pairs into `model/` (Rafailov et al. 2023).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `margin` of the implicit reward on held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Book: chapter "Direct preference optimisation".
    """
    measure = against_reference(recipe, run, implicit_reward_metrics)
    return fit(recipe, run, load_rows(recipe, run), measure=measure, beside=beside)


def run_orpo(recipe: OrpoRecipe, run: RunFolder, *, beside: Beside = ()) -> dict[str, Estimate]:
    """Train on preference pairs into `model/`, without a reference model (Hong et al. 2024).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `log_odds_ratio` of held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Source: Hong, Lee and Thorne 2024, arXiv 2403.07691.
    """
    measure = partial(odds_ratio_metrics, seed=recipe.seed)
    return fit(recipe, run, load_rows(recipe, run), measure=measure, beside=beside)


def run_cpo(recipe: CpoRecipe, run: RunFolder, *, beside: Beside = ()) -> dict[str, Estimate]:
    """Train on preference pairs into `model/`, by their log-probabilities alone (Xu et al. 2024).

    `training.loss_type: simpo` takes means over tokens and asks for a margin (Meng et al. 2024).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `margin` of held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Source: Xu et al. 2024, arXiv 2401.08417; Meng, Xia and Chen 2024, arXiv 2405.14734.
    """
    is_mean = setting(recipe, "loss_type") in ("simpo", "alphapo", "ipo")
    beta = float(setting(recipe, "beta"))
    measure = partial(likelihood_metrics, per_token=is_mean, beta=beta, seed=recipe.seed)
    return fit(recipe, run, load_rows(recipe, run), measure=measure, beside=beside)


def run_kto(recipe: KtoRecipe, run: RunFolder, *, beside: Beside = ()) -> dict[str, Estimate]:
    """Train on marked answers into `model/`; of a preference pair, chosen is good and rejected is bad.

    Returns:
        Where the recipe has `eval_data`: the mean implicit reward of held-out good and bad answers, and
        `accuracy`: how often its sign is the mark's.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306.
    """
    data = load_rows(recipe, run)
    # TRL reads KTO's rows in order, for its KL is measured on neighbours: unshuffled, a pair's two answers
    # would be each other's, and one source's marks would come all at once
    data = replace(data, train=data.train.shuffle(seed=recipe.seed))
    measure = against_reference(recipe, run, feedback_metrics)
    return fit(recipe, run, data, measure=measure, beside=beside)
