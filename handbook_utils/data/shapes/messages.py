"""Messages in any known notation, as OpenAI's: role, content as text, `tool_calls`, `reasoning_content`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from handbook_utils.data.shapes.calls import CALL_IDS, first_of, read_calls
from handbook_utils.data.shapes.parts import MARKS, Parts, holds_results, read_parts, result_text
from handbook_utils.data.shapes.values import ShapeError, parse_text, shown
from handbook_utils.errors import suggest

# a message whose content is a call of a tool
CALLER = "caller"
# a message that is the thinking of the answer behind it, as in gpt-oss' channels
THOUGHT = "thought"
_NO_ANSWER = "is the thinking of an answer (channel 'analysis'), and no answer follows. Leave the row out."
# keys of a content's parts that nobody reads, as read from a message
UNREAD = "unread parts"
# who speaks, as people write it: ShareGPT and its relatives, OpenAI, Llama, Gemini, OLMo, ms-swift
SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "ai", "bot", "chatbot"), "assistant"
    ),
    **dict.fromkeys(
        ("tool", "function", "ipython", "environment", "observation", "function_response"), "tool"
    ),
    **dict.fromkeys(
        ("tool_response", "tool_result", "tool_output", "function_result", "function_output"), "tool"
    ),
    **dict.fromkeys(("function_call", "function_calls", "tool_call", "tool_calls"), CALLER),
}
# the last holds what is said in place of an answer: OpenAI's
_WHO, _WHAT = ("role", "from", "speaker"), ("content", "value", "text", "parts", "message", "refusal")
# where calls stand beside the content: OpenAI's name, its former one, and others
_CALL_KEYS = ("tool_calls", "function_call", "function_calls", "toolCalls", "tool_call")
# a question and its answer in one object: Capybara's
_EXCHANGE = {"input", "output"}
# what OpenAI's Responses API lists between messages
_ITEMS = ("function_call", "function_call_output", "reasoning")
# what stands beside the messages of a request, as OpenAI's preference files keep it
_REQUEST = {"messages", "tools", "functions", "parallel_tool_calls", "tool_choice"}
# columns that hold messages, in some rows as text, and who speaks there where it is plain text
SPOKEN = {
    **{"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"},
    **dict.fromkeys(("messages", "conversations", "contents"), "user"),
}
# what a text in a column can only be where the text beside it is the same
_SIBLINGS = {"chosen": "rejected", "rejected": "chosen"}
# how a text begins that may hold messages, and one that can hold little else
_MAY_BEGIN = re.compile(r"\s*\[?\s*\{")
_SPEAKS = re.compile(r"""['"](role|from|speaker)['"]\s*:""")
_BEGINS = re.compile(r"""\s*\[?\s*\{\s*['"](role|from|content|value)['"]\s*:""")
_PARTS = re.compile(r"""\s*\[\s*\{.*['"]type['"]\s*:""", re.DOTALL)
_THOUGHT = re.compile(r"(.*</think>)\s*(?=[\[{])", re.DOTALL)
_EMPTY: tuple[Any, ...] = (None, "", [], (), {})


def read_messages(messages: Sequence[Any]) -> list[tuple[int, dict[str, Any]]]:
    """Messages as ours, each with the place (from 1) of what it was made of; unknown keys are kept.

    One message may become several, such as Anthropic's results of tools, and calls that stand in a message of
    their own behind an answer become part of it.

    Raises:
        ShapeError: a message that cannot be read, with its place.

    >>> read_messages([{"from": "human", "value": "Hi"}])
    [(1, {'role': 'user', 'content': 'Hi'})]
    """
    made: list[tuple[int, dict[str, Any]]] = []
    for place, message in enumerate(messages, start=1):
        if _is_ours(message) and not (made and THOUGHT in made[-1][1]):
            made.append((place, message))
            continue
        try:
            for one in _ours(message):
                is_part = one.pop(CALLER, False)
                if made and THOUGHT in made[-1][1]:
                    made[-1] = (place, _thought_before(made[-1][1], one))
                elif is_part and made and (joined := _joined(made[-1][1], one)):
                    made[-1] = (made[-1][0], joined)
                else:
                    made.append((place, one))
        except ShapeError as error:
            raise ShapeError(f"message {place} {error}") from None
    if made and THOUGHT in made[-1][1]:
        raise ShapeError(f"message {made[-1][0]} {_NO_ANSWER}")
    return made


def listed(value: Mapping[str, Any]) -> list[Any]:
    """Messages that an object holds: under `messages`, as columns that `datasets` made of a list, or itself.

    >>> listed({"from": ["human", "gpt"], "value": ["Hi", "Hello."]})
    [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello.'}]
    """
    if found := value.get("messages"):
        return list(found) if isinstance(found, list | tuple) else [found]
    who = first_of(value, _WHO)
    columns = {key: column for key, column in value.items() if column is not None}
    same = all(isinstance(column, list | tuple) for column in columns.values())
    if not same or not isinstance(who, list | tuple) or any(len(c) != len(who) for c in columns.values()):
        return [value]
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]


def with_parts(messages: Sequence[Any]) -> Sequence[Any]:
    """Messages whose contents are all the text of lists of parts, with those parts; others as they are."""
    if len(messages) < 2:
        return messages
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, str) or not _PARTS.match(content):
            return messages
        try:
            parts = parse_text(content)
        except ShapeError:
            return messages
        if not isinstance(parts, list) or not all(isinstance(p, Mapping) and p.get("type") for p in parts):
            return messages
        found.append({**message, "content": parts})
    return found


def messages_in_text(text: str) -> list[Mapping[str, Any]] | None:
    """Messages that a text holds, as JSON or as Python prints a list of them; None where it is plain text.

    Raises:
        ShapeError: the text begins as a list of messages does, and cannot be read as one.
    """
    if not _MAY_BEGIN.match(text) or not _SPEAKS.search(text):
        return None
    try:
        found = parse_text(text)
    except ShapeError as error:
        if text.lstrip().startswith("[") and _BEGINS.match(text):
            raise ShapeError(f"begins as the text of a list of messages, and {error}") from None
        return None
    if isinstance(found, Mapping):
        found = found["messages"] if found.keys() <= _REQUEST and "messages" in found else [found]
    known = isinstance(found, list) and all(
        isinstance(message, Mapping)
        and (speaker_of(message) is not None or message.get("type") in _ITEMS)
        and first_of(message, (*_WHAT, *_CALL_KEYS, "type")) is not None
        for message in found
    )
    return found if known and found else None


def request_in_text(text: str) -> Mapping[str, Any]:
    """The request that a text of messages and tools holds; {} where it holds none."""
    if not text.lstrip().startswith("{") or messages_in_text(text) is None:
        return {}
    found = parse_text(text)
    return found if isinstance(found, Mapping) and "messages" in found else {}


def messages_in_cell(row: Mapping[str, Any], column: str, role: str) -> list[Mapping[str, Any]] | None:
    """The messages that a text in a row holds where it can hold nothing else; None where it is plain text.

    An answer (`role` "assistant") ends with the assistant. Of a pair, both are messages or none is. Where
    another column keeps messages as a list, texts are texts.

    Raises:
        ShapeError: as `messages_in_text`.

    >>> messages_in_cell({"prompt": '[{"role": "user", "content": "x"}]'}, "prompt", "user")
    [{'role': 'user', 'content': 'x'}]
    """
    text = row.get(column)
    if isinstance(text, str) and not _MAY_BEGIN.match(text):  # as nearly all texts
        return None
    if column not in SPOKEN or any(not isinstance(row.get(name), str | None) for name in SPOKEN):
        return None
    texts = [row.get(name) for name in dict.fromkeys((column, _SIBLINGS.get(column, column))) if name in row]
    found = [messages_in_text(text) if isinstance(text, str) else None for text in texts]
    if any(not held or (role == "assistant" and speaker_of(held[-1]) != role) for held in found):
        return None
    return found[0]


def speaker_of(message: Any) -> str | None:
    """The role of a message in any notation; None where it has none that is known."""
    name = first_of(message, _WHO) if isinstance(message, Mapping) else None
    role = SPEAKERS.get(_plain(name))
    return "assistant" if role == CALLER else role


def is_exchange(message: Any) -> bool:
    """Whether an object holds a question and its answer, as Capybara's do."""
    is_pair = isinstance(message, Mapping) and message.keys() >= _EXCHANGE
    return is_pair and first_of(message, _WHO) is None


def _is_ours(message: Any) -> bool:
    """Whether a message is text alone in our own notation, as most are."""
    return (
        type(message) is dict
        and len(message) == 2
        and message.get("role") in ("system", "user", "assistant")
        and type(message.get("content")) is str
    )


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace("-", "_").replace(" ", "_")


def _ours(message: Any) -> list[dict[str, Any]]:
    if isinstance(message, str) and _MAY_BEGIN.match(message):
        message = parse_text(message)
    if isinstance(message, Mapping) and (item := _response_item(message)):
        return [item]
    if is_exchange(message):
        return _exchange(message)
    who = (
        next((key for key in _WHO if message.get(key) is not None), None)
        if isinstance(message, Mapping)
        else None
    )
    if who is None:
        raise ShapeError(f"needs 'role' and 'content' (or 'from' and 'value'), found {shown(message)}.")
    said = [key for key in _WHAT if key in message]
    what = next((key for key in said if message[key] not in _EMPTY), None)
    what = what or next((key for key in said if message[key] is not None), said[0] if said else None)
    calls = _calls_beside(message)
    if what is None and not calls:
        raise ShapeError(f"needs 'role' and 'content' (or 'from' and 'value'), found {shown(message)}.")
    role = SPEAKERS.get(_plain(message[who]))
    if role is None:
        raise ShapeError(f"has the role {shown(message[who])}. {suggest(_plain(message[who]), SPEAKERS)}")
    rest = {key: value for key, value in message.items() if key not in (who, what, *_CALL_KEYS)}
    content = message[what] if what else None
    if role == "assistant" and isinstance(content, str) and (spoken := _in_channel(rest, content)):
        return [spoken]
    if role == CALLER:
        return [_caller(rest, content)]
    parts = _parts(role, content)
    calls = calls + parts.calls
    if calls and role != "assistant":
        raise ShapeError(f"of the {role} calls a tool, which only an assistant does.")
    is_missing = content is None and not calls
    own: dict[str, Any] = {**rest, "role": role, "content": None if is_missing else parts.text}
    if calls:
        own["tool_calls"] = calls
    if parts.unread:
        (own if parts.text or calls or not parts.results else parts.results[-1])[UNREAD] = parts.unread
    if parts.thinking:
        if own.get("reasoning_content") not in (*_EMPTY, parts.thinking):
            raise ShapeError(
                "thinks in 'reasoning_content' and otherwise in its content. Keep one of the two."
            )
        own["reasoning_content"] = parts.thinking
    if role == "tool" and (given := first_of(message, ("tool_use_id", *CALL_IDS[1:]))):
        own["tool_call_id"] = given
    return [*parts.results, own] if parts.text or calls or not parts.results else parts.results


def _exchange(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A question and its answer; what else the object says is of the answer."""
    rest = {key: value for key, value in message.items() if key not in _EXCHANGE}
    return [
        {"role": "user", "content": message["input"]},
        {**rest, "role": "assistant", "content": message["output"]},
    ]


def in_turn(texts: Sequence[Any]) -> list[dict[str, Any]]:
    """Texts of which the user says the first, the assistant the second, and so on: UltraChat's.

    >>> in_turn(["Hi", "Hello."])
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def _parts(role: str, content: Any) -> Parts:
    """What a content says, whatever it is."""
    if content is None or isinstance(content, str):
        return Parts(text=content or "")
    if role == "tool" and not holds_results(content):
        return Parts(text=result_text(content))
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple) or not all(isinstance(part, str | Mapping) for part in content):
        raise ShapeError(f"has content that is not text, found {shown(content)}.")
    return read_parts(content)


def _calls_beside(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls in keys of their own; as text they may be an empty list."""
    found: list[dict[str, Any]] = []
    for key in _CALL_KEYS:
        value = message.get(key)
        if isinstance(value, str) and value.strip():
            try:
                value = parse_text(value)
            except ShapeError as error:
                raise ShapeError(f"has '{key}' as text that {error}.") from None
        if value not in _EMPTY:
            if found:
                raise ShapeError(f"has '{key}' beside other calls. Keep one of the two.")
            found = read_calls(value)
    return found


def _caller(rest: dict[str, Any], content: Any) -> dict[str, Any]:
    """A message whose content is a call; thinking may stand before it, as LLaMA-Factory has it."""
    if isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        content = read_parts(content).text
    thought = _THOUGHT.match(content) if isinstance(content, str) else None
    if thought:
        content = content[thought.end() :]
    text = thought[1] if thought else ""
    return {**rest, "role": "assistant", "content": text, "tool_calls": read_calls(content), CALLER: True}


def _in_channel(rest: dict[str, Any], content: str) -> dict[str, Any] | None:
    """A message in one of gpt-oss' channels: thinking, or a call; None where it is the answer itself."""
    channel, recipient = rest.pop("channel", None), str(rest.get("recipient") or "all")
    if channel is None:
        return None
    rest.pop("recipient", None)
    if recipient != "all":
        call = {"name": recipient.removeprefix("functions."), "arguments": content}
        return {**rest, "role": "assistant", "content": "", "tool_calls": read_calls(call), CALLER: True}
    if channel == "analysis":
        return {**rest, "role": "assistant", "content": "", "reasoning_content": content, THOUGHT: True}
    return None


def _thought_before(thought: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with the thinking that stands in a message of its own before it."""
    if answer["role"] != "assistant":
        raise ShapeError(f"follows a message that {_NO_ANSWER}")
    texts = [
        message["reasoning_content"] for message in (thought, answer) if message.get("reasoning_content")
    ]
    return {**answer, "reasoning_content": "\n".join(texts)}


def _response_item(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """What OpenAI's Responses API lists between messages: calls and their results."""
    kind = message.get("type") if first_of(message, _WHO) is None else None
    if kind == "reasoning":
        raise ShapeError(
            "is thinking in an item of its own. Put its text into the answer behind it as "
            "'reasoning_content', or leave the item out where it holds none."
        )
    if kind == "function_call":
        call = {key: message[key] for key in ("call_id", "name", "arguments") if key in message}
        return {"role": "assistant", "content": "", "tool_calls": read_calls(call), CALLER: True}
    if kind == "function_call_output":
        text = result_text(message.get("output"))
        return {"role": "tool", "content": text, "tool_call_id": message.get("call_id")}
    return None


def _joined(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """An answer with the calls that a message behind it holds; None where they are not one turn."""
    differ = any(before.get(key) != after.get(key) for key in MARKS)
    if before["role"] != "assistant" or differ:
        return None
    content = "\n".join(text for text in (before["content"], after["content"]) if text)
    calls = [*before.get("tool_calls", []), *after["tool_calls"]]
    return {**after, **before, "content": content, "tool_calls": calls}


def out_of_order(before: str, message: Mapping[str, Any], index: int) -> str:
    """What is wrong with a message after one of the role `before`; "" where nothing is."""
    role = message["role"]
    if role == "system":
        return "is of the system, which speaks first or not at all." if index > 1 else ""
    if role == "assistant" and before in ("", "system"):
        return "has role 'assistant' but no user message precedes it."
    if role == "assistant" and before == "assistant":
        return "is a second one of the assistant in a row. Join the two, or keep one."
    if role == "tool" and before not in ("assistant", "tool"):
        return "is of a tool that no assistant has called."
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
        return f"of the {role} is empty. Fill it, or leave the row out."
    return ""
