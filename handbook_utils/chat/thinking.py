"""The thinking beside an answer: the names it has anywhere, and the one that a chat template reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

# in messages, as templates know them: of DeepSeek, Qwen and GLM; of gpt-oss; of Gemma. Of servers, vLLM and
# DeepSeek say the first; OpenRouter, Ollama and newer vLLM say the last
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
# what a part of a content is called, or its type, where it is thinking
THINKING_PARTS = (*THINKING_KEYS, "reasoningContent", "thought", "think")
# in messages, in a form that no template reads
UNREAD_THINKING = ("reasoning_details", "thinking_blocks", "thought", "thoughts", "reasoning_text")


def thinking_of(message: Mapping[str, Any]) -> str:
    """The text of an answer's thinking; "" where it has none beside its content.

    >>> thinking_of({"role": "assistant", "content": "84", "thinking": "70 + 14."})
    '70 + 14.'
    """
    return next((str(message[key]) for key in THINKING_KEYS if message.get(key)), "")


@lru_cache(maxsize=16)
def thinking_keys_read(template: str) -> tuple[str, ...]:
    """The names under which a template looks for a message's thinking.

    >>> thinking_keys_read("{{ message.reasoning_content }}{% if thinking %}{% endif %}")
    ('reasoning_content',)
    """
    return tuple(key for key in THINKING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template))


def under_names_read(template: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose thinking has a name that the template reads; as they are where it reads none."""
    known = thinking_keys_read(template)
    return [_renamed(message, known) for message in messages]


def _renamed(message: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    own = next((key for key in THINKING_KEYS if message.get(key)), None)
    if own is None or not known or own in known:
        return dict(message)
    return {(known[0] if key == own else key): value for key, value in message.items()}
