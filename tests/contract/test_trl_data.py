"""What TRL makes of our rows: tools and calls of tools reach the template as they were written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from handbook_utils.data.load import load_dataset, to_dataset
from handbook_utils.data.row_reader import NOT_FOR_ROWS

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


@pytest.mark.parametrize(
    ("stage", "column"),
    [("sft", "input_ids"), ("dpo", "prompt_ids"), ("reward", "chosen_ids"), ("kto", "prompt_ids")],
)
def test_what_a_row_tells_its_template_reaches_it(
    stage: str,
    column: str,
    trainer_on: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = "{% if think is defined %}{{ '<|system|>' ~ think }}{% endif %}" + tiny_tokenizer.chat_template
    monkeypatch.setattr(tiny_tokenizer, "chat_template", opened)
    answers = {"sft": ["completion"], "kto": ["completion"]}.get(stage, ["chosen", "rejected"])
    row = (
        {"prompt": [ASK]}
        | {answer: [PLAIN[1]] for answer in answers}
        | ({"label": True} if stage == "kto" else {})
    )
    trainer = trainer_on(stage, to_dataset([{**row, "chat_template_kwargs": {"think": False}}, row] * 2))
    rendered = [tiny_tokenizer.decode(ids) for ids in trainer.train_dataset[column]]
    assert sum(text.startswith("<|system|>False") for text in rendered) == len(rendered) / 2 > 0


def test_no_argument_of_rendering_is_for_a_row_to_decide() -> None:
    arguments = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert arguments - {"self", "kwargs"} <= NOT_FOR_ROWS


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


@pytest.mark.parametrize(
    ("stage", "column"),
    [
        ("sft", "input_ids"),
        ("dpo", "chosen_ids"),
        ("reward", "chosen_ids"),
        ("kto", "completion_ids"),
        ("orpo", "chosen_input_ids"),
        ("cpo", "chosen_input_ids"),
    ],
)
def test_arguments_reach_the_tokens_with_all_digits_and_their_own_keys_alone(
    stage: str,
    column: str,
    trainer_on: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TOOLS_TEMPLATE)
    told = [{"tiny": 1e-12, "big": 2**70}, {"pi": 3.141592653589793, "meant": None}]
    calls = [
        {**CALL, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": each}}]}
        for each in told
    ]
    answer = "completion" if stage in ("sft", "kto") else "chosen"
    other = {"rejected": [PLAIN[1]]} if answer == "chosen" else {}
    label = {"label": True} if stage == "kto" else {}
    rows = [{"prompt": [ASK], answer: [call], "tools": TOOLS, **other, **label} for call in calls]
    if stage == "kto":
        rows[1]["label"] = False
    trainer = trainer_on(stage, to_dataset(rows))
    texts = [tiny_tokenizer.decode(ids) for ids in trainer.train_dataset[column]]
    assert [json.dumps(each) in text for each, text in zip(told, texts, strict=True)] == [True, True]
