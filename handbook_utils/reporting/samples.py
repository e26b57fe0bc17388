"""Answers of two models to the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.reporting.runs import RunView
from handbook_utils.runs.state import read_table

LONGEST_TEXT = 1500


@dataclass(frozen=True)
class Answer:
    """One answer as the report shows it; `gold` is None where it was not scored."""

    text: str
    gold: float | None
    words: int


@dataclass(frozen=True)
class Comparison:
    """One prompt with an answer of each model, in the order of the models given."""

    prompt: str
    answers: tuple[Answer, ...]


def compare_answers(
    views: Mapping[str, RunView], names: tuple[str, ...], *, limit: int = 8
) -> list[Comparison]:
    """The first answers of each evaluate run to the first shared prompts, in the order of the prompts' ids.

    Nothing is picked by how good it looks. [] unless every run is finished and kept its answers.
    """
    tables = [_first_answers(views[name]) if name in views else {} for name in names]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [
        Comparison(
            _prompt_text(tables[0][prompt]["prompt"]), tuple(_answer(table[prompt]) for table in tables)
        )
        for prompt in shared[:limit]
    ]


def _first_answers(view: RunView) -> dict[str, dict[str, Any]]:
    folder = _answers_folder(view)
    if folder is None:
        return {}
    table = read_table(folder)
    wanted = [
        n for n in ("prompt_id", "sample_index", "prompt", "completion", "gold") if n in table.column_names
    ]
    first: dict[str, dict[str, Any]] = {}
    for row in table.select(wanted).to_pylist():
        if row.get("sample_index", 0) == 0:
            first[row["prompt_id"]] = row
    return first


def _answers_folder(view: RunView) -> Path | None:
    for name in ("scores", "samples"):
        folder = view.path / name
        if view.status == "finished" and any(folder.glob("*.parquet")):
            return folder
    return None


def _answer(row: Mapping[str, Any]) -> Answer:
    text = str(row["completion"])
    return Answer(_shortened(text), row.get("gold"), len(text.split()))


def _prompt_text(messages: list[dict[str, str]]) -> str:
    """The last user turn alone, or all turns with their roles where there are more."""
    if len(messages) == 1:
        return _shortened(messages[0]["content"])
    return _shortened("\n".join(f"{message['role']}: {message['content']}" for message in messages))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text):,} characters)"
