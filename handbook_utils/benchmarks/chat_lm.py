"""The harness's model, asked as in training: the chat template once, its tokens as they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from handbook_utils.chat.loss_masks import encode_conversations
from handbook_utils.errors import ModelError, TemplateError
from handbook_utils.export.talks import TALKS

# what is kept of a model's generation settings: which tokens begin, end and fill up an answer
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class TrainedLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """A model of this package as the harness takes one.

    The harness cuts white space from the end of a prompt and counts it to each choice. Behind a chat template
    that is the line break after the mark that opens an answer, so the model is asked in a form that it was
    never trained in. Here a rendered prompt stays whole, and its choices follow it.

    What a task does not say of how answers are drawn, the harness leaves to the model's own settings: with a
    repetition penalty in them its greedy answers are not the likeliest. Here the task alone decides.

    Args:
        model: a language model.
        tokenizer: of it.
        rows: per batch.
        by_template: whether questions are asked through the chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, *, rows: int, by_template: bool) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=rows,
            device=str(model.device),
            # a template writes the beginning of a text itself, as in training
            add_bos_token=False if by_template else None,
        )
        own = model.generation_config
        model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in SPECIAL})
        self.by_template = by_template
        self.cut: set[str] = set()

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Token ids of a text, as the harness asks for them."""
        wanted = False if self.by_template else add_special_tokens
        ids: list[int] = super().tok_encode(string, wanted, left_truncate_len, **options)
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.by_template:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        prompt, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        return prompt, self.tok_encode(continuation)  # no token reaches over from the prompt into an answer

    def _loglikelihood_tokens(self, requests: Any, *given: Any, **named: Any) -> Any:
        for texts, prompt, continuation in requests:  # a long text read in windows has no texts here
            if texts is not None and len(prompt) + len(continuation) > self.max_length + 1:
                self.cut.add(str(texts[0]))
        return super()._loglikelihood_tokens(requests, *given, **named)

    def tok_batch_encode(
        self, strings: Sequence[str], *given: Any, left_truncate_len: int | None = None, **named: Any
    ) -> Any:
        """Token ids of prompts; those that are cut at their beginning are counted."""
        if left_truncate_len is not None:
            self.cut |= {text for text in strings if len(self.tok_encode(text)) > left_truncate_len}
        return super().tok_batch_encode(strings, *given, left_truncate_len=left_truncate_len, **named)


def check_asked_as_trained(lm: TrainedLM, tokenizer: Any) -> int:
    """Compare prompts as the harness would send them with those of training; returns how many.

    Raises:
        ModelError: a prompt has other tokens.
    """
    compared = 0
    for name, messages in TALKS.items():
        try:
            trained = encode_conversations(tokenizer, [messages], add_generation_prompt=True)[0]
        except TemplateError:
            continue
        text = lm.apply_chat_template(messages)
        asked = lm._encode_pair(text, "An answer")[0]
        (generated,) = lm.tok_batch_encode([text])[0].tolist()
        if not asked == generated == trained:
            raise ModelError(
                f"the harness asks the conversation '{name}' as {len(asked)} tokens, training did as "
                f"{len(trained)}, so its figures would be of another model. Please report this, with the "
                "output of `handbook info`."
            )
        compared += 1
    return compared
