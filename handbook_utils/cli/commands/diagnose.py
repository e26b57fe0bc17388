"""`handbook diagnose`: what a training log says of its run, once or while the run goes on."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from handbook_utils.chat.view import printable

if TYPE_CHECKING:
    from handbook_utils.diagnosis.finding import Diagnosis, Finding

STYLES = {
    "fault": "bold red",
    "caution": "yellow",
    "note": "cyan",
    "faulty": "bold red",
    "healthy": "green",
    "too_short": "cyan",
    "unknown": "cyan",
}
SAID = {
    "healthy": "no rule found anything wrong",
    "caution": "look at what follows",
    "faulty": "this run is not worth more of its time as it is",
    "too_short": "10 records of the loss or the reward are needed, or 3 evaluations",
    "unknown": "not the log of a language model's training, as far as its names say",
}
NEXT = {
    "faulty": "try the remedy of the first fault, train again, and diagnose that run",
    "caution": "try the remedies above, or let it train on and look again: --follow",
    "healthy": "a log cannot say whether answers are better: handbook evaluate --help",
    "too_short": "look again when the log is longer; --follow does that for you",
    "unknown": "if it is a training log, say what is trained: --kind sft, dpo, grpo, ...",
}


def diagnose(
    logs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders or log files: metrics.jsonl, trainer_state.json, trainer_log.jsonl, "
            "TensorBoard event files and CSV, CSV exported by trackers, notebooks, or the text that training "
            "printed.",
            show_default=False,
        ),
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; for several logs one list of them.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What the run trains: sft, dpo, kto, orpo, reward, grpo or ppo. Default: inferred "
            "from the log; a guess if it holds only a loss.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 if a log is faulty.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Read again whenever the log grows; end with Ctrl-C.")
    ] = False,
) -> None:
    """Read a training log from any tool, and say what is wrong with the run.

    Each finding has its evidence, how sure it is, what it commonly means, and one thing to try.
    A verdict is healthy, caution, faulty, too_short or unknown.

    Examples: handbook diagnose runs/sft; handbook diagnose trainer_state.json --json --strict;
    handbook diagnose losses.csv --kind dpo
    """
    from handbook_utils.cli.view import say_next
    from handbook_utils.diagnosis.diagnose import check_kind, diagnose_files
    from handbook_utils.diagnosis.reading.logs import merge_tags
    from handbook_utils.errors import DataError

    check_kind(kind)
    groups = merge_tags(logs)
    if follow:
        if len(groups) > 1 or json:
            raise DataError(
                "--follow watches one log and prints for people. Leave out --json and the other logs."
            )
        watch(groups[0], show=Console(highlight=False), kind=kind)
        return
    found = [(group, diagnose_files(group, kind)) for group in groups]
    if json:
        print(json_module.dumps(_as_json(found)))
    else:
        for group, diagnosis in found:
            show(diagnosis, _name(group), Console(highlight=False))
        say_next(NEXT[min((diagnosis.verdict for _, diagnosis in found), key=list(NEXT).index)])
    if strict and any(diagnosis.verdict == "faulty" for _, diagnosis in found):
        raise typer.Exit(1)


def _name(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


def _as_json(found: list[tuple[list[Path], Diagnosis]]) -> Any:
    """One object for one log; for several a list, each with its log's name."""
    if len(found) == 1:
        return found[0][1].to_json()
    return [{"log": str(paths[0]), **diagnosis.to_json()} for paths, diagnosis in found]


def show(diagnosis: Diagnosis, name: str, console: Console) -> None:
    """A diagnosis for people."""
    from handbook_utils.diagnosis.signals import counted

    kind = f"taken for {diagnosis.kind}: {diagnosis.guess}" if diagnosis.guess else diagnosis.kind
    where = (
        ""
        if diagnosis.steps is None or diagnosis.unit == "record"
        else f", {_where(diagnosis.steps, diagnosis.unit)}"
    )
    said = SAID[diagnosis.verdict]
    if diagnosis.verdict == "healthy" and diagnosis.findings:
        said = "no rule found a fault; worth knowing is what follows"
    head = Text.assemble(
        (printable(name), "bold"),
        f"  {kind}{';' if diagnosis.guess else ','} {counted(diagnosis.records)}{where}\n",
        (diagnosis.verdict.replace("_", " "), STYLES.get(diagnosis.verdict, "yellow")),
        f": {said}",
    )
    console.print(head, soft_wrap=True)
    if diagnosis.guess:
        console.print(Text(f"  if it is not {diagnosis.kind}, say what it is with --kind", "dim"))
    for finding in diagnosis.findings:
        show_finding(finding, console)
    for remark in diagnosis.remarks:
        console.print(Text(f"  in reading: {printable(remark)}", "dim"))
    console.print()


def _where(steps: tuple[float, float], unit: str) -> str:
    """A stretch of a log in words: "step 5", "epochs 0.49 to 0.51"."""
    first, last = steps
    return f"{unit} {first:g}" if first == last else f"{unit}s {first:g} to {last:g}"


def show_finding(finding: Finding, console: Console) -> None:
    """One finding: the rule, its evidence and picture, what it means, what to try."""
    head = Text.assemble(
        "\n  ",
        (finding.severity, STYLES[finding.severity]),
        (f"  {finding.rule}", "bold"),
        (f"  {_where(finding.steps, finding.unit)}, confidence {finding.confidence}", "dim"),
    )
    console.print(head)
    for label, text in (
        ("seen", finding.evidence),
        ("", finding.picture),
        ("means", finding.means),
        ("try", finding.remedy),
        ("source", finding.source),
    ):
        if text:
            line = Text.assemble((f"{label:<7}", "dim"), printable(text))
            console.print(Padding(line, (0, 0, 0, 4)))


def watch(
    paths: Sequence[Path],
    *,
    show: Console,
    wait: Callable[[float], None] = time.sleep,
    seconds: float = 5.0,
    kind: str | None = None,
) -> None:
    """Print each new finding as a log grows, until the run's folder says that it is over."""
    from handbook_utils.diagnosis.diagnose import diagnose_files
    from handbook_utils.errors import DataError

    said: set[tuple[str, str]] = set()
    sizes: list[int] = []
    verdict = ""
    while True:
        over, now = _is_over(paths[0]), _sizes(paths)
        if now != sizes:
            sizes = now
            try:
                found = diagnose_files(paths, kind)
            except DataError as error:
                show.print(Text(f"waiting: {printable(str(error))}", "dim"))
            else:
                if found.verdict != verdict:
                    verdict = found.verdict
                    last = f" at {found.unit} {found.steps[1]:g}" if found.steps else ""
                    show.print(
                        Text.assemble((verdict.replace("_", " "), STYLES.get(verdict, "yellow")), last)
                    )
                for finding in found.findings:
                    if (finding.rule, finding.severity) not in said:
                        said.add((finding.rule, finding.severity))
                        show_finding(finding, show)
        if over:
            return
        wait(seconds)


def _sizes(paths: Sequence[Path]) -> list[int]:
    from handbook_utils.diagnosis.reading.logs import log_files
    from handbook_utils.errors import DataError

    try:
        files = [file for path in paths for file in (log_files(path) if path.is_dir() else [path])]
        return [file.stat().st_size for file in files]
    except (OSError, DataError):
        return []


def _is_over(path: Path) -> bool:
    from handbook_utils.errors import RunFolderError
    from handbook_utils.runs.state import read_manifest

    try:
        return bool(read_manifest(path)["status"] != "running")
    except (RunFolderError, OSError):
        return False
