"""Conversations as training rows: token ids, and which of them carry loss. Rendered by the chat template.

One definition for all: an answer's tokens are what the template adds behind the prompt that inference would
have given, `whole[len(prompt):]`; where the template marks what an assistant says (`{% generation %}`), only
what is inside the marks. The token that ends the turn belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handbook_utils.chat.render import REFUSALS, Span, render_conversations
from handbook_utils.chat.segment_tokenizer import encode_texts
from handbook_utils.errors import DataError, TemplateError

# how texts and the spans in them become tokens: as `segment_tokenizer.encode_texts`
Encode = Callable[[Sequence[str], Sequence[Sequence[Span]]], tuple[Sequence[Any], list[list[Span]]]]
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
        ids: (tokens,) token ids, a list or an array.
        loss: (tokens,) whether a token carries loss, as `ids`.
        start: index of the first token that differs from the inference prompt.
        prompt_tokens: length of that prompt; more than `start` where training and inference differ.
    """

    ids: Any
    loss: Any
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
    """Token ids and loss of each turn's conversation, as lists.

    Raises:
        TemplateError: the template refuses a conversation; names its place, counted from 1.
    """
    rows = encode_turns(tokenizer, render_turns(tokenizer, turns))
    return [replace(row, loss=row.loss.tolist()) for row in rows]


def render_turns(tokenizer: Any, turns: Sequence[Turn]) -> RenderedTurns:
    """The first half of `tokenize_turns`, which is Python's work."""
    kwargs = [{"tools": turn.tools or None, **turn.options} for turn in turns]
    marked = has_marks(tokenizer)
    asked = [turn.prompt for turn in turns]
    prompts, _ = render_conversations(tokenizer, asked, template_kwargs=kwargs, add_generation_prompt=True)
    answered = [[*turn.prompt, *turn.answer] for turn in turns]
    wholes, spans = render_conversations(tokenizer, answered, template_kwargs=kwargs, marked=marked)
    return RenderedTurns(wholes, prompts, spans if marked else None)


def encode_turns(tokenizer: Any, rendered: RenderedTurns, encode: Encode | None = None) -> list[TokenRow]:
    """The second half: tokens, and loss as arrays.

    Args:
        tokenizer: with the chat template.
        rendered: the turns' texts.
        encode: a `WordTokenizer`'s, which gives arrays of ids; without, they are lists.
    """
    wholes, prompts, spans = rendered.wholes, rendered.prompts, rendered.spans
    # together: a prompt has most of its pieces in common with its whole conversation
    ids, found = _encode(tokenizer, wholes + prompts, spans or (), encode)
    rows = []
    for number, (row, prompt) in enumerate(zip(ids, ids[len(wholes) :], strict=False)):
        start = _common_start(prompt, row)
        loss = _loss([(0, len(row))] if spans is None else found[number], start, len(row))
        rows.append(TokenRow(row, loss, start, len(prompt)))
    return rows


def _loss(spans: Sequence[Span], start: int, tokens: int) -> NDArray[np.bool_]:
    """Which of a row's tokens are in a span and not before `start`."""
    loss = np.zeros(tokens, np.bool_)
    for first, end in spans:
        first = max(first, start)
        loss[first:end] = True
    return loss


def _common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shared = min(len(one), len(other))
    differ = np.asarray(one[:shared]) != np.asarray(other[:shared])
    place = int(differ.argmax()) if shared else 0
    return place if shared and differ[place] else shared


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
    return list(_encode(tokenizer, texts)[0])


def _encode(
    tokenizer: Any,
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]] = (),
    encode: Encode | None = None,
) -> tuple[Sequence[Any], list[list[Span]]]:
    try:
        return encode_texts(tokenizer, texts, spans) if encode is None else encode(texts, spans)
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
        if before is None or row.start < len(before.ids) or not _begins_with(row.ids, before.ids):
            joined.append(row)
            continue
        loss = _behind(before.loss, row.loss[len(before.ids) :])
        joined[-1] = TokenRow(row.ids, loss, before.start, before.prompt_tokens)
    return joined


def _begins_with(ids: Any, first: Any) -> bool:
    return bool(np.array_equal(ids[: len(first)], first))


def _behind(before: Any, rest: Any) -> Any:
    """Two parts of a row's loss as one, a list of lists and an array of arrays."""
    return before + rest if isinstance(before, list) else np.concatenate([before, rest])
