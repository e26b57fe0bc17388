"""Each trouble of the page is planted, and the command under it, word for word, prints what the page says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from book_pages import ROOT
from test_diagnosis_rules import FAULTS

from tests.tiny_models import tiny_model

Handbook = Callable[..., tuple[int, str, str]]
PAGE = ROOT / "book" / "troubleshooting.md"
ENTRY = re.compile(
    r"^### (.+?)\n.*?```bash\n(handbook .+?)\n```\n\nIt says `(.+?)`", re.DOTALL | re.MULTILINE
)
# the planted log of each command that reads one, by its file on the page
LOGS = {
    "run-nan": "a loss that is no number",
    "run-masked": "all labels masked",
    "run-still": "a loss that never changes",
    "run-spikes": "repeated spikes",
    "run-diverged": "a loss that ends above its start",
    "run-overfit": "a held-out loss worse than at first",
    "run-memorised": "a loss near 0",
    "run-reference": "another reference",
    "run-displaced": "chosen answers pushed away",
    "run-saturated": "accuracy at 1 early",
    "run-groups": "groups without spread",
    "run-kl": "kl that runs away",
    "run-hacked": "a reward that rises while a held-out score falls",
}


def entries() -> list[tuple[str, str, str]]:
    """Title, command and promised words of each entry of the page."""
    return ENTRY.findall(PAGE.read_text(encoding="utf-8"))


def chat(question: str, answer: str) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def plant(folder: Path) -> None:
    """Write every file that the page's commands read."""
    for name, fault in LOGS.items():
        jsonl(folder / f"{name}.jsonl", FAULTS[fault][2])
    things = ("river", "moon", "bread", "glass", "winter", "letter", "garden", "engine", "violin", "pepper")
    questions = [f"How does one {verb} a {thing}?" for thing in things for verb in ("paint", "lift")]
    answers = [f"Take {n} steps, then ask {question[-8:-1]}." for n, question in enumerate(questions)]
    chats = [chat(*turns) for turns in zip(questions, answers, strict=True)]
    jsonl(folder / "chats.jsonl", chats)
    jsonl(folder / "mixed.jsonl", [*chats, {"messages": []}])
    jsonl(folder / "leaked.jsonl", chats)
    jsonl(folder / "test.jsonl", [{"prompt": questions[3]}])
    jsonl(folder / "repeated.jsonl", [*chats, *chats[:5]])
    jsonl(folder / "judgements.jsonl", [judgement(n) for n in range(60)])
    jsonl(folder / "scored.jsonl", [scored(n) for n in range(60)])
    for name, steps in {"sft": 2, "other": 3}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(recipe(folder, steps)), encoding="utf-8")
    misspelt = recipe(folder, 2)
    misspelt["training"]["learning_rat"] = 1e-4
    (folder / "recipe.yaml").write_text(json.dumps(misspelt), encoding="utf-8")


def judgement(n: int) -> dict[str, Any]:
    """B's answers differ in length, and the judge takes the longer one, but for every seventh row."""
    longer = n % 3 > 0
    preferred = "b" if longer != (n % 7 == 0) else "a"
    words = {"a": 20, "b": 20 + (10 + n % 5 if longer else -(5 + n % 4))}
    return {"prompt_id": n, "preference": preferred, "length_a": words["a"], "length_b": words["b"]}


def scored(n: int) -> dict[str, Any]:
    """A pair, with the scores of one reward model."""
    pair = {"prompt": f"Question {n}?", "chosen": "long " * (5 + n % 7), "rejected": "short " * (1 + n % 5)}
    return pair | {"rm.chosen": 1.0 + 0.1 * (n % 7), "rm.rejected": 0.9 + 0.1 * (n % 5)}


def recipe(folder: Path, steps: int) -> dict[str, Any]:
    return {
        "stage": "sft",
        "model": {"name": str(folder / "model")},
        "data": [{"name": str(folder / "chats.jsonl")}],
        "global_batch_size": 2,
        "training": {"max_steps": steps, "use_cpu": True, "max_length": 96},
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("troubles")
    tiny_model("llama", folder / "model")
    plant(folder)
    return folder


def test_the_page_has_entries_and_every_planted_log_is_on_it() -> None:
    commands = " ".join(command for _, command, _ in entries())
    assert len(entries()) == PAGE.read_text(encoding="utf-8").count("\n### ")
    assert all(f"{name}.jsonl" in commands for name in LOGS)


@pytest.mark.parametrize(("title", "command", "says"), entries(), ids=lambda text: text[:40])
def test_the_command_shows_the_trouble(
    title: str, command: str, says: str, planted: Path, handbook: Handbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted)
    if "--out runs/sft" in command and not (planted / "runs" / "sft").exists():
        assert handbook("train", "sft.yaml", "--out", "runs/sft")[0] == 0
    _, *arguments = shlex.split(command)
    _, out, err = handbook(*arguments)
    assert says in out + err, title
