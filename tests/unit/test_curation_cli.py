"""`handbook data`: what it prints, its errors, and what a program reads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from test_curation_curate import QUESTION, ROWS, chat, good, write

from handbook_utils.curation.rules.table import RULES

Handbook = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "tips.jsonl", ROWS)


def test_a_raw_file_is_shown_curated_explained_and_put_back(tips: Path, handbook: Handbook) -> None:
    code, out, _ = handbook("data", "show", "tips.jsonl")
    assert code == 0
    assert "read as messages (it has the column 'messages')" in out
    assert "10 rows of conversation data; 3 of them cannot be read" in out
    assert "next: find its bad rows: handbook data curate tips.jsonl --out clean" in out
    code, out, _ = handbook("data", "curate", "tips.jsonl", "--out", "clean")
    assert code == 0
    assert "5 rows kept, 5 removed, 2 flagged" in out
    assert "not checked: test_prompt; name the files you test on: --against EVAL" in out
    code, out, _ = handbook("data", "curate", "--out", "clean", "--explain", "tips:3")
    assert code == 0
    assert "tips:3: removed" in out
    assert "duplicate: in the same words as tips:1" in out
    code, out, _ = handbook("data", "curate", "--out", "clean", "--restore", "tips:3")
    assert (code, out) == (0, "kept again: 1 (tips:3)\n")


def test_json_is_one_object_with_every_count(tips: Path, handbook: Handbook) -> None:
    _, out, _ = handbook("data", "curate", "tips.jsonl", "--out", "clean", "--off", "duplicate", "--json")
    found = json.loads(out)
    assert (found["kept"], found["reused"]) == (6, False)
    assert found["rules"]["duplicate"]["action"] == "off"
    _, out, _ = handbook("data", "show", "tips.jsonl", "--json")
    assert json.loads(out)["sources"][0]["rows"] == 10


def test_the_tokens_that_carry_loss_are_shown_for_a_model(
    tips: Path, tmp_path: Path, handbook: Handbook
) -> None:
    code, out, _ = handbook("data", "show", "tips.jsonl", "--model", "pocket:base", "--html", "page.html")
    assert code == 0
    assert "tokens carry loss" in out
    assert "answered, tokens" in out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "carries loss" in page


def test_a_recipe_shows_its_own_data(handbook: Handbook) -> None:
    code, out, _ = handbook("data", "show", "pocket/sft", "--json")
    assert code == 0
    (source,) = json.loads(out)["sources"]
    assert source["kind"] == "conversation"
    assert source["rows"] > 100


def test_leaks_are_shown_in_context_and_written_without_on_request(tips: Path, handbook: Handbook) -> None:
    write(tips, [good(1), chat(QUESTION, "At four.")])
    write(tips.parent / "test.jsonl", [{"question": QUESTION}])
    against = ("--against", "test.jsonl", "--against-column", "question=prompt")
    code, out, _ = handbook("data", "decontaminate", "tips.jsonl", *against)
    assert code == 0
    assert "tips:2 asks the same as test:1: [A train leaves the station" in out
    assert "1 of 2 rows hold one of 1 prompts" in out
    code, out, _ = handbook("data", "decontaminate", "tips.jsonl", *against, "--out", "clean")
    assert code == 0
    assert "1 rows kept, 1 removed" in out


def test_kept_rows_that_training_would_refuse_are_told_with_the_way_out(
    tips: Path, handbook: Handbook
) -> None:
    write(tips.parent / "test.jsonl", [{"prompt": QUESTION}])
    code, out, _ = handbook(
        "data", "decontaminate", "tips.jsonl", "--against", "test.jsonl", "--out", "decon"
    )
    assert code == 0
    assert "3 kept rows cannot be read" in out
    assert "handbook data curate decon/kept/tips.jsonl --out decon-readable" in out
    _, out, _ = handbook("data", "curate", "decon/kept/tips.jsonl", "--out", "decon-readable")
    assert "cannot be read" not in out
    _, out, _ = handbook("data", "curate", "--out", "decon-readable", "--restore", "tips:4")
    report = json.loads((tips.parent / "decon-readable" / "curation.json").read_text(encoding="utf-8"))
    assert report["sources"][0]["kept_unread"] == 1


def test_the_next_command_can_be_copied_whatever_the_file_and_its_columns_are_called(
    tips: Path, handbook: Handbook
) -> None:
    path = tips.parent / "my rows & more.csv"
    path.write_text("question,my answer\nWhy is it so?,It is.\n", encoding="utf-8")
    columns = ("--column", "question=prompt", "--column", "my answer=completion")
    code, out, _ = handbook("data", "show", path.name, *columns, "--split", "train[:1]")
    assert code == 0
    command = out.rpartition("next: find its bad rows: handbook ")[2]
    assert shlex.split(command)[:3] == ["data", "curate", path.name]
    assert handbook(*shlex.split(command))[0] == 0


def test_help_names_every_rule_and_gives_an_example(handbook: Handbook) -> None:
    assert "Example: handbook data show" in handbook("data", "--help")[1]
    out = handbook("data", "curate", "--help")[1]
    assert all(name in out for name in RULES)
    assert "THEIRS=OURS" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "empty.jsonl"), "no rows in 'train'; it is empty"),
        (("show", "empty.json"), "is empty; it has no rows"),
        (("show", "cut.jsonl"), "(Unterminated string starting at column "),
        (("show", "qa.csv"), "`--column question=prompt --column answer=completion`"),
        (
            ("show", "qa.csv", "--column", "quest=prompt"),
            "qa.csv: no column 'quest'. Did you mean 'question'?",
        ),
        (("show", "tips.jsonl", "--format", "alpacca"), "no format 'alpacca'. Did you mean 'alpaca'?"),
        (("show", "tips.jsonl", "--format", "zzz"), "no format 'zzz'. Choose from: auto, text, messages"),
        (("show",), "name the data"),
        (("show", "tip.jsonl"), "Did you mean 'tips.jsonl'"),
        (("show", "tips.jsonl", "--column", "question"), "write theirs=ours"),
        (("show", "tips.jsonl", "--format", "alpacca"), "format"),
        (("show", "pocket/dpo"), "comes from the run 'preferences'"),
        (("curate", "tips.jsonl"), "name the folder to write with --out"),
        (("curate", "tips.jsonl", "--out", "clean", "--drop", "refusal"), "Did you mean 'refused'"),
        (("curate", "tips.jsonl", "--out", "clean", "--language", "xx"), "'xx' is not told apart"),
        (("curate", "tips.jsonl", "--out", "clean", "--near", "7"), "threshold 'near' is 7"),
        (("curate", "tips.jsonl", "--out", "tips.jsonl"), "is a file"),
        (("curate", "tips.jsonl", "--out", "clean", "--explain", "3"), "Leave out tips.jsonl"),
        (("curate", "--out", "clean", "--explain", "3"), "holds no curation"),
        (("decontaminate", "tips.jsonl"), "name what you test on"),
        (("decontaminate", "tips.jsonl", "--against", "tips.jsonl"), "is the data itself"),
    ],
)
def test_a_mistake_is_one_message_with_the_way_out(
    arguments: tuple[str, ...], message: str, tips: Path, handbook: Handbook
) -> None:
    for name, text in (("empty.jsonl", ""), ("empty.json", ""), ("cut.jsonl", '{"messages": "a')):
        (tips.parent / name).write_text(text, encoding="utf-8")
    (tips.parent / "qa.csv").write_text("question,answer\nWhy?,So.\n", encoding="utf-8")
    code, _, err = handbook("data", *arguments)
    assert code == 2
    assert message in err
    assert not (tips.parent / "clean").exists()
