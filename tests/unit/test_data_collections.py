"""Rows as well-known collections keep them: UltraChat, Capybara, LMSYS-Chat, Chatbot Arena, Glaive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handbook_utils.data.formats import Normaliser, normalise_rows
from handbook_utils.data.recognise import describe_format
from handbook_utils.errors import DataError

ASK, PEAR = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Pear."}
STONE = {"role": "assistant", "content": "Stone."}
MORE, PLUM = {"role": "user", "content": "Another?"}, {"role": "assistant", "content": "Plum."}
TALK = [ASK, PEAR, MORE, PLUM]
WEATHER = {
    "name": "get_weather",
    "description": "Weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def learned(row: dict[str, Any], **options: Any) -> list[list[dict[str, Any]]]:
    """Of each learned answer, the conversation up to it."""
    made = normalise_rows([row], kind="conversation", **options)
    return [[*example["prompt"], *example["completion"]] for example in made]


def refusal(rows: list[Any], kind: Any = "conversation") -> str:
    with pytest.raises(DataError) as caught:
        normalise_rows(rows, kind=kind, name="mine.jsonl")
    return str(caught.value)


# --- whole conversations


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"id": "7", "data": [turn["content"] for turn in TALK]}, id="ultrachat"),
        pytest.param({"data": json.dumps([turn["content"] for turn in TALK])}, id="ultrachat in a CSV"),
        pytest.param(
            {
                "source": "x",
                "conversation": [
                    {"input": "Name a fruit.", "output": "Pear."},
                    {"input": "Another?", "output": "Plum."},
                ],
            },
            id="capybara",
        ),
        pytest.param({"conversation_id": "1", "conversation": TALK, "turn": 2}, id="lmsys-chat"),
        pytest.param({"conversation": TALK, "conversation_hash": "1", "toxic": False}, id="wildchat"),
    ],
)
def test_conversations_of_public_collections_are_read_turn_by_turn(row: dict[str, Any]) -> None:
    assert learned(row) == [TALK[:2], TALK]
    (prompt,) = normalise_rows([row], kind="prompt")
    assert prompt["prompt"] == TALK[:3]


def test_what_an_exchange_says_of_its_answer_is_heeded() -> None:
    turns = [
        {"input": "Name a fruit.", "output": "Pear.", "weight": 0},
        {"input": "Another?", "output": "Plum.", "weight": 1},
    ]
    assert learned({"conversation": turns}) == [TALK]


def test_an_empty_answer_in_an_exchange_is_refused_with_its_row() -> None:
    row = {"conversation": [{"input": "Name a fruit.", "output": ""}]}
    assert "row 1, column 'conversation': message 2 of the assistant is empty" in refusal([row])


def test_texts_of_user_and_assistant_in_turn_are_texts_alone() -> None:
    good = {"data": ["Name a fruit.", "Pear."]}
    assert "row 2, column 'data': expected texts of user and assistant in turn" in refusal(
        [good, {"data": ["Name a fruit.", 4]}]
    )


def test_a_list_of_other_things_is_no_conversation() -> None:
    for data in ([1, 2], ["only one"], [], "text", None):
        assert "needs the columns" in refusal([{"data": data}])


@pytest.mark.parametrize(
    "beside",
    [
        {"data": ["web", "2024"]},
        {"conversation": [{"input": "a", "output": "b"}]},
        {"chat": "USER: a\nASSISTANT: b"},
    ],
)
def test_beside_messages_such_a_column_is_something_else(beside: dict[str, Any]) -> None:
    normalise = Normaliser(kind="conversation")
    normalise(1, {"messages": TALK, **beside})
    with pytest.warns(UserWarning, match=f"'{next(iter(beside))}'"):
        normalise.unread.tell()
    assert normalise.found is not None
    assert normalise.found.format == "messages"


# --- other names


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"items": TALK}, "To read it as messages: `columns: {items: messages}`"),
        ({"chat": TALK, "id": 1}, "To read it as messages: `columns: {chat: messages}`"),
        ({"dialogue": ["Hi", "Hello."]}, "what user and assistant say in turn: `columns: {dialogue: data}`"),
        ({"segments": [{"label": False, "text": "<s>Hi"}]}, "which a template has rendered already (axolotl"),
        ({"question": "a", "answer": "b", "turns": ["a", "b"]}, "{question: prompt, answer: completion}"),
        ({"text": "a", "tags": ["fruit", "tree"]}, "It looks like the format 'text'"),
    ],
)
def test_turns_under_another_name_come_with_the_line_that_reads_them(row: dict[str, Any], hint: str) -> None:
    assert hint in refusal([row])


def test_the_offered_line_reads_them() -> None:
    renamed = Normaliser(kind="conversation", columns={"dialogue": "data"})
    assert [example["completion"] for example in renamed(1, {"dialogue": ["Hi", "Hello."]})] == [
        [{"role": "assistant", "content": "Hello."}]
    ]


TWO = {"response_0": "Pear.", "response_1": "Stone."}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "p", **TWO, "better_response_id": 1, "safer_response_id": 0},
            "{response_0: answer_a, response_1: answer_b, better_response_id: preference}",
        ),
        (
            {"task": "p", "response_A": "a", "response_B": "b", "orig_preference": "A"},
            "{PROMPT: prompt, response_A: answer_a, response_B: answer_b, orig_preference: preference}",
        ),
        (
            {"instruction": "p", "responses": ["a", "b"], "scores": [1, 5]},
            "{responses: generations, scores: ratings}",
        ),
    ],
)
def test_two_answers_under_other_names_come_with_the_line_that_reads_them(
    row: dict[str, Any], line: str
) -> None:
    assert f"`columns: {line}`" in refusal([row], "preference")


def test_the_offered_line_reads_a_verdict() -> None:
    columns = {"response_0": "answer_a", "response_1": "answer_b", "better_response_id": "preference"}
    normalise = Normaliser(kind="preference", columns=columns)
    (pair,) = normalise(1, {"prompt": "Name a fruit.", **TWO, "better_response_id": 1})
    assert (pair["chosen"], pair["rejected"]) == ([STONE], [PEAR])


def test_nothing_is_offered_that_would_read_a_verdict_the_wrong_way_round() -> None:
    """One column for each answer: a 1 in the first would be read as a vote for the second."""
    row = {"prompt": "p", "response_a": "a", "response_b": "b", "winner_model_a": 1, "winner_model_b": 0}
    assert "preference}" not in refusal([{**row, "winner_tie": 0}], "preference")


# --- Chatbot Arena


def vote(winner: str, first: Any = None, second: Any = None) -> dict[str, Any]:
    return {
        **{"model_a": "m", "model_b": "n", "winner": winner, "turn": 1},
        **{"conversation_a": first or [ASK, PEAR], "conversation_b": second or [ASK, STONE]},
    }


@pytest.mark.parametrize(
    ("winner", "chosen", "rejected"), [("model_a", PEAR, STONE), ("model_b", STONE, PEAR)]
)
def test_the_winner_of_two_conversations_is_chosen(winner: str, chosen: Any, rejected: Any) -> None:
    (pair,) = normalise_rows([vote(winner)], kind="preference")
    assert pair == {"prompt": [ASK], "chosen": [chosen], "rejected": [rejected]}
    good, bad = normalise_rows([vote(winner)], kind="feedback")
    assert (good["completion"], good["label"], bad["completion"]) == ([chosen], True, [rejected])


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "both_bad"])
def test_a_tie_gives_no_pair_and_is_counted(winner: str) -> None:
    normalise = Normaliser(kind="preference")
    assert (normalise(1, vote(winner)), normalise.ties) == ([], 1)


def test_another_word_in_the_place_of_the_winner_is_refused_by_its_own_name() -> None:
    assert "row 1 has in 'winner' neither" in refusal([vote("the first")], "preference")


def test_conversations_that_part_early_are_no_pair() -> None:
    row = vote("model_a", [ASK, PEAR, MORE, PLUM], [ASK, STONE, MORE, PLUM])
    message = refusal([row], "preference")
    assert "column 'conversation_b': goes another way than the first before its last answer" in message


# --- Glaive


def glaive(
    *said: str, system: str = "You are a helpful assistant, with no access to external functions."
) -> Any:
    turns = [
        text if text.startswith(("USER:", "FUNCTION")) else f"ASSISTANT: {text} <|endoftext|>"
        for text in said
    ]
    return {"system": f"SYSTEM: {system}\n", "chat": "\n\n\n".join(turns) + "\n\n\n"}


WITH_TOOLS = (
    "You are a helpful assistant with access to the following functions. Use them if required -\n"
    f"{json.dumps(WEATHER, indent=4)}\n\n" + json.dumps({**WEATHER, "name": "get_time"})
)
CALLED = '<functioncall> {"name": "get_weather", "arguments": \'{"city": "Val-d\'Or"}\'}'


def test_a_plain_conversation_of_glaive_keeps_its_system_and_loses_the_marks() -> None:
    row = glaive("USER: Name a fruit.", "Pear.", "USER: Another?", "Plum.")
    system = {
        "role": "system",
        "content": "You are a helpful assistant, with no access to external functions.",
    }
    assert learned(row) == [[system, *TALK[:2]], [system, *TALK]]


def test_calls_of_glaive_are_calls_and_its_tools_are_tools() -> None:
    row = glaive(
        "USER: Is it warm?", CALLED, 'FUNCTION RESPONSE: {"degrees": 4}', "No, 4 degrees.", system=WITH_TOOLS
    )
    called, answered = normalise_rows([row], kind="conversation")
    assert [tool["function"]["name"] for tool in called["tools"]] == ["get_weather", "get_time"]
    assert called["tools"][0]["function"] == WEATHER
    assert called["prompt"] == [
        {"role": "user", "content": "Is it warm?"}
    ]  # the template says what tools there are
    (call,) = called["completion"][0]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": {"city": "Val-d'Or"}}
    assert called["completion"][0]["content"] == ""
    assert answered["prompt"][-1] == {"role": "tool", "content": '{"degrees": 4}'}
    assert answered["completion"] == [{"role": "assistant", "content": "No, 4 degrees."}]


def test_what_is_said_before_a_call_stays() -> None:
    row = glaive("USER: Is it warm?", f"Let me look. {CALLED}", system=WITH_TOOLS)
    (made,) = normalise_rows([row], kind="conversation")
    assert made["completion"][0]["content"] == "Let me look."


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (glaive("USER: a", "<functioncall> {name: broken", system=WITH_TOOLS), "column 'chat': "),
        (
            glaive("USER: a", "b", system='Tools -\n{"name": "now", "parameters": {'),
            "column 'system': lists a tool",
        ),
    ],
)
def test_what_is_broken_in_it_is_refused_with_its_column(row: Any, says: str) -> None:
    assert f"row 1, {says}" in refusal([row])


def test_a_text_about_users_is_not_taken_for_a_chat() -> None:
    assert "needs the columns" in refusal([{"chat": "USER: a kind of account"}])
    assert describe_format(glaive("USER: a", "b"), kind="conversation").format == "glaive"
