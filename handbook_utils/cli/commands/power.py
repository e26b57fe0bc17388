"""`handbook power`: how many prompts an evaluation needs."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.evaluation.power import Power


def power(
    pilot: Annotated[
        list[str] | None,
        typer.Argument(help="A pilot: two run folders (A, then B), a file of scores, or a judge's rows."),
    ] = None,
    effect: Annotated[
        float | None, typer.Option(help="Difference B minus A to detect, in units of the score.")
    ] = None,
    win_rate: Annotated[
        float | None, typer.Option(help="Win rate of B to tell from 0.5, such as 0.55.")
    ] = None,
    by: Annotated[str, typer.Option(help="The score column; in a file of scores, that of B.")] = "gold",
    minus: Annotated[str | None, typer.Option(help="In a file of scores, the column of A.")] = None,
    sd: Annotated[
        float | None,
        typer.Option(help="Without a pilot: standard deviation of the differences between prompts."),
    ] = None,
    ties: Annotated[
        float, typer.Option(help="With --win-rate and no pilot: share of prompts that tie.")
    ] = 0.0,
    chance: Annotated[
        float, typer.Option("--power", help="Chance of detecting the effect if it exists.")
    ] = 0.8,
    level: Annotated[
        float, typer.Option(help="Confidence level of the interval that has to exclude 0.")
    ] = 0.95,
    json: Json = False,
) -> None:
    """Say how many prompts it takes to detect an effect of a given size, from the spread seen in a pilot.

    The prompts are counted for a paired comparison: both models answer the same prompts. If the pilot has
    several answers per prompt, so must the evaluation.

    Examples:

    handbook power runs/evaluate-sft runs/evaluate-dpo --effect 0.02

    handbook power scores.jsonl --by new --minus old --effect 0.1

    handbook power judgements.jsonl --win-rate 0.55

    handbook power --win-rate 0.55 --ties 0.2
    """
    from handbook_utils.evaluation.power import plan_from_pilot, plan_from_sd, win_rate_sd
    from handbook_utils.pipeline.pilot import pilot_values

    if (effect is None) == (win_rate is None):
        raise DataError("say what to see: either --effect DIFFERENCE or --win-rate RATE")
    if win_rate is not None and not 0 < win_rate < 1:
        raise DataError(f"--win-rate must be between 0 and 1, such as 0.55, got {win_rate:g}")
    to_see = effect if effect is not None else round((win_rate or 0.0) - 0.5, 12)
    if pilot and (sd is not None or ties):
        raise DataError(
            "a pilot shows the spread and the ties itself. Leave out --sd and --ties, or the pilot."
        )
    if pilot:
        values = pilot_values(pilot, by=by, minus=minus, wins=win_rate is not None)
        plan = plan_from_pilot(values, effect=to_see, power=chance, level=level)
    elif win_rate is not None:
        spread = win_rate_sd(win_rate, ties=ties) if sd is None else sd
        plan = plan_from_sd(to_see, spread, power=chance, level=level)
    elif sd is None:
        raise DataError(
            "the spread is not known: give a pilot, or --sd with the standard deviation of differences"
        )
    else:
        plan = plan_from_sd(to_see, sd, power=chance, level=level)
    print(json_module.dumps(plan.to_json()) if json else _sentence(plan))


def _sentence(plan: Power) -> str:
    lines = [
        f"{plan.prompts:,} prompts show an effect of {plan.effect:g} in {plan.power:.0%} of evaluations",
        f"  (paired, {plan.level:.0%} interval, standard deviation between prompts {plan.sd:.3g})",
    ]
    if plan.pilot_prompts:
        lines += [
            f"The pilot's {plan.pilot_prompts} prompts know that spread only roughly: "
            f"between {plan.prompts_low:,} and {plan.prompts_high:,} prompts. Plan with the larger number.",
            f"With the pilot's own {plan.pilot_prompts} prompts, the smallest effect seen that often is "
            f"{plan.smallest_effect:.3g}.",
        ]
    return "\n".join(lines)
