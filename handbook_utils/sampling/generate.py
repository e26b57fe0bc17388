"""Answers to conversations: the chat template once, the engine, and text again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_utils.errors import DataError, ModelError, TemplateError
from handbook_utils.records import Completion, Message
from handbook_utils.sampling.engines.transformers import (
    Progress,
    SampledTokens,
    SamplingSettings,
    TokenPrompt,
    sample_tokens,
)

Prompt = tuple[str, list[Message]]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows_per_batch: int = 512,
    progress: Progress | None = None,
) -> list[Completion]:
    """Sample `n` answers to each prompt.

    The noise of a token is named by (seed, prompt id, sample index, step): the same prompt gets the same
    answers in any batch, order or process, up to rounding of the logits. `logprob` is that of the drawn
    tokens at temperature 1 and without top-p, the end-of-turn token included where it was drawn, so it
    is the policy's own log-probability whatever the settings.

    Args:
        model: a causal language model.
        tokenizer: with a chat template.
        prompts: (prompt id, messages); ids must be distinct.
        n: answers a prompt.
        max_new_tokens: answers are cut here, with finish_reason "length".
        temperature: 0 takes the likeliest token at each step (`model.generate(do_sample=False)`).
        top_p: nucleus; no top-k is ever applied.
        seed: of the noise.
        rows_per_batch: answers decoded at once; lower it when memory runs out.
        progress: called after each step with (new tokens, newly finished answers).
    Returns:
        In order of prompts, then sample index.
    Raises:
        DataError: no prompts, a repeated id, or a prompt too long for the model.
        TemplateError: the tokenizer has no chat template, or no end-of-turn token is known.
        ModelError: the model cannot be decoded from.
    """
    settings = SamplingSettings(n, max_new_tokens, temperature, top_p, seed, rows_per_batch)
    token_prompts = tokenize_prompts(tokenizer, prompts)
    _check_lengths(model, token_prompts, max_new_tokens)
    stop_ids = stop_token_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    sampled = sample_tokens(
        model, token_prompts, settings=settings, stop_ids=stop_ids, pad_id=pad_id, progress=progress
    )
    texts = _texts(tokenizer, sampled)
    messages = dict(prompts)
    return [
        Completion(
            row.prompt_id,
            row.sample_index,
            messages[row.prompt_id],
            text,
            len(row.token_ids),
            row.finish_reason,
            row.logprob,
        )
        for row, text in zip(sampled, texts, strict=True)
    ]


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[TokenPrompt]:
    """Render each conversation with the chat template, generation prompt included, and tokenise it.

    The template writes the special tokens itself, so none are added a second time.
    """
    if not prompts:
        raise DataError("there are no prompts to answer. Check the data's `split`.")
    repeated = [prompt_id for prompt_id, times in Counter(name for name, _ in prompts).items() if times > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} prompt ids occur more than once, such as '{repeated[0]}'; their samples could "
            "not be told apart. Drop the repeated prompts or give them ids of their own."
        )
    if not tokenizer.chat_template:
        raise TemplateError(
            "the tokenizer has no chat template, so prompts cannot be rendered. Use a tokenizer that has "
            "one, such as that of an SFT run, or set `tokenizer.chat_template`."
        )
    encoded: Any = tokenizer.apply_chat_template(
        [messages for _, messages in prompts], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return [
        TokenPrompt(name, list(ids)) for (name, _), ids in zip(prompts, encoded["input_ids"], strict=True)
    ]


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a turn: the tokenizer's, and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    stops = frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)
    if not stops:
        raise TemplateError(
            "neither the tokenizer nor the model's generation config names an end-of-turn token, so no "
            "answer could end. Set `tokenizer.eos_token` to the token that closes an answer in the template."
        )
    return stops


def _check_lengths(model: PreTrainedModel, prompts: Sequence[TokenPrompt], max_new_tokens: int) -> None:
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    positions = getattr(model.config, "max_position_embeddings", None)
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if positions is not None and len(longest.token_ids) + max_new_tokens > positions:
        raise DataError(
            f"prompt '{longest.prompt_id}' has {len(longest.token_ids)} tokens; with max_new_tokens="
            f"{max_new_tokens} that is beyond the model's {positions} positions. Lower max_new_tokens or "
            "leave out prompts this long."
        )


def _texts(tokenizer: PreTrainedTokenizerBase, sampled: Sequence[SampledTokens]) -> list[str]:
    answers = [row.token_ids[:-1] if row.finish_reason == "stop" else row.token_ids for row in sampled]
    texts: list[str] = tokenizer.batch_decode(
        answers, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts
