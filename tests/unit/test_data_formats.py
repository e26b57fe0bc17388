"""Rows of every accepted shape come out in one form; every wrong one is named by row and column."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_utils.data.formats import Normaliser, normalise_rows, prompt_hash
from handbook_utils.data.keys.unread import IgnoredColumnWarning
from handbook_utils.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_assistant_turn_becomes_one_example_with_all_that_precedes_it() -> None:
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert normalise_rows([{"messages": turns}], kind="conversation") == [
        {"prompt": turns[:1], "completion": turns[1:2]},
        {"prompt": turns[:3], "completion": turns[3:]},
    ]


def test_a_text_prompt_is_a_user_message_and_a_text_completion_the_assistants() -> None:
    rows = normalise_rows([{"prompt": "Hi", "completion": "Hello"}], kind="conversation")
    assert rows == [{"prompt": [user("Hi")], "completion": [assistant("Hello")]}]


def test_a_sample_with_a_message_prompt_and_a_text_completion_is_a_conversation() -> None:
    rows = normalise_rows([{"prompt": [user("Hi")], "completion": ""}], kind="conversation")
    assert rows[0]["completion"] == [assistant("")]


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
        {"prompt": [user("Hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"chosen": [user("Hi"), assistant("yes")], "rejected": [user("Hi"), assistant("no")]},
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("yes")], "rejected": [user("Hi"), assistant("no")]},
        {
            "prompt": [user("Hi")],
            "chosen": [user("Hi"), assistant("yes")],
            "rejected": [user("Hi"), assistant("no")],
        },
    ],
)
def test_a_preference_pair_has_one_form_however_its_prompt_is_given(pair: dict[str, Any]) -> None:
    assert normalise_rows([pair], kind="preference") == [
        {"prompt": [user("Hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    ]


def test_gold_columns_of_pairs_are_kept_and_other_columns_are_not() -> None:
    pair = {"prompt": "Hi", "chosen": "y", "rejected": "n", "gold_chosen": 1, "gold_rejected": "0.5", "x": 1}
    row = normalise_rows([pair], kind="preference")[0]
    assert (row["gold_chosen"], row["gold_rejected"], "x" in row) == (1.0, 0.5, False)


def test_a_given_prompt_id_is_kept_and_a_missing_one_is_a_hash_of_the_messages() -> None:
    rows = normalise_rows([{"prompt": "Hi", "prompt_id": 7}], kind="prompt")
    assert rows == [{"prompt_id": "7", "prompt": [user("Hi")]}]
    named = normalise_rows([{"messages": [user("Hi"), assistant("Hello")]}], kind="prompt")
    assert named == [{"prompt_id": prompt_hash([user("Hi")]), "prompt": [user("Hi")]}]  # type: ignore[list-item]


def test_the_prompt_of_a_pair_can_be_read() -> None:
    rows = normalise_rows([{"prompt": "Hi", "chosen": "y", "rejected": "n"}], kind="prompt")
    assert rows[0]["prompt"] == [user("Hi")]


SYSTEM, TOOL = {"role": "system", "content": "s"}, {"role": "tool", "content": "4"}
ANSWERED = "\n\nAssistant: b"


def test_a_system_column_opens_the_prompt_unless_a_system_message_does() -> None:
    rows = normalise_rows([{"system": "s", "prompt": "a", "completion": "b"}], kind="conversation")
    assert rows[0]["prompt"] == [SYSTEM, user("a")]
    row = {"system": "other", "messages": [SYSTEM, user("a"), assistant("b")]}
    assert normalise_rows([row], kind="conversation")[0]["prompt"] == [SYSTEM, user("a")]
    empty = normalise_rows([{"system": "", "prompt": "a", "completion": "b"}], kind="conversation")
    assert empty[0]["prompt"] == [user("a")]


def test_a_user_may_speak_twice_before_being_answered() -> None:
    rows = normalise_rows([{"messages": [user("a"), user("b"), assistant("c")]}], kind="conversation")
    assert rows == [{"prompt": [user("a"), user("b")], "completion": [assistant("c")]}]


@pytest.mark.parametrize("given", [{"think": False, "style": None}, '{"think": false}'])
def test_what_a_row_tells_its_template_is_kept(given: Any) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": given}
    (pair,) = normalise_rows([row], kind="preference")
    assert pair["chat_template_kwargs"] == {"think": False}
    (plain,) = normalise_rows([{**row, "chat_template_kwargs": None}], kind="preference")
    assert "chat_template_kwargs" not in plain
    with pytest.warns(IgnoredColumnWarning, match="is ignored: prompts are sampled"):
        assert normalise_rows([row], kind="prompt")[0].keys() == {"prompt_id", "prompt"}


def test_calls_of_tools_and_their_answers_are_kept_with_the_tools() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    turns = [
        user("2 + 2?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "4"},
        assistant("4"),
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows = normalise_rows([{"messages": turns, "tools": tools}], kind="conversation")
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert rows == [
        {"prompt": turns[:1], "completion": [calling], "tools": tools},
        {"prompt": [turns[0], calling, turns[2]], "completion": [assistant("4")], "tools": tools},
    ]


def test_a_label_may_be_written_as_a_number_or_as_text() -> None:
    labels = [True, 1, 1.0, "true", "1", False, 0, "False "]
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in labels]
    assert [row["label"] for row in normalise_rows(rows, kind="feedback")] == [True] * 5 + [False] * 3


def test_a_transcript_of_several_turns_is_read_turn_by_turn() -> None:
    before = "\n\nHuman: a\n\nAssistant: b: Human\n\nHuman: c"
    row = {"chosen": f"{before}\n\nAssistant: yes", "rejected": f"{before}\n\nAssistant: "}
    assert normalise_rows([row], kind="preference") == [
        {
            "prompt": [user("a"), assistant("b: Human"), user("c")],
            "chosen": [assistant("yes")],
            "rejected": [assistant("")],
        }
    ]


def test_their_columns_are_read_under_our_names() -> None:
    normalise = Normaliser(kind="conversation", columns={"context": "input", "response": "output"})
    row = {"instruction": "Add.", "context": "2, 2", "response": "4"}
    assert normalise(1, row) == [{"prompt": [user("Add.\n\n2, 2")], "completion": [assistant("4")]}]
    with pytest.raises(DataError, match=r"row 2 lacks the column 'context'. Did you mean 'contxt'"):
        normalise(2, {"instruction": "Add.", "contxt": "2, 2", "response": "4"})
    with pytest.raises(DataError, match=r"column 'output': is there already"):
        normalise(3, {**row, "output": "5"})


BAD: list[tuple[str, list[Any], str]] = [
    ("conversation", [{"promt": "a", "completion": "b"}], r"row 1.*found 'promt'.*Did you mean 'prompt'"),
    ("conversation", [{"messages": [user("a")]}], r"row 1, column 'messages': no message of the assistant"),
    (
        "conversation",
        [{"messages": [assistant("a")]}],
        r"message 1 has role 'assistant' but no user message precedes it",
    ),
    ("conversation", [{"messages": [{"role": "asistant", "content": "x"}]}], r"Did you mean 'assistant'"),
    ("conversation", [{"messages": [{"role": "user"}]}], r"message 1 needs 'role' and 'content'"),
    (
        "conversation",
        [{"messages": [{"role": "user", "content": [1]}]}],
        r"content that is not text",
    ),
    ("conversation", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}], r"row 2 lacks the column 'comp"),
    ("conversation", [{"prompt": [assistant("a")], "completion": "b"}], r"ends with a message of the assi"),
    ("conversation", [{"prompt": "a", "completion": [user("b")]}], r"expected one message of the assistant"),
    ("text", [{"text": None}], r"row 1, column 'text': expected text, found NoneType"),
    ("text", ["plain"], r"row 1: not an object"),
    ("text", [], r"no rows"),
    ("preference", [{"prompt": "a", "chosen": "b", "rejected": 3}], r"column 'rejected'.*found int 3"),
    (
        "preference",
        [{"chosen": [user("a"), assistant("b")], "rejected": [user("z"), assistant("c")]}],
        r"answers another conversation",
    ),
    (
        "preference",
        [{"prompt": "a", "chosen": "b", "rejected": "c", "gold_chosen": "much"}],
        r"column 'gold_chosen': expected a number",
    ),
    (
        "preference",
        [{"prompt": "a", "chosen": "b", "rejected": "c", "gold_chosen": float("nan")}],
        r"expected a finite number",
    ),
    ("prompt", [{"messages": [{"role": "system", "content": "a"}]}], r"no message of the user"),
    ("prompt", [{"prompt": "a", "tools": [{"name": "t"}]}], r"column 'tools': a prompt to be sampled cannot"),
    (
        "conversation",
        [{"messages": [user("a"), assistant("b"), assistant("c")]}],
        r"message 3 is a second one",
    ),
    (
        "conversation",
        [{"messages": [user("a"), SYSTEM, assistant("c")]}],
        r"message 2 is of the system, which",
    ),
    (
        "conversation",
        [{"messages": [user("a"), TOOL, assistant("c")]}],
        r"message 2 is of a tool that no assis",
    ),
    ("conversation", [{"messages": [user(" "), assistant("b")]}], r"message 1 of the user is empty"),
    ("conversation", [{"messages": [user("a"), assistant("")]}], r"message 2 of the assistant is empty"),
    (
        "conversation",
        [{"messages": []}],
        r"column 'messages': expected text or a list of messages, found list",
    ),
    (
        "conversation",
        [{"messages": None}],
        r"column 'messages': expected text or a list of messages, found None",
    ),
    ("conversation", [{"messages": [None]}], r"message 1 needs 'role' and 'content'"),
    (
        "conversation",
        [{"messages": [{"role": "user", "content": None}]}],
        r"content is not text, found NoneType",
    ),
    ("conversation", [{"conversations": [{"from": "humn", "value": "a"}]}], r"Did you mean 'human'"),
    ("conversation", [{"instruction": "a", "output": None}], r"column 'output': expected text or a list"),
    ("conversation", [{"instruction": " ", "output": "b"}], r"message 1 of the user is empty"),
    (
        "conversation",
        [{"messages": [user("a"), assistant("\ud83d")]}],
        r"message 2: character 1 is half of a surr",
    ),
    ("text", [{"text": "ok \udc00"}], r"row 1, column 'text': character 4 is half of a surrogate pair"),
    (
        "conversation",
        [{"messages": [user("a"), {**assistant("b"), "tool_calls": [1]}]}],
        r"need a 'name' each",
    ),
    *(
        ("conversation", [{"prompt": "a", "completion": "b", "chat_template_kwargs": given}], message)
        for given, message in (
            ([1], r"column 'chat_template_kwargs': expected names and values, found list"),
            ("{", r"column 'chat_template_kwargs': expected names and values as JSON"),
            ({"chat_template": "x"}, r"'chat_template' is not for a row to decide"),
        )
    ),
    ("conversation", [{"prompt": "a", "completion": "b", "tools": "["}], r"column 'tools': expected a list"),
    ("conversation", [{"prompt": "a", "completion": "b", "tools": [1]}], r"column 'tools': expected a list"),
    (
        "conversation",
        [{"prompt": "a", "completion": "b", "tools": [{"name": "\ud800"}]}],
        r"column 'tools': character \d+ is half of a surrogate pair",
    ),
    (
        "feedback",
        [{"prompt": "a", "completion": "b", "label": "maybe"}],
        r"expected true or false, found str",
    ),
    (
        "feedback",
        [{"prompt": "a", "completion": "b", "label": None}],
        r"expected true or false, found NoneType",
    ),
    ("preference", [{"chosen": "b", "rejected": "c"}], r"row 1 lacks the column 'prompt'"),
    (
        "preference",
        [{"chosen": f"\n\nHuman: a{ANSWERED}", "rejected": f"\n\nHuman: z{ANSWERED}"}],
        r"answers another conversation",
    ),
    (
        "preference",
        [{"chosen": f"\n\nHuman: a{ANSWERED}", "rejected": f"\n\nHuman: a{ANSWERED}"}] * 2
        + [{"chosen": "plain", "rejected": "plain"}],
        r"row 3, column 'chosen': expected turns opened by 'Human:'",
    ),
]


@pytest.mark.parametrize(("kind", "rows", "message"), BAD)
def test_a_wrong_row_is_named_with_its_column(kind: Any, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^mine.jsonl.*{message}"):
        normalise_rows(rows, kind=kind, name="mine.jsonl")


def test_an_unknown_format_or_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match="Did you mean 'messages'"):
        normalise_rows([{"messages": []}], kind="conversation", format="mesages")
    with pytest.raises(DataError, match="Did you mean 'preference'"):
        normalise_rows([], kind="preferences")  # type: ignore[arg-type]


def test_rows_are_not_changed() -> None:
    row = {"messages": [user("a"), assistant("b")]}
    normalise_rows([row], kind="conversation")
    assert row == {"messages": [user("a"), assistant("b")]}
