"""What publishers and annotation tools mean by their rows: the tokens with loss, each beside a control."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from handbook_utils import load_dataset, load_tokenizer
from handbook_utils.chat.loss_masks import tokenize_turns
from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.keys.unread import IgnoredColumnWarning
from handbook_utils.data.mixture import NoPictureWarning, ToolsTwiceWarning
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection
from handbook_utils.training.rows.tokenized import turn_of
from tests.unit.test_data_other_tools import ASK, PEAR, STONE, TALK, jsonl, refusal

CALLED = '[weather({"city": "Oslo"})]<|end|>'
OSLO = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SAID = 'You may call <tools>[{"name": "weather"}]</tools>.'
PLAIN = {"prompt": "Name a fruit.", "completion": "Pear."}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = load_tokenizer("pocket:base")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }}({{ c.function.arguments | tojson }})]"
        "{% endfor %}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def learned(tokenizer: Any, rows: Any) -> list[str]:
    """The text that carries loss, of each answer that is learned."""
    column = "chosen" if rows and "chosen" in rows[0] else "completion"
    turns = [turn_of({"prompt": row["prompt"], "completion": row[column]}, "completion") for row in rows]
    made = tokenize_turns(tokenizer, turns) if turns else []
    return [
        tokenizer.decode([token for token, counts in zip(row.ids, row.loss, strict=True) if counts])
        for row in made
    ]


def of_row(tokenizer: Any, row: dict[str, Any], kind: Any = "conversation", **options: Any) -> list[str]:
    return learned(tokenizer, normalise_rows([row], kind=kind, **options))


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# --- rows and messages that are not to be used


@pytest.mark.parametrize(
    "aside",
    [
        *({key: True} for key in ("exclude", "skip", "ignore", "deleted", "is_discarded", "dropped")),
        *({key: False} for key in ("is_valid", "valid", "keep", "include")),
        *({"exclude": "true"}, {"skip": 1}, {"is_valid": "0"}, {"status": "discarded"}),
        *({"answer": "reject", "_input_hash": 7}, {"answer": "ignore", "_task_hash": 7}),
    ],
)
def test_a_row_that_is_not_to_be_used_is_left_out_and_counted(
    tokenizer: Any, tmp_path: Path, aside: dict[str, Any]
) -> None:
    (key, value), *_ = aside.items()
    other = {"True": False, "False": True, "true": "false", "1": 0, "0": "1"}.get(str(value), "accept")
    rows = [{**PLAIN, **aside}, {**PLAIN, "prompt": "Another?", **aside, key: other}]
    with pytest.warns(IgnoredColumnWarning) as told:
        made = load_dataset(jsonl(tmp_path / "rows.jsonl", *rows), kind="conversation")
    assert any(f"1 row left out: '{key}'" in str(warning.message) for warning in told)
    assert made["prompt"] == [[{"role": "user", "content": "Another?"}]]
    assert learned(tokenizer, made) == ["Pear.<|end|>"]
    pair = {"chosen": TALK, "rejected": [ASK, STONE], **aside}
    assert normalise_rows([{**pair, key: None}, pair], kind="preference") == normalise_rows(
        [{**pair, key: None}], kind="preference"
    )
    with pytest.raises(DataError, match=f"'{key}': says that the row is not to be used"):
        normalise_rows([{"prompt": "Name a fruit.", **aside}], kind="prompt")


@pytest.mark.parametrize(
    "row",
    [
        {"status": "completed"},
        {"answer": "reject"},
        {"valid": "2024-05-01"},
        {"skip": "no"},
        {"deleted": None},
    ],
)
def test_a_word_under_such_a_name_leaves_no_row_out(tokenizer: Any, row: dict[str, Any]) -> None:
    assert of_row(tokenizer, {**PLAIN, **row}) == ["Pear.<|end|>"]


@pytest.mark.parametrize("mark", [{"deleted": True}, {"skip": 1}, {"is_valid": False}])
def test_a_message_that_is_not_to_be_used_is_refused_by_name(tokenizer: Any, mark: dict[str, Any]) -> None:
    (key, value), *_ = mark.items()
    for marked in ([{**ASK, **mark}, PEAR], [ASK, {**PEAR, **mark}]):
        assert f"'{key}' says that the message is not to be used" in refusal({"messages": marked})
    kept = {"messages": [ASK, {**PEAR, key: not value}]}
    assert of_row(tokenizer, kept) == ["Pear.<|end|>"]


@pytest.mark.parametrize("key", ["prefix", "partial"])
def test_an_answer_that_is_only_begun_is_refused(tokenizer: Any, tmp_path: Path, key: str) -> None:
    assert f"'{key}' says that the answer is only begun" in refusal(
        {"messages": [ASK, assistant("```python\n", **{key: True})]}
    )
    whole = {"messages": [ASK, {**PEAR, key: False}]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learned(tokenizer, load_dataset(jsonl(tmp_path / "a.jsonl", whole), kind="conversation")) == [
            "Pear.<|end|>"
        ]


def test_rows_of_several_splits_in_one_file_are_refused_and_of_one_told(tmp_path: Path) -> None:
    mixed = jsonl(tmp_path / "mixed.jsonl", {**PLAIN, "split": "TRAIN"}, {**PLAIN, "split": "TEST"})
    with pytest.raises(DataError, match=r"'split' says that some rows are of 'train' and others of 'test'"):
        load_dataset(mixed, kind="conversation")
    with pytest.warns(IgnoredColumnWarning, match="'split_note'"):
        assert len(load_dataset(mixed, kind="conversation", columns={"split": "split_note"})) == 2
    same = jsonl(tmp_path / "same.jsonl", {**PLAIN, "split": "test"}, {**PLAIN, "split": "test"})
    with pytest.warns(IgnoredColumnWarning, match="'split'"):
        assert len(load_dataset(same, kind="conversation")) == 2


# --- calls


@pytest.mark.parametrize("answer", [json.dumps([OSLO]), json.dumps(OSLO), str([OSLO]), [OSLO]])
def test_an_answer_that_is_nothing_but_calls_of_its_tools_calls_them(tokenizer: Any, answer: Any) -> None:
    row = {"prompt": "Weather?", "completion": answer, "tools": json.dumps(TOOLS)}
    assert of_row(tokenizer, row) == [CALLED]
    assert of_row(tokenizer, {"instruction": "Weather?", "output": answer, "tools": TOOLS}) == [CALLED]
    if isinstance(answer, str):
        told = {"messages": [ASK, assistant(answer)]}
        assert of_row(tokenizer, {**told, "tools": TOOLS}) == [CALLED]
        # the controls: no tools, other tools, more than calls, and a system that asks for this form itself
        assert of_row(tokenizer, told) == [f"{answer}<|end|>"]
        assert of_row(tokenizer, {**told, "tools": [{"name": "other"}]}) == [f"{answer}<|end|>"]
        longer = {"messages": [ASK, assistant(f"Here: {answer}")], "tools": TOOLS}
        assert of_row(tokenizer, longer) == [f"Here: {answer}<|end|>"]
        asked = {"messages": [{"role": "system", "content": SAID}, ASK, assistant(answer)], "tools": TOOLS}
        assert of_row(tokenizer, asked) == [f"{answer}<|end|>"]


def test_a_list_without_a_call_is_refused_beside_tools_alone(tokenizer: Any) -> None:
    row = {"prompt": "Name a fruit.", "completion": "[]"}
    assert "an answer that is a list without a call" in refusal({**row, "tools": TOOLS})
    assert of_row(tokenizer, row) == ["[]<|end|>"]


def test_the_columns_of_xlam_are_read_by_the_line_that_the_error_names(
    tokenizer: Any, tmp_path: Path
) -> None:
    row = {"query": "Weather?", "answers": json.dumps([OSLO]), "tools": json.dumps(TOOLS)}
    assert "`columns: {query: prompt, answers: completion}`" in refusal(row)
    made = load_dataset(
        jsonl(tmp_path / "x.jsonl", row),
        kind="conversation",
        columns={"query": "prompt", "answers": "completion"},
    )
    assert learned(tokenizer, made) == [CALLED]


def test_tools_that_the_system_lists_already_are_told(tmp_path: Path) -> None:
    system = {"role": "system", "content": SAID}
    twice = jsonl(tmp_path / "a.jsonl", {"messages": [system, *TALK], "tools": TOOLS})
    with pytest.warns(ToolsTwiceWarning, match="in 1 of 1 examples the system's text lists the tools"):
        load_dataset(twice, kind="conversation")
    for name, row in (("b", {"messages": [system, *TALK]}), ("c", {"messages": TALK, "tools": TOOLS})):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ToolsTwiceWarning)
            load_dataset(jsonl(tmp_path / f"{name}.jsonl", row), kind="conversation")


def test_tools_in_a_request_of_bedrock_are_the_tools_of_the_row() -> None:
    inside = {"toolConfig": {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": {}}}}]}}
    (made,) = normalise_rows([{"messages": TALK, **inside}], kind="conversation")
    assert made["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    (control,) = normalise_rows([{"messages": TALK, "toolConfig": {"toolChoice": {}}}], kind="conversation")
    assert "tools" not in control


# --- channels and refusals


def test_channels_of_gpt_oss_are_thinking_calls_and_the_answer(tokenizer: Any) -> None:
    think = assistant("A fruit.", channel="analysis")
    final = {**PEAR, "channel": "final"}
    call = assistant('{"city": "Oslo"}', channel="commentary", recipient="functions.weather")
    result = {"role": "tool", "name": "functions.weather", "content": "cold"}
    for messages, wanted in (
        ([ASK, think, final], ["(A fruit.)Pear.<|end|>"]),
        ([ASK, think, PEAR], ["(A fruit.)Pear.<|end|>"]),
        ([ASK, final], ["Pear.<|end|>"]),
        ([ASK, think, call, result, final], [f"(A fruit.){CALLED}", "Pear.<|end|>"]),
        (
            [ASK, assistant("I look.", channel="commentary"), call, result, final],
            [f"I look.{CALLED}", "Pear.<|end|>"],
        ),
    ):
        assert of_row(tokenizer, {"messages": messages}) == wanted
    for messages in ([ASK, think], [ASK, think, ASK, final]):
        assert "is the thinking of an answer (channel 'analysis'), and no answer follows" in refusal(
            {"messages": messages}
        )


def test_a_refusal_is_what_the_assistant_says(tokenizer: Any) -> None:
    for said in (
        assistant(None, refusal="I cannot."),
        assistant("", refusal="I cannot."),
        assistant([{"type": "refusal", "refusal": "I cannot."}]),  # type: ignore[arg-type]
    ):
        assert of_row(tokenizer, {"messages": [ASK, said]}) == ["I cannot.<|end|>"]
    assert of_row(tokenizer, {"messages": [ASK, {**PEAR, "refusal": None}]}) == ["Pear.<|end|>"]


def test_the_mark_of_an_image_without_one_is_told(tmp_path: Path) -> None:
    asks = {"messages": [{"role": "user", "content": "<image>\nWhat is it?"}, PEAR]}
    with pytest.warns(
        NoPictureWarning, match=r"1 of 1 examples ask about a file that is not there \('<image>'\)"
    ):
        load_dataset(jsonl(tmp_path / "a.jsonl", asks), kind="conversation")
    speaks = {"messages": [{"role": "user", "content": "What does <image> mean in HTML?"}, PEAR]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(jsonl(tmp_path / "b.jsonl", speaks), kind="conversation")


# --- which answer is better


@pytest.mark.parametrize("name", ["verbosity", "num_tokens", "lengths", "Response Length", "id"])
def test_a_number_that_says_nothing_of_quality_is_no_rating(tokenizer: Any, name: str) -> None:
    said: list[dict[str, Any]] = [{"answer": "Pear.", name: 1}, {"answer": "Stone!", name: 2}]
    row = {"prompt": "Name a fruit.", "answers": said}
    with pytest.raises(DataError, match=f"rating '{name}', of which less may be better"):
        of_row(tokenizer, row, kind="preference", pairs=PairsSection(rating=name))
    rated = {**row, "answers": [{**answer, "quality": 5 - answer[name]} for answer in said]}
    pairs = PairsSection(rating="quality")
    assert of_row(tokenizer, rated, kind="preference", pairs=pairs) == ["Pear.<|end|>"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("winner", "model_b"),
        ("better_response_id", 1),
        ("labels", 0),
        ("winner_model_a", 0),
        ("preferred", "B"),
    ],
)
def test_a_verdict_beside_answers_that_were_mapped_by_hand_is_refused(
    tokenizer: Any, tmp_path: Path, name: str, value: Any
) -> None:
    row = {"prompt": "Name a fruit.", "first": "Stone.", "second": "Pear.", name: value}
    file, mapped = jsonl(tmp_path / "a.jsonl", row), {"first": "chosen", "second": "rejected"}
    with pytest.raises(
        DataError, match=f"'{name}': says which answer is better, and 'first' would be the chosen"
    ):
        load_dataset(file, kind="preference", columns=mapped)
    with pytest.warns(IgnoredColumnWarning, match=f"'{name}_note'"):
        noted = load_dataset(file, kind="preference", columns={**mapped, name: f"{name}_note"})
    assert learned(tokenizer, noted) == ["Stone.<|end|>"]
    if value in ("model_b", "B", 1):  # read as the error says
        judged = {"first": "answer_a", "second": "answer_b", name: "preference"}
        assert learned(tokenizer, load_dataset(file, kind="preference", columns=judged)) == ["Pear.<|end|>"]


def test_a_winner_beside_columns_that_say_chosen_themselves_changes_nothing(tokenizer: Any) -> None:
    row = {"prompt": "Name a fruit.", "chosen": "Pear.", "rejected": "Stone.", "winner": "model_b"}
    assert of_row(tokenizer, row, kind="preference") == ["Pear.<|end|>"]
