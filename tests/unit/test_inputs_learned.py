"""The tokens that carry loss, of files as other tools write them: what is meant to be learned, and no more.

Each case stands beside a control: a row of nearly the same look that has to stay what it is.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_utils import load_dataset
from handbook_utils.chat.loss_masks import tokenize_turns
from handbook_utils.training.rows.tokenized import turn_of
from tests.chat_templates import UNMARKED, tokenizer_of

END = "<|end|>"
THINKS = UNMARKED.replace(
    "{{ message['content'] + '<|end|>' }}{% else %}",
    "{{ '<think>' + message.reasoning_content + '</think>' if message.reasoning_content }}"
    "{{ message['content'] + '<|end|>' }}{% else %}",
)
CALLS = UNMARKED.replace(
    "{{ message['content'] + '<|end|>' }}{% else %}",
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}<|end|>{% else %}",
)
ASK, PEAR = {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Pear."}
WRONG = {"role": "assistant", "content": "Stone."}
AGAIN, GREEN = {"role": "user", "content": "Its colour?"}, {"role": "assistant", "content": "Green."}
HUMAN, GPT = {"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "Pear."}
OSLO = {"city": "Oslo"}


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


# name: (template, row, (prompt that is seen, text with loss) of each answer)
Learned = list[tuple[str, str]]
CASES: dict[str, tuple[str, dict[str, Any], Learned]] = {
    "weight 0": (
        UNMARKED,
        {"messages": [ASK, {**WRONG, "weight": 0}, AGAIN, {**GREEN, "weight": 1}]},
        [(f"Name a fruit.{END}<|assistant|>Stone.{END}<|user|>Its colour?", "Green.")],
    ),
    "weight 1": (
        UNMARKED,
        {"messages": [ASK, {**PEAR, "weight": 1}, AGAIN, {**GREEN, "weight": 1}]},
        [("Name a fruit.", "Pear."), ("Its colour?", "Green.")],
    ),
    "train: false": (
        UNMARKED,
        {"messages": [ASK, {**WRONG, "train": False}, AGAIN, {**GREEN, "train": True}]},
        [("Its colour?", "Green.")],
    ),
    "thinking beside the answer": (
        THINKS,
        {"messages": [ASK, {**PEAR, "thinking": "A fruit."}]},
        [("Name a fruit.", "<think>A fruit.</think>Pear.")],
    ),
    "no thinking": (THINKS, {"messages": [ASK, {**PEAR, "thinking": None}]}, [("Name a fruit.", "Pear.")]),
    "a speaker who calls": (
        CALLS,
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": OSLO})},
                {"from": "observation", "value": "cold"},
                GPT,
            ]
        },
        [("Name a fruit.", 'weather({"city": "Oslo"})'), ("cold", "Pear.")],
    ),
    "an answer that is JSON": (
        CALLS,
        {"conversations": [HUMAN, {**GPT, "value": json.dumps({"name": "weather", "arguments": OSLO})}]},
        [("Name a fruit.", '{"name": "weather", "arguments": {"city": "Oslo"}}')],
    ),
    "earlier turns": (
        UNMARKED,
        {"instruction": "Its colour?", "output": "Green.", "history": [["Name a fruit.", "Pear."]]},
        [("Name a fruit.", "Pear."), (f"Pear.{END}<|user|>Its colour?", "Green.")],
    ),
    "no earlier turns": (
        UNMARKED,
        {"instruction": "Its colour?", "output": "Green.", "history": []},
        [("Its colour?", "Green.")],
    ),
    "arguments as text": (
        CALLS,
        {"messages": [ASK, call(json.dumps(OSLO))]},
        [("", 'weather({"city": "Oslo"})')],
    ),
    "arguments as an object": (CALLS, {"messages": [ASK, call(OSLO)]}, [("", 'weather({"city": "Oslo"})')]),
    "text in an argument": (
        CALLS,
        {"messages": [ASK, call({"city": '{"a": 1}'})]},
        [("", r'weather({"city": "{\"a\": 1}"})')],
    ),
    "text in parts": (
        UNMARKED,
        {"messages": [{**ASK, "content": parts("Name a fruit.")}, {**PEAR, "content": parts("Pear.")}]},
        [("Name a fruit.", "Pear.")],
    ),
    "a prompt that is a transcript": (
        UNMARKED,
        {
            "prompt": "\n\nHuman: Name a fruit.\n\nAssistant: Pear.\n\nHuman: Its colour?\n\nAssistant:",
            "completion": " Green.",
        },
        [(f"Name a fruit.{END}<|assistant|>Pear.{END}<|user|>Its colour?", "Green.")],
    ),
    "a prompt that speaks of one": (
        UNMARKED,
        {"prompt": "Human: a noun. Its plural?", "completion": "Humans."},
        [("Human: a noun. Its plural?", "Humans.")],
    ),
    "a ranking of messages": (
        UNMARKED,
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "Stone."}},
        [("Name a fruit.", "Pear."), ("Name a fruit.", "Stone.")],
    ),
    "openai's preferences": (
        UNMARKED,
        {"input": {"messages": [ASK]}, "preferred_output": [PEAR], "non_preferred_output": [WRONG]},
        [("Name a fruit.", "Pear."), ("Name a fruit.", "Stone.")],
    ),
    "openai's preferences with tools": (
        "{{ tools[0].function.name if tools }}" + UNMARKED,
        {
            "input": {"messages": [ASK], "tools": [{"type": "function", "function": {"name": "weather"}}]},
            "preferred_output": [PEAR],
            "non_preferred_output": [WRONG],
        },
        [("weather<|user|>Name a fruit.", "Pear."), ("weather<|user|>Name a fruit.", "Stone.")],
    ),
    "a prompt that is a request": (
        UNMARKED,
        {"prompt": '{"messages": [], "n": 1}', "chosen": "Pear.", "rejected": "Stone."},
        [('<|user|>{"messages": [], "n": 1}', "Pear."), ('{"messages": [], "n": 1}', "Stone.")],
    ),
    "a plain pair": (
        UNMARKED,
        {"prompt": "Name a fruit.", "chosen": "Pear.", "rejected": "Stone."},
        [("Name a fruit.", "Pear."), ("Name a fruit.", "Stone.")],
    ),
}


def as_jsonl(row: dict[str, Any], folder: Path) -> Path:
    file = folder / "a.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return file


def as_parquet(row: dict[str, Any], folder: Path) -> Path:
    """Beside a row with other arguments, whose keys the table fills in."""
    file = folder / "a.parquet"
    called = [c["function"]["arguments"] for m in row.get("messages", ()) for c in m.get("tool_calls", ())]
    other = [{"messages": [ASK, call({"day": "today", "hours": [1, 2]})]}]
    rows = [row, *(other if any(isinstance(arguments, dict) for arguments in called) else [])]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def as_csv(row: dict[str, Any], folder: Path) -> Path:
    file = folder / "a.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(row))
        writer.writeheader()
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return file


@pytest.mark.filterwarnings("ignore:.*tool calls or schemas have nulls")
@pytest.mark.parametrize("write", [as_jsonl, as_parquet, as_csv])
@pytest.mark.parametrize("name", CASES)
def test_the_tokens_that_carry_loss_are_those_that_are_meant(name: str, write: Any, tmp_path: Path) -> None:
    template, row, expected = CASES[name]
    tokenizer = tokenizer_of(template)
    kind: Any = "conversation" if len({"chosen", "preferred_output"} & row.keys()) == 0 else "preference"
    rows = list(load_dataset(str(write(row, tmp_path)), kind=kind))
    turns = [
        turn_of(one, column)
        for one in rows
        for column in ("completion", "chosen", "rejected")
        if column in one
    ]
    found = []
    for tokens in tokenize_turns(tokenizer, turns)[: len(expected)]:
        learned = [token for token, counts in zip(tokens.ids, tokens.loss, strict=True) if counts]
        found.append((tokenizer.decode(tokens.ids[: tokens.start]), tokenizer.decode(learned)))
    for (prompt, learned), (seen, text) in zip(found, expected, strict=True):
        assert learned == text + END
        assert prompt.endswith(f"{seen}{END}<|assistant|>")
    if write is not as_parquet:
        assert len(turns) == len(expected)
