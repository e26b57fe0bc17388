"""The section `engine` of recipes that sample: what turns prompts into answers, and how it is reached."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from handbook_utils.redaction import looks_like_a_key
from handbook_utils.schema.sections import Section

# what the package itself says in a request, so that `extra_body` adds to it and never contradicts it
OWN_FIELDS = frozenset({"model", "messages", "max_tokens", "temperature", "top_p", "seed", "n", "stream"})
# names of this machine itself
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ADDRESS = "Write http://HOST:PORT/v1 or https://HOST/v1"


def checked_url(url: str) -> str:
    """The address without a closing slash, if it is one."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"'{url.rpartition('@')[2]}' is no address. {ADDRESS}")
    try:
        parts = urlsplit(url)
        is_whole = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or half an IPv6 address
        is_whole = False
    if not is_whole or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"'{url.rpartition('@')[2]}' is no address. {ADDRESS}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"nothing but host, port and path belongs into the address of '{parts.hostname}': a name, "
            "password or key in it would stand in every log. Put the key into a variable, and name that in "
            "`key_env`."
        )
    return url.rstrip("/")


def checked_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """Further fields of requests, if none of them contradicts what the recipe says elsewhere."""
    for name in extra:
        if name in OWN_FIELDS:
            raise ValueError(f"'{name}' follows from the recipe; set it there, not in `extra_body`.")
    return extra


def checked_variable(name: str | None) -> str | None:
    """The name of an environment variable, if it is one and not the key itself, which is not repeated."""
    if name is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or looks_like_a_key(name)):
        raise ValueError(
            "this is no name of an environment variable. Put the key itself into a variable, such as "
            "OPENAI_API_KEY, and write the variable's name here: a recipe is stored beside its results."
        )
    return name


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
    timeout_s: PositiveFloat = Field(120, description="for one try of one answer, all of it")
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
    _names_a_variable = field_validator("key_env")(checked_variable)

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
