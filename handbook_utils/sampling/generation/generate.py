"""Answers to conversations by a transformers model: the chat template once, the decode loop, text again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_utils.errors import ModelError, TemplateError
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.records import Completion
from handbook_utils.sampling.generation.engines.interface import Answers, Progress, Prompt, SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import SampledTokens, sample_tokens
from handbook_utils.sampling.generation.rendering import FittedPrompts, LongPrompts, fit_prompts
from handbook_utils.sampling.generation.speculative import Speculation, Watch


@naming_untested_versions
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows_per_batch: int = 512,
    progress: Progress | None = None,
) -> list[Completion]:
    """Sample answers to each prompt.

    The noise of a token is named by (seed, prompt id, sample index, step): the same prompt gets the same
    answers in any batch, order or process, up to rounding of the logits. `logprob` is that of the drawn
    tokens at temperature 1 and without top-p, the end-of-turn token included where it was drawn, so it
    is the policy's own log-probability whatever the settings.

    Args:
        model: a causal language model.
        tokenizer: with a chat template.
        prompts: (prompt id, messages); ids must be distinct.
        samples: answers per prompt.
        max_new_tokens: answers are cut here, with finish_reason "length".
        temperature: 0 takes the likeliest token at each step (`model.generate(do_sample=False)`).
        top_p: nucleus; no top-k is ever applied.
        seed: of the noise.
        rows_per_batch: answers decoded at once; lower it when memory runs out.
        progress: called after each step with (new tokens, newly finished answers).
    Returns:
        In order of prompts, then sample index.
    Raises:
        DataError: no prompts, a repeated id, a prompt too long for the model, or `samples` below 1.
        TemplateError: the tokenizer has no chat template, or no end-of-turn token is known.
        ModelError: the model cannot be decoded from.
    """
    settings = SamplingSettings(samples, max_new_tokens, temperature, top_p, seed, rows_per_batch)
    return TransformersEngine(model, tokenizer).answer(prompts, settings, progress=progress).completions


@dataclass(frozen=True)
class TransformersEngine:
    """The engine that needs nothing else installed: a transformers model in this process.

    Attributes:
        model: a causal language model.
        tokenizer: with a chat template.
        long_prompts: what becomes of prompts beyond the model's window.
        speculation: stops answers that begin badly; they are marked, the others are as without it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    long_prompts: LongPrompts = "error"
    speculation: Speculation | None = None

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, *, progress: Progress | None = None
    ) -> Answers:
        """Sample answers to each prompt; see `generate`."""
        if self.speculation is not None:
            self.speculation.check(settings)
        if settings.max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be at least 1, got {settings.max_new_tokens}.")
        fitted = fit_prompts(
            self.tokenizer,
            prompts,
            positions=getattr(self.model.config, "max_position_embeddings", None),
            max_new_tokens=settings.max_new_tokens,
            long_prompts=self.long_prompts,
        )
        watch = None if self.speculation is None else Watch(self.speculation, self.tokenizer, fitted)
        sampled = sample_tokens(
            self.model,
            fitted.tokens,
            settings=settings,
            stop_ids=stop_token_ids(self.model, self.tokenizer),
            progress=progress,
            watch=watch,
        )
        answers = answers_of(self.tokenizer, fitted, sampled)
        return answers if watch is None else replace(answers, scored_tokens=watch.scored_tokens)


def answers_of(
    tokenizer: PreTrainedTokenizerBase, fitted: FittedPrompts, sampled: Sequence[SampledTokens]
) -> Answers:
    """Sampled tokens as completions; a stop token at the end is counted, and left out of the text."""
    if not sampled:  # every prompt was skipped, and decoding no rows gives one empty text
        return Answers([], fitted.skipped, fitted.shortened)
    tokens = [row.token_ids[:-1] if row.finish_reason == "stop" else row.token_ids for row in sampled]
    texts: list[str] = tokenizer.batch_decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    messages = dict(fitted.prompts)
    completions = [
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
    return Answers(completions, fitted.skipped, fitted.shortened)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a turn: the tokenizer's, and those of the model's generation config."""
    return stop_ids_of(getattr(model.generation_config, "eos_token_id", None), tokenizer)


def stop_ids_of(configured: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a turn: those configured for the model, and the tokenizer's.

    Raises:
        TemplateError: there are none.
    """
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    stops = frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)
    if not stops:
        raise TemplateError(
            "neither the tokenizer nor the model's generation config names an end-of-turn token, so no "
            "answer could end. Set `tokenizer.eos_token` to the token that closes an answer in the template."
        )
    return stops
