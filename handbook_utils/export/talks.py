"""Conversations that tell one chat template from another, as token ids of a run, an export or a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handbook_utils.chat.loss_masks import encode_conversations
from handbook_utils.chat.probes import turn
from handbook_utils.errors import TemplateError

Messages = list[dict[str, Any]]
# short, so that models of few positions take them; each is about something else that templates differ in
TALKS: Mapping[str, Messages] = {
    "question": [turn("user", "Name a red fruit.")],
    "system and question": [turn("system", "Answer in one word."), turn("user", "Name a red fruit.")],
    "second question": [
        turn("user", "Name a red fruit."),
        turn("assistant", "Cherry."),
        turn("user", "And a green one?"),
    ],
    "system and second question": [
        turn("system", "Answer in one word."),
        turn("user", "Name a red fruit."),
        turn("assistant", "Cherry."),
        turn("user", "And a green one?"),
    ],
    "spaces and lines around": [turn("user", "  two spaces, two lines\n\n")],
    "lines within": [turn("user", "def f(x):\n    return x + 1\n\nWhat does f do?")],
    "other scripts": [turn("user", "Wo liegt Köln? 東京は? 🙂")],
    "system of lines": [
        turn("system", "Rules:\n- one word\n- no thanks\n"),
        turn("user", "Name a red fruit."),
    ],
    "third question": [
        turn("system", "Be brief."),
        turn("user", "Say one."),
        turn("assistant", "One."),
        turn("user", "Say two."),
        turn("assistant", "Two."),
        turn("user", "Say three."),
    ],
    "empty system": [turn("system", ""), turn("user", "Name a red fruit.")],
}


@dataclass(frozen=True)
class Prompts:
    """What a tokenizer makes of the conversations.

    Attributes:
        ids: by the conversation's name, the prompt's token ids, with the assistant's turn opened.
        refused: by name, why the chat template takes no such conversation.
    """

    ids: Mapping[str, list[int]]
    refused: Mapping[str, str]


def prompts_of(tokenizer: Any) -> Prompts:
    """Each conversation as the prompt of an answer, as training rendered it.

    Args:
        tokenizer: with a chat template.
    """
    ids: dict[str, list[int]] = {}
    refused: dict[str, str] = {}
    for name, messages in TALKS.items():
        try:
            ids[name] = encode_conversations(tokenizer, [messages], add_generation_prompt=True)[0]
        except TemplateError as error:
            refused[name] = str(error)
    return Prompts(ids, refused)
