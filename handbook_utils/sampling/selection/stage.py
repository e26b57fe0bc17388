"""The stage `select`: what a rule chooses into selected/, its random control of the same size into control/.

One file of samples at a time is in memory, and of what was selected only the scores stay there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import paired_difference
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.execution.parts import write_part
from handbook_utils.sampling.metrics import gain_metrics, mean_metrics, score_unit
from handbook_utils.sampling.progress import answer_bar
from handbook_utils.sampling.selection.choose import Choice, Rule, choose
from handbook_utils.sampling.selection.groups import Floats, Ints, text_codes
from handbook_utils.sampling.tables import (
    UnscoredWarning,
    sample_tables,
    score_names,
    selected_answers,
    selected_pairs,
)
from handbook_utils.schema.sampling import PAIRS
from handbook_utils.schema.stages import SelectRecipe


@dataclass
class Tally:
    """What was chosen so far: scores, and the prompts they belong to.

    Attributes:
        scores: by table ("selected", "control") and column, a piece for each part of the samples.
        prompts: by table, the number of each row's prompt, in pieces.
        samples, unscored: rows looked at, and those without a score.
        first_unscored: the first of these, in words.
    """

    scores: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)
    prompts: dict[str, list[Ints]] = field(default_factory=dict)
    samples: int = 0
    unscored: int = 0
    first_unscored: str = ""

    def columns(self, table: str) -> dict[str, Floats]:
        """Scores of a table by column."""
        return {name: np.concatenate(pieces) for name, pieces in self.scores[table].items()}

    def rows_of(self, table: str) -> Ints:
        """The number of each row's prompt."""
        return np.concatenate(self.prompts[table])


def run_select(recipe: SelectRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Chosen samples, or pairs, into selected/; as many random ones of the same prompts into control/.

    Figures: the mean of each score over what was chosen, and `SCORE_gain_vs_random`, by how much that is
    above the control, paired by prompt; for pairs `margin.SCORE`, chosen minus rejected. Samples whose score
    is missing or not a number are counted and the first one is named; they are never selected.

    Raises:
        DataError: nothing was selected; unknown score; fewer than k samples of a prompt.
    """
    rule = rule_of(recipe)
    tally = Tally()
    with answer_bar("selecting", None, show=run.progress) as advance:
        for number, (_, table) in enumerate(sample_tables(recipe.data, run)):
            choice = choose(table, recipe.by, rule)
            _write(run, number, table, choice, rule)
            _count(tally, table, choice, recipe.by)
            advance(0, len(table))
    _note(run, tally, recipe)
    if rule.makes_pairs:
        return _margins(tally)
    metrics = mean_metrics(tally.columns("selected"), tally.rows_of("selected"))
    if rule.strategy == "random":
        return metrics
    sides = tally.columns("selected"), tally.columns("control")
    return metrics | gain_metrics(*sides, (tally.rows_of("selected"), tally.rows_of("control")))


def _write(run: RunFolder, number: int, table: pa.Table, choice: Choice, rule: Rule) -> None:
    scores = score_names(table, where="samples")
    for name, rows in (("selected", choice.chosen), ("control", choice.control)):
        if rule.strategy == "random" and name == "control":  # it would be the selection itself
            continue
        if rule.makes_pairs:
            content = selected_pairs(table, rows, gold="gold" if "gold" in scores else None)
        else:
            content = selected_answers(table, rows, scores=scores)
        write_part(run, name, number, content)


def _count(tally: Tally, table: pa.Table, choice: Choice, by: str) -> None:
    # prompts are in one part each, so numbers that go on from part to part tell them apart
    numbers = text_codes(table["prompt_id"]) + tally.samples
    for part, rows in (("selected", choice.chosen), ("control", choice.control)):
        tally.prompts.setdefault(part, []).append(numbers[rows])
        pieces = tally.scores.setdefault(part, {})
        for name in score_names(table, where="samples"):
            values = table[name].cast(pa.float64()).to_numpy()
            pieces.setdefault(name, []).append(values[rows])
    tally.samples += len(table)
    tally.unscored += len(choice.unscored)
    if len(choice.unscored) and not tally.first_unscored:
        row = {
            name: table[name][int(choice.unscored[0])].as_py() for name in ("prompt_id", "sample_index", by)
        }
        tally.first_unscored = f"prompt '{row['prompt_id']}', sample {row['sample_index']}: {row[by]}"


def _note(run: RunFolder, tally: Tally, recipe: SelectRecipe) -> None:
    """Keep the counts in the manifest, where there is a selection."""
    chosen = sum(len(piece) for piece in tally.prompts.get("selected", ()))
    check_chosen(
        recipe,
        samples=tally.samples,
        chosen=chosen,
        unscored=tally.unscored,
        first=f"; the first is {tally.first_unscored}",
    )
    unscored = {"unscored": tally.unscored, "first_unscored": tally.first_unscored} if tally.unscored else {}
    kind = "pairs" if recipe.strategy in PAIRS else "selected"
    run.note(**{kind: chosen, "samples": tally.samples, **unscored})


def check_chosen(recipe: SelectRecipe, *, samples: int, chosen: int, unscored: int, first: str = "") -> None:
    """Warn of samples without a score, and refuse an empty selection.

    Args:
        recipe: of the stage.
        samples: how many were looked at.
        chosen: samples, or pairs, that were selected.
        unscored: samples without a score.
        first: which of them comes first, to end the warning.
    Raises:
        DataError: there were no samples, or none was selected.
    """
    if not samples:
        raise DataError("no samples to select from. Check the `data` of the recipe.")
    if unscored:
        warn_and_log(
            f"{unscored} of {samples} samples have no score '{recipe.by}' and are left out{first}",
            UnscoredWarning,
        )
    if not chosen and recipe.strategy in PAIRS:
        raise DataError(
            f"no prompt has two samples that '{recipe.by}' tells apart, so there is no pair to select."
        )
    if not chosen:
        wanted = f" of {recipe.threshold} or higher" if recipe.threshold is not None else ""
        raise DataError(f"none of {samples} samples has a score '{recipe.by}'{wanted}.")


def rule_of(recipe: SelectRecipe) -> Rule:
    """What a recipe selects by."""
    return Rule(**{name.name: getattr(recipe, name.name) for name in fields(Rule)})


def _margins(tally: Tally) -> dict[str, Estimate]:
    """Chosen minus rejected of each score that no pair lacks."""
    metrics = {}
    for name, values in tally.columns("selected").items():
        if np.isfinite(values).all():
            metrics[f"margin.{name}"] = paired_difference(values[:, 1], values[:, 0], unit=score_unit(name))
    return metrics
