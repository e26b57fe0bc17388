"""Files that are damaged, dangerous or huge: each is read, or refused with its place and a way out."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from pyarrow import feather

from handbook_utils.data.load import load_dataset
from handbook_utils.data.reading.originals import GuessedValuesWarning
from handbook_utils.errors import DataError

ROW = {"prompt": "a", "completion": "b"}
COMMIT, OTHER = "a" * 40, "b" * 40


def refused(path: Path | str, kind: Any = "conversation", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(str(path), kind=kind, **options)
    return str(caught.value)


def test_broken_json_is_named_by_its_line_also_in_a_gzip_file(tmp_path: Path) -> None:
    text = "\n".join([json.dumps(ROW)] * 6 + ['{"prompt": "a", "completion"', json.dumps(ROW)])
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert f"{name}: line 7 is not JSON (Expecting ':' delimiter at column" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("[" * 100_000, "nested too deeply"), ("1" * 5000, "Exceeds the limit"), ("nul", "Expecting value")],
)
def test_json_that_python_cannot_take_is_named_by_its_line(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n", encoding="utf-8")
    message = refused(tmp_path / "rows.jsonl")
    assert "line 2 is not JSON" in message
    assert reason in message


def test_half_a_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(ROW).encode() * 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "not a whole gzip file" in refused(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize("name", ["data.pkl", "data.pt", "pytorch_model.bin", "rows.joblib", "rows.npz"])
def test_files_that_can_run_code_are_refused_unopened_with_the_way_out(tmp_path: Path, name: str) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "harm"),))

    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    message = refused(tmp_path / name)
    assert "can run code when they are opened" in message
    assert "write its rows to .jsonl or .parquet" in message
    assert not (tmp_path / "harm").exists()


def test_a_folder_with_a_dataset_script_is_refused_and_the_script_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "talks.py").write_text("import sys\nsys.modules['harm_was_done'] = sys\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([ROW]), folder / "rows.parquet")
    for name in (folder, folder / "talks.py"):
        message = refused(name)
        assert "script" in message
        assert ".parquet" in message
    assert "harm_was_done" not in sys.modules


def test_a_hub_dataset_with_a_script_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:  # what datasets says: tests/contract/test_datasets.py
        raise RuntimeError("Dataset scripts are no longer supported, but found talks.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "set `revision: refs/convert/parquet`" in refused("someone/talks")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".arrow"])
def test_a_turn_of_five_megabytes_is_read(tmp_path: Path, suffix: str) -> None:
    row = {"prompt": "a", "completion": "word " * 1_000_000}
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text(f"prompt,completion\na,{row['completion']}\n", encoding="utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        feather.write_feather(pa.Table.from_pylist([row]), str(path))
    rows = load_dataset(str(path), kind="conversation")
    assert rows[0]["completion"][0]["content"] == row["completion"]


def test_an_error_about_a_huge_value_is_short(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": ["word " * 1_000_000]}), encoding="utf-8")
    assert len(refused(tmp_path / "rows.jsonl", kind="text")) < 300


def test_lone_surrogates_are_named_before_anything_is_written(tmp_path: Path) -> None:
    lines = [json.dumps(ROW), json.dumps({**ROW, "completion": "broken \ud83d"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "row 2, column 'completion': character 8 is half of a surrogate" in refused(
        tmp_path / "rows.jsonl"
    )


def test_arrow_files_of_both_forms_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([ROW] * 3)
    feather.write_feather(table, str(tmp_path / "file.arrow"))
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("file.arrow", "stream.arrow"):
        assert len(load_dataset(str(tmp_path / name), kind="conversation")) == 3
    (tmp_path / "bad.arrow").write_bytes(b"no arrow at all")
    assert "not a readable Arrow file" in refused(tmp_path / "bad.arrow")


def test_a_folder_of_parts_is_read_in_order_and_of_several_types_refused(tmp_path: Path) -> None:
    for number in (1, 0):
        row = {"text": f"part {number}"}
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert load_dataset(str(tmp_path), kind="text")["text"] == ["part 0", "part 1"]
    (tmp_path / "more.csv").write_text("text\na\n", encoding="utf-8")
    assert "several types (.csv, .jsonl)" in refused(tmp_path, kind="text")


def test_a_folder_without_data_and_a_damaged_saved_dataset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no data file" in refused(tmp_path / "empty")
    Dataset.from_list([ROW]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{", encoding="utf-8")
    assert "a damaged dataset" in refused(tmp_path / "saved")


def test_a_copy_of_a_hub_repository_is_read_by_its_splits(tmp_path: Path) -> None:
    (tmp_path / "copy" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "copy" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "copy" / "README.md").write_text("# A copy\n", encoding="utf-8")
    assert len(load_dataset(str(tmp_path / "copy"), kind="conversation")) == 1
    assert "no split 'dev'. Choose from: train" in refused(tmp_path / "copy", split="dev")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub dataset of which the cache holds one commit, as `datasets` stores it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    folder = tmp_path / "someone___things" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string")})
    with ArrowWriter(features=features, path=str(folder / "things-train.arrow")) as writer:
        writer.write({"text": "stored"})
        examples, size = writer.finalize()
    split = {"name": "train", "num_bytes": size, "num_examples": examples, "dataset_name": "things"}
    about = {"builder_name": "parquet", "dataset_name": "things", "config_name": "default"}
    info = datasets.DatasetInfo(features=features, **about, version="0.0.0", splits={"train": split})
    info.write_to_directory(str(folder))
    return "someone/things"


def test_a_revision_that_was_not_pinned_is_written_to_the_log(
    cached: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="handbook_utils"):
        load_dataset(cached, kind="text")
    assert f"read at commit {COMMIT}; pin it by `revision`" in caplog.text


def test_offline_the_pinned_revision_is_read_and_any_other_refused(cached: str) -> None:
    assert load_dataset(cached, kind="text", revision=COMMIT)["text"] == ["stored"]
    for revision in (OTHER, "v1.0"):
        message = refused(cached, kind="text", revision=revision)
        assert f"revision '{revision}' is asked for, and what is stored here is commit {COMMIT}" in message
        assert f"pin `revision: {COMMIT}`" in message


def test_a_split_or_subset_that_a_hub_dataset_lacks_is_named(cached: str) -> None:
    assert 'Unknown split "dev"' in refused(cached, kind="text", split="dev")
    assert "for config 'other'" in refused(cached, kind="text", subset="other")


def hub_dataset(path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, list[str]]) -> str:
    """A hub dataset as `datasets` has stored it: files in the hub's cache, and the table it made of them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(path / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(path / "hub"))
    snapshot = path / "hub" / "datasets--someone--things" / "snapshots" / COMMIT
    sizes = {}
    for name, texts in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(
            "\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8"
        )
        sizes[f"hf://datasets/someone/things@{COMMIT}/{name}"] = {"num_bytes": 1, "checksum": None}
    folder = path / "datasets" / "someone___things" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string")})
    splits = {}
    for split in ("train", "test"):
        rows = [text for name, texts in files.items() for text in texts if name.startswith(f"data/{split}")]
        with ArrowWriter(features=features, path=str(folder / f"things-{split}.arrow")) as writer:
            for text in rows:
                writer.write({"text": f"{text} 00:00:00"})  # as it rewrites dates
            examples, size = writer.finalize()
        splits[split] = {"name": split, "num_bytes": size, "num_examples": examples, "dataset_name": "things"}
    about = {"builder_name": "json", "dataset_name": "things", "config_name": "default"}
    info = datasets.DatasetInfo(features=features, **about, version="0.0.0", splits=splits)
    info.download_checksums = sizes
    info.write_to_directory(str(folder))
    return "someone/things"


HUB_FILES = {
    "data/train-0.jsonl": ["Ada"],
    "data/train-1.jsonl": ["2024-05-01", "007"],
    "data/test.jsonl": ["2024-05-02"],
}


def test_of_a_hub_dataset_the_files_are_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hub_dataset(tmp_path, monkeypatch, HUB_FILES)
    assert load_dataset(name, kind="text")["text"][:] == ["Ada", "2024-05-01", "007"]
    assert load_dataset(name, kind="text", split="test")["text"][:] == ["2024-05-02"]


def test_where_files_of_a_hub_dataset_are_gone_a_warning_says_who_has_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hub_dataset(tmp_path, monkeypatch, HUB_FILES)
    snapshot = tmp_path / "hub" / "datasets--someone--things" / "snapshots" / COMMIT
    (snapshot / "data" / "train-1.jsonl").unlink()
    with pytest.warns(GuessedValuesWarning, match="may take a text for a date"):
        assert len(load_dataset(name, kind="text")) == 3


def test_a_subset_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    assert "`subset` names a part of a hub dataset" in refused(tmp_path / "rows.jsonl", subset="x")


def test_an_unknown_option_and_a_wrong_value_are_refused_with_their_name() -> None:
    assert "no option 'revison'. Did you mean 'revision'" in refused("pocket:text", kind="text", revison="x")
    assert "weight: Input should be greater than 0" in refused("pocket:text", kind="text", weight=0)
