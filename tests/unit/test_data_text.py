"""In every file type text stays text, numbers keep their digits, and filled-in keys are no keys."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handbook_utils import load_tokenizer, render_conversation
from handbook_utils.data.load import ResolvedInputs, load_dataset
from handbook_utils.data.reading.arrow import FilledNullsWarning
from handbook_utils.data.stream import stream_sources
from handbook_utils.errors import DataError
from handbook_utils.libraries.exact_json import exact_json
from handbook_utils.schema.sections import DataSource

# each of these is taken for something else by some reader of tables
LOOKALIKES = [
    *(
        "007",
        "1e5",
        "1.10",
        "-0",
        "1_000",
        "0x1F",
        "+5",
        "1,5",
        "12:30",
        "2024-05-01",
        "2024-05-01T10:00:00+02:00",
    ),
    *("null", "None", "NA", "N/A", "nan", "NaN", "true", "False", "yes", "inf", "-Infinity", "<NA>"),
    *('{"a": 1}', "[1, 2]", '"quoted"', "{}", "[]", "a\tb", "a;b", "#x", "'x'", " spaced "),
]
Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Rows, **options: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_MINIMAL, **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def zipped(path: Path, plain: Path) -> Path:
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def arrow(path: Path, rows: Rows) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)
    return path


def json_file(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def parts(path: Path, rows: Rows) -> Path:
    path.mkdir()
    for number, row in enumerate(rows):
        jsonl(path / f"part-{number:05}.jsonl", [row])
    return path


def repository(path: Path, rows: Rows, suffix: str = "jsonl") -> Path:
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("# A copy\n", encoding="utf-8")
    for number, row in enumerate(rows):
        file = path / "data" / f"train-{number:05}-of-{len(rows):05}.{suffix}"
        {"jsonl": jsonl, "csv": write_csv, "parquet": parquet}[suffix](file, [row])
    return path


def saved(path: Path, rows: Rows) -> Path:
    Dataset.from_list(rows).save_to_disk(path)
    return path


def saved_splits(path: Path, rows: Rows) -> Path:
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "jsonl": lambda path, rows: jsonl(path / "r.jsonl", rows),
    "jsonl.gz": lambda path, rows: zipped(path / "r.jsonl.gz", jsonl(path / "r", rows)),
    "json": lambda path, rows: json_file(path / "r.json", rows),
    "csv": lambda path, rows: write_csv(path / "r.csv", rows),
    "csv.gz": lambda path, rows: zipped(path / "r.csv.gz", write_csv(path / "r", rows)),
    "semicolons": lambda path, rows: write_csv(path / "r.csv", rows, delimiter=";"),
    "tsv": lambda path, rows: write_csv(path / "r.tsv", rows, delimiter="\t"),
    "parquet": lambda path, rows: parquet(path / "r.parquet", rows),
    "arrow": lambda path, rows: arrow(path / "r.arrow", rows),
    "parts": lambda path, rows: parts(path / "r", rows),
    "repository": lambda path, rows: repository(path / "r", rows),
    "repository of csv": lambda path, rows: repository(path / "r", rows, "csv"),
    "repository of parquet": lambda path, rows: repository(path / "r", rows, "parquet"),
    "saved": lambda path, rows: saved(path / "r", rows),
    "saved splits": lambda path, rows: saved_splits(path / "r", rows),
}
every_writer = pytest.mark.parametrize("form", WRITERS)


def answers(rows: Any) -> list[str]:
    return [row["completion"][0]["content"] for row in rows]


@every_writer
def test_an_answer_stays_the_text_it_is_alone_beside_others_and_streamed(tmp_path: Path, form: str) -> None:
    for number, texts in enumerate(
        [LOOKALIKES, ["2024-05-01", "2024-05-02"], ["007", "1"], ["null"], ["{}", "Ada"]]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [{"prompt": f"question {index}?", "completion": text} for index, text in enumerate(texts)]
        name = str(WRITERS[form](folder, rows))
        assert answers(load_dataset(name, kind="conversation")) == texts
        if form != "json":
            source = DataSource(name=name)
            streamed, *_ = stream_sources([source], ResolvedInputs(), kind="conversation", seed=0)
            assert sorted(answers(streamed)) == sorted(texts)


@pytest.mark.parametrize("form", ["csv", "repository of csv", "repository", "parquet"])
def test_the_tokens_that_carry_loss_are_of_the_text_as_written(tmp_path: Path, form: str) -> None:
    texts = ["Ada", "2024-05-01", "007", "null", "NA", "true", "1e5", '{"a": 1}']
    rows = [{"prompt": f"question {index}?", "completion": text} for index, text in enumerate(texts)]
    tokenizer = load_tokenizer("pocket:base")
    for row in load_dataset(str(WRITERS[form](tmp_path, rows)), kind="conversation"):
        rendered = render_conversation(tokenizer, [*row["prompt"], *row["completion"]]).rows[-1]
        learned = "".join(
            piece for piece, counts in zip(rendered.pieces, rendered.loss, strict=True) if counts
        )
        assert learned == texts.pop(0) + tokenizer.eos_token
    assert not texts


# what a CSV and a table can hold: no lone surrogates, no NUL, no lone carriage return inside a cell
TEXTS = st.sampled_from(LOOKALIKES) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12
).filter(lambda text: bool(text.strip()))


@every_writer
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_rows_of_any_text_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, form: str, texts: list[tuple[str, str]]
) -> None:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in texts]
    name = str(WRITERS[form](tmp_path_factory.mktemp("rows"), rows))
    made = load_dataset(name, kind="conversation")
    assert [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in made] == texts


def call(name: str, arguments: Any) -> dict[str, Any]:
    """A row whose answer calls a tool, and the tool's schema."""
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    schema = {"type": "object", "properties": {key: {"type": "number"} for key in arguments}}
    return {
        "messages": [
            {"role": "user", "content": f"{name}?"},
            {"role": "assistant", "content": "", "tool_calls": [called]},
        ],
        "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
    }


def arguments(row: Any) -> Any:
    return row["completion"][0]["tool_calls"][0]["function"]["arguments"]


NUMBERS = {"tiny": 1e-12, "pi": 3.141592653589793, "huge": 1.797e308, "long": 12345678901234567, "no": -0.0}


@pytest.mark.parametrize("form", ["jsonl", "json", "parts", "parquet", "saved", "repository of parquet"])
def test_numbers_of_calls_and_schemas_keep_their_digits(tmp_path: Path, form: str) -> None:
    row = call("f", NUMBERS)
    row["tools"][0]["function"]["parameters"]["properties"]["tiny"]["exclusiveMinimum"] = 1e-15
    if form in ("parquet", "repository of parquet", "saved"):  # all properties have the fields of one there
        row["tools"][0]["function"]["parameters"]["properties"] = {"tiny": {"exclusiveMinimum": 1e-15}}
    [made] = load_dataset(str(WRITERS[form](tmp_path, [row])), kind="conversation")
    assert json.dumps(arguments(made)) == json.dumps(NUMBERS)
    assert made["tools"][0]["function"]["parameters"]["properties"]["tiny"]["exclusiveMinimum"] == 1e-15


def test_whole_numbers_of_any_size_and_options_of_templates_keep_their_digits(tmp_path: Path) -> None:
    row = call("f", {"big": 2**70, "list": [1e-11, -(2**80)]}) | {
        "chat_template_kwargs": {"x": 1e-12, "y": 2**65}
    }
    rows = [row, call("g", {"deep": {"er": [{"a": 2**64}]}})]
    made = load_dataset(str(jsonl(tmp_path / "r.jsonl", rows)), kind="conversation")
    assert [arguments(one) for one in made] == [arguments_of(one) for one in rows]
    assert made[0]["chat_template_kwargs"] == row["chat_template_kwargs"]
    assert made.select([1])[0] == made[1]
    source = DataSource(name=str(tmp_path / "r.jsonl"))
    stream, *_ = stream_sources([source], ResolvedInputs(), kind="conversation", seed=0)
    assert sorted(map(json.dumps, map(arguments, stream))) == sorted(
        json.dumps(arguments_of(one)) for one in rows
    )


def arguments_of(row: Any) -> Any:
    return row["messages"][-1]["tool_calls"][0]["function"]["arguments"]


def test_what_datasets_maps_on_the_way_to_a_trainer_keeps_its_digits(tmp_path: Path) -> None:
    rows = [call("f", {"tiny": 1e-12, "big": 2**70}), call("g", {"a": None})]
    made = load_dataset(str(jsonl(tmp_path / "r.jsonl", rows)), kind="conversation")
    with exact_json():  # as while a trainer prepares its rows
        mapped = made.map(lambda row: {"seen": json.dumps(row["completion"])})
        again = mapped.map(lambda row: {"same": json.dumps(row["completion"]) == row["seen"]})
        assert again["same"] == [True, True]
    assert [arguments(row) for row in mapped] == [{"tiny": 1e-12, "big": 2**70}, {"a": None}]


TWO_TOOLS = [call("weather", {"city": 1}), call("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize("form", ["parquet", "arrow", "repository of parquet"])
def test_keys_that_a_table_filled_in_are_no_keys_and_that_is_said(tmp_path: Path, form: str) -> None:
    plain = load_dataset(str(jsonl(tmp_path / "plain.jsonl", TWO_TOOLS)), kind="conversation")
    rows = TWO_TOOLS if form != "repository of parquet" else pa.Table.from_pylist(TWO_TOOLS).to_pylist()
    name = str(WRITERS[form](tmp_path, rows))
    with pytest.warns(FilledNullsWarning, match="have nulls, such as for '.*'. They are left out"):
        made = load_dataset(name, kind="conversation")
    assert made.to_list() == plain.to_list()


def test_a_saved_dataset_gives_calls_their_own_keys_alone(tmp_path: Path) -> None:
    plain = load_dataset(str(jsonl(tmp_path / "plain.jsonl", TWO_TOOLS)), kind="conversation")
    table = pa.Table.from_pylist(TWO_TOOLS)
    Dataset(table).save_to_disk(tmp_path / "structs")
    Dataset.from_list(TWO_TOOLS, on_mixed_types="use_json").save_to_disk(tmp_path / "json")
    with pytest.warns(FilledNullsWarning):
        assert load_dataset(str(tmp_path / "structs"), kind="conversation").to_list() == plain.to_list()
    assert load_dataset(str(tmp_path / "json"), kind="conversation").to_list() == plain.to_list()
    Dataset.from_list(TWO_TOOLS, on_mixed_types="use_json").to_parquet(str(tmp_path / "json.parquet"))
    assert load_dataset(str(tmp_path / "json.parquet"), kind="conversation").to_list() == plain.to_list()


def test_a_map_of_arguments_is_an_object(tmp_path: Path) -> None:
    named = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.float64()))])
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(named))])
    called = [{"name": "f", "arguments": [("a", 1.5), ("b", None)]}]
    messages = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": called}]]
    pq.write_table(pa.table({"messages": pa.array(messages, pa.list_(message))}), tmp_path / "r.parquet")
    [made] = load_dataset(str(tmp_path / "r.parquet"), kind="conversation")
    assert arguments(made) == {"a": 1.5, "b": None}


def test_a_null_that_was_written_stays_a_null(tmp_path: Path) -> None:
    rows = [call("f", {"city": None, "when": {"day": None}})]
    [made] = load_dataset(str(jsonl(tmp_path / "r.jsonl", rows)), kind="conversation")
    assert arguments(made) == {"city": None, "when": {"day": None}}


def test_a_call_without_text_in_a_table_has_its_empty_text(tmp_path: Path) -> None:
    row = call("f", {"a": 1})
    row["messages"][1]["content"] = None
    plain = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
        "tools": None,
    }
    made = load_dataset(str(parquet(tmp_path / "r.parquet", [row, plain])), kind="conversation")
    assert [(one["completion"][0]["content"], "tool_calls" in one["completion"][0]) for one in made] == [
        ("", True),
        ("Yo", False),
    ]


def refused(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_dataset(str(path), kind="conversation")
    return str(caught.value)


def test_what_is_said_twice_is_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path / "r.csv", "prompt,completion,completion\na,b,c\n")
    assert "r.csv: its header line names the column 'completion' twice" in message
    message = refused(tmp_path / "r.jsonl", '{"prompt": "a", "completion": "b", "completion": "c"}\n')
    assert "line 1 has the key 'completion' twice" in message
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.table(columns, names=["prompt", "completion", "completion"]), tmp_path / "r.parquet")
    with pytest.raises(DataError, match="has two columns 'completion'"):
        load_dataset(str(tmp_path / "r.parquet"), kind="conversation")


def test_a_json_file_that_is_no_list_is_refused_with_the_way_out(tmp_path: Path) -> None:
    by_column = '{"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}'
    assert "orient='records', lines=True" in refused(tmp_path / "a.json", by_column)
    assert "A list is under 'data'" in refused(
        tmp_path / "b.json", '{"data": [{"prompt": "a", "completion": "b"}]}'
    )
    assert "For a single row, put it into a list" in refused(tmp_path / "c.json", '{"prompt": "a"}')


def test_a_csv_of_one_column_with_no_comma_is_that_column(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text\none; two\n007\n", encoding="utf-8")
    assert load_dataset(str(tmp_path / "r.csv"), kind="text")["text"] == ["one; two", "007"]
