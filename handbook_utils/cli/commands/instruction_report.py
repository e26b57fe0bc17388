"""`handbook instruction-report`: do answers follow the verifiable instructions of their prompts."""

from __future__ import annotations

import json as json_module
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.sampling.scoring.instructions.report import InstructionReport


def instruction_report(
    answers: Annotated[
        str | None,
        typer.Argument(help="Answers: a file, folder, run folder or hub name.", show_default=False),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", "-p", help="Prompts with their instructions, such as input_data.jsonl."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which answers to read, such as train[:200].")] = "train",
    prompts_split: Annotated[str, typer.Option(help="Which prompts to read.")] = "train",
    against: Annotated[
        str | None,
        typer.Option(help="A baseline's answers to the same prompts, to compare with.", show_default=False),
    ] = None,
    against_split: Annotated[str, typer.Option(help="Which of the baseline's answers to read.")] = "train",
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    ids: Annotated[
        bool, typer.Option("--ids", help="List the instructions that can be checked, and nothing else.")
    ] = False,
    json: Json = False,
) -> None:
    """Check answers as IFEval does: accuracy by prompt and by instruction, strict and loose, with intervals.

    A row of --prompts has prompt, instruction_id_list and kwargs, as IFEval's input_data.jsonl; a row of
    answers has prompt and response. Strict takes an answer as it stands. Loose also takes it without its
    first line, its last line, or stars. An instruction that cannot be checked is refused by its name.
    --against compares with a baseline prompt by prompt, with p-values corrected for the four accuracies.

    Examples:

    handbook instruction-report answers.jsonl --prompts input_data.jsonl

    handbook instruction-report runs/evaluate --prompts pocket:instructions --prompts-split test

    handbook instruction-report new.jsonl -p input_data.jsonl --against old.jsonl

    handbook instruction-report --ids
    """
    if ids:
        _list_ids(json)
        return
    if answers is None or prompts is None:
        raise DataError(
            f"{'the answers' if answers is None else '--prompts'}: not given. Write: "
            "handbook instruction-report answers.jsonl --prompts input_data.jsonl"
        )
    if not 0 < level < 1:
        raise DataError(f"--level must be between 0 and 1, got {level:g}")
    from handbook_utils.sampling.scoring.instructions.report import instruction_report as report_on

    report = report_on(
        answers,
        prompts,
        split=split,
        prompts_split=prompts_split,
        against=against,
        against_split=against_split,
        level=level,
    )
    if json:
        print(json_module.dumps(report.to_json()))
    else:
        _show(report)
        _say_next(answers, prompts, split, prompts_split)


def _say_next(answers: str, prompts: str, split: str, prompts_split: str) -> None:
    """Say how the verdict on each answer is seen."""
    from handbook_utils.cli import view

    source = {"name": prompts, **({} if prompts_split == "train" else {"split": prompts_split})}
    scorer = "verdict=" + json_module.dumps({"kind": "instructions", "prompts": source})
    words = ["handbook", "score", answers, "-s", scorer, *([] if split == "train" else ["--split", split])]
    view.say_next(f"see the verdict on each answer: {shlex.join(words)}")


def _list_ids(json: bool) -> None:
    from handbook_utils.sampling.scoring.instructions.table import INSTRUCTIONS

    if json:
        known = [
            {"id": name, "arguments": dict(one.arguments), "differs": one.differs}
            for name, one in INSTRUCTIONS.items()
        ]
        print(json_module.dumps(known))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("instruction", "arguments", "where a verdict may differ from the original's")
    for column in table.columns:
        column.overflow = "fold"
    for name, one in INSTRUCTIONS.items():
        table.add_row(name, ", ".join(one.arguments), one.differs)
    Console(highlight=False).print(table)


def _show(report: InstructionReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from handbook_utils.cli import view

    console = Console(highlight=False)
    console.print(view.metrics_table(report.metrics))
    if report.gains:
        rows = ((name, g.difference, g.p_value, g.p_holm) for name, g in report.gains.items())
        console.print(view.paired_table(rows, difference="gain", of="prompts"))
    table = Table("instruction", "asked", "strict", "loose")
    for one in report.instructions:
        mark = " *" if one.differs else ""
        table.add_row(
            Text(f"{one.id}{mark}", overflow="fold"), str(one.asked), str(one.strict), str(one.loose)
        )
    console.print(table)
    if any(one.differs for one in report.instructions):
        console.print(
            "* a verdict may differ from the original's: handbook instruction-report --ids", style="dim"
        )
    console.print(f"{report.prompts} prompts, {report.answers} answers", style="dim")
    for caution in report.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)
