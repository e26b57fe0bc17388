"""Conversations as token ids: the chat template once, and what becomes of prompts that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from handbook_utils.chat.loss_masks import encode_conversations
from handbook_utils.errors import DataError, TemplateError
from handbook_utils.records import Message
from handbook_utils.sampling.generation.engines.interface import Prompt

LongPrompts = Literal["error", "skip", "cut"]


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids, generation prompt included."""

    prompt_id: str
    token_ids: list[int]


@dataclass
class FittedPrompts:
    """Prompts that fit the model, and what became of the others.

    Attributes:
        prompts: what is asked in the end, shortened where it had to be.
        tokens: the same as token ids.
        skipped: why a prompt was left out, by id.
        shortened: ids of prompts that were cut.
    """

    prompts: list[Prompt] = field(default_factory=list)
    tokens: list[TokenPrompt] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse no prompts, and ids that occur twice: their samples could not be told apart.

    Raises:
        DataError: one of the two.
    """
    if not prompts:
        raise DataError("there are no prompts to answer. Check the data's `split`.")
    repeated = [prompt_id for prompt_id, times in Counter(name for name, _ in prompts).items() if times > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} prompt ids occur more than once, such as '{repeated[0]}'; their samples could "
            "not be told apart. Drop the repeated prompts or give them ids of their own."
        )


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[TokenPrompt]:
    """Render each conversation with the chat template, generation prompt included, and tokenise it.

    The template writes the special tokens itself, so none are added a second time.

    Raises:
        DataError: no prompts, or a repeated id.
        TemplateError: the tokenizer has no chat template, or it refuses a conversation.
    """
    check_prompts(prompts)
    if not tokenizer.chat_template:
        raise TemplateError(
            "the tokenizer has no chat template, so prompts cannot be rendered. Use a tokenizer that has "
            "one, such as that of an SFT run, or set `tokenizer.chat_template`."
        )
    conversations = [messages for _, messages in prompts]
    encoded = encode_conversations(tokenizer, conversations, add_generation_prompt=True)
    return [TokenPrompt(name, ids) for (name, _), ids in zip(prompts, encoded, strict=True)]


def fit_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    positions: int | None,
    max_new_tokens: int,
    long_prompts: LongPrompts = "error",
) -> FittedPrompts:
    """Tokenise prompts; one that leaves no room for `max_new_tokens` is an error, left out, or cut.

    Args:
        tokenizer: with a chat template.
        prompts: with distinct ids.
        positions: the model's window in tokens; None for no limit.
        max_new_tokens: room that the answer needs.
        long_prompts: "cut" leaves out the oldest turns, then the beginning of the last message; a system
            message stays.
    Raises:
        DataError: no prompts, a repeated id, or a prompt too long where that is an error.
        TemplateError: the tokenizer has no chat template.
    """
    fitted = FittedPrompts()
    room = None if positions is None else positions - max_new_tokens
    for prompt, tokens in zip(prompts, tokenize_prompts(tokenizer, prompts), strict=True):
        if room is None or len(tokens.token_ids) <= room:
            fitted.prompts.append(prompt)
            fitted.tokens.append(tokens)
            continue
        problem = (
            f"has {len(tokens.token_ids)} tokens; with max_new_tokens={max_new_tokens} that is beyond the "
            f"model's {positions} positions"
        )
        if long_prompts == "error":
            raise DataError(
                f"prompt '{prompt[0]}' {problem}. Lower max_new_tokens, leave out prompts this long, or say "
                "in the recipe `long_prompts: skip` or `cut`."
            )
        shorter = shortened(tokenizer, prompt[1], room) if long_prompts == "cut" else None
        if shorter is None:
            fitted.skipped[prompt[0]] = problem
            continue
        fitted.prompts.append((prompt[0], shorter))
        fitted.tokens += tokenize_prompts(tokenizer, [(prompt[0], shorter)])
        fitted.shortened.append(prompt[0])
    return fitted


def shortened(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], room: int
) -> list[Message] | None:
    """The latest part of a conversation that has at most `room` tokens; None where nothing would be left."""
    kept = list(messages)
    first = 1 if kept[0]["role"] == "system" else 0
    while _excess(tokenizer, kept, room) > 0:
        later = [place for place in range(first + 1, len(kept)) if kept[place]["role"] == "user"]
        if not later:
            return _cut_last(tokenizer, kept, room)
        kept = kept[:first] + kept[later[0] :]
    return kept


def _cut_last(tokenizer: PreTrainedTokenizerBase, messages: list[Message], room: int) -> list[Message] | None:
    """Leave out the beginning of the last message, token by token as far as needed."""
    *before, last = messages
    ids = tokenizer(last["content"], add_special_tokens=False)["input_ids"]
    while ids:
        ids = ids[max(1, _excess(tokenizer, [*before, last], room)) :]
        last = Message(**{**last, "content": tokenizer.decode(ids)})
        if last["content"].strip() and _excess(tokenizer, [*before, last], room) <= 0:
            return [*before, last]
    return None


def _excess(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], room: int) -> int:
    """By how many tokens a rendered conversation is too long."""
    [rendered] = tokenize_prompts(tokenizer, [("", list(messages))])
    return len(rendered.token_ids) - room
