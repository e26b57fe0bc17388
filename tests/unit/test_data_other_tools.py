"""Exports of other tools as people bring them: read right, refused with the way out, or told with counts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_utils import load_dataset
from handbook_utils.data.formats import Normaliser, normalise_rows
from handbook_utils.data.keys.unread import IgnoredColumnWarning
from handbook_utils.data.mixture import UselessExamplesWarning
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection

ASK, PEAR = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Pear."}
STONE = {"role": "assistant", "content": "Stone."}
TALK = [ASK, PEAR]


def learned(row: dict[str, Any]) -> list[str]:
    """The answers of a row that carry loss."""
    made = normalise_rows([row], kind="conversation")
    return [message["content"] for example in made for message in example["completion"]]


def refusal(row: dict[str, Any], kind: Any = "conversation") -> str:
    with pytest.raises(DataError) as caught:
        normalise_rows([row], kind=kind, name="mine")
    return str(caught.value)


def calls(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "pay", "arguments": arguments}}
    return {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- structure


def test_a_list_that_datasets_kept_as_columns_is_a_conversation(tmp_path: Path) -> None:
    columns = {"from": ["human", "gpt"], "value": ["Name a fruit.", "Pear."]}
    file = tmp_path / "old.parquet"
    pq.write_table(pa.table({"conversations": pa.array([columns])}), file)
    (row,) = load_dataset(str(file), kind="conversation")
    assert [*row["prompt"], *row["completion"]] == TALK
    uneven = {"from": ["human", "gpt"], "value": ["Name a fruit."]}
    assert "message 1 has the role list" in refusal({"conversations": uneven})


def test_contents_that_are_all_the_text_of_parts_are_read_as_parts() -> None:
    def parts(text: str) -> str:
        return json.dumps([{"type": "text", "text": text}])

    assert learned({"messages": [{**ASK, "content": parts("Hi")}, {**PEAR, "content": parts("Pear.")}]}) == [
        "Pear."
    ]
    # one text alone may well be the answer that somebody wants
    assert learned({"messages": [ASK, {**PEAR, "content": parts("Pear.")}]}) == [parts("Pear.")]


def test_the_pairs_of_ms_swift_are_pairs() -> None:
    pair = {"prompt": [ASK], "chosen": [PEAR], "rejected": [STONE]}
    assert normalise_rows([{"messages": TALK, "rejected_response": "Stone."}], kind="preference") == [pair]
    rows = [{"messages": TALK, "rejected_messages": [ASK, STONE]}]
    assert normalise_rows(rows, kind="preference") == [pair]
    # the answer that was rejected is not dropped in silence where the row is read as less
    assert "`format: messages`" in refusal({"messages": TALK, "rejected_response": "Stone."})
    other = [{**ASK, "content": "Name a tree."}, STONE]
    assert "another conversation" in refusal({"messages": TALK, "rejected_messages": other}, "preference")


def test_what_json_would_lose_is_refused_by_name(tmp_path: Path) -> None:
    assert "has the key 'sum' twice" in refusal(calls('{"sum": 1, "sum": 2}'))
    assert "has the number 1e400, which is too large" in refusal(calls('{"sum": 1e400}'))
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(calls({"sum": 0})).replace('"sum": 0', '"sum": 1e400'), encoding="utf-8")
    with pytest.raises(DataError, match="line 1 has the number 1e400"):
        load_dataset(str(file), kind="conversation")
    (made,) = normalise_rows([calls('{"sum": 1e300, "other": {"sum": 2}}')], kind="conversation")
    kept = {"sum": 1e300, "other": {"sum": 2}}
    assert made["completion"][0]["tool_calls"][0]["function"]["arguments"] == kept


def test_lists_in_the_cells_of_a_csv_are_lists_in_every_column_that_holds_one() -> None:
    turns = json.dumps([ASK, STONE, ASK, PEAR])
    assert learned({"messages": turns, "loss_mask": "[0, 0, 0, 1]"}) == ["Pear."]
    rated = {"instruction": "a", "generations": '["b", "c"]', "ratings": "[1, 5]"}
    (made,) = normalise_rows([rated], kind="preference", pairs=PairsSection(rating="ratings"))
    assert (made["chosen"][0]["content"], made["rejected"][0]["content"]) == ("c", "b")
    ranked = {"prompt": "a", "answers": json.dumps([{"answer": "b", "rank": 2}, {"answer": "c", "rank": 1}])}
    (made,) = normalise_rows([ranked], kind="preference", pairs=PairsSection(rating="rank"))
    assert made["chosen"][0]["content"] == "c"
    talk = {"messages": json.dumps(TALK)}
    for system in ({"parts": [{"text": "Be kind."}]}, [{"type": "text", "text": "Be kind."}]):
        (made,) = normalise_rows([{**talk, "system": json.dumps(system)}], kind="conversation")
        assert made["prompt"][0]["content"] == "Be kind."
    (made,) = normalise_rows([{**talk, "system": '{"mood": "kind"}'}], kind="conversation")
    assert made["prompt"][0]["content"] == '{"mood": "kind"}'


def test_items_of_a_response_are_read_from_a_cell_as_well() -> None:
    items = [
        ASK,
        {"type": "function_call", "name": "pay", "arguments": "{}", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
        PEAR,
    ]
    rows = [{"messages": value} for value in (items, json.dumps(items))]
    as_list, as_text = (normalise_rows([row], kind="conversation") for row in rows)
    assert as_list == as_text
    assert [message["role"] for message in as_text[1]["prompt"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "text",
    [
        "<s>[INST] Name a fruit. [/INST]",
        "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nName a fruit.<|eot_id|>",
        "<bos><start_of_turn>user\nName a fruit.<end_of_turn>\n",
        "<|user|>\nName a fruit.</s>\n<|assistant|>\n",
    ],
)
def test_a_prompt_that_some_template_has_rendered_is_refused_and_one_that_speaks_of_it_is_not(
    text: str,
) -> None:
    for row in (
        {"prompt": text, "completion": "Pear."},
        {"instruction": text, "output": "Pear."},
        {"messages": [{"role": "user", "content": text}, PEAR]},
    ):
        assert "the mark of a chat template, and another would be put around it" in refusal(row)
    asked = f"What is the mark in {text}?"
    (made,) = normalise_rows([{"prompt": asked, "completion": "Pear."}], kind="conversation")
    assert made["prompt"] == [{"role": "user", "content": asked}]


def test_a_transcript_that_waits_becomes_turns_wherever_a_prompt_stands() -> None:
    text = "\n\nHuman: Name a fruit.\n\nAssistant: Pear.\n\nHuman: Its colour?\n\nAssistant:"
    green = {"role": "assistant", "content": "Green."}
    rows = [
        {"instruction": text, "output": "Green."},
        {"messages": [{"role": "user", "content": text}, green]},
        {"system": "Be kind.", "prompt": [{"role": "user", "content": text}], "completion": [green]},
    ]
    for row in rows:
        made = normalise_rows([row], kind="conversation")[-1]
        turns = [message for message in made["prompt"] if message["role"] != "system"]
        assert turns == [ASK, PEAR, {"role": "user", "content": "Its colour?"}]
        assert made["completion"] == [green]
    quoted = f"Go on with this:{text} and say what comes."
    (made,) = normalise_rows([{"instruction": quoted, "output": "Green."}], kind="conversation")
    assert made["prompt"] == [{"role": "user", "content": quoted}]


# --- keys


@pytest.mark.parametrize("key", ["loss_scale", "loss_mask"])
def test_a_mark_of_other_trainers_decides_what_carries_loss(key: str) -> None:
    assert learned({"messages": [ASK, {**STONE, key: 0}, ASK, {**PEAR, key: 1}]}) == ["Pear."]
    assert learned({"messages": [ASK, {**STONE, key: 1}, ASK, {**PEAR, key: 1}]}) == ["Stone.", "Pear."]
    assert learned({"messages": [ASK, STONE, ASK, PEAR], key: [0, 0, 0, 1]}) == ["Pear."]
    told = refusal({"messages": TALK, key: [0, 0, 0, 1, 1]})
    assert f"'{key}': has 5 values for the 2 messages" in told
    assert f"`columns: {{{key}: {key}_note}}`" in told


def test_keys_of_parts_that_nobody_reads_are_told_with_counts() -> None:
    text = {"type": "text", "text": "Pear.", "citations": [{"url": "x"}], "cache_control": None}
    normalise = Normaliser(kind="conversation", name="mine")
    for number in (1, 2):
        (made,) = normalise(number, {"messages": [ASK, {"role": "assistant", "content": [text]}]})
        assert made["completion"] == [PEAR]
    with pytest.warns(IgnoredColumnWarning, match=r"'content.citations' \(2 messages\)\. "):
        normalise.unread.tell()
    plain = Normaliser(kind="conversation", name="mine")
    plain(1, {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "Pear."}]}]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.unread.tell()


def test_two_lists_of_tools_are_refused_unless_they_are_the_same() -> None:
    tool = {"name": "pay", "parameters": {"type": "object"}}
    both = {"messages": TALK, "tools": [tool], "functions": [{"type": "function", "function": tool}]}
    (made,) = normalise_rows([both], kind="conversation")
    assert made["tools"] == both["functions"]
    assert "'tools' and 'functions' name different tools" in refusal({**both, "functions": [{"name": "buy"}]})
    assert "has a tool without a 'name'" in refusal({"messages": TALK, "tools": {"pay": {"parameters": {}}}})
    own = [{"type": "web_search"}]  # of the server
    assert normalise_rows([{"messages": TALK, "tools": own}], kind="conversation")[0]["tools"] == own


def test_thinking_in_two_places_is_refused_unless_it_is_the_same() -> None:
    both = {**PEAR, "content": "<think>A fruit.</think>Pear."}
    assert "and the <think> of the content are different" in refusal(
        {"messages": [ASK, {**both, "reasoning_content": "A tree."}]}
    )
    (made,) = normalise_rows(
        [{"messages": [ASK, {**both, "reasoning_content": " A fruit. "}]}], kind="conversation"
    )
    assert made["completion"] == [both]
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "A fruit."}]}
    assert "message 2 is thinking in an item of its own" in refusal({"messages": [ASK, item, PEAR]})


def test_several_texts_in_one_column_are_not_run_together() -> None:
    assert "holds 2 texts" in refusal({"instruction": "a", "input": ["x", "y"], "output": "b"})
    (made,) = normalise_rows([{"instruction": "a", "input": ["x"], "output": "b"}], kind="conversation")
    assert made["prompt"] == [{"role": "user", "content": "a\n\nx"}]


# --- names


@pytest.mark.parametrize(
    ("row", "kind", "line"),
    [
        ({"question": "a", "answer": "b"}, "conversation", "{question: prompt, answer: completion}"),
        (
            {"instruction": "a", "context": "x", "response": "b"},
            "conversation",
            "{context: input, response: output}",
        ),
        (
            {"instruction": "a", "generation": "b"},
            "conversation",
            "{instruction: prompt, generation: completion}",
        ),
        ({"Query ": "a", "Response": "b"}, "conversation", "{Query : prompt, Response: completion}"),
        ({"prompt": "a", "response": "b"}, "conversation", "{response: completion}"),
        ({"question": "a", "answer": "b"}, "prompt", "{question: prompt}"),
        (
            {"question": "a", "better": "b", "worse": "c"},
            "preference",
            "{question: prompt, better: chosen, worse: rejected}",
        ),
        ({"question": "a", "completion": "b", "label": True}, "feedback", "{question: prompt}"),
    ],
)
def test_columns_of_other_names_are_refused_with_the_line_that_reads_them(
    row: dict[str, Any], kind: Any, line: str
) -> None:
    told = refusal(row, kind)
    assert f"`columns: {line}`" in told
    names = dict(pair.rsplit(": ", 1) for pair in line[1:-1].split(", "))
    normalise = Normaliser(kind=kind, name="mine", columns=names)
    (made,) = normalise(1, row)
    assert made["prompt"][-1]["content"].startswith("a")


def test_a_name_that_is_there_already_is_no_hint() -> None:
    assert "Did you mean 'instruction'" not in refusal({"instruction": "a", "cost": "b"})


# --- rows that teach nothing


def test_empty_answers_and_equal_pairs_are_told_with_counts(tmp_path: Path) -> None:
    answers = jsonl(
        tmp_path / "a.jsonl", *({"prompt": "a", "completion": text} for text in ("b", "", " ", "c"))
    )
    with pytest.warns(UselessExamplesWarning, match="in 2 of 4 examples the answer is empty.*is example 2"):
        load_dataset(answers, kind="conversation")
    pairs = jsonl(
        tmp_path / "b.jsonl", *({"prompt": "a", "chosen": "b", "rejected": r} for r in ("b", "", "c"))
    )
    with pytest.warns(UselessExamplesWarning, match="in 1 of 3 examples both answers are the same"):
        load_dataset(pairs, kind="preference")
    marks = jsonl(tmp_path / "c.jsonl", {"prompt": "a", "completion": "", "label": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an empty answer may be a bad example
        load_dataset(marks, kind="feedback")
        normalised = jsonl(tmp_path / "d.jsonl", calls({"sum": 1}))
        load_dataset(normalised, kind="conversation")


# --- files


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_a_placeholder_of_a_data_file_is_named_with_what_fetches_it(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    file.write_text(POINTER, encoding="utf-8")
    with pytest.raises(DataError, match=r"a Git LFS pointer, not the file: run `git lfs pull`"):
        load_dataset(str(file), kind="conversation")
    file.write_text("<!DOCTYPE html><html>Sign in</html>", encoding="utf-8")
    with pytest.raises(DataError, match="a web page, not the file itself"):
        load_dataset(str(file), kind="conversation")


@pytest.mark.parametrize("hashes", [("", ""), ("-0a1b", "-2c3d")])
def test_a_part_that_is_missing_by_its_number_is_named(hashes: tuple[str, str], tmp_path: Path) -> None:
    names = [f"train-0000{number}-of-00002{hash}.jsonl" for number, hash in enumerate(hashes)]
    first = jsonl(tmp_path / names[0], {"prompt": "a", "completion": "b"})
    with pytest.raises(DataError, match=r"1 of its files are missing, such as train-00001-of-00002\.jsonl"):
        load_dataset(str(tmp_path), kind="conversation")
    assert len(load_dataset(first, kind="conversation")) == 1  # on purpose
    jsonl(tmp_path / names[1], {"prompt": "c", "completion": "d"})
    assert len(load_dataset(str(tmp_path), kind="conversation")) == 2


def test_what_is_called_held_out_is_no_training_data(tmp_path: Path) -> None:
    for name in ("part1", "part2", "heldout"):
        jsonl(tmp_path / f"{name}.jsonl", {"prompt": name, "completion": "b"})
    with pytest.raises(DataError, match="there are the splits 'test'"):
        load_dataset(str(tmp_path), kind="conversation")
    (tmp_path / "heldout.jsonl").rename(tmp_path / "part3.jsonl")
    assert len(load_dataset(str(tmp_path), kind="conversation")) == 3
