"""The stages `grpo` and `rloo`: check, sample, score, learn, look, and keep the step that looked best."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import asdict
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import RecipeError
from handbook_utils.models.generation_settings import settle_generation
from handbook_utils.models.load import check_vocabulary
from handbook_utils.online.checks import OnlinePrompts, checked_prompts, require_prompts
from handbook_utils.online.held_out import KEPT, HeldOut
from handbook_utils.online.plan import online_plan
from handbook_utils.online.rewards import Rewards
from handbook_utils.online.rollouts import Rollouts, Sampler
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.generate import stop_token_ids
from handbook_utils.sampling.generation.rendering import FittedPrompts
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.schema.training import GrpoRecipe, OnlineRecipe, RlooRecipe
from handbook_utils.shared_prefix.decoder import why_not_shared
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.callbacks import RecordMetrics, ShowProgress
from handbook_utils.training.distributed import decided_by_main
from handbook_utils.training.fit import CHECKPOINTS, MODEL, save_model, train_or_resume
from handbook_utils.training.initial_model import Start, start_model
from handbook_utils.training.plan import TrainingPlan, setting
from handbook_utils.training.plan_table import show_plan
from handbook_utils.training.watch import WatchLog

# what held-out prompts showed of the kept step, in the form of result.json
FINAL = "final.json"
LOGGER = logging.getLogger("handbook_utils")


class StoppedWarning(UserWarning):
    """Training ended before its last step, or no step was better than the start model."""


def run_grpo(recipe: GrpoRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Group relative policy optimisation into `model/`; answers go into `rollouts/`, scores into `rewards/`.

    Returns:
        Where the recipe has `held_out`, of the step that was kept: each score on held-out prompts, its gain
        over the start model (of a step that was chosen by it, so it flatters), and `kl`, nats per answer.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any model is loaded.
        TrainingError: the loss is no longer a number, or a scorer gives nothing to learn from.
    Source: Shao et al. 2024, arXiv 2402.03300.
    """
    return run_online(recipe, run)


def run_rloo(recipe: RlooRecipe, run: RunFolder) -> dict[str, Estimate]:
    """REINFORCE with a leave-one-out baseline into `model/`; otherwise as `run_grpo`.

    Source: Ahmadian et al. 2024, arXiv 2402.14740.
    """
    return run_online(recipe, run)


def run_online(recipe: OnlineRecipe, run: RunFolder) -> dict[str, Estimate]:
    """What both stages do; see `run_grpo`."""
    prompts = checked_prompts(recipe, run)
    if recipe.held_out is not None:
        require_prompts(prompts.held_out)
    run.note(**prompts.data.notes(), prompts=len(prompts.train.prompts))
    plan = online_plan(recipe, len(prompts.train.prompts))
    run.note(plan=asdict(plan))
    if run.progress:
        show_plan(asdict(plan))
    if not decided_by_main(lambda: run.has(MODEL) and run.has(FINAL)):
        with quiet_libraries():
            set_seed(recipe.seed)
            start = start_model(recipe, run, "causal")
            check_vocabulary(start.model, prompts.tokenizer, run.locate(recipe.model))
            settle_generation(start.model, prompts.tokenizer, name=run.locate(recipe.model))
            run.note(**start.facts(recipe.model.adapter))
            _train(recipe, run, plan, start, prompts)
    if not run.is_main:
        return {}
    for name in (CHECKPOINTS, KEPT):
        shutil.rmtree(run.path / name, ignore_errors=True)
    content = json.loads((run.path / FINAL).read_text(encoding="utf-8"))
    return {name: Estimate.from_json(figure) for name, figure in content.items()}


def online_arguments(recipe: OnlineRecipe, run: RunFolder, plan: TrainingPlan) -> dict[str, Any]:
    """Fields of the trainer's TRL config."""
    arguments = trainer_arguments(recipe, plan, run.path / CHECKPOINTS)
    iterations = int(setting(recipe, "num_iterations"))
    whole_rollouts = math.ceil(arguments["save_steps"] / iterations) * iterations
    return arguments | {
        "max_steps": recipe.steps,
        "num_generations": recipe.samples,
        "max_completion_length": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "reward_weights": [recipe.weights.get(name, 1.0) for name in recipe.scorers],
        "beta": setting(recipe, "beta"),
        "per_device_eval_batch_size": plan.per_device_batch,
        "save_steps": whole_rollouts,
        "logging_steps": recipe.training.get("logging_steps", 1),
        "disable_dropout": True,
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "no",
    }


def _train(
    recipe: OnlineRecipe, run: RunFolder, plan: TrainingPlan, start: Start, prompts: OnlinePrompts
) -> None:
    from handbook_utils.online.trl_bridge import make_online_trainer, start_of
    from handbook_utils.training.trl_bridge import training_conditions

    tokenizer = prompts.tokenizer
    sampler_of = partial(_sampler, recipe, tokenizer, stop_token_ids(start.model, tokenizer))
    load = partial(load_scorers, run=run, rows_per_batch=recipe.rows_per_batch)
    scorers = dict(zip(recipe.scorers, load(recipe.scorers), strict=True))
    rollouts = Rollouts(recipe, run, sampler_of(prompts.train), Rewards(scorers, recipe.weights))
    held_out = None
    if recipe.held_out is not None:
        others = dict(zip(recipe.held_out.scorers, load(recipe.held_out.scorers), strict=True))
        both = Rewards({**scorers, **others})
        held_out = HeldOut(recipe, run, sampler_of(prompts.held_out), both, tokenizer.pad_token_id)
    bar = ShowProgress(recipe.stage) if run.progress else None
    watch = WatchLog(bar.say if bar else None)
    callbacks = [*([held_out] if held_out else []), SkipEqual(rollouts, float(setting(recipe, "beta")))]
    rows = [{"prompt_id": name, "prompt": messages} for name, messages in prompts.train.prompts]
    with training_conditions():
        trainer = make_online_trainer(
            recipe.stage,
            arguments=online_arguments(recipe, run, plan),
            model=start.model,
            tokenizer=tokenizer,
            data=Dataset.from_list(rows),
            source=rollouts,
            rewards=list(recipe.scorers),
            keeps_start=held_out is not None,
            callbacks=[*callbacks, RecordMetrics(run), watch, *([bar] if bar else [])],
        )
        if held_out is not None:
            held_out.start = partial(start_of, trainer)
            held_out.policy = lambda: trainer.accelerator.unwrap_model(trainer.model)
        settle_sharing(recipe, run, trainer)
        train_or_resume(trainer, run, bar)
    _finish(recipe, run, trainer, start, tokenizer, held_out)


class SkipEqual(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Leaves the weights alone in a step whose answers all have equal rewards.

    Its gradient is zero, and the optimiser would go on by momentum. A KL in the loss gives a gradient.
    """

    def __init__(self, rollouts: Rollouts, beta: float) -> None:
        self._rollouts, self._beta = rollouts, beta

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Drop the gradients."""
        if not self._rollouts.learns and self._beta == 0:
            model.zero_grad(set_to_none=True)


def settle_sharing(recipe: OnlineRecipe, run: RunFolder, trainer: Any) -> None:
    """Compute each prompt once for all its answers, or say why not.

    Raises:
        RecipeError: `shared_prefix: on`, and it would not be exact.
    """
    reason = "the recipe says so" if recipe.shared_prefix == "off" else why_not_shared(trainer.model)
    if reason is None and getattr(trainer, "aux_loss_enabled", False):
        reason = "the router's auxiliary loss counts tokens; set `training.router_aux_loss_coef` to 0"
    if reason and recipe.shared_prefix == "on":
        raise RecipeError(f"'shared_prefix: on' would not be exact: {reason}. Write auto.")
    trainer.shares = reason is None
    run.note(shared_prefix=reason is None, **({"shared_prefix_off": reason} if reason else {}))
    LOGGER.info("a prompt is computed %s", f"for each of its answers: {reason}" if reason else "once")


def _sampler(recipe: OnlineRecipe, tokenizer: Any, stops: frozenset[int], prompts: FittedPrompts) -> Sampler:
    return Sampler(
        tokenizer,
        dict(prompts.prompts),
        {prompt.prompt_id: prompt.token_ids for prompt in prompts.tokens},
        stops,
        SamplingSettings(
            samples=recipe.samples,
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
            rows_per_batch=recipe.rows_per_batch,
        ),
    )


def _finish(
    recipe: OnlineRecipe, run: RunFolder, trainer: Any, start: Start, tokenizer: Any, held_out: HeldOut | None
) -> None:
    """Save the step that is kept, and what held-out prompts showed of it."""
    metrics: dict[str, Estimate] = {}
    if held_out is not None and run.is_main:
        _tell(held_out)
        run.note(**held_out.notes())
        metrics = held_out.final_metrics()
        if held_out.kept:
            held_out.restore(held_out.policy())
        else:
            set_seed(recipe.seed)
            fresh = start_model(recipe, run, "causal").model
            own = dict(held_out.policy().named_parameters())
            for name, weight in fresh.named_parameters():
                own[name].data.copy_(weight.data)
    if run.is_main:
        run.write_json(FINAL, {name: figure.to_json() for name, figure in metrics.items()})
    save_model(trainer, tokenizer, run, start)


def _tell(held_out: HeldOut) -> None:
    if held_out.stopped is not None:
        warn_and_log(f"training ended early: {held_out.stopped}", StoppedWarning)
    if held_out.kept == 0:
        warn_and_log(
            f"no step was better than the start model by '{held_out.by}' on held-out prompts, so "
            "the start model is kept. Look at held_out/ in metrics.jsonl; a lower "
            "learning rate or another reward may help.",
            StoppedWarning,
        )
