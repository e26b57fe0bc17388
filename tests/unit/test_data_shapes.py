"""Messages, calls, conversations and ratings in the shapes of other tools: read right, or refused by name."""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import Any

import pytest

from handbook_utils.data.formats import Normaliser, normalise_rows
from handbook_utils.data.recognise import describe_format
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [[*made["prompt"], *made["completion"]] for made in normalise_rows([row], kind="conversation")]


def talk(messages: list[Any], **more: Any) -> list[dict[str, Any]]:
    """The whole conversation of which a row's last answer is learned."""
    return conversations({"messages": messages, **more})[-1]


def refusal(row: Any, kind: Any = "conversation", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        normalise_rows([row], kind=kind, name="mine.jsonl", **options)
    assert str(caught.value).startswith("mine.jsonl: row 1")
    return str(caught.value)


ASK, PEAR, STONE = user("Name a fruit."), assistant("Pear."), assistant("Stone.")
PAIR = {"prompt": [ASK], "chosen": [PEAR], "rejected": [STONE]}
ASKED, CALLED = user("Is it warm in Oslo?"), {"city": "Oslo"}
CALL = call("get_weather", CALLED)
RESULT = {"role": "tool", "content": "4 degrees"}
COLD = assistant("No, 4 degrees.")
TOOL = {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]


# --- text that holds structure


def printed_by_numpy(messages: list[dict[str, Any]]) -> str:
    """As pandas writes a list of Parquet into a CSV: an array of objects, without commas."""
    return "[" + "\n ".join(map(repr, messages)) + "]"


@pytest.mark.parametrize("write", [json.dumps, repr, printed_by_numpy])
def test_lists_of_messages_as_text_are_read_in_every_column_that_may_hold_them(write: Any) -> None:
    odd = [user("It's \"so\"} {'a': 1}\n[0]"), assistant("null, nan and None")]
    assert conversations({"messages": write(odd)}) == [odd]
    assert conversations({"prompt": write(odd[:1]), "completion": write(odd[1:])}) == [odd]
    row = {"prompt": "Name a fruit.", "chosen": write([ASK, PEAR]), "rejected": write([ASK, STONE])}
    assert normalise_rows([row], kind="preference") == [PAIR]
    (prompt,) = normalise_rows([{"prompt": write([{"role": "system", "content": "s"}, ASK])}], kind="prompt")
    assert [message["role"] for message in prompt["prompt"]] == ["system", "user"]
    extra = [{"id": n, "name": None, **message} for n, message in enumerate((ASK, PEAR))]
    assert conversations({"messages": write(extra)}) == [[ASK, PEAR]]
    shared = [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "Pear."}]
    assert conversations({"conversations": write(shared)}) == [[ASK, PEAR]]


def test_what_a_text_is_taken_for_is_seen_before_it_is_trained_on() -> None:
    row = {"prompt": "Name a fruit.", "chosen": json.dumps([PEAR]), "rejected": json.dumps([STONE])}
    assert "; 'chosen' and 'rejected' hold messages as text" in str(describe_format(row, kind="preference"))
    assert str(describe_format({"messages": json.dumps([ASK, PEAR])}, kind="conversation")).endswith(
        "(it has the column 'messages'; 'messages' holds messages as text)"
    )
    told = str(describe_format({"prompt": TRANSCRIPT, "completion": "Green."}, kind="conversation"))
    assert "; 'prompt' is a transcript" in told
    plain = str(describe_format({**row, "rejected": "no"}, kind="preference"))
    assert plain == "preference (it has the columns 'chosen', 'rejected')"


def test_a_list_of_messages_that_are_text_each_is_read() -> None:
    assert talk([json.dumps(ASK), str(PEAR)]) == [ASK, PEAR]


def test_messages_in_the_cells_of_a_csv_are_read() -> None:
    cells = StringIO()
    writer = csv.DictWriter(cells, ["messages", "tools"])
    writer.writeheader()
    turns = [ASKED, {**assistant(""), "tool_calls": [CALL]}, RESULT, COLD]
    writer.writerow({"messages": json.dumps(turns), "tools": json.dumps(TOOLS)})
    (row,) = csv.DictReader(StringIO(cells.getvalue()))
    made = normalise_rows([row], kind="conversation")
    assert [*made[1]["prompt"], *made[1]["completion"]] == turns
    assert made[0]["tools"] == TOOLS


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "007",
            "null",
            "None",
            "NA",
            "true",
            "1e5",
            "2024-05-01",
            '{"a": null}',
            "[1, 2]",
            '["user"]',
            "[]",
        ),
        *('[{"name": "x", "arguments": {}}]', '{"role": "admin", "content": "x"}', "{'role': 1}"),
        '[{"role": "user", "content": "an example of a request"}]',
        'Send this: [{"role": "user", "content": "Hi"}]',
    ],
)
def test_text_that_may_be_an_answer_stays_text(answer: str) -> None:
    (made,) = normalise_rows([{"prompt": "a", "completion": answer}], kind="conversation")
    assert made["completion"] == [assistant(answer)]
    (pair,) = normalise_rows([{"prompt": "a", "chosen": answer, "rejected": "no"}], kind="preference")
    assert pair["chosen"] == [assistant(answer)]


def test_an_answer_that_is_a_list_of_messages_stays_text_where_the_row_keeps_lists_as_lists() -> None:
    text = json.dumps([PEAR])
    (made,) = normalise_rows([{"prompt": [ASK], "completion": text}], kind="conversation")
    assert made["completion"] == [assistant(text)]
    (made,) = normalise_rows([{"instruction": "Write it.", "output": text}], kind="conversation")
    assert made["completion"] == [assistant(text)]
    # one side alone cannot be structure
    (pair,) = normalise_rows([{"prompt": "a", "chosen": text, "rejected": "no"}], kind="preference")
    assert pair["chosen"] == [assistant(text)]


def test_text_that_begins_as_messages_and_cannot_be_read_is_refused() -> None:
    cut = json.dumps([ASK, PEAR])[:-4]
    assert "begins as the text of a list of messages, and is neither JSON" in refusal({"messages": cut})
    assert "begins as the text of a list" in refusal(
        {"prompt": "a", "chosen": cut, "rejected": cut}, "preference"
    )
    assert "expected a list of messages (as text: JSON" in refusal({"messages": "Hello."})
    shortened = f"[{ASK}, ...]"  # as pandas shows a long list
    assert "nor a list as Python prints it" in refusal({"messages": shortened})
    assert "nor a list as Python prints it" in refusal({"prompt": shortened, "completion": "a"})


TRANSCRIPT = "\n\nHuman: Name a fruit.\n\nAssistant: Pear.\n\nHuman: And its colour?\n\nAssistant:"
TURNS = [ASK, PEAR, user("And its colour?")]


@pytest.mark.parametrize(
    "prompt",
    [
        TRANSCRIPT,
        TRANSCRIPT.removesuffix("\n\nAssistant:"),
        TRANSCRIPT.replace("\n\n", "\n"),
        TRANSCRIPT.replace("Human", "User").strip(),
        TRANSCRIPT.replace("Human", "### Human").replace("Assistant", "### Assistant").replace("\n\n", "\n"),
        "Name a fruit.\n<extra_id_1>Assistant\nPear.\n<extra_id_1>User\nAnd its colour?",
    ],
)
def test_a_prompt_that_is_a_transcript_becomes_turns(prompt: str) -> None:
    pair = {"prompt": prompt, "response": " Green.", "chosen": " Green.", "rejected": " Loud."}
    (made,) = normalise_rows([pair], kind="preference")
    assert made == {"prompt": TURNS, "chosen": [assistant("Green.")], "rejected": [assistant("Loud.")]}
    (asked,) = normalise_rows([{"prompt": prompt}], kind="prompt")
    assert asked["prompt"] == TURNS
    assert conversations({"prompt": prompt, "completion": " Green."}) == [[*TURNS, assistant("Green.")]]


@pytest.mark.parametrize(
    "prompt", ["Human: a noun. Define it.", "Who said 'Assistant: Pear.'?", "Assistant: hello"]
)
def test_a_prompt_that_only_speaks_of_speakers_stays_a_text(prompt: str) -> None:
    (made,) = normalise_rows([{"prompt": prompt, "chosen": " a", "rejected": " b"}], kind="preference")
    assert made == {"prompt": [user(prompt)], "chosen": [assistant(" a")], "rejected": [assistant(" b")]}


def test_a_transcript_behind_other_text_is_refused_with_the_way_out() -> None:
    told = refusal(
        {"prompt": f"Below is a talk.{TRANSCRIPT}", "chosen": " a", "rejected": " b"}, "preference"
    )
    assert "column 'prompt': is a transcript behind a text that nobody says" in told


def test_turns_behind_single_line_breaks_are_told_apart_or_refused() -> None:
    before = "\n\nHuman: Name a fruit.\nAssistant: Pear.\nHuman: And its colour?\n\nAssistant:"
    (made,) = normalise_rows(
        [{"chosen": f"{before} Green.", "rejected": f"{before} Loud."}], kind="preference"
    )
    assert made == {"prompt": TURNS, "chosen": [assistant("Green.")], "rejected": [assistant("Loud.")]}
    # an answer that quotes a dialogue is one answer
    quoted = "\n\nHuman: Write a dialogue.\n\nAssistant: Sure.\nHuman: Hi.\nAssistant: Hello."
    (kept,) = normalise_rows([{"chosen": quoted, "rejected": quoted}], kind="preference")
    assert kept["chosen"] == [assistant("Sure.\nHuman: Hi.\nAssistant: Hello.")]
    twice = "\n\nHuman: a\nHuman: b\nAssistant: c\n\nAssistant: d"
    assert "turns cannot be told apart" in refusal({"chosen": twice, "rejected": twice}, "preference")


# --- messages


@pytest.mark.parametrize(
    "names",
    [
        *(
            ("human", "gpt"),
            ("user", "model"),
            ("User", "Assistant"),
            ("USER", "CHATBOT"),
            ("prompter", "assistant"),
        ),
        *(("human", "chatgpt"), ("human", "bing"), ("user", "ai"), ("user", "bot")),
    ],
)
@pytest.mark.parametrize(
    "keys", [("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")]
)
def test_speakers_are_known_under_the_names_in_use(names: tuple[str, str], keys: tuple[str, str]) -> None:
    messages = [
        dict(zip(keys, turn, strict=True)) for turn in zip(names, ("Name a fruit.", "Pear."), strict=True)
    ]
    assert talk(messages) == [ASK, PEAR]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    "tool", ["tool", "function", "ipython", "environment", "observation", "tool_response"]
)
def test_systems_and_tools_are_known_under_the_names_in_use(role: str, tool: str) -> None:
    turns = [ASKED, {**assistant(""), "tool_calls": [CALL]}, {**RESULT, "role": tool}, COLD]
    system = {"role": role, "content": "Be terse."}
    assert [message["role"] for message in talk([system, *turns])] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_an_unknown_speaker_is_refused_with_the_nearest_name() -> None:
    assert "Did you mean 'function_call'?" in refusal(
        {"messages": [ASK, {"role": "function_cal", "content": "x"}]}
    )
    assert "message 2 has the role str 'narrator'" in refusal(
        {"messages": [ASK, {"role": "narrator", "content": "x"}]}
    )


TEXT_PARTS: list[Any] = [
    [{"type": "text", "text": "Pear."}],
    [{"type": "text", "text": "Pe"}, {"type": "text", "text": "ar."}],
    [{"type": "text", "text": "Pear.", "image_url": None}],
    [{"type": "output_text", "text": "Pear."}],
    [{"type": "text", "value": "Pear."}],
    [{"text": "Pear."}],
    ["Pear."],
    {"type": "text", "text": "Pear."},
]


@pytest.mark.parametrize("parts", TEXT_PARTS)
def test_content_in_parts_of_text_is_the_text(parts: Any) -> None:
    assert talk([ASK, {"role": "assistant", "content": parts}]) == [ASK, PEAR]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_image", "image_url": "data:"},
        {"type": "image", "source": {"type": "base64", "data": ""}},
        {"image": {"format": "png"}},
        {"inlineData": {"mimeType": "image/png", "data": ""}},
        {"type": "video_url", "value": "a.mp4"},
        {"type": "input_audio", "input_audio": {}},
        {"type": "document", "source": {}},
    ],
)
def test_images_and_other_files_are_refused_as_such(part: Any) -> None:
    told = refusal(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}, PEAR]}
    )
    assert "column 'messages': message 1 has a part 2 that is an image or another file" in told
    assert "models are trained on text alone here. Leave such rows out" in told


def test_a_row_with_a_column_of_images_is_refused_and_one_with_an_empty_one_read() -> None:
    messages = [user("<image>What is it?"), PEAR]
    for column in ("images", "image", "videos", "audios"):
        assert f"column '{column}': holds images or other files" in refusal(
            {"messages": messages, column: ["a.png"]}
        )
        assert talk(messages, **{column: []}) == messages


def test_an_unknown_part_or_one_with_a_weight_of_its_own_is_refused() -> None:
    message = {"role": "assistant", "content": [{"type": "txt", "text": "Pear."}]}
    assert "is of the type 'txt', which is not known. Did you mean 'text'?" in refusal(
        {"messages": [ASK, message]}
    )
    message = {"role": "assistant", "content": [{"type": "text", "text": "Pear.", "weight": 0}]}
    assert "has 'weight', and an answer is learned as a whole" in refusal({"messages": [ASK, message]})


THINKING: list[Any] = [
    [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Pear."}],
    [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Pear."}],
    [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Pear."}],
    [{"reasoningContent": {"reasoningText": {"text": "Hm."}}}, {"text": "Pear."}],
    [{"text": "Hm.", "thought": True}, {"text": "Pear."}],
]


@pytest.mark.parametrize("parts", THINKING)
def test_parts_that_think_become_the_thinking_of_the_answer(parts: Any) -> None:
    message = {"role": "assistant", "content": parts}
    assert talk([ASK, message]) == [ASK, {**PEAR, "reasoning_content": "Hm."}]
    late = {"role": "assistant", "content": parts[::-1]}
    assert "is thinking after the answer has begun" in refusal({"messages": [ASK, late]})


# --- calls of tools


CALLING: list[tuple[str, list[Any]]] = [
    ("openai", [{**assistant(""), "content": None, "tool_calls": [call("get_weather", '{"city": "Oslo"}')]}]),
    (
        "openai without content",
        [{"role": "assistant", "tool_calls": [call("get_weather", '{"city": "Oslo"}')]}],
    ),
    (
        "openai, former",
        [{**assistant(""), "function_call": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}],
    ),
    ("bare", [{**assistant(""), "tool_calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]}]),
    ("text", [{**assistant(""), "tool_calls": json.dumps([{"name": "get_weather", "arguments": CALLED}])}]),
    ("printed", [{**assistant(""), "tool_calls": [{"name": "get_weather", "arguments": str(CALLED)}]}]),
    (
        "sharegpt",
        [{"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": CALLED})}],
    ),
    (
        "ms-swift",
        [{"role": "tool_call", "content": json.dumps({"name": "get_weather", "arguments": CALLED})}],
    ),
    ("cohere", [{**assistant(""), "tool_calls": [{"name": "get_weather", "parameters": {"city": "Oslo"}}]}]),
    (
        "anthropic",
        [{**assistant(""), "content": [{"type": "tool_use", "name": "get_weather", "input": CALLED}]}],
    ),
    ("bedrock", [{**assistant(""), "content": [{"toolUse": {"name": "get_weather", "input": CALLED}}]}]),
    ("gemini", [{"role": "model", "parts": [{"functionCall": {"name": "get_weather", "args": CALLED}}]}]),
    (
        "ai-sdk",
        [{**assistant(""), "content": [{"type": "tool-call", "toolName": "get_weather", "input": CALLED}]}],
    ),
    ("responses", [{"type": "function_call", "name": "get_weather", "arguments": '{"city": "Oslo"}'}]),
    (
        "llama-factory",
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_call", "value": json.dumps({"name": "get_weather", "arguments": CALLED})}
                ],
            }
        ],
    ),
]
GIVING: list[tuple[str, Any]] = [
    ("openai", {"role": "tool", "content": "4 degrees"}),
    ("openai, former", {"role": "function", "name": "get_weather", "content": "4 degrees"}),
    ("sharegpt", {"from": "observation", "value": "4 degrees"}),
    ("parts", {"role": "tool", "content": [{"type": "text", "text": "4 degrees"}]}),
    (
        "anthropic",
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "4 degrees"}]},
    ),
    (
        "bedrock",
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "4 degrees"}]}}],
        },
    ),
    ("gemini", {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": "4 degrees"}}]}),
    (
        "ai-sdk",
        {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c1", "result": "4 degrees"}]},
    ),
    ("responses", {"type": "function_call_output", "call_id": "c1", "output": "4 degrees"}),
]


@pytest.mark.parametrize("calling", [pytest.param(made, id=name) for name, made in CALLING])
def test_a_call_is_the_same_in_every_notation(calling: list[Any]) -> None:
    made = conversations({"messages": [ASKED, *calling, RESULT, COLD], "tools": TOOLS})
    assert made == [[ASKED, {**assistant(""), "tool_calls": [CALL]}], [*made[0], RESULT, COLD]]


@pytest.mark.parametrize("giving", [pytest.param(made, id=name) for name, made in GIVING])
def test_what_a_tool_gave_is_the_same_in_every_notation(giving: Any) -> None:
    made = talk([ASKED, {**assistant(""), "tool_calls": [CALL]}, giving, COLD])
    assert [(message["role"], message["content"]) for message in made[2:]] == [
        ("tool", "4 degrees"),
        ("assistant", "No, 4 degrees."),
    ]


def test_a_result_that_is_an_object_is_given_as_json_and_ids_are_kept() -> None:
    calling = {**assistant(""), "tool_calls": [call("get_weather", CALLED, id="c1")]}
    made = talk([ASKED, calling, {"role": "tool", "tool_call_id": "c1", "content": {"degrees": 4}}, COLD])
    assert made[1]["tool_calls"][0]["id"] == "c1"
    assert made[2] == {"role": "tool", "content": '{"degrees": 4}', "tool_call_id": "c1"}


def test_calls_in_messages_of_their_own_are_one_turn_with_the_answer_before_them() -> None:
    said = {"from": "gpt", "value": "I look it up."}
    one, two = (
        {"from": "function_call", "value": json.dumps({"name": n, "arguments": {}})} for n in ("a", "b")
    )
    shared = [{"from": "human", "value": "Hi"}, said, one, two, {"from": "observation", "value": "1"}]
    made = conversations({"conversations": [*shared, {"from": "gpt", "value": "Done."}]})
    turn = {**assistant("I look it up."), "tool_calls": [call("a", {}), call("b", {})]}
    assert made[0] == [user("Hi"), turn]
    thought = {"from": "function_call", "value": '<think>Hm.</think>\n{"name": "a", "arguments": {}}'}
    (made, _) = conversations(
        {"conversations": [shared[0], thought, *shared[-1:], {"from": "gpt", "value": "Done."}]}
    )
    assert made[1] == {**assistant("<think>Hm.</think>"), "tool_calls": [call("a", {})]}


def test_arguments_keep_what_they_hold_and_texts_in_them_stay_texts() -> None:
    arguments = {"code": '{"a": 1}', "n": "007", "x": 1e-12, "none": None, "list": [{"b": "null"}]}
    for written in (arguments, json.dumps(arguments)):
        made = talk([ASKED, {**assistant(""), "tool_calls": [call("run", written)]}])
        assert made[1]["tool_calls"][0]["function"]["arguments"] == arguments
    for empty in ("", "{}", None, {}):
        made = talk([ASKED, {**assistant(""), "tool_calls": [call("run", empty)]}])
        assert made[1]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("calling", "told"),
    [
        ({"tool_calls": [call("run", "ls -l")]}, "calls 'run' with arguments as text that is not JSON"),
        ({"tool_calls": [call("run", "[1]")]}, "calls 'run' with arguments that are no object"),
        ({"tool_calls": "run()"}, "has 'tool_calls' as text that is not JSON"),
        ({"function_call": "auto"}, "has 'function_call' as text that is not JSON"),
        ({"function_call": {"name": "a"}, "tool_calls": [CALL]}, "beside other calls. Keep one of the two"),
        ({"tool_calls": [{"arguments": {}}]}, "need a 'name' each"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused(calling: dict[str, Any], told: str) -> None:
    assert told in refusal({"messages": [ASKED, {**assistant(""), **calling}]})
    assert "of the user calls a tool" in refusal({"messages": [{**ASKED, "tool_calls": [CALL]}, COLD]})


@pytest.mark.parametrize(
    "tools",
    [
        TOOLS,
        [TOOL],
        json.dumps(TOOLS),
        json.dumps([TOOL]),
        str([TOOL]),
        [json.dumps(TOOL)],
        [{"type": "function", **TOOL}],
        [{"type": "function", "function": {**TOOL, "parameters": json.dumps(TOOL["parameters"])}}],
        [{"functionDeclarations": [TOOL]}],
        TOOL,
    ],
)
def test_tools_are_the_same_in_every_notation(tools: Any) -> None:
    for column in ("tools", "functions"):
        (made,) = normalise_rows([{"messages": [ASK, PEAR], column: tools}], kind="conversation")
        assert made["tools"] == TOOLS
    anthropic = {"name": "get_weather", "description": "Weather.", "input_schema": TOOL["parameters"]}
    (made,) = normalise_rows([{"messages": [ASK, PEAR], "tools": [anthropic]}], kind="conversation")
    assert made["tools"] == TOOLS


# --- conversations, rankings and labels


def shared(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


OPENAI_PAIR = {
    "input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [PEAR],
    "non_preferred_output": [STONE],
}
RANKINGS: list[dict[str, Any]] = [
    OPENAI_PAIR,
    {"conversations": shared(ASK), "chosen": shared(PEAR)[0], "rejected": shared(STONE)[0]},
    {"messages": [ASK], "chosen": PEAR, "rejected": STONE},
    {"messages": [ASK], "chosen": "Pear.", "rejected": "Stone."},
    {"messages": json.dumps([ASK]), "chosen": json.dumps(PEAR), "rejected": json.dumps(STONE)},
    {"instruction": "Name a fruit.", "input": "", "chosen": "Pear.", "rejected": "Stone."},
    {"instruction": "Name a fruit.", "chosen": PEAR, "rejected": STONE},
    {"prompt": "Name a fruit.", "chosen": PEAR, "rejected": STONE},
    {"question": "Name a fruit.", "chosen": "Pear.", "rejected": "Stone."},
    {"input": "Name a fruit.", "chosen": "Pear.", "rejected": "Stone.", "rating": [9.0, 8.0]},
    {"chosen_messages": [ASK, PEAR], "rejected_messages": [ASK, STONE]},
    {"prompt_messages": [ASK], "chosen_messages": [PEAR], "rejected_messages": [STONE]},
    {"instruction": "Name a fruit.", "chosen_response": "Pear.", "rejected_response": "Stone."},
]


@pytest.mark.parametrize("row", RANKINGS)
def test_a_ranking_is_the_same_pair_in_every_shape(row: dict[str, Any]) -> None:
    assert normalise_rows([row], kind="preference") == [PAIR]
    liked, disliked = normalise_rows([row], kind="feedback")
    assert (liked["completion"], liked["label"]) == ([PEAR], True)
    assert (disliked["completion"], disliked["label"]) == ([STONE], False)
    (prompt,) = normalise_rows([row], kind="prompt")
    assert prompt["prompt"] == [ASK]


def test_pairs_of_whole_conversations_beside_messages_stay_what_they_were() -> None:
    row = {"messages": [ASK, PEAR], "chosen": [ASK, PEAR], "rejected": [ASK, STONE]}
    assert normalise_rows([row], kind="preference") == [PAIR]
    assert conversations(row) == [[ASK, PEAR]]


def test_columns_may_be_mapped_to_ours_and_errors_go_on_naming_theirs() -> None:
    for row, columns in (
        (RANKINGS[1], {"conversations": "prompt"}),
        (OPENAI_PAIR, {"input": "prompt", "preferred_output": "chosen", "non_preferred_output": "rejected"}),
    ):
        assert Normaliser(kind="preference", columns=columns)(1, row) == [PAIR]
    told = refusal(
        {"chosen_messages": [ASK, PEAR], "rejected_messages": [ASK, {"role": "user", "content": "x"}]},
        "preference",
    )
    assert "column 'rejected_messages': ends with a message of the user" in told


def test_tools_beside_the_messages_of_a_preference_file_are_kept() -> None:
    row = {
        "input": {"messages": [ASK], "tools": TOOLS},
        "preferred_output": [PEAR],
        "non_preferred_output": [STONE],
    }
    (made,) = normalise_rows([row], kind="preference")
    assert made["tools"] == TOOLS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, PEAR]},
        {"conversations": shared(ASK, PEAR)},
        {"instruction": "Name a fruit.", "input": "", "output": "Pear."},
        {"prompt": "Name a fruit.", "completion": "Pear."},
        {"prompt": "Name a fruit.", "completion": [ASK, PEAR]},
        {"prompt": [ASK], "completion": PEAR},
    ],
)
@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_a_label_stands_beside_a_conversation_in_any_shape(
    row: dict[str, Any], label: bool, column: str
) -> None:
    labelled = {**row, column: label}
    assert normalise_rows([labelled], kind="feedback") == [
        {"prompt": [ASK], "completion": [PEAR], "label": label}
    ]
    # what somebody disliked is no demonstration
    told = refusal(labelled)
    assert "which gives: feedback, prompt" in told
    named = told.rpartition("`format: ")[2].rstrip("`.")
    assert normalise_rows([labelled], kind="conversation", format=named)


def test_a_label_that_is_a_topic_changes_nothing() -> None:
    assert talk([ASK, PEAR], label="fruit") == [ASK, PEAR]
    assert normalise_rows([{"messages": [ASK, PEAR], "label": 1}], kind="conversation", format="messages")


def test_the_last_answer_of_a_labelled_conversation_is_the_labelled_one() -> None:
    row = {"messages": [ASK, PEAR, user("And its colour?"), assistant("Green.")], "label": False}
    (made,) = normalise_rows([row], kind="feedback")
    assert (made["prompt"], made["completion"]) == (TURNS, [assistant("Green.")])
    assert "ends with a message of the user, not an answer" in refusal(
        {"messages": [ASK], "label": True}, "feedback"
    )


def test_geminis_contents_are_a_conversation() -> None:
    row = {
        "contents": [
            {"role": "user", "parts": [{"text": "Name a fruit."}]},
            {"role": "model", "parts": [{"text": "Pear."}]},
        ]
    }
    assert conversations(row) == [[ASK, PEAR]]


def test_a_system_text_in_parts_opens_the_conversation() -> None:
    made = talk(
        [{"role": "user", "content": [{"text": "Name a fruit."}]}, PEAR], system=[{"text": "Be terse."}]
    )
    assert made == [{"role": "system", "content": "Be terse."}, ASK, PEAR]


# --- ratings


def completion(text: str, overall: float, honesty: str) -> dict[str, Any]:
    annotations = {"honesty": {"Rating": honesty, "Rationale": "..."}, "truthfulness": {"Rating": "N/A"}}
    return {"response": text, "overall_score": overall, "annotations": annotations, "model": "m"}


ULTRA = {
    "instruction": "Name a fruit.",
    "completions": [
        completion("Stone.", 2.0, "5"),
        completion("Pear.", 8.0, "4"),
        completion("A nut.", 5.0, "1"),
    ],
}


def pairs_of(rows: list[dict[str, Any]], **pairs: Any) -> list[tuple[str, str]]:
    made = normalise_rows(rows, kind="preference", pairs=PairsSection(**pairs) if pairs else None)
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made]


def test_the_recipe_says_by_which_rating_a_pair_is_chosen() -> None:
    assert pairs_of([ULTRA], rating="overall_score") == [("Pear.", "Stone.")]
    assert pairs_of([ULTRA], rating="honesty") == [("Stone.", "A nut.")]
    assert pairs_of([ULTRA], rating=["overall_score", "honesty"]) == [("Pear.", "A nut.")]
    ((_, rejected),) = pairs_of([ULTRA], rating="overall_score", rejected="random")
    assert rejected in ("Stone.", "A nut.")
    assert pairs_of([ULTRA], rating="overall_score", rejected="all") == [
        *(("Pear.", "A nut."), ("Pear.", "Stone."), ("A nut.", "Stone."))
    ]
    told = refusal(ULTRA, "preference")
    assert "the ratings 'honesty', 'overall_score'" in told
    assert "`pairs: {rating: honesty}`" in told
    told = refusal(ULTRA, "preference", pairs=PairsSection(rating="honest"))
    assert "has no rating 'honest'. Did you mean 'honesty'?" in told


def test_parallel_lists_and_ranks_are_ratings_too() -> None:
    row = {"instruction": "Name a fruit.", "generations": ["Stone.", "Pear."], "ratings": [1, 5]}
    assert pairs_of([row], rating="ratings") == [("Pear.", "Stone.")]
    ranked = {"prompt": "a", "answers": [{"answer": "worst", "rank": 3}, {"answer": "best", "rank": 1.0}]}
    assert pairs_of([ranked], rating="rank") == [("best", "worst")]


def test_rows_with_one_rated_answer_each_are_brought_together_by_their_prompt() -> None:
    rows = [
        {"prompt": "Name a fruit.", "response": "Stone.", "helpfulness": 1, "correctness": 0},
        {"prompt": "Other?", "response": "x", "helpfulness": 2, "correctness": 2},
        {"prompt": "Name a fruit.", "response": "Pear.", "helpfulness": 4, "correctness": 4},
        {"prompt": "Other?", "response": "y", "helpfulness": 3, "correctness": 1},
    ]
    assert pairs_of(rows, rating="helpfulness") == [("Pear.", "Stone."), ("y", "x")]
    # the other prompt's answers have one mean
    assert pairs_of(rows, rating=["helpfulness", "correctness"]) == [("Pear.", "Stone.")]
    argilla = [
        {"prompt": "a", "response": text, "quality.responses": votes}
        for text, votes in (("b", [1, 2]), ("c", [5]))
    ]
    made = normalise_rows(
        argilla, kind="preference", format="rated_rows", pairs=PairsSection(rating="quality.responses")
    )
    assert made[0]["chosen"] == [assistant("c")]


@pytest.mark.parametrize(
    ("row", "strength"),
    [
        ({"prompt": "Name a fruit.", "response_1": "Pear.", "response_2": "Stone."}, "preference_strength"),
        ({"context": [ASK], "response1": "Pear.", "response2": "Stone."}, "overall_preference"),
    ],
)
def test_helpsteers_preferences_say_which_of_two_answers_is_better(
    row: dict[str, Any], strength: str
) -> None:
    assert pairs_of([{**row, strength: -1}, {**row, strength: 2}]) == [
        ("Pear.", "Stone."),
        ("Stone.", "Pear."),
    ]
    assert pairs_of([{**row, strength: -1}, {**row, strength: 2}], margin=1) == [("Stone.", "Pear.")]
    normalise = Normaliser(kind="preference")
    assert normalise(1, {**row, strength: 0}) == []
    assert normalise.ties == 1
    (prompt,) = normalise_rows([{**row, strength: 0}], kind="prompt")
    assert prompt["prompt"] == [ASK]


def ranked(*names: str, status: str = "submitted") -> dict[str, Any]:
    ranks = [{"rank": place, "value": name} for place, name in enumerate(names, start=1)]
    return {"user_id": "u", "value": ranks, "status": status}


@pytest.mark.parametrize(
    ("column", "votes", "wanted"),
    [
        ("preference", [ranked("response1", "response2")], ("Pear.", "Stone.")),
        ("preference", [ranked("response2", "response1")], ("Stone.", "Pear.")),
        ("preference", [ranked("response1", "response2"), ranked("response2", "response1")], None),
        (
            "preference",
            [ranked("response1", "response2"), ranked("response2", "response1", status="draft")],
            ("Pear.", "Stone."),
        ),
        ("preference", ["response1", "response1", "response2"], ("Pear.", "Stone.")),
        ("preference", [], None),
        ("preference", "tie", None),
        ("preference.responses", [["response2", "response1"]], ("Stone.", "Pear.")),
    ],
)
def test_argillas_votes_for_one_of_two_answers_are_counted(column: str, votes: Any, wanted: Any) -> None:
    row = {"prompt": "Name a fruit.", "response1": "Pear.", "response2": "Stone.", column: votes}
    other = {**row, column: "response-2"}
    assert pairs_of([row, other]) == [*([wanted] if wanted else []), ("Stone.", "Pear.")]
    assert "votes for 'response1' and 'response2', found str 'x'" in refusal(
        {**row, column: "x"}, "preference"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("score_chosen", "score_rejected"),
        ("chosen-rating", "rejected-rating"),
        ("rating_chosen", "rating_rejected"),
    ],
)
def test_pairs_that_were_made_of_equal_ratings_are_counted_and_left_out_when_asked(
    names: tuple[str, str],
) -> None:
    rows = [
        {**PAIR, **dict(zip(names, given, strict=True))} for given in ((8.0, 8.0), (9.0, 7.0), (5.0, 6.0))
    ]
    counted, asked = Normaliser(kind="preference"), Normaliser(kind="preference", pairs=PairsSection())
    assert [len(counted(number, row)) for number, row in enumerate(rows)] == [1, 1, 1]
    assert (counted.even, counted.ties) == (2, 0)
    assert [len(asked(number, row)) for number, row in enumerate(rows)] == [0, 1, 0]
    assert (asked.even, asked.ties) == (0, 2)


def test_pairs_are_refused_where_there_is_nothing_to_choose() -> None:
    told = refusal(PAIR, "preference", pairs=PairsSection(margin=1))
    assert "is a pair without ratings, so no `margin` can be kept" in told
    told = refusal(
        {**PAIR, "score_chosen": 2, "score_rejected": 1}, "preference", pairs=PairsSection(rating="x")
    )
    assert "holds two answers, so of `pairs` only `margin` counts" in told
    with pytest.raises(DataError, match=r"data: `pairs` is said of conversation data, which has none"):
        normalise_rows([{"messages": [ASK, PEAR]}], kind="conversation", pairs=PairsSection(margin=1))
    rated = {"prompt": "a", "response": "b", "helpfulness": 1}
    with pytest.raises(DataError, match="which a stream cannot bring together"):
        Normaliser(kind="preference", pairs=PairsSection(rating="helpfulness"))(1, rated)


# --- the example files of LLaMA-Factory, rebuilt: what it calls dpo_en_demo, kto_en_demo and so on


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "value": text}


def weighed(role: str, *parts: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": list(parts), "loss_weight": float(role == "assistant")}


TOOL_CALL = json.dumps({"name": "get_weather", "arguments": CALLED})
EXAMPLES: list[tuple[str, Any, dict[str, Any], Any]] = [
    (
        "alpaca_en_demo",
        "conversation",
        {"instruction": "Name a fruit.", "input": "", "output": "Pear."},
        [ASK, PEAR],
    ),
    (
        "identity",
        "conversation",
        {"instruction": "Name a fruit.", "input": "", "output": "Pear."},
        [ASK, PEAR],
    ),
    ("c4_demo", "text", {"text": "A pear is a fruit."}, "A pear is a fruit."),
    ("dpo_en_demo", "preference", RANKINGS[1], [ASK, PEAR, STONE]),
    ("kto_en_demo", "feedback", {"messages": [ASK, PEAR], "label": True}, [ASK, PEAR]),
    (
        "glaive_toolcall_en_demo",
        "conversation",
        {
            "conversations": [
                *(*shared(ASKED), {"from": "function_call", "value": TOOL_CALL}),
                *({"from": "observation", "value": "4 degrees"}, *shared(COLD)),
            ],
            "tools": json.dumps([TOOL]),
        },
        [ASKED, {**assistant(""), "tool_calls": [CALL]}, RESULT, COLD],
    ),
    (
        "reason_tool_use_demo_50",
        "conversation",
        {
            "messages": [
                {"role": "user", "content": [part("Is it warm in Oslo?")]},
                {"role": "assistant", "content": [part("Hm.", "reasoning"), part(TOOL_CALL, "tool_call")]},
                {"role": "tool", "content": [part("4 degrees")]},
                {"role": "assistant", "content": [part("Cold.", "reasoning"), part("No, 4 degrees.")]},
            ],
            "tools": json.dumps(TOOLS),
        },
        [
            *(ASKED, {**assistant(""), "tool_calls": [CALL], "reasoning_content": "Hm."}, RESULT),
            {**COLD, "reasoning_content": "Cold."},
        ],
    ),
    (
        "v1_sft_demo",
        "conversation",
        {"messages": [weighed("user", part("Name a fruit.")), weighed("assistant", part("Pear."))]},
        [ASK, PEAR],
    ),
    (
        "v1_dpo_demo",
        "preference",
        {
            "chosen_messages": [weighed("user", part("Name a fruit.")), weighed("assistant", part("Pear."))],
            "rejected_messages": [
                weighed("user", part("Name a fruit.")),
                weighed("assistant", part("Stone.")),
            ],
        },
        [ASK, PEAR, STONE],
    ),
]


@pytest.mark.parametrize(
    ("kind", "row", "wanted"), [pytest.param(*rest, id=name) for name, *rest in EXAMPLES]
)
def test_the_text_files_that_llama_factory_ships_are_read(
    kind: Any, row: dict[str, Any], wanted: Any
) -> None:
    made = normalise_rows([row], kind=kind)[-1]
    if kind == "text":
        assert made["text"] == wanted
        return
    messages = [
        *made["prompt"],
        *(message for side in ("completion", "chosen", "rejected") for message in made.get(side, [])),
    ]
    assert [{key: value for key, value in message.items() if value != []} for message in messages] == wanted


def test_the_file_with_images_that_llama_factory_ships_is_refused_as_images() -> None:
    row = {
        "messages": [
            weighed("user", part("a.jpg", "image_url"), part("Who is it?")),
            weighed("assistant", part("Pear.")),
        ]
    }
    assert "is an image or another file ('image_url')" in refusal(row)
