"""Answers from a server that speaks OpenAI's chat completions (`vllm serve`, `transformers serve`, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import isfinite
from typing import Any

from handbook_utils.errors import DataError
from handbook_utils.records import Completion, with_text_arguments
from handbook_utils.sampling.chat_endpoint import ChatEndpoint, ChatReply, chat_reply
from handbook_utils.sampling.endpoint_client import EndpointClient, RefusedError, key_from
from handbook_utils.sampling.generation.engines.interface import Answers, Progress, Prompt, SamplingSettings
from handbook_utils.sampling.generation.rendering import check_prompts
from handbook_utils.sampling.noise import request_seed
from handbook_utils.schema.engines import EndpointSection

MOST_TOKENS = 2**31 - 1  # what a table of samples holds
ROUNDING = 1e-3  # certain tokens may come out a rounding above probability 1


class EndpointEngine:
    """Asks a server for each answer by itself, several at once; the server applies its chat template.

    Every request carries a seed of its own, named by (seed, prompt id, sample index). Whether a server gives
    the same answer to the same seed is up to it. Servers have defaults of their own: `vllm serve` wants
    `extra_body: {top_k: -1}` where the model's repository names a top-k, and `transformers serve` a whole
    `generation_config` with do_sample, top_k and eos_token_id, as JSON text, or it is greedy.

    Args:
        section: where the server is, and how to ask it.
        model: its name there.
        skip_refused: leave out a prompt that the server refuses (such as one too long), with the reason;
            otherwise it is an error.
    Raises:
        RecipeError: the key is not in the environment.
    """

    def __init__(self, section: EndpointSection, model: str, *, skip_refused: bool = False) -> None:
        self._section = section
        self._model = model
        self._skip_refused = skip_refused
        self._key = key_from(section.key_env)

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, *, progress: Progress | None = None
    ) -> Answers:
        """Sample answers to each prompt.

        Raises:
            DataError: no prompts, a repeated id, or a prompt that the server refuses and that is not skipped.
            ModelError: the server cannot be reached, or gave up on us.
        """
        check_prompts(prompts)
        streams = [(prompt, index) for prompt in prompts for index in range(settings.samples)]
        section = self._section
        client = EndpointClient(section.url, self._key, section.timeout_s, section.attempts)
        endpoint = ChatEndpoint(client)

        def one(stream: tuple[Prompt, int]) -> Completion | str:
            try:
                made = self._one(endpoint, *stream, settings)
            except RefusedError as error:
                return str(error)
            if progress is not None:
                progress(made.tokens, 1)
            return made

        with closing(client), ThreadPoolExecutor(section.parallel) as pool:
            try:
                made = list(pool.map(one, streams))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return self._sorted_out(streams, made)

    def _one(
        self, endpoint: ChatEndpoint, prompt: Prompt, index: int, settings: SamplingSettings
    ) -> Completion:
        body = {
            "model": self._model,
            "messages": with_text_arguments(prompt[1]),
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": request_seed("endpoint", settings.seed, prompt_id=prompt[0], stream=index),
            **({"logprobs": True} if self._section.logprobs else {}),
            **self._section.extra_body,
        }
        return completion_of(endpoint.post(body), prompt, index, thinking=self._section.thinking)

    def _sorted_out(self, streams: Sequence[tuple[Prompt, int]], made: Sequence[Completion | str]) -> Answers:
        skipped: dict[str, str] = {}
        for (prompt, _), result in zip(streams, made, strict=True):
            if isinstance(result, str):
                if not self._skip_refused:
                    raise DataError(
                        f"prompt '{prompt[0]}' got no answer: {result}. Leave it out, or say in the recipe "
                        "`long_prompts: skip`, which leaves out what the server refuses."
                    )
                skipped.setdefault(prompt[0], result)
        kept = [row for row in made if isinstance(row, Completion) and row.prompt_id not in skipped]
        return Answers(kept, skipped)


def completion_of(
    content: dict[str, Any], prompt: Prompt, index: int, *, thinking: str = "keep"
) -> Completion:
    """One answer of the server as a completion.

    Args:
        content: what the server sent.
        prompt: its id and messages.
        index: which sample of the prompt it is.
        thinking: "keep" what a server tells beside the answer, before it between `<think>` and `</think>`, as
            engines give it that read the model's tokens; or "drop" it.
    Raises:
        RefusedError: it is not a chat completion, or was ended by something else than the model or the limit.
    """
    reply = chat_reply(content)
    try:
        tokens = content["usage"]["completion_tokens"]
        logprobs = (content["choices"][0].get("logprobs") or {}).get("content")
        logprob = None if logprobs is None else float(sum(token["logprob"] for token in logprobs))
    except (LookupError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise RefusedError(
            f"the server's answer is no chat completion ({type(error).__name__}: {error})"
        ) from None
    if type(tokens) is not int or not 0 <= tokens <= MOST_TOKENS:
        raise RefusedError(f"the server says that the answer has {tokens!r:.40} tokens")
    if logprob is not None and not (isfinite(logprob) and logprob <= ROUNDING):
        raise RefusedError(f"the server gives the answer the log-probability {logprob}, which none can have")
    if reply.reason not in ("stop", "length"):
        raise RefusedError(f"the server ended the answer for the reason '{reply.reason}'")
    has_text = content["choices"][0]["message"].get("content") is not None
    if reply.reason == "stop" and not has_text and not reply.thinking:
        raise RefusedError(f"the server sent no answer and ended for the reason '{reply.reason}'")
    text = _with_thinking(reply) if thinking == "keep" and reply.thinking else reply.text
    return Completion(prompt[0], index, prompt[1], text, tokens, reply.reason, logprob)


def _with_thinking(reply: ChatReply) -> str:
    """The thinking before the answer; it stays open where the limit fell into it.

    >>> _with_thinking(ChatReply("4", "2 + 2", "stop"))
    '<think>\\n2 + 2\\n</think>\\n\\n4'
    """
    thought = f"<think>\n{reply.thinking.strip()}"
    return f"{thought}\n</think>\n\n{reply.text}" if reply.text or reply.reason == "stop" else thought
