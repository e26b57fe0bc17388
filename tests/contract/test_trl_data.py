"""What TRL makes of our rows: tools and calls of tools reach the template as they were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.data.load import load_dataset

# a template that shows tools, and would stumble over a call that is null
TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if 'tool_calls' in m %}{% for call in m['tool_calls'] %}{{ call | tojson }}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ASK = {"role": "user", "content": "2 + 2?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
}
TURNS = [ASK, CALL, {"role": "tool", "name": "add", "content": "4"}, {"role": "assistant", "content": "4"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
PLAIN = [ASK, {"role": "assistant", "content": "four"}]


def test_tools_and_their_calls_reach_the_template(
    trainer_on: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TOOLS_TEMPLATE)
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": TURNS, "tools": TOOLS}, {"messages": PLAIN}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trainer = trainer_on("sft", load_dataset(str(path), kind="conversation"))
    expected = [(TURNS[:2], TOOLS), (TURNS, TOOLS), (PLAIN, None)]
    assert [tiny_tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset] == [
        tiny_tokenizer.apply_chat_template(talk, tools=tools, tokenize=False) for talk, tools in expected
    ]
