"""Chat completions of any server that speaks OpenAI's API: what is asked in its dialect, and what it replied.

Servers differ in two ways that matter. Hosted reasoning models take `max_completion_tokens` in place of
`max_tokens`, and no temperature; and what a model thought stands beside its answer, in a field of one of
several names, with no answer at all where the limit fell into the thinking.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.chat.thinking import THINKING_KEYS
from handbook_utils.sampling.endpoint_client import EndpointClient, RefusedError, Watch, text_of

LOGGER = logging.getLogger("handbook_utils")
# what a server does by itself, so that not saying it changes nothing
_DEFAULTS = {"temperature": 1, "top_p": 1}
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecognized|unexpected|not permitted|not allowed", re.IGNORECASE
)


@dataclass(frozen=True)
class ChatReply:
    """What a server replied.

    Attributes:
        text: the answer; "" where there is none.
        thinking: what was thought before it, where the server tells; else "".
        reason: why it ended: "stop", "length", or another reason.
    """

    text: str
    thinking: str
    reason: str | None


@dataclass(frozen=True)
class ChatEndpoint:
    """Asks one server; learns from its refusals which fields of a request it does not take; thread-safe.

    Attributes:
        client: where the requests go.
        may_drop: fields that may be left out where the server refuses them, whatever they say.
    """

    client: EndpointClient
    may_drop: frozenset[str] = frozenset()
    _refused: set[str] = field(default_factory=set, init=False, repr=False)

    def post(self, body: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Any]:
        """Post a request for a chat completion; `watch` is told of each try, as in `EndpointClient.post`.

        Raises:
            RefusedError: the server refuses the request for what it asks.
            ModelError: as `EndpointClient.post`.
        """
        while True:
            try:
                return self.client.post("/chat/completions", self._in_dialect(body), watch)
            except RefusedError as error:
                name = self._complained_of(str(error), body)
                if name is None:
                    raise
                self._refused.add(name)

    def _in_dialect(self, body: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: value for name, value in body.items() if name not in self._refused}
        if "max_tokens" in self._refused and "max_tokens" in body:
            asked["max_completion_tokens"] = body["max_tokens"]
        return asked

    def _complained_of(self, complaint: str, body: Mapping[str, Any]) -> str | None:
        """The field that the server does not take and that can be said otherwise; None for none."""
        if not _UNSUPPORTED.search(complaint):
            return None
        named = [name for name in body if re.search(rf"(?<![\w]){name}(?![\w])", complaint)]
        for name in named:
            if name in self._refused:
                continue
            if name == "max_tokens" or _DEFAULTS.get(name) == body[name]:
                return name
            if name in self.may_drop:
                LOGGER.warning("%s takes no '%s', so it is asked without.", self.client.url, name)
                return name
        return None


def chat_reply(content: Mapping[str, Any]) -> ChatReply:
    """What a chat completion says.

    Raises:
        RefusedError: it is none, or the model refused by the server's own field for that.
    """
    try:
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        said = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RefusedError(
            f"the server's answer is no chat completion ({type(error).__name__}: {error})"
        ) from None
    if isinstance(message.get("refusal"), str) and not said:
        raise RefusedError(f"the model refused: {message['refusal'][:200]}")
    thinking = next((_joined(message[name]) for name in THINKING_KEYS if message.get(name)), "")
    if isinstance(said, list):  # parts, of which some may be thinking
        parts = [part for part in said if isinstance(part, dict)]
        thinking = thinking or "".join(_joined(part.get("thinking")) for part in parts)
        said = "".join(_joined(part.get("text")) for part in parts)
    if not isinstance(said, str | None):
        raise RefusedError(f"the server's answer is no text, but {type(said).__name__}")
    return ChatReply(text_of(said or ""), text_of(thinking), reason)


def _joined(value: Any) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(value, list):
        return "".join(_joined(part.get("text") if isinstance(part, dict) else part) for part in value)
    return value if isinstance(value, str) else ""
