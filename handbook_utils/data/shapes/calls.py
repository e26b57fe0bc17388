"""Calls of tools, and their schemas, in any notation; ours is that of OpenAI with objects for arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handbook_utils.data.shapes.values import ShapeError, parse_text, shown

# name, arguments and id of a call at OpenAI, Anthropic, Gemini, Cohere, Bedrock and the AI SDK
_NAMES = ("name", "tool_name", "toolName", "function_name")
_ARGUMENTS = ("arguments", "input", "args", "parameters", "kwargs")
CALL_IDS = ("id", "call_id", "tool_call_id", "toolUseId", "toolCallId")


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Calls of tools, one or several, as `{"type": "function", "function": {"name", "arguments"}}`.

    Arguments that are the text of a JSON object become that object: templates write them as JSON, and a text
    would be quoted once more.

    Raises:
        ShapeError: no call, or arguments that are no object.

    >>> read_calls('{"name": "add", "arguments": "{\\\\"a\\\\": 2}"}')
    [{'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 2}}}]
    """
    if isinstance(value, str):
        value = parse_text(value)
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, Sequence) or not calls:
        raise ShapeError(f"holds no call of a tool, found {shown(value)}.")
    return [_call(call) for call in calls]


def _call(call: Any) -> dict[str, Any]:
    if isinstance(call, str):
        call = parse_text(call)
    inner = first_of(call, ("function",)) or call if isinstance(call, Mapping) else None
    if isinstance(inner, str):
        is_object = inner.lstrip().startswith("{")
        inner = parse_text(inner) if is_object else {"name": inner, "arguments": first_of(call, _ARGUMENTS)}
    name = first_of(inner, _NAMES) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        raise ShapeError(f"has calls that need a 'name' each, found {shown(call)}.")
    function = {"name": name, "arguments": _arguments(name, first_of(inner, _ARGUMENTS))}
    if inner is not call:
        own = {key: value for key, value in inner.items() if key not in (*_NAMES[1:], *_ARGUMENTS[1:])}
        kept = {key: value for key, value in call.items() if value is not None}
        return {"type": "function", **kept, "function": {**own, **function}}
    given = first_of(call, CALL_IDS)
    return {**({} if given is None else {"id": given}), "type": "function", "function": function}


def _arguments(name: str, value: Any) -> Any:
    if isinstance(value, str):
        text = value.strip()
        try:
            value = parse_text(text) if text else {}
        except ShapeError as error:
            raise ShapeError(
                f"calls '{name}' with arguments as text that {error}. Write a JSON object."
            ) from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ShapeError(f"calls '{name}' with arguments that are no object, found {shown(value)}.")
    return value


def read_tools(value: Any) -> list[Any]:
    """Tools as a list of OpenAI's `{"type": "function", "function": {...}}`; [] where there are none.

    Raises:
        ShapeError: no list of objects, nor the text of one.

    >>> read_tools('[{"name": "add", "input_schema": {}}]')
    [{'type': 'function', 'function': {'name': 'add', 'parameters': {}}}]
    """
    if isinstance(value, str):
        try:
            value = parse_text(value) if value.strip() else None
        except ShapeError as error:
            raise ShapeError(f"expected a list of tools, found text that {error}.") from None
    if value is None:
        return []
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list | tuple):
        raise ShapeError(f"expected a list of tools, found {shown(value)}.")
    return [tool for given in tools for tool in _tools(given)]


def _tools(tool: Any) -> list[Any]:
    if isinstance(tool, str) and tool.lstrip().startswith("{"):
        tool = parse_text(tool)
    if not isinstance(tool, Mapping):
        raise ShapeError(f"expected a list of tools, found {shown([tool])}.")
    several = first_of(tool, ("functionDeclarations", "function_declarations"))
    if isinstance(several, list | tuple):
        return [made for one in several for made in _tools(one)]
    inner = first_of(tool, ("function", "toolSpec"))
    if isinstance(inner, str) and inner.lstrip().startswith("{"):
        inner = parse_text(inner)
    if inner is None and isinstance(tool.get("name"), str) and tool.get("type", "function") == "function":
        inner = {key: value for key, value in tool.items() if key != "type"}
    if not isinstance(inner, Mapping):
        if not isinstance(tool.get("type"), str):
            raise ShapeError(f"has a tool without a 'name', found {shown(dict(tool))}.")
        return [tool]  # such as a tool that the server brings itself
    return [{"type": "function", "function": _schema(inner)}]


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function with its schema under `parameters`, as an object."""
    made: dict[str, Any] = {}
    for key, value in function.items():
        if key in ("parameters", "input_schema", "inputSchema"):
            if isinstance(value, str) and value.lstrip().startswith("{"):
                value = parse_text(value)
            nested = value.get("json") if key == "inputSchema" and isinstance(value, Mapping) else None
            key, value = "parameters", value if nested is None else nested
        made[key] = value
    return made


def first_of(mapping: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of some keys that holds something; None where none does."""
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)
