"""What a server says of a conversation: tokens of the prompt, its answer, and log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from handbook_utils.errors import ModelError, RecipeError, suggest
from handbook_utils.sampling.chat_endpoint import ChatEndpoint, chat_reply
from handbook_utils.sampling.endpoint_client import EndpointClient, RefusedError
from handbook_utils.schema.engines import checked_url

# asked for, and done without where a server does not know them: vLLM sends ids, most others do not
OPTIONAL = frozenset({"return_token_ids", "logprobs"})


@dataclass(frozen=True)
class Reply:
    """What a server says of one conversation.

    Attributes:
        prompt_tokens: how many tokens it made of it.
        prompt_ids: those tokens; None where it does not say.
        text: its answer.
        ids: tokens of the answer; None where it does not say.
        logprobs: of each token of the answer, natural log; None where it does not say.
        ended: whether the model ended the answer, and not the limit.
    """

    prompt_tokens: int
    prompt_ids: Sequence[int] | None
    text: str
    ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    ended: bool


def client_for(url: str, *, key: str | None, timeout_s: float, attempts: int) -> EndpointClient:
    """A client of a server.

    Raises:
        RecipeError: the address is none.
    """
    try:
        address = checked_url(url)
    except ValueError as error:
        raise RecipeError(f"--url: {error}") from None
    return EndpointClient(address, key, timeout_s, attempts)


def served_model(client: EndpointClient, wanted: str | None) -> str:
    """The name that the server knows its model by: the one that is wanted, or its only one.

    Raises:
        ModelError: the server cannot be reached, or lists none.
        RecipeError: it serves several, so one has to be named.
    """
    if wanted is not None:
        return wanted
    try:
        listed = client.get("/models").get("data")
        names = [str(entry["id"]) for entry in listed] if isinstance(listed, list) else []
    except (RefusedError, KeyError, TypeError) as error:
        raise ModelError(
            f"{client.url}: does not list its models ({error}). Name one with --model."
        ) from None
    if len(names) == 1:
        return names[0]
    if not names:
        raise ModelError(f"{client.url}: lists no model. Name one with --model, as the server knows it.")
    raise RecipeError(
        f"{client.url}: serves {len(names)} models. Name one with --model. {suggest('', names)}"
    )


def ask(endpoint: ChatEndpoint, model: str, messages: Sequence[Mapping[str, Any]], *, tokens: int) -> Reply:
    """Ask for the likeliest answer to a conversation.

    Args:
        endpoint: of the server, which leaves out what that does not know.
        model: its name there.
        messages: the conversation.
        tokens: of the answer, at most.
    Raises:
        RefusedError: the server refuses it, or its reply counts no tokens of the prompt.
        ModelError: as `EndpointClient.post`.
    """
    body = {
        "model": model,
        "messages": list(messages),
        "max_tokens": tokens,
        "temperature": 0.0,
        "logprobs": True,
        "return_token_ids": True,
    }
    return reply_of(endpoint.post(body))


def reply_of(content: Mapping[str, Any]) -> Reply:
    """A chat completion as what is compared of it.

    Raises:
        RefusedError: it is none, or counts no tokens of the prompt.
    """
    said = chat_reply(content)
    choice = content["choices"][0]
    usage = content.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if type(count) is not int or count < 1:
        raise RefusedError(
            f"the server says that the prompt has {count!r:.40} tokens, so nothing can be compared"
        )
    logprobs = choice.get("logprobs")
    listed = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return Reply(
        prompt_tokens=count,
        prompt_ids=_ids(content.get("prompt_token_ids")),
        text=said.text,
        ids=_ids(choice.get("token_ids")),
        logprobs=_numbers(listed),
        ended=said.reason == "stop",
    )


def _ids(value: Any) -> list[int] | None:
    is_ids = isinstance(value, list) and value and all(type(number) is int for number in value)
    return list(value) if is_ids else None


def _numbers(listed: Any) -> list[float] | None:
    """Log-probabilities, each a finite number; None where anything else is among them."""
    if not isinstance(listed, list) or not listed:
        return None
    values = [entry.get("logprob") if isinstance(entry, Mapping) else None for entry in listed]
    known = [float(value) for value in values if isinstance(value, int | float) and isfinite(value)]
    return known if len(known) == len(values) else None
