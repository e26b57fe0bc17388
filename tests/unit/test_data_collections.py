"""Rows as well-known collections keep them: UltraChat, LIMA, Guanaco, Chatbot Arena, SHP, Glaive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handbook_utils.data.formats import Normaliser, normalise_rows
from handbook_utils.data.recognise import describe_format
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection

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


# --- LIMA, Guanaco, and texts of other kinds


def test_lima_lists_what_user_and_assistant_say_in_turn() -> None:
    said = [turn["content"] for turn in TALK]
    assert learned({"conversations": said, "source": "stackexchange"}) == [TALK[:2], TALK]
    said[1] = ""
    assert "message 2 of the assistant is empty" in refusal([{"conversations": said}])
    assert describe_format({"conversations": TALK}, kind="conversation").format == "sharegpt"


@pytest.mark.parametrize("between", ["", "\n", "\n\n", " "])
def test_turns_in_one_text_are_turns(between: str) -> None:
    parts = [
        "### Human: Name a fruit.",
        "### Assistant: Pear.",
        "### Human: Another?",
        "### Assistant: Plum.",
    ]
    row = {"text": between.join(parts)}
    assert learned(row) == [TALK[:2], TALK]
    (prompt,) = normalise_rows([row], kind="prompt")
    assert prompt["prompt"] == TALK[:3]
    assert normalise_rows([row], kind="text") == [row]  # where the whole text is wanted, it stays as it is


def test_the_same_mark_inside_a_text_that_opens_otherwise_is_no_turn() -> None:
    row = {"prompt": "Name a fruit.", "completion": "Write ### Human: a### Assistant: b."}
    assert learned(row)[0][-1]["content"] == row["completion"]


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        (
            {"text": "<|im_start|>user\nHi<|im_end|>"},
            "was rendered by a chat template already (it has '<|im_sta",
        ),
        (
            {"text": "USER: Hi ASSISTANT: Hello.</s>"},
            "was rendered by a chat template already (it has '</s>')",
        ),
        ({"dialog": "Human: Hi\n\nAssistant: Hello."}, "as a transcript: `columns: {dialog: text}`"),
        ({"parent_id": "0", "text": "Hi", "role": "prompter"}, "'parent_id' names the one before it"),
        ({"messages": [ASK], "answer": "Pear."}, "`columns: {messages: prompt, answer: completion}`"),
        ({"inputs": "a", "targets": "b"}, "`columns: {inputs: prompt, targets: completion}`"),
        (
            {"Question": "a", "Complex_CoT": "b", "Response": "c"},
            "`columns: {Question: prompt, Response: completion, Complex_CoT: reasoning_content}`",
        ),
    ],
)
def test_rows_of_other_collections_come_with_the_way_to_read_them(row: dict[str, Any], hint: str) -> None:
    assert hint in refusal([row])


def test_thinking_under_another_name_is_learned_as_thinking_with_the_offered_line() -> None:
    columns = {"Question": "prompt", "Response": "completion", "Complex_CoT": "reasoning_content"}
    (made,) = Normaliser(kind="conversation", columns=columns)(
        1, {"Question": "a", "Complex_CoT": "b", "Response": "c"}
    )
    assert made["completion"] == [{"role": "assistant", "content": "c", "reasoning_content": "b"}]


def test_calls_of_xlam_are_calls_with_the_offered_line() -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    row = {"query": "Is it warm?", "answers": json.dumps([call]), "tools": json.dumps([WEATHER])}
    assert "`columns: {query: prompt, answers: completion}`" in refusal([row])
    columns = {"query": "prompt", "answers": "completion"}
    (made,) = Normaliser(kind="conversation", columns=columns)(1, row)
    assert [called["function"] for called in made["completion"][0]["tool_calls"]] == [call]
    assert made["tools"][0]["function"] == WEATHER


def test_paired_answers_of_stack_exchange_come_with_the_line_that_reads_them() -> None:
    row = {"question": "p", "response_j": "good", "response_k": "bad"}
    assert "{question: prompt, response_j: chosen, response_k: rejected}" in refusal([row], "preference")
    rated = [{"text": "good", "pm_score": 4}, {"text": "bad", "pm_score": 0}]
    row = {"question": "p", "answers": rated}
    assert "`columns: {question: prompt}`" in refusal([row], "preference")
    pairs = PairsSection(rating="pm_score")
    (pair,) = Normaliser(kind="preference", columns={"question": "prompt"}, pairs=pairs)(1, row)
    assert pair["chosen"][0]["content"] == "good"


# --- SHP


def shp(label: Any, **scores: int) -> dict[str, Any]:
    return {
        **{"history": "Name a fruit.", "human_ref_A": "Pear.", "human_ref_B": "Stone.", "labels": label},
        **scores,
    }


@pytest.mark.parametrize("label", [1, "1", 1.0, True])
def test_a_label_of_one_prefers_the_first_comment(label: Any) -> None:
    (pair,) = normalise_rows([shp(label, score_A=9, score_B=2)], kind="preference")
    assert pair == {"prompt": [ASK], "chosen": [PEAR], "rejected": [STONE]}
    (pair,) = normalise_rows([shp(0)], kind="preference")
    assert (pair["chosen"], pair["rejected"]) == ([STONE], [PEAR])
    (prompt,) = normalise_rows([shp(label)], kind="prompt")
    assert prompt["prompt"] == [ASK]


def test_a_label_against_the_scores_beside_it_is_refused() -> None:
    assert "row 1, column 'labels': prefers the second answer (in SHP 1 means the first)" in refusal(
        [shp(0, score_A=9, score_B=2)], "preference"
    )
    assert "column 'labels': expected true or false, found int 2" in refusal([shp(2)], "preference")


# --- Chatbot Arena with one column for each outcome


def outcome(a: Any, b: Any, tie: Any, **said: Any) -> dict[str, Any]:
    return {
        **{"id": 1, "prompt": '["Name a fruit."]', "response_a": '["Pear."]', "response_b": '["Stone."]'},
        **{"winner_model_a": a, "winner_model_b": b, "winner_tie": tie},
        **said,
    }


@pytest.mark.parametrize(
    ("votes", "chosen", "rejected"), [((1, 0, 0), PEAR, STONE), (("0", "1", "0"), STONE, PEAR)]
)
def test_the_column_with_a_one_says_which_answer_is_chosen(votes: Any, chosen: Any, rejected: Any) -> None:
    (pair,) = normalise_rows([outcome(*votes)], kind="preference")
    assert pair == {"prompt": [ASK], "chosen": [chosen], "rejected": [rejected]}


def test_a_one_in_the_column_of_ties_gives_no_pair_and_is_counted() -> None:
    normalise = Normaliser(kind="preference")
    assert (normalise(1, outcome(0, 0, 1)), normalise.ties) == ([], 1)


def test_turns_that_both_models_share_are_the_prompt() -> None:
    both = json.dumps(["Name a fruit.", "Another?"])
    row = outcome(1, 0, 0, prompt=both, response_a='["Pear.", "Plum."]', response_b='["Pear.", "Stone."]')
    (pair,) = normalise_rows([row], kind="preference")
    assert pair == {"prompt": TALK[:3], "chosen": [PLUM], "rejected": [STONE]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (outcome(1, 1, 0), "'winner_model_a', 'winner_model_b', 'winner_tie' exactly one has to be 1"),
        (outcome(1, 0, 0, response_b='["Stone.", "Moss."]'), "'response_b': has 2 answers to the 1 turns"),
        (outcome(1, 0, 0, response_a="[null]"), "column 'response_a': expected a list of texts"),
        (
            outcome(1, 0, 0, prompt='["a", "b"]', response_a='["c", "d"]', response_b='["e", "f"]'),
            "column 'response_b': goes another way than the first before its last answer",
        ),
    ],
)
def test_an_outcome_that_cannot_be_read_is_refused(row: dict[str, Any], says: str) -> None:
    assert says in refusal([row], "preference")


# --- summaries


def compared(choice: Any, **info: str) -> dict[str, Any]:
    said = [{"text": " One.", "policy": "ref"}, {"text": " Two.", "policy": "sup2"}]
    return {"info": info, "summaries": said, "choice": choice}


POST = {"subreddit": "AskDocs", "title": "A pear", "post": "I ate it."}


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [(0, "One.", "Two."), (1, "Two.", "One.")])
def test_the_chosen_summary_is_the_one_at_the_place_that_is_named(
    choice: int, chosen: str, rejected: str
) -> None:
    (pair,) = normalise_rows([compared(choice, **POST)], kind="preference")
    assert (
        pair["prompt"][0]["content"] == "SUBREDDIT: r/AskDocs\n\nTITLE: A pear\n\nPOST: I ate it.\n\nTL;DR:"
    )
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (chosen, rejected)


def test_news_are_asked_for_in_their_own_words() -> None:
    (prompt,) = normalise_rows([compared(0, article="It rained.")], kind="prompt")
    assert prompt["prompt"][0]["content"] == "Article:\n\nIt rained.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (compared(2, **POST), "column 'choice': expected 0 or 1, found int 2"),
        (compared(0), "column 'info': has neither a 'post' nor an 'article'"),
        ({**compared(0, **POST), "summaries": []}, "column 'summaries': expected two objects"),
        ({**compared(0, **POST), "info": "text"}, "column 'info': expected an object with the post"),
    ],
)
def test_summaries_that_cannot_be_read_are_refused(row: dict[str, Any], says: str) -> None:
    assert says in refusal([row], "preference")
