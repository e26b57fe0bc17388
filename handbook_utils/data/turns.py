"""Conversations as training rows: token ids, and which of them carry loss. Rendered by the chat template.

One definition for all: an answer's tokens are what the template adds behind the prompt that inference would
have given, `whole[len(prompt):]`; where the template marks what an assistant says (`{% generation %}`), only
what is inside the marks. The token that ends the turn belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from handbook_utils.data.pieces import Span, encode_texts
from handbook_utils.errors import DataError, TemplateError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
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


@dataclass(frozen=True)
class Turn:
    """One answer to learn and all that precedes it."""

    prompt: Sequence[Mapping[str, Any]]
    answer: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRow:
    """One training row.

    Attributes:
        ids: (tokens,) token ids.
        loss: (tokens,) whether a token carries loss.
        start: index of the first token that differs from the inference prompt.
        prompt_tokens: length of that prompt; more than `start` where training and inference differ.
    """

    ids: list[int]
    loss: list[bool]
    start: int
    prompt_tokens: int


def split_turns(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Turn]:
    """One turn an answer of the assistant, each with all that precedes it.

    >>> hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    >>> [len(turn.prompt) for turn in split_turns([*hello, *hello])]
    [1, 3]
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise DataError("the conversation has no message of the assistant, so there is nothing to learn.")
    if answers[0] == 0:
        raise DataError("the conversation starts with the assistant; something has to come first.")
    return [Turn(messages[:index], [messages[index]], tools, options or {}) for index in answers]


def has_marks(tokenizer: Any, tools: Any = None) -> bool:
    """Whether the template marks what the assistant says."""
    return bool(_MARKS.search(tokenizer.get_chat_template(None, tools)))


def tokenize_turns(tokenizer: Any, turns: Sequence[Turn]) -> list[TokenRow]:
    """Token ids and loss of each turn's conversation.

    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    told = [{"tools": turn.tools or None, **turn.options} for turn in turns]
    marked = has_marks(tokenizer)
    wholes = [[*turn.prompt, *turn.answer] for turn in turns]
    prompts, _ = _render(tokenizer, [turn.prompt for turn in turns], told=told, add_generation_prompt=True)
    texts, spans = _render(tokenizer, wholes, told=told, marked=marked)
    # together: a prompt has most of its pieces in common with its whole conversation
    ids, found = _encode(tokenizer, texts + prompts, spans)
    rows = []
    for number, (row, prompt) in enumerate(zip(ids, ids[len(turns) :], strict=False)):
        start = _common_start(prompt, row)
        loss = _loss(found[number] if marked else [(0, len(row))], start, len(row))
        rows.append(TokenRow(row, loss, start, len(prompt)))
    return rows


def _loss(spans: Sequence[Span], start: int, tokens: int) -> list[bool]:
    """Which of a row's tokens are in a span and not before `start`."""
    loss = [False] * tokens
    for first, end in spans:
        first = max(first, start)
        loss[first:end] = [True] * (end - first)
    return loss


def _common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    if one == other[: len(one)]:  # the rule; a comparison of slices is quick
        return len(one)
    return next(place for place, (a, b) in enumerate(zip(one, [*other, -1], strict=False)) if a != b)


def encode_conversations(
    tokenizer: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    told: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> list[list[int]]:
    """Token ids of conversations under the template.

    Args:
        tokenizer: with a chat template.
        conversations: lists of messages.
        told: what the template is told of each conversation: its `tools`, and options such as
            `enable_thinking`.
        add_generation_prompt: open the assistant's turn at the end.
    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    texts, _ = _render(tokenizer, conversations, told=told, add_generation_prompt=add_generation_prompt)
    return _encode(tokenizer, texts)[0]


def _render(
    tokenizer: Any,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    told: Sequence[Mapping[str, Any]] | None = None,
    marked: bool = False,
    add_generation_prompt: bool = False,
) -> tuple[list[str], list[list[Span]]]:
    """Each conversation's text and, with `marked`, the characters that the template marks.

    As `apply_chat_template` does it, which keeps the marks to itself.
    """
    texts: list[str] = []
    spans: list[list[Span]] = []
    special = tokenizer.special_tokens_map
    for messages, given in zip(conversations, told or repeat({}), strict=told is not None):
        try:
            text, inside = render_jinja_template(
                [[{key: value for key, value in m.items() if value is not None} for m in messages]],
                chat_template=tokenizer.get_chat_template(None, given.get("tools")),
                return_assistant_tokens_mask=marked,
                add_generation_prompt=add_generation_prompt,
                **{**special, **given},
            )
        except REFUSALS as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateError(
                f"the chat template refuses conversation {len(texts) + 1} ({roles}): "
                f"{type(error).__name__}: {error}"
            ) from error
        texts += text
        spans += inside
    return texts, spans


def _encode(
    tokenizer: Any, texts: Sequence[str], spans: Sequence[Sequence[Span]] = ()
) -> tuple[list[list[int]], list[list[Span]]]:
    try:
        return encode_texts(tokenizer, texts, spans)
    except REFUSALS as error:
        raise TemplateError(
            f"the rendered text cannot be tokenized: {type(error).__name__}: {error}"
        ) from error


def join_turns(rows: Iterable[TokenRow]) -> list[TokenRow]:
    """Merge neighbouring rows of one conversation: a row that the next one begins with is learned there.

    Every token keeps its context, so the same tokens carry the same loss, and the shared start is paid for
    once. Where a template rewrites earlier turns, no row begins with the one before, and none is merged.
    """
    joined: list[TokenRow] = []
    for row in rows:
        before = joined[-1] if joined else None
        # a repeated row starts inside the one before: it is a second example, not its continuation
        if before is None or row.start < len(before.ids) or row.ids[: len(before.ids)] != before.ids:
            joined.append(row)
            continue
        loss = before.loss + row.loss[len(before.ids) :]
        joined[-1] = TokenRow(row.ids, loss, before.start, before.prompt_tokens)
    return joined
