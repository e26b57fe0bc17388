"""vLLM in this process (extra `vllm`): the same answers' distribution, many times as fast on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handbook_utils.errors import MissingDependencyError, ModelError
from handbook_utils.models.load import load_tokenizer
from handbook_utils.models.places import is_adapter, resolve_model
from handbook_utils.sampling.generation.engines.interface import Answers, Progress, Prompt, SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import SampledTokens
from handbook_utils.sampling.generation.generate import answers_of, stop_ids_of
from handbook_utils.sampling.generation.rendering import LongPrompts, TokenPrompt, fit_prompts
from handbook_utils.sampling.noise import request_seed
from handbook_utils.schema.engines import VllmSection
from handbook_utils.schema.sections import ModelSection


@dataclass(frozen=True)
class VllmEngine:
    """Answers by `vllm.LLM`; we render the prompt, so the chat template is applied once.

    Attributes:
        llm: a `vllm.LLM`.
        tokenizer: with a chat template.
        stop_ids: tokens that end an answer.
        long_prompts: what becomes of prompts beyond the model's window.
    """

    llm: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    long_prompts: LongPrompts = "error"

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, *, progress: Progress | None = None
    ) -> Answers:
        """Sample answers to each prompt; vLLM keeps the states of a prompt for all its samples."""
        fitted = fit_prompts(
            self.tokenizer,
            prompts,
            positions=self.llm.llm_engine.model_config.max_model_len,
            max_new_tokens=settings.max_new_tokens,
            long_prompts=self.long_prompts,
        )
        streams = [(prompt, index) for prompt in fitted.tokens for index in range(settings.samples)]
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt.token_ids} for prompt, _ in streams],
            [self._parameters(prompt, index, settings) for prompt, index in streams],
            use_tqdm=False,
        )
        sampled = [
            _sampled(prompt, index, output.outputs[0])
            for (prompt, index), output in zip(streams, outputs, strict=True)
        ]
        if progress is not None:
            progress(sum(len(row.token_ids) for row in sampled), len(sampled))
        return answers_of(self.tokenizer, fitted, sampled)

    def _parameters(self, prompt: TokenPrompt, index: int, settings: SamplingSettings) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,  # no top-k
            max_tokens=settings.max_new_tokens,
            seed=request_seed("vllm", settings.seed, prompt_id=prompt.prompt_id, stream=index),
            stop_token_ids=sorted(self.stop_ids),
            logprobs=0,  # of the drawn token only
            detokenize=False,
        )


def _sampled(prompt: TokenPrompt, index: int, output: Any) -> SampledTokens:
    tokens = list(output.token_ids)
    return SampledTokens(
        prompt.prompt_id, index, tokens, output.finish_reason, float(output.cumulative_logprob)
    )


def load_vllm(
    section: VllmSection, model: ModelSection, location: str, *, long_prompts: LongPrompts
) -> VllmEngine:
    """Load a model into vLLM.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ModelError: the model is an adapter, or is to be quantised.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise MissingDependencyError(
            "`engine.kind: vllm` needs vLLM, which is not installed: pip install 'handbook-utils[vllm]'. "
            "It needs a GPU; without one use the engine `transformers`, or an endpoint."
        ) from error
    place = resolve_model(location, revision=model.revision)
    if is_adapter(place):
        raise ModelError(f"{location}: an adapter. Merge it first: handbook merge {location} --out FOLDER.")
    if model.quantization in ("int8", "nf4"):
        raise ModelError(f"{location}: vLLM does not quantise by bitsandbytes here. Set quantization: none.")
    llm = LLM(
        model=place,
        revision=model.revision,
        dtype=model.dtype,
        trust_remote_code=False,
        tensor_parallel_size=section.tensor_parallel,
        gpu_memory_utilization=section.gpu_memory_utilization,
        enable_prefix_caching=True,
        generation_config="vllm",  # not the repository's own temperature, top-k and top-p
        logprobs_mode="raw_logprobs",  # at temperature 1 and without top-p
    )
    tokenizer = load_tokenizer(location, revision=model.revision)
    configured = llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
    return VllmEngine(llm, tokenizer, stop_ids_of(configured, tokenizer), long_prompts)
