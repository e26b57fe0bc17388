"""Rows of every accepted shape come out in one form; every wrong one is named by row and column."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_utils.data.formats import normalise_rows, prompt_hash
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


BAD: list[tuple[str, list[Any], str]] = [
    ("conversation", [{"promt": "a", "completion": "b"}], r"row 1.*found 'promt'.*Did you mean 'prompt'"),
    ("conversation", [{"messages": [user("a")]}], r"row 1, column 'messages': no message of the assistant"),
    ("conversation", [{"messages": [assistant("a")]}], r"starts with the assistant"),
    ("conversation", [{"messages": [{"role": "asistant", "content": "x"}]}], r"Did you mean 'assistant'"),
    ("conversation", [{"messages": [{"role": "user"}]}], r"message 1 needs 'role' and 'content'"),
    ("conversation", [{"messages": [{"role": "user", "content": [1]}]}], r"content is not text, found list"),
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
    ("prompt", [{"messages": [assistant("a")]}], r"no message of the user"),
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
