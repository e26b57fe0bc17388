"""Glaive's conversations: one text with tools in the system's words, and calls and results between turns.

Format: https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2
"""

from __future__ import annotations

import json
import re
from typing import Any

from handbook_utils.data.shapes.calls import read_calls
from handbook_utils.data.shapes.values import ShapeError, parse_text, shown

_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_OPENS = re.compile(rf"(?:\A|\n)\s*({'|'.join(_ROLES)}):")
_SYSTEM = re.compile(r"\A\s*SYSTEM:\s*")
# where the system's text begins to list tools
_TOOL = re.compile(r'\{\s*"name"\s*:')
_CALL = re.compile(r"<functioncall>\s*(?=\{)")
# arguments stand between single quotes, and what is said in them may hold such quotes too
_QUOTED = re.compile(r"""\{\s*"name"\s*:\s*("[^"]+")\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}\s*\Z""", re.DOTALL)
_END = "<|endoftext|>"


def is_glaive(text: Any) -> bool:
    """Whether a value is one text of turns that opens with the user's.

    >>> is_glaive("USER: Hi\\n\\n\\nASSISTANT: Hello. <|endoftext|>"), is_glaive("USER: a kind of account")
    (True, False)
    """
    if not isinstance(text, str):
        return False
    found = [match[1] for match in _OPENS.finditer(text)]
    return found[:1] == ["USER"] and "ASSISTANT" in found


def glaive_turns(text: str) -> list[dict[str, Any]]:
    """Messages of a text, calls as `tool_calls`.

    Raises:
        ShapeError: a call that cannot be read.

    >>> glaive_turns("USER: Hi\\n\\n\\nASSISTANT: Hello. <|endoftext|>\\n\\n\\n")[1]
    {'role': 'assistant', 'content': 'Hello.'}
    """
    _, *pieces = _OPENS.split(text)
    turns = []
    for name, said in zip(pieces[::2], pieces[1::2], strict=True):
        said = said.strip().removesuffix(_END).strip()
        turns.append(_answer(said) if name == "ASSISTANT" else {"role": _ROLES[name], "content": said})
    return turns


def _answer(text: str) -> dict[str, Any]:
    found = _CALL.search(text)
    if found is None:
        return {"role": "assistant", "content": text}
    call = text[found.end() :].strip()
    quoted = _QUOTED.match(call)
    if quoted:  # only there a single quote is written with a backslash
        arguments = parse_text(quoted[2].replace("\\'", "'"))
        call_of = {"name": json.loads(quoted[1]), "arguments": arguments}
    else:
        call_of = parse_text(call)
    calls = read_calls(call_of)
    return {"role": "assistant", "content": text[: found.start()].strip(), "tool_calls": calls}


def glaive_system(text: str) -> tuple[str, list[Any]]:
    """What the system says, and the tools that it lists, of which each template says in its own words.

    Raises:
        ShapeError: a tool that is no JSON.

    >>> glaive_system("SYSTEM: You may use these functions -\\n{\\"name\\": \\"now\\"}\\n")
    ('', [{'name': 'now'}])
    >>> glaive_system("SYSTEM: You have no access to functions.")
    ('You have no access to functions.', [])
    """
    text = _SYSTEM.sub("", text)
    first = _TOOL.search(text)
    if first is None:
        return text.strip(), []
    tools, place, decoder = [], first.start(), json.JSONDecoder()
    while place < len(text):
        try:
            tool, end = decoder.raw_decode(text, place)
        except ValueError as error:
            raise ShapeError(f"lists a tool that is no JSON ({error}): {shown(text[place:])}.") from None
        tools.append(tool)
        place = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
    return "", tools
