"""Keys that other tools know are heeded or refused by name; others are told once for each source."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.chat.conversation import render_conversation
from handbook_utils.data.formats import normalise_rows, prompt_hash
from handbook_utils.data.keys.unread import IgnoredColumnWarning
from handbook_utils.data.load import ResolvedInputs, load_dataset
from handbook_utils.data.prompts import iterate_prompts
from handbook_utils.data.stream import FIRST_LOOK, stream_sources
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import DataSource
from tests.chat_templates import trl_tokenizer

Row = dict[str, Any]


def user(text: str, **more: Any) -> Row:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def write(path: Path, *rows: Row) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def examples(row: Row, kind: Any = "conversation") -> list[Row]:
    return [dict(example) for example in normalise_rows([row], kind=kind)]


def answers(row: Row) -> list[str]:
    return [example["completion"][0]["content"] for example in examples(row)]


TALK = [user("a"), assistant("b"), user("c"), assistant("d")]
# the key that marks an answer, and the values that say "learned" and "not learned"
MARKS = {
    "weight": (1, 0),
    "train": (True, False),
    "training": (True, False),
    "trainable": (True, False),
    "loss": (True, False),
    "loss_weight": (1.0, 0.0),
    "loss_mask": (1, 0),
    "step_loss_mask": (1, 0),
    "masked": (False, True),
}


@pytest.mark.parametrize("key", MARKS)
def test_an_answer_marked_as_not_learned_is_only_in_the_prompt_of_later_ones(key: str) -> None:
    learn, skip = MARKS[key]
    marked = [user("a"), assistant("b", **{key: skip}), user("c"), assistant("d", **{key: learn})]
    assert examples({"messages": marked}) == [{"prompt": TALK[:3], "completion": TALK[3:]}]
    # the control: what says that it is learned changes nothing, nor does a null that a table filled in
    for value in (learn, str(learn), None):
        same = [m | {key: value} if m["role"] == "assistant" else m for m in TALK]
        assert examples({"messages": same}) == examples({"messages": TALK})


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (assistant("b", weight=0.5), r"'weight' is 0.5.*no share of its loss"),
        (assistant("b", loss_weight=2), r"'loss_weight' is 2"),
        (assistant("b", weight=-1), r"'weight' is -1"),
        (assistant("b", weight=float("nan")), r"'weight' is nan"),
        (assistant("b", train="no"), r"'train' is 'no', where 1"),
        (assistant("b", weight=0, train=True), r"'weight' and 'train' contradict"),
        (
            assistant("b", train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}]),
            "'train_detail'",
        ),
    ],
)
def test_a_mark_that_cannot_be_heeded_is_refused_by_name(message: Row, what: str) -> None:
    with pytest.raises(DataError, match=rf"row 1, column 'messages': message 2: {what}"):
        examples({"messages": [user("a"), message]})


def test_a_question_to_be_learned_is_refused_and_the_habit_of_weight_1_is_not() -> None:
    with pytest.raises(DataError, match=r"message 1: 'train' says that the message is learned"):
        examples({"messages": [user("a", train=True), assistant("b")]})
    for weight in (0, 1):
        assert answers({"messages": [user("a", weight=weight), assistant("b")]}) == ["b"]
    # LLaMA-Factory gives every message its weight
    weights = [0.0, 1.0, 0.0, 0.0]
    marked = [m | {"loss_weight": w} for m, w in zip(TALK, weights, strict=True)]
    assert answers({"messages": marked}) == ["b"]


def test_marks_of_all_messages_in_one_column_are_heeded() -> None:
    assert answers({"messages": TALK, "weights": [0, 0, 0, 1]}) == ["d"]
    with pytest.raises(DataError, match=r"column 'loss_weights': has 3 values for the 4 messages"):
        answers({"messages": TALK, "loss_weights": [0, 0, 1]})


@pytest.mark.parametrize("key", ["weight", "sample_weight", "trainable"])
@pytest.mark.parametrize("kind", ["text", "conversation", "preference", "feedback"])
def test_a_row_of_weight_0_is_left_out_and_another_share_is_refused(key: str, kind: Any) -> None:
    row: Row = {
        "text": {"text": "t"},
        "conversation": {"messages": TALK},
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "feedback": {"prompt": "a", "completion": "b", "label": True},
    }[kind]
    assert examples({**row, key: 1}, kind) == examples(row, kind)
    with pytest.raises(DataError, match="no rows"):
        examples({**row, key: 0}, kind)
    with pytest.raises(DataError, match=rf"column '{key}': .*rename it: `columns"):
        examples({**row, key: 2.5}, kind)


def test_a_word_of_that_name_is_no_weight() -> None:
    assert answers({"messages": TALK, "train": "split-a"}) == ["b", "d"]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("kind", ["preference", "feedback"])
def test_a_marked_answer_of_a_pair_is_refused(side: str, kind: Any) -> None:
    pair: Row = {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]}
    with pytest.raises(DataError, match=r"column 'weight': says that an answer is not learned"):
        examples({**pair, side: [assistant("d", weight=0)]}, kind)
    assert examples({**pair, side: [assistant("d", weight=1)]}, kind)
    earlier = [user("x"), assistant("y", weight=0), user("a")]
    assert examples({**pair, "prompt": earlier}, kind)[0]["prompt"] == [user("x"), assistant("y"), user("a")]


THOUGHT = "Ten times seven, two times seven."


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("template", ["qwen3_training", "gptoss", "gemma4_v5", "glm4moe", "lfm2_2_5_v2"])
def test_thinking_beside_an_answer_is_learned_under_any_template_that_knows_some_name(
    key: str, template: str
) -> None:
    messages = [user("12 times 7?"), assistant("84", **{key: THOUGHT, "name": None})]
    (example,) = examples({"messages": messages})
    row = render_conversation(
        trl_tokenizer(template, trusted=True), [*example["prompt"], *example["completion"]]
    ).rows[-1]
    learned = "".join(piece for piece, counts in zip(row.pieces, row.loss, strict=True) if counts)
    assert learned.count(THOUGHT) == 1
    assert "84" in learned.split(THOUGHT)[1]


def test_thinking_is_kept_in_every_kind_of_data() -> None:
    thinks = assistant("b", reasoning_content="hm")
    pair = {"prompt": [user("a")], "chosen": [thinks], "rejected": [assistant("c")]}
    assert examples(pair, "preference")[0]["chosen"] == [thinks]
    feedback = {"prompt": "a", "completion": [thinks], "label": True}
    assert examples(feedback, "feedback")[0]["completion"] == [thinks]
    prompt = [user("a"), thinks, user("c")]
    assert examples({"prompt": prompt}, "prompt")[0]["prompt"] == prompt
    plain: Any = [user("a"), assistant("b"), user("c")]
    assert prompt_hash(prompt) != prompt_hash(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_in_a_column_belongs_to_the_one_answer_of_the_row(key: str) -> None:
    thinks = assistant("b", reasoning_content="hm")
    for row in (
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "output": "b"},
        {"messages": [user("a"), assistant("b")]},
    ):
        assert examples({**row, key: "hm"})[0]["completion"] == [thinks]
        assert examples({**row, key: None}) == examples(row)
    inside = assistant("<think>hm</think>b")
    assert examples({"messages": [user("a"), inside], key: "hm"})[0]["completion"] == [inside]
    # a switch of the template is no thinking
    assert examples({"prompt": "a", "completion": "b", key: True})[0]["completion"] == [assistant("b")]


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        (
            {"messages": TALK, "thinking": "x"},
            "conversation",
            "column 'thinking': is thinking, and .* several",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "reasoning": "x"},
            "preference",
            "column 'reasoning'",
        ),
        ({"messages": [user("a", thinking="x"), assistant("b")]}, "conversation", "message 1: 'thinking'"),
        ({"messages": [user("a"), assistant("b", thinking=["x"])]}, "conversation", "'thinking'.*be text"),
        (
            {"messages": [user("a"), assistant("b", thinking="x", reasoning="y")]},
            "conversation",
            "'thinking' and 'reasoning' are different",
        ),
        (
            {"messages": [user("a"), assistant("b", reasoning_details=[{"text": "x"}])]},
            "conversation",
            "'reasoning_details'",
        ),
    ],
)
def test_thinking_that_nobody_could_place_is_refused_by_name(row: Row, kind: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        examples(row, kind)


def test_earlier_turns_of_alpaca_are_messages_and_their_answers_are_learned() -> None:
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    system = {"role": "system", "content": "s"}
    assert examples(row) == [
        {"prompt": [system, user("a")], "completion": [assistant("b")]},
        {"prompt": [system, *TALK[:3]], "completion": [assistant("d")]},
    ]
    for empty in (None, [], ""):
        assert len(examples({**row, "history": empty})) == 1
    pair = {"prompt": "c", "chosen": "d", "rejected": "e", "history": json.dumps([["a", "b"]])}
    assert examples(pair, "preference")[0]["prompt"] == TALK[:3]
    assert examples({"prompt": "c", "history": [["a", "b"]]}, "prompt")[0]["prompt"] == TALK[:3]


@pytest.mark.parametrize("history", ["text", [["a"]], [["a", 1]], {"a": "b"}])
def test_a_history_that_is_no_pairs_is_refused_by_name(history: Any) -> None:
    with pytest.raises(DataError, match="column 'history'"):
        examples({"instruction": "c", "output": "d", "history": history})
    with pytest.raises(DataError, match="column 'history': stands beside the conversation of 'messages'"):
        examples({"messages": TALK, "history": [["x", "y"]]})


@pytest.mark.parametrize(
    "column", ["system", "system_prompt", "system_message", "systemPrompt", "System Prompt", "sys_prompt"]
)
def test_what_the_system_says_is_read_under_any_name(column: str) -> None:
    first = {"role": "system", "content": "Be brief."}
    rows: dict[Any, Row] = {
        "conversation": {"messages": TALK},
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "feedback": {"prompt": "a", "completion": "b", "label": True},
        "prompt": {"prompt": "a"},
    }
    for kind, row in rows.items():
        assert examples({**row, column: "Be brief."}, kind)[0]["prompt"][0] == first
        assert examples({**row, column: ""}, kind) == examples(row, kind)


def test_two_different_texts_of_the_system_are_refused() -> None:
    row = {"prompt": "a", "completion": "b", "system": "x", "system_prompt": "x"}
    assert examples(row)[0]["prompt"][0]["content"] == "x"
    with pytest.raises(DataError, match="'system' and 'system_prompt' are different system messages"):
        examples({**row, "system_prompt": "y"})


def told(path: str, **options: Any) -> str:
    """The one warning about what nothing reads."""
    with pytest.warns(IgnoredColumnWarning) as said:
        load_dataset(path, **{"kind": "conversation", **options})
    (one,) = said
    return str(one.message)


def test_keys_that_nobody_reads_are_told_once_with_counts(tmp_path: Path) -> None:
    rows = [
        {"messages": [user("a"), assistant("b", rating=n)], "source": "x", "note": None} for n in range(3)
    ]
    text = told(write(tmp_path / "a.jsonl", *rows, {"messages": TALK, "split": "s"}))
    assert "columns 'source' (3 rows), 'split' (1 row); keys of messages 'rating' (3 messages)" in text
    assert "note" not in text


def test_a_source_whose_keys_are_all_read_tells_nothing(tmp_path: Path) -> None:
    talk = [user("a", name="x"), assistant("b", weight=1, thinking="hm")]
    row = {"messages": talk, "system_prompt": "s", "tools": [], "weight": 1, "chat_template_kwargs": {"x": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(write(tmp_path / "a.jsonl", row), kind="conversation")
        chat = {"prompt": "a", "prompt_id": "1", "messages": TALK}  # as UltraChat
        load_dataset(write(tmp_path / "c.jsonl", chat), kind="conversation")
        pair = {"prompt": "a", "chosen": "b", "rejected": "c", "prompt_id": "1", "gold_chosen": 1}
        load_dataset(write(tmp_path / "b.jsonl", pair), kind="feedback")
        load_dataset("pocket:preferences", kind="preference", split="train[:3]")


def test_a_system_text_beside_a_conversation_that_has_another_is_told(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "x"}, *TALK], "system": "y"}
    assert "'system' (1 row)" in told(write(tmp_path / "a.jsonl", row))


def test_rows_left_without_an_answer_are_told(tmp_path: Path) -> None:
    unlearned = {"messages": [user("a"), assistant("b", weight=0)]}
    path = write(tmp_path / "a.jsonl", unlearned, {"messages": TALK})
    assert "1 row left out: 'weight' leaves no answer to learn" in told(path)
    with pytest.warns(IgnoredColumnWarning), pytest.raises(DataError, match="every row is marked"):
        load_dataset(write(tmp_path / "b.jsonl", unlearned), kind="conversation")


def test_a_stream_tells_of_its_first_rows_and_of_what_comes_later(tmp_path: Path) -> None:
    rows = [{"text": str(n), "early": 1} for n in range(FIRST_LOOK)]
    source = DataSource(name=write(tmp_path / "a.jsonl", *rows, {"text": "x", "late": 1}))
    with pytest.warns(IgnoredColumnWarning, match=rf"first {FIRST_LOOK} rows.*'early' \({FIRST_LOOK} rows\)"):
        streamed = stream_sources([source], ResolvedInputs(), kind="text", seed=0)
    with pytest.warns(IgnoredColumnWarning, match=rf"from row {FIRST_LOOK + 1} on.*'late'") as said:
        assert len(list(streamed.rows)) == FIRST_LOOK + 1
    assert "early" not in str(said[0].message)


def test_a_stream_heeds_what_a_loaded_source_heeds(tmp_path: Path) -> None:
    marked = [user("a"), assistant("b", weight=0), user("c"), assistant("d", thinking="hm")]
    name = write(tmp_path / "a.jsonl", {"messages": marked, "system_prompt": "s"})
    streamed = stream_sources([DataSource(name=name)], ResolvedInputs(), kind="conversation", seed=0)
    assert list(streamed.rows) == list(load_dataset(name, kind="conversation"))


def test_prompts_tell_what_nobody_reads(tmp_path: Path) -> None:
    source = DataSource(name=write(tmp_path / "a.jsonl", {"prompt": "a", "topic": "x"}))
    with pytest.warns(IgnoredColumnWarning, match=r"'topic' \(1 row\)"):
        assert len(list(iterate_prompts([source], ResolvedInputs(), seed=0))) == 1
