"""Labels by a model, end to end: what may be sent, what was said, what it cost, and whether to trust it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.curation.rows import SourceRows
from handbook_utils.curation.rules.private_data import kinds_of
from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.runs.atomic import atomic_file, explained_os_errors, write_json
from handbook_utils.sampling.annotation.feedback.checked import (
    HumanPair,
    PlantedReport,
    against_people,
    planted_pairs,
    planted_report,
)
from handbook_utils.sampling.annotation.feedback.tasks import CompareTask, Item, Task
from handbook_utils.sampling.annotation.pairs import AnswerPair
from handbook_utils.sampling.asking import Asker
from handbook_utils.sampling.endpoint_client import RefusedError
from handbook_utils.sampling.ledger import TEMPLATE_TOKENS, BoundReachedError, Spent
from handbook_utils.sampling.private_data import host_elsewhere
from handbook_utils.sampling.progress import answer_bar

LABELS, FAILED, UNSENT, REPORT, REPLIES = (
    "labels.jsonl",
    "failed.jsonl",
    "not_sent.jsonl",
    "label.json",
    "replies.jsonl",
)
# of what is asked beside people's texts, for an estimate of what a run can come to
TASK_BYTES = 1500
# why an item has no label
FAILURE, PRIVATE, UNPAID = "failed", "private data", "not paid for"


@dataclass(frozen=True)
class Outcome:
    """What was said of an item, or why nothing was."""

    said: Any = None
    reason: str = ""
    why: str = ""


@dataclass(frozen=True)
class Labels:
    """A folder of labels.

    Attributes:
        folder: where they are.
        report: what `label.json` holds.
    """

    folder: Path
    report: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out for its cost."""
        return not self.report["counts"][UNPAID]


@dataclass(frozen=True)
class Asking:
    """How a folder of labels is made.

    Attributes:
        task: what is asked.
        settings: what decides the labels, beside the data; another folder is not continued with others.
        people: pairs that people judged, held out to compare the model with.
        planted: pairs to put texts to the judge into.
        seed: which pairs these are.
        private: send rows that hold personal data too.
        parallel: requests at once.
    """

    task: Task
    settings: Mapping[str, Any]
    people: Sequence[HumanPair] = ()
    planted: int = 0
    seed: int = 0
    private: bool = False
    parallel: int = 8


def check_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that holds labels made otherwise, before anything is asked.

    Raises:
        RunFolderError: names the first setting that differs; or the folder's report cannot be read.
    """
    path = folder / REPORT
    if overwrite or not path.exists():
        return
    try:
        with explained_os_errors(path, reading=True):
            before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        raise RunFolderError(f"{path}: is damaged. Take another --out, or --overwrite.") from None
    now = json.loads(json.dumps(settings))
    differs = next((name for name in now if before.get(name) != now[name]), None)
    if differs is not None:
        raise RunFolderError(
            f"{folder}: holds labels with another '{differs}'. Take another --out, or --overwrite to replace "
            "them (replies that were paid for are kept either way)."
        )


def label(
    sources: Sequence[SourceRows], folder: Path, asker: Asker, asking: Asking, *, show: bool = True
) -> Labels:
    """Have a model label rows, and write what it said; what was asked before costs nothing again.

    Pairs that people judged come first, so that a bound is spent on them first. Then come the rows, and the
    planted pairs.

    Args:
        sources: the rows.
        folder: to write to; its file of replies is open in `asker`.
        asker: the model.
        asking: what is asked, and how.
        show: a progress bar.
    Raises:
        DataError: a row cannot be read, or there is nothing to ask.
        ModelError: the server was given up; replies that came are kept.
    """
    task = asking.task
    items, left_out = task.items(sources)
    people = [task.pair_items(human.pair) for human in asking.people]
    with answer_bar(task.kind, len(items) + sum(map(len, people)), show=show) as advance:
        run = _Run(asker, asking, lambda: advance(0, 1))
        of_people = run.verdicts(people)
        outcomes = run.all(items)
    said = [outcome.said for outcome in outcomes]
    report: dict[str, Any] = {
        "task": task.kind,
        "settings": dict(asking.settings),
        "counts": {
            "asked": len(items),
            "labelled": sum(each is not None for each in said),
            **{why: sum(outcome.reason == why for outcome in outcomes) for why in (FAILURE, PRIVATE, UNPAID)},
        },
        "left_out": left_out,
        "people": against_people(asking.people, of_people).to_json() if people else None,
    }
    report |= _order_figures(task, said)
    planted = _planted(run, items, said, asking)
    report["planted"] = None if planted is None else planted.to_json()
    report["spent"] = asker.ledger.to_json()
    report["cautions"] = _cautions(report, None if planted is None else planted.caution)
    rows = _with_labels(task.rows(items, said, asker.model), asking.people)
    _write(folder, rows, items, outcomes, report)
    return Labels(folder, report)


class _Run:
    """Asks about items, many at once, and sorts what comes of them."""

    def __init__(self, asker: Asker, asking: Asking, done: Callable[[], None]) -> None:
        self._asker, self._asking, self._done = asker, asking, done
        self._is_elsewhere = host_elsewhere(asker.endpoint.client.url) is not None

    def all(self, items: Sequence[Item]) -> list[Outcome]:
        """An outcome for each item, in their order."""
        pool = ThreadPoolExecutor(self._asking.parallel)
        try:
            return list(pool.map(self._one, items))
        finally:
            pool.shutdown(cancel_futures=True)

    def verdicts(self, pairs: Sequence[list[Item]]) -> list[str | None]:
        """The model's verdict on each pair; None where it gave none."""
        outcomes = iter(self.all([item for items in pairs for item in items]))
        found: list[str | None] = []
        for items in pairs:
            said = [next(outcomes).said for _ in items]
            found.append(None if None in said or not said else self._asking.task.verdict(said))
        return found

    def _one(self, item: Item) -> Outcome:
        try:
            if self._is_elsewhere and not self._asking.private and (kinds := kinds_of(item.texts)):
                return Outcome(reason=PRIVATE, why=", ".join(kinds))
            return Outcome(self._asking.task.ask(self._asker, item))
        except BoundReachedError as error:
            return Outcome(reason=UNPAID, why=str(error))
        except RefusedError as error:
            return Outcome(reason=FAILURE, why=str(error))
        finally:
            self._done()


def _order_figures(task: Task, said: Sequence[Any]) -> dict[str, Any]:
    """Of comparisons: how often both orders agree, and how often the answer shown first won."""
    compared = [each for each in said if each is not None]
    if not isinstance(task, CompareTask) or not compared:
        return {"orders": None}
    agree = sum(each.agrees for each in compared) / len(compared)
    return {"orders": {"agree": agree, "first": sum(each.first for each in compared) / len(compared)}}


def _planted(run: _Run, items: Sequence[Item], said: Sequence[Any], asking: Asking) -> PlantedReport | None:
    """Texts to the judge behind some of the answers; None where nothing could be asked."""
    pairs = list(_judged_pairs(asking.task, items, said)) if asking.planted else []
    drawn = planted_pairs(pairs, asking.planted, asking.seed)
    asked = [asking.task.pair_items(pair) for _, *both in drawn for pair in both]
    verdicts = run.verdicts(asked)
    before = [pairs[place][1] for place, *_ in drawn]
    return planted_report(before, verdicts[::2], verdicts[1::2])


def _judged_pairs(task: Task, items: Sequence[Item], said: Sequence[Any]) -> Iterator[tuple[AnswerPair, str]]:
    """Pairs with the model's verdict: of rated answers, the first two of a prompt."""
    by_prompt: dict[str, list[tuple[Item, Any]]] = {}
    for item, each in zip(items, said, strict=True):
        if each is None:
            continue
        if isinstance(item.of, AnswerPair):
            yield item.of, task.verdict([each])
        else:
            by_prompt.setdefault(item.of[0].prompt_id, []).append((item, each))
    for rated in by_prompt.values():
        if len(rated) > 1:
            (one, first), (other, second) = rated[:2]
            a, b = one.answers[0], other.answers[0]
            pair = AnswerPair(one.name, one.of[0].prompt_id, one.prompt, a, b, (one.name, other.name))
            if task.pair_items(pair):
                yield pair, task.verdict([first, second])


def _with_labels(rows: list[dict[str, Any]], people: Sequence[HumanPair]) -> list[dict[str, Any]]:
    """Rows with people's verdict beside the model's, where there is one: `win-rate` corrects by them."""
    known = {(human.pair.prompt_id, human.pair.a, human.pair.b): human.verdict for human in people}
    for row in rows:
        verdict = known.get((row["prompt_id"], row.get("answer_a", ""), row.get("answer_b", "")))
        if known and "answer_a" in row:
            row["label"] = verdict
    return rows


def _cautions(report: Mapping[str, Any], planted: str | None) -> list[str]:
    counts = report["counts"]
    told = [
        (counts[UNPAID], "were not asked about: the bound on spending is reached"),
        (
            counts[PRIVATE],
            "hold what looks like personal data and were not sent (--allow-private sends them)",
        ),
        (counts[FAILURE], "got no label: the model was not understood, or refused"),
    ]
    found = [f"{count:,} of {counts['asked']:,} {what}" for count, what in told if count]
    people = report["people"]
    return [*found, *(people["cautions"] if people else ()), *([planted] if planted else ())]


def _write(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    items: Sequence[Item],
    outcomes: Sequence[Outcome],
    report: Mapping[str, Any],
) -> None:
    """All files; the report last, so a folder with one is whole."""
    missed = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if outcome.reason]
    unsent = [{"id": i.name, "holds": o.why} for i, o in missed if o.reason == PRIVATE]
    failed = [{"id": i.name, "why": o.why, "reason": o.reason} for i, o in missed if o.reason != PRIVATE]
    for name, lines in ((LABELS, rows), (FAILED, failed), (UNSENT, unsent)):
        with atomic_file(folder / name) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_json(folder / REPORT, report)


def most_spent(items: Sequence[Item], asking: Asking, reply_tokens: int) -> Spent:
    """The most that a run can come to, its retries left out."""
    of_people = [item for human in asking.people for item in asking.task.pair_items(human.pair)]
    longest = sorted(items, key=lambda item: -len(item.texts))[: asking.planted]
    # each is asked about with a text to the judge, and with the control
    planted = [] if asking.task.kind == "revise" else [*longest, *longest]
    total = Spent()
    for item in (*items, *of_people, *planted):
        # beside the texts: what is asked of them, and of revisions what was said before
        texts = (
            len(item.texts.encode()) + TASK_BYTES + (2 * reply_tokens if asking.task.kind == "revise" else 0)
        )
        each = asking.task.requests
        total += Spent(each, each * (texts + TEMPLATE_TOKENS), each * reply_tokens)
    return total


def private_kinds(items: Sequence[Item]) -> Counter[str]:
    """Items by the kind of private data that they hold."""
    return Counter(kind for item in items for kind in kinds_of(item.texts))


def check_bound(url: str, *, is_bounded: bool) -> None:
    """Refuse to buy replies elsewhere without a bound.

    Raises:
        DataError: says how to name one.
    """
    host = host_elsewhere(url)
    if host is not None and not is_bounded:
        raise DataError(
            f"{host} may ask for money, and no bound is named. Name one: --max-requests, --max-tokens, or "
            "--max-cost with --price-in and --price-out."
        )
