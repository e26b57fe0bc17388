"""One conversation comes out, whatever format it was written in; what cannot be read is a DataError."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.known_formats import FORMATS
from handbook_utils.data.load import load_dataset
from handbook_utils.data.recognise import KINDS
from handbook_utils.errors import DataError

# what a person may write: no lone surrogates, not only blanks; HH transcripts strip their turns
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(str.strip).filter(bool)
PLAIN = TEXTS.filter(lambda text: "Human:" not in text and "Assistant:" not in text)
EXCHANGES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


def messages(exchanges: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]


@given(exchanges=EXCHANGES, system=st.none() | TEXTS)
def test_a_conversation_is_the_same_in_every_format_it_can_be_written_in(
    exchanges: list[tuple[str, str]], system: str | None
) -> None:
    turns = messages(exchanges)
    opened = [{"role": "system", "content": system}, *turns] if system else turns
    expected = [
        {"prompt": opened[:index], "completion": [opened[index]]}
        for index, turn in enumerate(opened)
        if turn["role"] == "assistant"
    ]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[turn["role"]], "value": turn["content"]} for turn in opened]
    first, answer = exchanges[0]
    rejected = [*opened[:-1], {"role": "assistant", "content": "no"}]
    ways: list[tuple[dict[str, Any], int]] = [
        ({"messages": opened}, len(expected)),
        ({"messages": turns, "system": system}, len(expected)),
        ({"conversations": shared}, len(expected)),
        ({"prompt": first, "chosen": opened, "rejected": rejected, "messages": opened}, len(expected)),
        ({"prompt": first, "completion": answer, "system": system}, 1),
        ({"instruction": first, "output": answer, "system": system}, 1),
        ({"prompt": expected[0]["prompt"], "completion": [turns[1]]}, 1),
    ]
    for row, examples in ways:
        assert normalise_rows([row], kind="conversation") == expected[:examples]


@given(exchanges=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3), other=PLAIN)
def test_a_pair_is_the_same_in_every_format_it_can_be_written_in(
    exchanges: list[tuple[str, str]], other: str
) -> None:
    turns = messages(exchanges)
    rejected = {"role": "assistant", "content": other}
    expected = {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": [rejected]}
    spoken = {"user": "Human", "assistant": "Assistant"}

    def transcript(turns: list[dict[str, str]]) -> str:
        return "".join(f"\n\n{spoken[turn['role']]}: {turn['content']}" for turn in turns)

    whole = {"chosen": turns, "rejected": [*turns[:-1], rejected]}
    ways: list[dict[str, Any]] = [
        expected,
        {"prompt": turns[:-1], "chosen": turns[-1]["content"], "rejected": other},
        whole,
        {"prompt": turns[0]["content"], **whole, "messages": turns},
        {"chosen": transcript(turns), "rejected": transcript([*turns[:-1], rejected])},
    ]
    for row in ways:
        assert normalise_rows([row], kind="preference") == [expected]
        wanted, unwanted = normalise_rows([row], kind="feedback")
        assert (wanted["label"], wanted["completion"]) == (True, expected["chosen"])
        assert (unwanted["label"], unwanted["completion"]) == (False, expected["rejected"])


COLUMNS = sorted(
    {column for known in FORMATS.values() for column in known.columns} | {"tools", "system", "input"}
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
PART = st.dictionaries(
    st.sampled_from(["type", "text", "value", "thinking", "input", "name", "toolUse", "image", "content"]),
    LEAVES | st.sampled_from(["text", "thinking", "tool_use", "tool_result", "image_url"]),
    max_size=3,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "function_call", "x"]),
        "content": LEAVES | st.lists(PART, max_size=2),
    },
    optional={
        "function_call": LEAVES | PART,
        "tool_calls": st.lists(st.dictionaries(st.text(max_size=4), LEAVES), max_size=2),
        "name": LEAVES,
    },
)
VALUES = st.recursive(
    LEAVES | st.lists(MESSAGE, max_size=3) | st.lists(MESSAGE, max_size=3).map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5) | VALUES, max_size=3)


@settings(max_examples=300)
@given(rows=ROWS, kind=st.sampled_from(KINDS), format=st.sampled_from(["auto", *FORMATS]))
def test_rows_of_any_content_are_read_or_refused_by_a_data_error(rows: Any, kind: Any, format: str) -> None:
    with contextlib.suppress(DataError):
        made = normalise_rows(rows, kind=kind, format=format)
        assert json.dumps(made, ensure_ascii=False).encode()


@settings(max_examples=60)
@given(rows=ROWS, kind=st.sampled_from(KINDS))
def test_a_file_of_any_json_is_loaded_or_refused_by_a_data_error(rows: Any, kind: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        with contextlib.suppress(DataError):
            assert len(load_dataset(str(path), kind=kind)) > 0


@settings(max_examples=150)
@given(
    content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".arrow"])
)
def test_a_file_of_any_bytes_is_loaded_or_refused_by_a_data_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            load_dataset(str(path), kind="text")
            pytest.fail(
                f"200 arbitrary bytes were taken for texts: {content!r}"
            ) if suffix != ".csv" else None
