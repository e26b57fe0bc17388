"""Streams: a seed's order, shares of the draws, slices, and what cannot be streamed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.mixture import LeakedRowsWarning
from handbook_utils.data.stream import stream_sources
from handbook_utils.data.training_data import load_training_data
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import DataSource


def texts(mark: str, rows: int) -> list[dict[str, str]]:
    return [{"text": f"{mark}{number}"} for number in range(rows)]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def stream(*sources: DataSource, seed: int = 0, tested: Any = ()) -> list[str]:
    streamed = stream_sources(sources, ResolvedInputs(), kind="text", seed=seed, tested=tested)
    return [row["text"] for row in streamed.rows]


def test_a_stream_gives_every_row_once_in_an_order_of_its_seed(tmp_path: Path) -> None:
    source = DataSource(name=write(tmp_path / "a.jsonl", texts("a", 50)))
    once, again, other = stream(source), stream(source), stream(source, seed=1)
    assert sorted(once) == sorted(f"a{number}" for number in range(50))
    assert once == again != other
    assert once != sorted(once)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "saved", "pocket"])
def test_every_kind_of_source_streams_what_it_loads(tmp_path: Path, form: str) -> None:
    rows = texts("a", 6)
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        write(path, rows)
    elif form == "csv":
        path.write_text("text\n" + "\n".join(row["text"] for row in rows), encoding="utf-8")
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    name = "pocket:text" if form == "pocket" else str(path)
    source = DataSource(name=name, split="train[1:4]")
    data = recipe([source.model_dump(exclude_defaults=True)], streaming=False)
    loaded = load_training_data(data, ResolvedInputs()).train["text"]
    assert len(loaded) == 3
    assert sorted(stream(source)) == sorted(loaded)


def test_several_sources_are_drawn_by_their_shares_until_each_was_read(tmp_path: Path) -> None:
    large = DataSource(name=write(tmp_path / "a.jsonl", texts("a", 3000)), weight=3)
    small = DataSource(name=write(tmp_path / "b.jsonl", texts("b", 100)), weight=1)
    drawn = stream(large, small)
    assert len({text for text in drawn if text[0] == "a"}) == 3000
    shares = Counter(text[0] for text in drawn)
    # of about 4000 draws a quarter: five standard deviations are sqrt(4000 * 3 / 16) * 5 = 137
    assert abs(shares["b"] - len(drawn) / 4) < 140
    assert Counter(text[0] for text in drawn[:400])["b"] > 50


def test_rows_that_are_tested_on_stay_out_of_a_stream(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", texts("a", 5))
    with pytest.warns(LeakedRowsWarning, match="row 2 of the stream has a prompt of `eval_data`: left out"):
        assert sorted(stream(DataSource(name=name), tested=["a1", "a4"])) == ["a0", "a2", "a3"]
    assert len(stream(DataSource(name=name, allow_test=True), tested=["a1"])) == 5


def test_a_broken_line_is_named_when_the_stream_reaches_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n{"text"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 2, column 'text': expected text, found int 1"):
        stream(DataSource(name=str(path)))
    with pytest.raises(DataError, match="line 3 is not JSON"):
        stream(DataSource(name=str(path), split="train[2:]"))


def test_a_wrong_first_row_is_told_before_anything_is_streamed(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [{"txt": "a"}])
    with pytest.raises(DataError, match=r"row 1.*Did you mean 'text'"):
        stream_sources([DataSource(name=name)], ResolvedInputs(), kind="text", seed=0)


UNSTREAMABLE = [
    ("a.jsonl", "train[:10%]", "needs rows in place of a percentage"),
    ("a.jsonl", "train[3:99]", "asks for rows that are not there: they end at 5"),
    ("a.jsonl", "train[5:]", "asks for rows that are not there"),
    ("a.json", "train", "a .json file is one value and cannot be streamed. Write it as .jsonl"),
]


@pytest.mark.parametrize(("file", "split", "message"), UNSTREAMABLE)
def test_what_cannot_be_streamed_is_refused(tmp_path: Path, file: str, split: str, message: str) -> None:
    name = write(tmp_path / file, texts("a", 5))
    with pytest.raises(DataError, match=message):
        stream(DataSource(name=name, split=split))


def recipe(
    data: list[dict[str, Any]], *, stage: str = "pretrain", streaming: bool = True, **training: Any
) -> Any:
    content = {
        "stage": stage,
        "model": {"name": "no/model"},
        "data": data,
        "streaming": streaming,
        "global_batch_size": 2,
        "training": training,
    }
    return check_recipe(content, "test")


def test_a_recipe_that_streams_says_how_many_steps_and_nothing_that_counts_rows() -> None:
    two = [{"name": "a.jsonl", "weight": 2.0}, {"name": "b.jsonl"}]
    assert recipe(two, max_steps=3).streaming
    with pytest.raises(RecipeError, match=r"^test: `streaming` needs `training.max_steps`"):
        recipe(two)
    with pytest.raises(RecipeError, match="`max_rows` draws from counted rows"):
        recipe([{"name": "a.jsonl", "max_rows": 5}], max_steps=3)
    with pytest.raises(RecipeError, match="`weight` is a share of the draws"):
        recipe(two[:1], max_steps=3)
    with pytest.raises(RecipeError, match="trainer of orpo takes rows in memory only"):
        recipe(two, stage="orpo", max_steps=3)


def test_the_endless_stream_of_a_trainer_repeats_one_order(tmp_path: Path) -> None:
    source = DataSource(name=write(tmp_path / "a.jsonl", texts("a", 7)))
    streamed = stream_sources([source], ResolvedInputs(), kind="text", seed=0)
    endless = [row["text"] for row in islice(streamed.rows.repeat(None), 14)]
    assert endless == stream(source) * 2
