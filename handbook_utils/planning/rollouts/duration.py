"""Operations of a run of an online stage: answers sampled, given log-probabilities, and learned from."""

from __future__ import annotations

import numpy as np

from handbook_utils.planning.duration import Duration, costs_of, learning_passes
from handbook_utils.planning.memory import MemoryPlan
from handbook_utils.planning.rollouts.run import OnlineRun
from handbook_utils.schema.training import OnlineRecipe
from handbook_utils.training.plan import setting

NO_HOURS = (
    "hours are not estimated: sampling waits for memory more than for arithmetic, and the scorers take what "
    "they take. To measure, train with --set steps=1"
)


def online_operations(run: OnlineRun, plan: MemoryPlan, recipe: OnlineRecipe) -> Duration:
    """Operations of the policy in all steps, and of its reference; those of scorers are not counted.

    Each prompt is computed once for its answers, and each answer runs to its limit.

    Args:
        run: of the recipe.
        plan: for the number of weights.
        recipe: for its steps, its reference, and how often a rollout is learned from.
    """
    costs = costs_of(run.setup, plan)
    prompts = run.rows.prompts.astype(np.float64)
    samples, new = run.asked.samples, run.asked.new_tokens
    copies = 1 if run.shares else samples
    reading = copies * (costs.token * prompts + costs.pair * prompts**2)
    answering = samples * (costs.token * new + costs.pair * ((prompts + new) ** 2 - prompts**2))
    once = float((reading + answering).mean()) + costs.head * samples * new
    iterations = int(setting(recipe, "num_iterations"))
    # answers are drawn once, and given log-probabilities by the reference and, if used again, the old policy
    before = 1 + (1 if setting(recipe, "beta") else 0) + (1 if iterations > 1 else 0)
    each_step = before / iterations + learning_passes(run.setup)
    rows = recipe.steps * recipe.prompts_per_step
    tokens = rows * samples * float(prompts.mean() + new)
    return Duration(flops=once * each_step * rows, tokens=tokens, hours=None, unknown=NO_HOURS)
