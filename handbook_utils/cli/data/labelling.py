"""`handbook data label`: a model at an endpoint compares, rates or revises answers, within a bound."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbook_utils.cli.data.sources import opened_sources
from handbook_utils.cli.options import Columns, Format, Json, Split
from handbook_utils.errors import DataError, RecipeError, suggest

if TYPE_CHECKING:
    from handbook_utils.curation.rows import SourceRows
    from handbook_utils.sampling.annotation.feedback.checked import HumanPair
    from handbook_utils.sampling.annotation.feedback.label import Asking, Labels
    from handbook_utils.sampling.annotation.feedback.tasks import Task
    from handbook_utils.sampling.ledger import Bound

TASKS = ("compare", "rate", "revise")
CRITERION = "The better answer is the more helpful one: right, harmless, and no longer than it needs to be."
MODEL, ASKED, BOUND, TRUST = "The model", "What is asked", "Spending limits", "Can it be trusted?"


def _option(name: str, panel: str, explained: str, **more: Any) -> Any:
    return typer.Option(name, help=explained, rich_help_panel=panel, **{"show_default": False, **more})


Answers = Annotated[
    list[str] | None,
    typer.Argument(
        help="Pairs, or answers to prompts, in any format that `handbook data show` reads.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str,
    _option(
        "--task",
        ASKED,
        "compare: which of two answers is better, in both orders. rate: each answer by named aspects. "
        "revise: review each answer by written principles and rewrite it.",
        show_default=True,
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The folder to write. Required.", show_default=False)
]
Url = Annotated[
    str | None,
    _option("--url", MODEL, "Its server's address up to /v1, such as http://localhost:8000/v1. Required."),
]
Model = Annotated[str | None, _option("--model", MODEL, "The name the server knows it by. Required.")]
KeyVariable = Annotated[
    str | None, _option("--key-env", MODEL, "The environment variable that holds the key.")
]
ReplyTokens = Annotated[
    int,
    _option(
        "--reply-tokens", MODEL, "Maximum tokens per reply, including its thinking.", min=1, show_default=True
    ),
]
Parallel = Annotated[int, _option("--parallel", MODEL, "Requests at once.", min=1, show_default=True)]
Timeout = Annotated[
    float,
    _option("--timeout", MODEL, "Seconds to wait for a reply, per attempt.", min=0.1, show_default=True),
]
Attempts = Annotated[int, _option("--attempts", MODEL, "Attempts per request.", min=1, show_default=True)]
ExtraBody = Annotated[
    str | None,
    _option("--extra-body", MODEL, 'More fields for each request, as JSON: {"reasoning_effort": "low"}.'),
]
Guideline = Annotated[
    Path | None,
    _option(
        "--guideline",
        ASKED,
        "compare: a text that says what makes an answer better, such as the one given to people.",
    ),
]
AspectList = Annotated[
    list[str] | None,
    _option("--aspect", ASKED, "rate: an aspect and its meaning, such as polite='Is polite.' Repeatable."),
]
Principles = Annotated[
    Path | None, _option("--principles", ASKED, "revise: a text with one principle per line.")
]
Steps = Annotated[
    int,
    _option("--steps", ASKED, "revise: principles per answer, drawn at random.", min=1, show_default=True),
]
MaxRequests = Annotated[
    int | None, _option("--max-requests", BOUND, "Maximum requests, counting earlier runs.", min=1)
]
MaxTokens = Annotated[
    int | None, _option("--max-tokens", BOUND, "Maximum tokens, read and written together.", min=1)
]
MaxCost = Annotated[
    float | None, _option("--max-cost", BOUND, "Maximum cost, in the currency of the prices.", min=0.0)
]
PriceIn = Annotated[float | None, _option("--price-in", BOUND, "Price per million tokens read.", min=0.0)]
PriceOut = Annotated[
    float | None, _option("--price-out", BOUND, "Price per million tokens written.", min=0.0)
]
People = Annotated[
    str | None,
    _option(
        "--people",
        TRUST,
        "Pairs that people judged, from `handbook data compare`: the model is asked about these first.",
    ),
]
Planted = Annotated[
    int,
    _option(
        "--planted",
        TRUST,
        "Pairs to plant texts in that address the judge, to see whether its verdict changes; 0: none.",
        min=0,
        show_default=True,
    ),
]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private", help="Also send rows with personal data, keys or addresses.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed for what is drawn at random.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace labels made with other settings; replies stay.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be asked and what it can cost. Sends nothing.")
]


def label(
    sources: Answers = None,
    out: Out = None,
    task: TaskName = "compare",
    url: Url = None,
    model: Model = None,
    key_env: KeyVariable = None,
    reply_tokens: ReplyTokens = 512,
    parallel: Parallel = 8,
    timeout_s: Timeout = 120.0,
    attempts: Attempts = 6,
    extra_body: ExtraBody = None,
    guideline: Guideline = None,
    aspect: AspectList = None,
    principles: Principles = None,
    steps: Steps = 1,
    max_requests: MaxRequests = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    people: People = None,
    planted: Planted = 40,
    allow_private: AllowPrivate = False,
    seed: Seed = 0,
    format: Format = "auto",
    column: Columns = None,
    split: Split = "train",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Have a model label your rows: compare answers, rate them, or revise them. Your rows are sent to it.

    Every reply is kept as it arrives and paid for once: run the same command again to resume. Writes
    labels.jsonl (train on it), failed.jsonl, not_sent.jsonl, label.json, replies.jsonl. Exit code 1: it
    stopped at a spending limit.

    Examples:

    handbook data label pairs.jsonl --out labels --url http://localhost:8000/v1 --model judge

    handbook data label answers.jsonl --task rate --aspect polite='Is polite.' --out ratings
    --url http://localhost:8000/v1 --model judge --dry-run
    """
    from handbook_utils.cli.data.label_tables import show_labels, show_plan
    from handbook_utils.sampling.annotation.feedback.label import Asking, check_bound, check_folder

    folder = Path(_given(out, "--out"))
    server = _server(url, model, key_env, reply_tokens, timeout_s, attempts, extra_body)
    bound = _bound(max_requests, max_tokens, max_cost, price_in, price_out)
    made = _task(task, guideline, aspect, principles, steps, seed)
    settings = {"data": list(sources or ()), "split": split, **server.settings(), "asked": _settings(made)}
    check_folder(folder, settings, overwrite=overwrite)
    asking = Asking(made, settings, _judged(people, made), planted, seed, allow_private, parallel)
    opened = opened_sources(sources, format, column, split)
    if dry_run:
        show_plan(opened, asking, bound, reply_tokens, json)
        return
    check_bound(server.url, is_bounded=bound.is_set)
    labels = _labelled(opened, folder, asking, bound, server, show=not json)
    show_labels(labels, made, json)
    if not labels.is_whole:
        raise typer.Exit(1)


def _judged(people: str | None, task: Task) -> Sequence[HumanPair]:
    from handbook_utils.sampling.annotation.feedback.checked import read_human_pairs

    judged = read_human_pairs(people) if people else []
    if judged and task.kind == "revise":
        raise DataError("--people: a revision is no verdict to compare with people's. Leave it out.")
    return judged


@dataclass(frozen=True)
class _Server:
    url: str
    model: str
    key_env: str | None
    reply_tokens: int
    timeout_s: float
    attempts: int
    extra: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """What decides the labels."""
        return {
            "url": self.url,
            "model": self.model,
            "reply_tokens": self.reply_tokens,
            "extra_body": self.extra,
        }


def _server(
    url: str | None,
    model: str | None,
    key_env: str | None,
    reply_tokens: int,
    timeout_s: float,
    attempts: int,
    extra_body: str | None,
) -> _Server:
    name = str(_given(model, "--model"))
    address = _address(str(_given(url, "--url")), key_env)
    return _Server(address, name, key_env, reply_tokens, timeout_s, attempts, _extra(extra_body))


def _labelled(
    opened: Sequence[SourceRows], folder: Path, asking: Asking, bound: Bound, server: _Server, *, show: bool
) -> Labels:
    from handbook_utils.sampling.annotation.feedback.label import REPLIES
    from handbook_utils.sampling.annotation.feedback.label import label as label_rows
    from handbook_utils.sampling.asking import Asker
    from handbook_utils.sampling.chat_endpoint import ChatEndpoint
    from handbook_utils.sampling.endpoint_client import EndpointClient, key_from
    from handbook_utils.sampling.ledger import Ledger

    try:
        key = key_from(server.key_env, where="label")
    except RecipeError as error:
        raise DataError(str(error).replace("label.key_env", "--key-env")) from None
    client = EndpointClient(server.url, key, server.timeout_s, server.attempts)
    # hosted reasoning models take no temperature
    endpoint = ChatEndpoint(client, may_drop=frozenset({"temperature"}))
    with Ledger(folder / REPLIES, bound) as ledger:
        asker = Asker(endpoint, ledger, server.model, server.reply_tokens, server.extra)
        return label_rows(opened, folder, asker, asking, show=show)


def _given(value: Any, option: str) -> Any:
    if value is None:
        examples = {"--out": "labels", "--url": "http://localhost:8000/v1", "--model": "my-judge"}
        raise DataError(f"name {option}, such as {option} {examples[option]}.")
    return value


def _address(url: str, key_env: str | None) -> str:
    from handbook_utils.schema.engines import checked_url, checked_variable

    option = "--key-env"
    try:
        checked_variable(key_env)
        option = "--url"
        return checked_url(url)
    except ValueError as error:
        raise DataError(f"{option}: {error}") from None


def _extra(text: str | None) -> dict[str, Any]:
    """Further fields of requests."""
    from handbook_utils.schema.engines import OWN_FIELDS

    try:
        given = json_module.loads(text or "{}")
    except ValueError as error:
        raise DataError(f"--extra-body: is no JSON ({error}).") from None
    if not isinstance(given, dict):
        raise DataError('--extra-body: expected a JSON object, such as {"reasoning_effort": "low"}.')
    own = next((name for name in given if name in OWN_FIELDS), None)
    if own is not None:
        raise DataError(f"--extra-body: '{own}' is set by this command itself. Leave it out.")
    return given


def _bound(
    requests: int | None,
    tokens: int | None,
    cost: float | None,
    price_in: float | None,
    price_out: float | None,
) -> Bound:
    from handbook_utils.sampling.ledger import Bound

    if cost is not None and (price_in is None or price_out is None):
        raise DataError("--max-cost needs the prices: --price-in and --price-out, per million tokens.")
    return Bound(requests, tokens, cost, price_in or 0.0, price_out or 0.0)


def _task(
    task: str,
    guideline: Path | None,
    aspects: Sequence[str] | None,
    principles: Path | None,
    steps: int,
    seed: int,
) -> Task:
    from handbook_utils.sampling.annotation.feedback.rating import Aspects
    from handbook_utils.sampling.annotation.feedback.revising import read_principles
    from handbook_utils.sampling.annotation.feedback.tasks import CompareTask, RateTask, ReviseTask
    from handbook_utils.sampling.annotation.guideline import read_guideline_text

    if task not in TASKS:
        raise DataError(f"--task: unknown value '{task}'. {suggest(task, TASKS)}")
    for option, value, owner in (
        ("--guideline", guideline, "compare"),
        ("--aspect", aspects, "rate"),
        ("--principles", principles, "revise"),
    ):
        if value and task != owner:
            raise DataError(f"{option} belongs to --task {owner}, and the task is '{task}'.")
    if task == "compare":
        return CompareTask(read_guideline_text(guideline) if guideline else CRITERION)
    if task == "rate":
        return RateTask(Aspects.parse(aspects))
    if principles is None:
        raise DataError("--task revise needs --principles FILE, a text with one principle per line.")
    return ReviseTask(read_principles(principles), steps, seed)


def _settings(task: Task) -> dict[str, Any]:
    """All that the task asks, as plain values."""
    return asdict(task)  # type: ignore[call-overload, no-any-return]  # every task is a dataclass
