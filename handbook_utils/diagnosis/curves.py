"""The curves of one run: records put in order of their steps, restarts and second runs told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from handbook_utils.diagnosis.keys import (
    CLOCKS,
    SUMMARY,
    held_out_scores,
    kind_of,
    known_as,
    plain_name,
    reward_parts,
)
from handbook_utils.diagnosis.table import Floats, Rows, Table

# fewer records than this after a step back are no second run: a summary, or a row that a join misplaced
FEWEST_OF_A_RUN = 3
# ln 2 as it is printed to three digits or more
EXACTLY = 5e-4


@dataclass(frozen=True)
class Curve:
    """One quantity over a run.

    Attributes:
        steps: (n,) steps, never falling.
        values: (n,) what was logged, NaN and infinity included.
        name: its name in the log.
        unit: what `steps` count: "step"; "epoch" or "record" where no step was logged.
    """

    steps: Floats
    values: Floats
    name: str = ""
    unit: str = "step"

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def finite(self) -> Curve:
        """The curve without what is not finite."""
        kept = np.isfinite(self.values)
        return self if kept.all() else Curve(self.steps[kept], self.values[kept], self.name, self.unit)

    def at(self, place: float) -> str:
        """A place on the curve in words, such as "step 12" or "epoch 0.49"."""
        return f"{self.unit} {place:g}"


EMPTY = Curve(np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Restart:
    """A place where the steps of a log go back.

    Attributes:
        at: the last step before.
        to: the first step after.
        overlap: mean loss of the repeated steps, before and after; None where no loss was repeated.
    """

    at: float
    to: float
    overlap: tuple[float, float] | None = None


@dataclass(frozen=True)
class RunLog:
    """What is known of one run.

    Attributes:
        kind: "sft", "dpo", "kto", "orpo", "reward", "grpo", "ppo", or "other".
        curves: by our names (see `keys.NAMES`); a name that was not logged is absent.
        parts: parts of an online reward: mean and spread by name.
        scores: held-out scores by their name in the log.
        records: how many records were read.
        restarts: where the steps go back.
        remarks: what was left out in reading, in words.
        unit: what the log counts its records by: "step", else "epoch", else "record".
        guess: why `kind` is a guess; "" where the names that were logged, or a person, say it.
    """

    kind: str
    curves: Mapping[str, Curve]
    parts: Mapping[str, tuple[Curve, Curve]] = field(default_factory=dict)
    scores: Mapping[str, Curve] = field(default_factory=dict)
    records: int = 0
    restarts: tuple[Restart, ...] = ()
    remarks: tuple[str, ...] = ()
    unit: str = "step"
    guess: str = ""

    def __getitem__(self, name: str) -> Curve:
        return self.curves.get(name, Curve(EMPTY.steps, EMPTY.values, unit=self.unit))

    @property
    def main(self) -> Curve:
        """The curve that says how far a run has come: the reward of online runs, else the loss."""
        order = ("reward", "loss") if self.kind in ("grpo", "ppo") else ("loss", "eval_loss")
        return next((self[name] for name in order if len(self[name])), EMPTY)


def run_log(table: Table, kind: str | None = None) -> RunLog:
    """The longest run of a table; what else the table holds is remarked on.

    Args:
        table: the records.
        kind: what the run trains, where that is known; by default the log's names and values say it.
    """
    names = table.names()
    ours, parts, scores = known_as(names), reward_parts(names), held_out_scores(names)
    steps, unit = _steps(table, ours)
    kept, restarts, remarks = _one_run(table, ours, steps)

    def curve(name: str | None) -> Curve:
        if name is None:
            return EMPTY
        rows, values = table.column(name)
        keep = kept[rows]
        if np.isnan(values).any():
            keep &= ~(np.isnan(values) & _of_another_record(table, name, ours)[rows])
        rows, values = rows[keep], values[keep]
        order = np.argsort(steps[rows], kind="stable")
        return Curve(steps[rows][order], values[order], name, unit)

    curves = {own: found for own, name in ours.items() if len(found := curve(name))}
    settled, guess = (kind, "") if kind else _settled(kind_of(names), curves)
    return RunLog(
        kind=settled,
        curves=curves,
        parts={part: (curve(mean), curve(spread)) for part, (mean, spread) in parts.items()},
        scores={name: found for name in scores if len(found := curve(name))},
        records=int(kept.sum()),
        restarts=tuple(_with_losses(restart, rows, table, ours, steps) for restart, rows in restarts),
        remarks=(*table.remarks, *remarks),
        unit=unit,
        guess=guess,
    )


def _settled(kind: str, curves: Mapping[str, Curve]) -> tuple[str, str]:
    """What a run is where names leave it open, by what values must be at the start; why, if it is a guess.

    A loss beside an accuracy alone is a reward model's where it begins near ln 2, and a loss alone is DPO's
    where it begins at ln 2. Rewards in proportion to log-probabilities have no reference in them: ORPO, CPO.
    """
    loss = curves.get("loss", curves.get("eval_loss", EMPTY)).finite
    if kind == "dpo":
        return ("orpo" if _without_reference(curves) else kind), ""
    only = {"step", "epoch", "loss", "learning_rate", "grad_norm"}
    if kind == "sft" and curves.keys() <= only | {"eval_loss"}:
        if "eval_loss" not in curves and len(loss) and abs(loss.values[0] - np.log(2)) < EXACTLY:
            return "dpo", "only a loss is logged, and it begins at ln 2"
        return kind, "only a loss is logged"
    if kind != "preference":
        return kind, ""
    first = float(np.median(loss.values[:5])) if len(loss) else np.nan
    if 0.4 <= first <= 1.0 or not np.isfinite(first):
        return ("reward", "a loss that begins near ln 2, beside an accuracy") if len(loss) else ("other", "")
    accuracy = curves.get("accuracy", curves.get("eval_accuracy", EMPTY)).finite
    # tokens: hard to predict from the start, never near 0 as the classes of many are
    if first > 1.5 and len(accuracy) and accuracy.values[0] > 0.2:
        return "sft", "a loss of many classes beside an accuracy"
    return "other", ""


def _without_reference(curves: Mapping[str, Curve]) -> bool:
    """Whether rewards are the same multiple of log-probabilities for both answers in all records."""
    ratios = []
    for rewards, logps in (("chosen", "logps_chosen"), ("rejected", "logps_rejected")):
        one, other = curves.get(rewards, EMPTY).values, curves.get(logps, EMPTY).values
        if (
            len(one) != len(other)
            or not len(one)
            or not np.isfinite(one).all()
            or not (np.abs(other) > 0).all()
        ):
            return False
        ratios.append(one / other)
    both = np.concatenate(ratios)
    middle = float(np.median(both))
    return bool(middle > 0 and np.max(np.abs(both - middle)) < 0.05 * middle)


def _steps(table: Table, ours: Mapping[str, str]) -> tuple[Floats, str]:
    """(records,) each record's step, or that of the record before; and what it counts: see `RunLog.unit`."""
    for name in ("step", "epoch"):
        logged = ours.get(name)
        if logged is None:
            continue
        rows, values = table.column(logged)
        good = np.isfinite(values)
        rows, values = rows[good], values[good]
        if len(np.unique(values)) > 1 or (len(values) == 1 and table.records == 1):
            found = np.full(table.records, np.nan)
            found[rows] = values
            return _filled(found), name
    return np.arange(1, table.records + 1, dtype=np.float64), "record"


def _filled(values: Floats) -> Floats:
    known = np.flatnonzero(np.isfinite(values))
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    return np.where(last >= 0, values[np.maximum(last, 0)], values[known[0]])


def _of_another_record(table: Table, name: str, ours: Mapping[str, str]) -> npt.NDArray[np.bool_]:
    """(records,) which rows of a join hold another kind of record: NaN is missing there, not broken.

    None of what stands beside a finite value of `name` is finite there, and something else is.
    """
    rows, values = table.column(name)
    good = rows[np.isfinite(values)]
    beside, others = np.zeros(table.records, dtype=bool), np.zeros(table.records, dtype=bool)
    if not len(good):
        return beside
    counters = {other for other in table.names() if plain_name(other) in CLOCKS}
    for other in set(table.names()) - counters - {ours.get("step"), ours.get("epoch"), name}:
        found, numbers = table.column(other)
        finite = np.zeros(table.records, dtype=bool)
        finite[found] = np.isfinite(numbers)
        if finite[good[0]]:
            beside |= finite
        else:
            others |= finite
    return others & ~beside


def _one_run(
    table: Table, ours: Mapping[str, str], steps: Floats
) -> tuple[npt.NDArray[np.bool_], list[tuple[Restart, tuple[Rows, Rows]]], list[str]]:
    """Which records are of the run that is read, where it was resumed, and what was left out."""
    kept = np.ones(table.records, dtype=bool)
    remarks: list[str] = []
    _drop_summaries(table, ours, kept)
    counted = np.flatnonzero(kept)
    pieces = _pieces(counted, steps)
    short = [piece for piece in pieces[1:] if len(piece) < FEWEST_OF_A_RUN]
    for piece in short:
        kept[piece] = False
    if short:
        total = sum(len(piece) for piece in short)
        left = (
            "1 record whose step goes back was"
            if total == 1
            else f"{total} records whose step goes back, once or twice in a row, were"
        )
        remarks.append(f"{left} left out")
    pieces = [pieces[0], *(piece for piece in pieces[1:] if len(piece) >= FEWEST_OF_A_RUN)] if pieces else []
    runs: list[list[Rows]] = []
    for piece in pieces:
        begun = min((steps[own[0][0]] for own in runs), default=np.inf)
        if not runs or steps[piece[0]] <= begun:
            runs.append([piece])
        else:
            runs[-1].append(piece)
    restarts: list[tuple[Restart, tuple[Rows, Rows]]] = []
    for before, after in pairwise(pieces):
        restart = Restart(float(steps[before[-1]]), float(steps[after[0]]))
        repeated = (before[steps[before] >= steps[after[0]]], after[steps[after] <= steps[before[-1]]])
        restarts.append((restart, repeated))
    if len(runs) > 1:
        number = max(range(len(runs)), key=lambda place: (sum(map(len, runs[place])), place))
        chosen, place = runs[number], number + 1
        remarks.append(
            f"the steps begin anew: {len(runs)} runs in one log; the longest, number {place}, is read"
        )
        kept &= np.isin(np.arange(table.records), np.concatenate(chosen))
        runs = [chosen]
    for before, after in zip(runs[0], runs[0][1:], strict=False) if runs else ():
        # what was trained after the checkpoint was lost: the resumed run's records count
        kept[before[steps[before] >= steps[after[0]]]] = False
    return kept, restarts, remarks


def _drop_summaries(table: Table, ours: Mapping[str, str], kept: npt.NDArray[np.bool_]) -> None:
    """Records that hold a summary and no loss of a step are none."""
    of_steps = np.zeros(table.records, dtype=bool)
    for own in ("loss", "eval_loss", "reward", "chosen"):
        name = ours.get(own)
        if name is not None and plain_name(name) != "train_loss":
            of_steps[table.column(name)[0]] = True
    for name in table.names():
        if plain_name(name) in SUMMARY:
            rows, _ = table.column(name)
            kept[rows[~of_steps[rows]]] = False


def _pieces(rows: Rows, steps: Floats) -> list[Rows]:
    """Records in order, cut where the step goes back."""
    if not len(rows):
        return []
    return list(np.split(rows, np.flatnonzero(np.diff(steps[rows]) < 0) + 1))


def _with_losses(
    restart: Restart, rows: tuple[Rows, Rows], table: Table, ours: Mapping[str, str], steps: Floats
) -> Restart:
    name = ours.get("loss")
    if name is None:
        return restart
    found, values = table.column(name)
    means = [float(np.nanmean(own)) for part in rows if len(own := values[np.isin(found, part)])]
    return Restart(restart.at, restart.to, (means[0], means[1]) if len(means) == 2 else None)
