"""Conversations as training rows: token ids, and which of them carry loss. Rendered by the chat template.

One definition for all: an answer's tokens are what the template adds behind the prompt that inference would
have given, `whole[len(prompt):]`; where the template marks what an assistant says (`{% generation %}`), only
what is inside the marks. The token that ends the turn belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import jinja2

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
    prompts, _ = encode_conversations(
        tokenizer, [turn.prompt for turn in turns], told=told, add_generation_prompt=True
    )
    wholes, marks = encode_conversations(
        tokenizer, [[*turn.prompt, *turn.answer] for turn in turns], told=told, with_marks=True
    )
    rows = []
    for prompt, ids, marked in zip(prompts, wholes, marks, strict=True):
        start = _common_start(prompt, ids)
        loss = [place >= start and bool(inside) for place, inside in enumerate(marked)]
        rows.append(TokenRow(ids, loss, start, len(prompt)))
    return rows


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
    with_marks: bool = False,
    add_generation_prompt: bool = False,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of conversations under the template, and its marks.

    Args:
        tokenizer: with a chat template.
        conversations: lists of messages.
        told: what the template is told of each conversation: its `tools`, and options such as
            `enable_thinking`.
        with_marks: return what the template marks; where it has no marks, everything counts as marked.
        add_generation_prompt: open the assistant's turn at the end.
    Returns:
        (ids, marks), each a list a conversation; `marks` is empty unless asked for.
    """
    marked = with_marks and has_marks(tokenizer)
    ids: list[list[int]] = []
    marks: list[list[int]] = []
    given = list(told or [{}] * len(conversations))
    try:
        # the template is told one thing a call, so neighbours that share it are rendered together
        for common, group in groupby(zip(given, conversations, strict=True), key=itemgetter(0)):
            found = tokenizer.apply_chat_template(
                [conversation for _, conversation in group],
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=marked,
                return_dict=True,
                padding=False,
                **common,
            )
            ids += found["input_ids"]
            marks += found["assistant_masks"] if marked else []
    except REFUSALS as error:
        raise _refusal(tokenizer, conversations, given, error) from error
    return ids, marks if marked or not with_marks else [[1] * len(one) for one in ids]


def _refusal(
    tokenizer: Any, conversations: Sequence[Any], told: Sequence[Mapping[str, Any]], error: Exception
) -> TemplateError:
    """Name the first conversation that the template refuses, and why."""
    for number, (messages, given) in enumerate(zip(conversations, told, strict=True), start=1):
        try:
            tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
        except REFUSALS as found:
            roles = ", ".join(str(message.get("role")) for message in messages)
            return TemplateError(
                f"the chat template refuses conversation {number} ({roles}): {type(found).__name__}: {found}"
            )
    return TemplateError(f"the chat template cannot be used: {type(error).__name__}: {error}")


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
