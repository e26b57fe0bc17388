"""Small conversations of every shape, and what a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from handbook_utils.chat.loss_masks import TokenRow, Turn, encode_conversations, tokenize_turns
from handbook_utils.chat.render import REFUSALS
from handbook_utils.errors import TemplateError

SYSTEM, QUESTION, ANSWER = "Answer in one sentence.", "What is in the red box?", "There is a small key in it."
SECOND_QUESTION, SECOND_ANSWER = "And in the blue box?", "Nothing but dust."
THOUGHT_SAYS: Final = "The user asks about boxes."
THOUGHT: Final = f"<think>\n{THOUGHT_SAYS}\n</think>\n\n"
PLACE, RESULT, TOOL_SAYS = "Reykjavik", "17 degrees", "Tells how warm it is somewhere."

TOOLS: Final[list[dict[str, Any]]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": TOOL_SAYS,
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "A town."}},
                "required": ["place"],
            },
        },
    }
]


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content, **more}


ONE_TURN: Final = [turn("user", QUESTION), turn("assistant", ANSWER)]
WITH_SYSTEM: Final = [turn("system", SYSTEM), *ONE_TURN]
TWO_TURNS: Final = [*ONE_TURN, turn("user", SECOND_QUESTION), turn("assistant", SECOND_ANSWER)]
THINKING: Final = [
    turn("user", QUESTION),
    turn("assistant", THOUGHT + ANSWER),
    turn("user", SECOND_QUESTION),
    turn("assistant", THOUGHT + SECOND_ANSWER),
]


def with_tool(arguments: Any) -> list[dict[str, Any]]:
    """A conversation with a call of a tool, its result and an answer."""
    call = {
        "id": "abcdef123",
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }
    return [
        turn("user", QUESTION),
        turn("assistant", "", tool_calls=[call]),
        turn("tool", RESULT, name="get_weather", tool_call_id="abcdef123"),
        turn("assistant", ANSWER),
    ]


WITH_TOOL: Final = with_tool({"place": PLACE})
SHAPES: Final = (ONE_TURN, WITH_SYSTEM, TWO_TURNS, THINKING, WITH_TOOL)


class TemplateProbe:
    """A tokenizer under test. Every method raises TemplateError where the template refuses a conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def ids(self, messages: Sequence[Any], *, prompt: bool = False) -> list[int]:
        """Token ids; with `prompt` the assistant's turn is opened at the end."""
        return encode_conversations(self.tokenizer, [messages], add_generation_prompt=prompt)[0]

    def text(self, messages: Sequence[Any], *, tools: Any = None, prompt: bool = False) -> str:
        """The rendered text."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=prompt, tokenize=False
            )
        except REFUSALS as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return text

    def row_of(self, messages: Sequence[Any]) -> TokenRow:
        """A conversation as a training row; its last answer is learned."""
        return tokenize_turns(self.tokenizer, [Turn(messages[:-1], messages[-1:])])[0]

    def decoded(self, ids: Sequence[int]) -> str:
        """The tokens' text."""
        return str(self.tokenizer.decode(ids))

    @cached_property
    def row(self) -> TokenRow:
        """One question, one answer."""
        return self.row_of(ONE_TURN)

    @cached_property
    def specials(self) -> dict[int, str]:
        """Tokens that stand for no text of their own: role marks, ends, padding."""
        known = self.tokenizer.added_tokens_decoder.items()
        return {number: token.content for number, token in known if token.content.strip()}

    @cached_property
    def learned(self) -> list[int]:
        """The learned tokens of the answer, without white space at their end."""
        ids = [token for token, counts in zip(self.row.ids, self.row.loss, strict=True) if counts]
        while ids and not self.decoded(ids[-1:]).strip():
            ids.pop()
        return ids

    @cached_property
    def end(self) -> int | None:
        """The token that ends an answer, where it is learned."""
        return self.learned[-1] if self.learned and self.learned[-1] in self.specials else None
