"""A call of a tool is learned as the template writes it, whatever notation its arguments came in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handbook_utils.chat.loss_masks import split_turns, tokenize_turns
from handbook_utils.data.formats import normalise_rows
from handbook_utils.records import with_text_arguments
from tests.chat_templates import build_tokenizer, trl_templates

ARGUMENTS = {"city": "Oslo", "days": [1, 2.5], "note": 'say "hi"', "unit": None}
TOOL = {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object", "properties": {}}}


def learned(template: str, arguments: Any, **call: Any) -> str:
    """The text that carries loss where a call with these arguments is learned."""
    calling = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "function": {"name": "get_weather"}}],
    }
    calling["tool_calls"][0]["function"]["arguments"] = arguments
    row = {"messages": [{"role": "user", "content": "Is it warm?"}, calling], "tools": [TOOL]}
    (made,) = normalise_rows([row], kind="conversation")
    tokenizer = build_tokenizer(template)
    (tokens,) = tokenize_turns(
        tokenizer, split_turns([*made["prompt"], *made["completion"]], tools=made["tools"])
    )
    kept = [token for token, counts in zip(tokens.ids, tokens.loss, strict=True) if counts]
    return str(tokenizer.decode(kept))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "deepseek_r1_distill",
            "deepseekv3",
            "gemma4",
            "glm4moe",
            "gptoss",
            "lfm2_2_5",
            "llama3_1",
            "llama3_2",
        ),
        *("nemotron_3_nano", "qwen2_5", "qwen3", "qwen3_5_think", "qwen3_8"),
    ],
)
def test_arguments_as_json_text_are_learned_as_the_object_that_they_hold(name: str) -> None:
    template = trl_templates()[name].read_text(encoding="utf-8")
    text = learned(template, json.dumps(ARGUMENTS), id="call_123456", type="function")
    assert text == learned(template, ARGUMENTS, id="call_123456", type="function")
    assert "get_weather" in text
    assert "Oslo" in text
    assert '\\"city' not in text  # quoted once more
    assert "{'city" not in text  # as Python prints it


PRINTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }} {{ c.function.arguments }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_that_would_print_an_object_as_python_does_is_given_json() -> None:
    assert learned(PRINTS, ARGUMENTS) == f"get_weather {json.dumps(ARGUMENTS)}<|end|>"
    assert learned(PRINTS, {}) == "get_weather {}<|end|>"


def test_servers_are_given_arguments_as_text_and_messages_are_not_changed() -> None:
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "a", "arguments": {"b": 1}}}],
    }
    (sent,) = with_text_arguments([message])
    assert sent["tool_calls"][0]["function"]["arguments"] == '{"b": 1}'
    assert message["tool_calls"] == [{"function": {"name": "a", "arguments": {"b": 1}}}]
