"""Conversations as training rows: token ids, and which of them carry loss. Rendered by the chat template.

One definition for all: an answer's tokens are what the template adds behind the prompt that inference would
have given, `whole[len(prompt):]`; where the template marks what an assistant says (`{% generation %}`), only
what is inside the marks. The token that ends the turn belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.chat.render import REFUSALS, Span, render_conversations
from handbook_utils.chat.segment_tokenizer import encode_texts
from handbook_utils.errors import DataError, TemplateError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


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


@dataclass(frozen=True)
class RenderedTurns:
    """The texts of some turns.

    Attributes:
        wholes: each turn's whole conversation.
        prompts: what inference would give the model in its place.
        spans: of each whole, the characters inside the template's marks; None of a template without.
    """

    wholes: list[str]
    prompts: list[str]
    spans: list[list[Span]] | None


def tokenize_turns(tokenizer: Any, turns: Sequence[Turn]) -> list[TokenRow]:
    """Token ids and loss of each turn's conversation.

    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    return encode_turns(tokenizer, render_turns(tokenizer, turns))


def render_turns(tokenizer: Any, turns: Sequence[Turn]) -> RenderedTurns:
    """The first half of `tokenize_turns`, which is Python's work."""
    kwargs = [{"tools": turn.tools or None, **turn.options} for turn in turns]
    marked = has_marks(tokenizer)
    asked = [turn.prompt for turn in turns]
    prompts, _ = render_conversations(tokenizer, asked, template_kwargs=kwargs, add_generation_prompt=True)
    answered = [[*turn.prompt, *turn.answer] for turn in turns]
    wholes, spans = render_conversations(tokenizer, answered, template_kwargs=kwargs, marked=marked)
    return RenderedTurns(wholes, prompts, spans if marked else None)


def encode_turns(tokenizer: Any, rendered: RenderedTurns) -> list[TokenRow]:
    """The second half, most of which a fast tokenizer does beside Python."""
    wholes, prompts, spans = rendered.wholes, rendered.prompts, rendered.spans
    # together: a prompt has most of its pieces in common with its whole conversation
    ids, found = _encode(tokenizer, wholes + prompts, spans or ())
    rows = []
    for number, (row, prompt) in enumerate(zip(ids, ids[len(wholes) :], strict=False)):
        start = _common_start(prompt, row)
        loss = _loss([(0, len(row))] if spans is None else found[number], start, len(row))
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
    template_kwargs: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> list[list[int]]:
    """Token ids of conversations under the template.

    Args:
        tokenizer: with a chat template.
        conversations: lists of messages.
        template_kwargs: what the template is told of each conversation: its `tools`, and options such as
            `enable_thinking`.
        add_generation_prompt: open the assistant's turn at the end.
    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    texts, _ = render_conversations(
        tokenizer, conversations, template_kwargs=template_kwargs, add_generation_prompt=add_generation_prompt
    )
    return _encode(tokenizer, texts)[0]


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
