"""`handbook check-served`: does a server serve the model that was trained."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json

if TYPE_CHECKING:
    from rich.table import Table

    from handbook_utils.export.served.check import ServedReport


def check_served(
    run: Annotated[str, typer.Argument(help="A finished run, its export, or any model folder or hub name.")],
    url: Annotated[str, typer.Option(help="The server, up to /v1, such as http://localhost:8000/v1.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model's name on the server. Default: the only one it lists."),
    ] = None,
    prompts_only: Annotated[
        bool, typer.Option("--prompts-only", help="Compare only prompts; the trained model is not loaded.")
    ] = False,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's key.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for an answer, per attempt.")
    ] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per answer.")] = 3,
    json: Json = False,
) -> None:
    """Compare a running server with the model that was trained: its prompts' tokens, then its answers.

    A few short conversations are sent as messages, so the server applies its own chat template. Their tokens
    are compared with those of training, or their number if the server reports no more than that. Then the
    server's most likely answers are compared with those of the trained model, and their log-probabilities if
    the server returns them. For vLLM, transformers serve, and other servers with OpenAI's API.

    Exit code 0: no difference found. 1: they differ. 2: they could not be compared.

    Example: handbook check-served runs/dpo --url http://localhost:8000/v1
    """
    from handbook_utils.export.served.check import Server
    from handbook_utils.export.served.check import check_served as compare
    from handbook_utils.export.talks import TALKS
    from handbook_utils.sampling.progress import answer_bar

    server = Server(url, model, key_env, timeout, attempts)
    with answer_bar("asking", len(TALKS), show=not json) as advance:
        report = compare(run, server, prompts_only=prompts_only, advance=advance)
    if json:
        print(json_module.dumps(report.to_json()))
    else:
        _show(report, run)
    if not report.is_same:
        raise typer.Exit(1)


def _show(report: ServedReport, run: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from handbook_utils.chat.view import printable
    from handbook_utils.cli import view

    console = Console(highlight=False)
    console.print(_table(report))
    other = next((check for check in report.answers if check.verdict == "other"), None)
    if other is not None:
        for who, text in (("trained", other.trained), ("served", other.served)):
            console.print(Text(f"  {other.name}, {who}: {printable(text)}", style="dim"))
    for problem in report.problems:
        console.print(Text(problem, style="red"))
    said = _compared(report)
    console.print(Text(f"compared on {len(report.prompts)} conversations: {', '.join(said)}", style="dim"))
    for name, reason in report.refused.items():
        console.print(
            Text(f"  not asked, because the trained template refuses it: '{name}': {reason}", style="dim")
        )
    if report.is_same:
        console.print(Text(f"{report.url}: nothing tells '{report.model}' from {run}"))
        view.say_next(
            f"sample from it: engine: {{kind: endpoint, url: {report.url}}} in a recipe of generate"
        )
    else:
        view.say_next(
            f"serve an export, which holds the trained template and end: handbook export {run} --out FOLDER"
        )


def _table(report: ServedReport) -> Table:
    from rich.table import Table

    table = Table("conversation", "trained", "served", "prompt", "answer", title=None)
    answers = {check.name: check for check in report.answers}
    for check in report.prompts:
        answer = answers.get(check.name)
        verdict: str = "not compared" if answer is None else answer.verdict
        if answer is not None and answer.logprob_difference is not None:
            verdict += f", {answer.logprob_difference:.3f} nats"
        table.add_row(check.name, str(check.trained), str(check.served), check.verdict, verdict)
    return table


def _compared(report: ServedReport) -> list[str]:
    """What of the two was compared, in words."""
    said = ["tokens" if report.by == "ids" else "numbers of tokens, because the server reports no more"]
    said += [f"{len(report.answers)} answers" if report.answers else "no answers"]
    return [*said, *(["their log-probabilities"] if report.has_logprobs else [])]
