"""The section `engine` of recipes that sample: what turns prompts into answers, and how it is reached."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from handbook_utils.schema.sections import Section

# what the package itself says in a request, so that `extra_body` adds to it and never contradicts it
OWN_FIELDS = frozenset({"model", "messages", "max_tokens", "temperature", "top_p", "seed", "n", "stream"})


def checked_url(url: str) -> str:
    """The address without a closing slash, if it is one."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"'{url}' is no address. Write http://HOST:PORT/v1 or https://HOST/v1")
    return url.rstrip("/")


def checked_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """Further fields of requests, if none of them contradicts what the recipe says elsewhere."""
    for name in extra:
        if name in OWN_FIELDS:
            raise ValueError(f"'{name}' follows from the recipe; set it there, not in `extra_body`.")
    return extra


class TransformersSection(Section):
    """The model in this process, by transformers."""

    kind: Literal["transformers"] = "transformers"


class EndpointSection(Section):
    """A server that speaks OpenAI's chat completions; `model.name` is the name it knows the model by."""

    kind: Literal["endpoint"]
    url: str = Field(description="up to /v1, such as http://localhost:8000/v1; prompts are sent there")
    key_env: str | None = Field(
        None, description="environment variable that holds the key; absent: none is sent"
    )
    timeout_s: PositiveFloat = Field(120, description="for one answer")
    attempts: PositiveInt = Field(6, description="tries of one answer before giving up")
    parallel: PositiveInt = Field(8, description="answers asked for at once")
    logprobs: bool = Field(False, description="ask for log-probabilities; not every server has them")
    thinking: Literal["keep", "drop"] = Field(
        "keep",
        description="what a server tells beside the answer: kept before it in <think> marks, or dropped",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request, such as {top_k: -1} for vLLM"
    )

    _is_http = field_validator("url")(checked_url)

    _adds_only = field_validator("extra_body")(checked_extra)


class VllmSection(Section):
    """The model in this process, by vLLM (extra `vllm`)."""

    kind: Literal["vllm"]
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory to take")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that one copy of the model is spread over")


EngineSection = Annotated[TransformersSection | EndpointSection | VllmSection, Field(discriminator="kind")]


def check_cut(recipe: Any) -> Any:
    """Raise ValueError where prompts are to be cut by an engine that cannot."""
    if recipe.long_prompts == "cut" and isinstance(recipe.engine, EndpointSection):
        raise ValueError(
            "`long_prompts: cut` needs the tokenizer, and an endpoint shows none. Take skip or error."
        )
    return recipe
