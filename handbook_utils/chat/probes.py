"""Small conversations of every shape, on which a chat template shows what it does."""

from __future__ import annotations

from typing import Any, Final

SYSTEM, QUESTION, ANSWER = "Answer in one sentence.", "What is in the red box?", "There is a small key in it."
SECOND_QUESTION, SECOND_ANSWER = "And in the blue box?", "Nothing but dust."
THOUGHT: Final = "<think>\nThe user asks about boxes.\n</think>\n\n"
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
