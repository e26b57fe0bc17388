"""Render conversations by a chat template, as `apply_chat_template` does, which keeps the marks to itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby, repeat
from typing import Any

import jinja2
from jinja2.runtime import new_context
from transformers.utils.chat_template_utils import render_jinja_template

from handbook_utils.chat.thinking import under_names_read
from handbook_utils.errors import TemplateError
from handbook_utils.libraries.transformers_internals import compile_template
from handbook_utils.records import with_text_arguments

Span = tuple[int, int]
# what rendering and tokenizing a conversation raises where a template cannot take it
REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_TEXT_ONLY = {"role", "content"}


def render_conversations(
    tokenizer: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    template_kwargs: Sequence[Mapping[str, Any]] | None = None,
    marked: bool = False,
    add_generation_prompt: bool = False,
) -> tuple[list[str], list[list[Span]]]:
    """Each conversation's text and, with `marked`, a list each of what is inside the template's marks.

    Args:
        tokenizer: with a chat template.
        conversations: lists of messages; keys of a message whose value is None are left out.
        template_kwargs: what the template is given with each: its `tools`, options such as `enable_thinking`.
        marked: find out which characters are inside `{% generation %}`.
        add_generation_prompt: open the assistant's turn at the end.
    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    texts: list[str] = []
    spans: list[list[Span]] = []
    special = tokenizer.special_tokens_map
    options = repeat({}) if template_kwargs is None else template_kwargs
    for messages, given in zip(conversations, options, strict=template_kwargs is not None):
        try:
            template = tokenizer.get_chat_template(None, given.get("tools"))
            is_text = all(map(_is_text, messages))
            shown: list[Any] = list(messages) if is_text else _without_none(messages)
            if not is_text and not (is_text := all(map(_is_text, shown))):
                shown = under_names_read(template, shown)
                is_text = all(map(_is_text, shown))
            variables = {**special, **given, "add_generation_prompt": add_generation_prompt}
            is_plain = is_text and not any(given.values())
            text, inside = (_render_plain if is_plain else _render_calls)(template, shown, variables, marked)
        except REFUSALS as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            problem = f"{type(error).__name__}: {error}".rstrip(".")
            raise TemplateError(
                f"the chat template refuses conversation {len(texts) + 1} ({roles}): {problem}. "
                f"{_cure(error, template, shown, variables)}".rstrip()
            ) from error
        texts.append(text)
        spans += [inside] if marked else []
    return texts, spans


def _without_none(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _render_calls(
    template: str, messages: list[dict[str, Any]], variables: dict[str, Any], marked: bool
) -> tuple[str, list[Span]]:
    """As `_render`; where messages call tools, they are given in the form that the template shows.

    Most templates write an object of arguments as JSON. DeepSeek V3's takes JSON text alone, some print an
    object as Python does, and DeepSeek R1's looks for calls only where the content is none.
    """
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    ways = _ways_to_call(messages) if calls else [messages]
    first: tuple[str, list[Span]] | None = None
    refused: Exception | None = None
    for way in ways:
        try:
            made = _render(template, way, variables, marked)
        except REFUSALS as error:
            refused = refused or error
            continue
        if all(_is_shown(call, made[0]) for call in calls):
            return made
        first = first or made
    if first is None:
        assert refused is not None  # there is always a way
        raise refused
    return first


def _ways_to_call(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Messages as they are, with arguments as text, and both with none for an empty content beside a call."""
    as_text = with_text_arguments(messages)
    return [messages, as_text, *map(_without_empty, (messages, as_text))]


def _without_empty(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    is_bare = [bool(message.get("tool_calls")) and not message.get("content") for message in messages]
    return [{**m, "content": None} if bare else m for m, bare in zip(messages, is_bare, strict=True)]


def _is_shown(call: Any, text: str) -> bool:
    """Whether a call is in a text by its name, with no arguments as Python prints them."""
    inner = call.get("function", call) if isinstance(call, Mapping) else {}
    arguments = inner.get("arguments")
    is_printed = isinstance(arguments, Mapping) and len(arguments) > 0 and str(arguments) in text
    return str(inner.get("name")) in text and not is_printed


def _render(
    template: str, messages: list[dict[str, Any]], variables: dict[str, Any], marked: bool
) -> tuple[str, list[Span]]:
    (text,), spans = render_jinja_template(
        [messages], chat_template=template, return_assistant_tokens_mask=marked, **variables
    )
    return text, spans[0] if spans else []


def _cure(error: Exception, template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """What to do about a conversation that a template refuses; "" where nothing known here helps."""
    if missing := re.search(r"'(\w+_token)' is undefined", str(error)):
        return (
            f"The tokenizer has no {missing[1]}: name one in its tokenizer_config.json, or use another "
            "template (`model.chat_template`)."
        )
    for change, cure in _CHANGES:
        changed = change(messages)
        try:
            if changed != messages:
                _render(template, changed, variables, False)
                return cure
        except REFUSALS:
            continue
    return ""


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("role") != "system"]


def _without_tools(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    talk = [message for message in messages if message.get("role") != "tool"]
    return _in_turn([{key: value for key, value in m.items() if key != "tool_calls"} for m in talk])


def _in_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each run of messages of one role."""
    return [next(run) for _, run in groupby(messages, key=lambda message: message.get("role"))]


_OTHER = "or use a template that takes it (`model.chat_template`)."
# what a conversation would lack for a template to take it, and what to do then
_CHANGES = (
    (_without_system, f"It takes no system message: put its text in front of the first question, {_OTHER}"),
    (_in_turn, f"It wants user and assistant to alternate: join messages of one role in a row, {_OTHER}"),
    (_without_tools, f"It takes no messages of tools: leave such rows out, {_OTHER}"),
    (
        lambda messages: _in_turn(_without_tools(_without_system(messages))),
        f"It takes user and assistant in turn and no other role: put other text into theirs, {_OTHER}",
    ),
)


def _is_text(message: Mapping[str, Any]) -> bool:
    """Whether a message is text alone: nothing of it needs to be converted before the sandbox may see it."""
    return message.keys() == _TEXT_ONLY and type(message["role"]) is type(message["content"]) is str


def _render_plain(
    template: str, messages: list[dict[str, Any]], variables: dict[str, Any], marked: bool
) -> tuple[str, list[Span]]:
    """What `_render` makes of text without tools and options; its checks and copies take longer than that."""
    compiled, known = _compiled(template)
    seen = {**known, "tools": None, "documents": None, **variables, "messages": messages}
    # as `compiled.new_context` does, which goes through its globals one by one
    context = new_context(compiled.environment, compiled.name, compiled.blocks, seen, True, known, None)
    stream = compiled.root_render_func(context)
    if not marked:
        return "".join(stream), []
    blocks: list[str] = []
    spans: list[Span] = []
    with compiled.environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]  # transformers'
        for block in stream:
            blocks.append(block)
    return "".join(blocks), spans


@lru_cache(maxsize=16)
def _compiled(template: str) -> tuple[jinja2.Template, dict[str, Any]]:
    """The template in transformers' sandbox, and its globals: Jinja copies its own slowly for each text."""
    compiled = compile_template(template)
    return compiled, dict(compiled.globals)
