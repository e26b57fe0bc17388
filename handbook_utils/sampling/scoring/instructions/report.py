"""Anyone's answers against the instructions of their prompts: accuracies of all and of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import mean_estimate, with_cautions
from handbook_utils.records import Completion, Estimate
from handbook_utils.sampling.rows import read_answered
from handbook_utils.sampling.scoring.instructions.accuracy import INSTRUCTION, PROMPT, instruction_accuracy
from handbook_utils.sampling.scoring.instructions.asked import Asked, asked_of, read_asked
from handbook_utils.sampling.scoring.instructions.following import Checked, followed
from handbook_utils.sampling.scoring.instructions.gains import InstructionGain, instruction_gains
from handbook_utils.sampling.scoring.instructions.table import INSTRUCTIONS
from handbook_utils.schema.sections import DataSource

LEVELS = ("strict", "loose")


@dataclass(frozen=True)
class OneInstruction:
    """How often one instruction is followed.

    Attributes:
        id: as IFEval names it.
        asked: how often the answers were asked for it.
        strict: accuracy of the answers as they stand, clustered by prompt.
        loose: accuracy with their loose variants.
        differs: where a verdict may differ from the original's; empty where it does not.
    """

    id: str
    asked: int
    strict: Estimate
    loose: Estimate
    differs: str


@dataclass(frozen=True)
class InstructionReport:
    """What a set of answers does of what it was asked.

    Attributes:
        metrics: prompt_strict, inst_strict, prompt_loose and inst_loose, each with its interval.
        instructions: the same for each instruction, in the order of their ids.
        prompts: how many prompts were answered.
        answers: how many answers they have.
        cautions: what to know before the figures are relied on.
        gains: each of the metrics beside a baseline's; empty where none is given.
    """

    metrics: Mapping[str, Estimate]
    instructions: Sequence[OneInstruction]
    prompts: int
    answers: int
    cautions: Sequence[str]
    gains: Mapping[str, InstructionGain]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ones = [
            {
                "id": one.id,
                "asked": one.asked,
                "strict": one.strict.to_json(),
                "loose": one.loose.to_json(),
                "differs": one.differs,
            }
            for one in self.instructions
        ]
        return {
            "metrics": {name: figure.to_json() for name, figure in self.metrics.items()},
            "instructions": ones,
            "prompts": self.prompts,
            "answers": self.answers,
            "cautions": list(self.cautions),
            "gains": {name: gain.to_json() for name, gain in self.gains.items()},
        }


def instruction_report(
    answers: str,
    prompts: str,
    *,
    split: str = "train",
    prompts_split: str = "train",
    against: str | None = None,
    against_split: str = "train",
    level: float = 0.95,
) -> InstructionReport:
    """Score answers by the verifiable instructions of their prompts, as IFEval does.

    Args:
        answers: rows with `prompt` and `response` (or `completion`, or any form that training reads): a file,
            folder, run folder or hub name. Several answers to a prompt count as their mean.
        prompts: rows with `prompt`, `instruction_id_list` and `kwargs`, such as IFEval's input_data.jsonl.
        split: which rows of `answers`.
        prompts_split: which rows of `prompts`.
        against: a baseline's answers, in any form that `answers` may have.
        against_split: which rows of `against`.
        level: confidence level of the intervals, which are over prompts.
    Raises:
        DataError: an instruction that cannot be checked, arguments that do not fit it, answers of which
            none is to one of the prompts, or a baseline that answered none of the prompts that they are to.
    Source: Zhou et al. 2023, arXiv:2311.07911. Book: chapter "Which metrics to watch".
    """
    asked = read_asked(DataSource(name=prompts, split=prompts_split), ResolvedInputs())
    checked, told = _checked(answers, split, asked, prompts)
    gains: dict[str, InstructionGain] = {}
    more: Sequence[str] = ()
    if against is not None:
        baseline, of_baseline = _checked(against, against_split, asked, prompts)
        told += [f"the baseline: {line}" for line in of_baseline]
        (gains, lone), more = with_cautions(lambda: instruction_gains(baseline, checked, level=level))
        told += lone
    metrics, cautions = with_cautions(lambda: _accuracies(checked, level))
    instructions = _by_instruction(checked, level)
    prompts_answered = len({id(one.asked) for one in checked})
    every = dict.fromkeys([*told, *cautions, *more])
    return InstructionReport(metrics, instructions, prompts_answered, len(checked), list(every), gains)


def _checked(
    answers: str, split: str, asked: Mapping[str, Sequence[Asked]], prompts: str
) -> tuple[list[Checked], list[str]]:
    """The verdicts on the answers to `prompts`; and what to say of other answers and of silent prompts."""
    given = _read_answers(answers, split)
    wanted = [asked_of(row, asked) for row in given]
    checked = [
        Checked(row.prompt_id, wants, followed(row.completion, wants))
        for row, wants in zip(given, wanted, strict=True)
        if wants is not None
    ]
    if not checked:
        raise DataError(
            f"{answers}: none of the {len(given)} answers is to a prompt of {prompts}. "
            "Prompts are matched by `prompt_id`, or by their text, letter for letter."
        )
    told = []
    if len(checked) < len(given):
        told.append(f"{len(given) - len(checked)} of {len(given)} answers are to other prompts, and left out")
    every = {id(one) for one in asked.values()}
    silent = len(every - {id(one.asked) for one in checked})
    if silent:
        told.append(f"{silent} of {len(every)} prompts have no answer: the figures are of the others")
    return checked, told


def _read_answers(name: str, split: str) -> list[Completion]:
    read = read_answered(name, split=split)
    pairs = next((row for row in read if len(row.answers) > 1), None)
    if pairs is not None:
        raise DataError(
            f"{name}: rows are pairs of answers. Give one answer per row, or score both sides: "
            "handbook score ROWS -s 'NAME={kind: instructions, ...}'."
        )
    return [answer for row in read for answer in row.answers.values()]


def _accuracies(checked: Sequence[Checked], level: float) -> dict[str, Estimate]:
    prompts = np.array([one.prompt for one in checked])
    metrics = {}
    for name in LEVELS:
        verdicts = [getattr(one.found, name) for one in checked]
        whole = [float(all(found)) for found in verdicts]
        metrics[PROMPT[name]] = mean_estimate(whole, clusters=prompts, unit="rate", level=level)
        met = np.array([float(sum(found)) for found in verdicts])
        count = np.array([float(len(found)) for found in verdicts])
        metrics[INSTRUCTION[name]] = instruction_accuracy(met, count, prompts, level=level)
    return metrics


def _by_instruction(checked: Sequence[Checked], level: float) -> list[OneInstruction]:
    rows: dict[str, list[tuple[str, float, float, float]]] = {}
    for one in checked:
        for wanted in dict.fromkeys(each.id for each in one.asked):
            places = [place for place, each in enumerate(one.asked) if each.id == wanted]
            met = [float(sum(getattr(one.found, name)[place] for place in places)) for name in LEVELS]
            rows.setdefault(wanted, []).append((one.prompt, float(len(places)), met[0], met[1]))
    return [_one_instruction(name, kept, level) for name, kept in sorted(rows.items())]


def _one_instruction(
    name: str, rows: Sequence[tuple[str, float, float, float]], level: float
) -> OneInstruction:
    prompts = np.array([row[0] for row in rows])
    counts, *sides = (np.array([row[place] for row in rows]) for place in (1, 2, 3))
    # how often it was asked stands beside the figures: few of them need no warning for each
    found, _ = with_cautions(
        lambda: [instruction_accuracy(met, counts, prompts, level=level) for met in sides]
    )
    return OneInstruction(name, int(counts.sum()), found[0], found[1], INSTRUCTIONS[name].differs)
