"""What we rely on in `datasets`: scripts are refused, names tell splits, JSON columns can be made exact."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from datasets import data_files

from handbook_utils.data.reading.folders import find_splits
from handbook_utils.libraries.exact_json import exact_json


def test_a_dataset_script_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "talks.py").write_text("raise SystemExit('the script was run')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(folder))


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "test.jsonl", "README.md"],
        ["my-train-set.jsonl", "my_eval.jsonl", "dev 1.jsonl"],
        ["train/b.jsonl", "valid/a.jsonl"],
        ["x/test/a.jsonl", "x/training_1/a.jsonl"],
        ["data/train_sft-00000-of-00001.jsonl", "data/gen-00000-of-00002.jsonl"],
        ["part-0.jsonl", "part-1.jsonl", "latest.jsonl"],
    ],
)
def test_names_tell_the_splits_that_datasets_takes_them_for(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n', encoding="utf-8")
    theirs = data_files.DataFilesDict.from_patterns(
        data_files.get_data_patterns(str(tmp_path)), base_path=str(tmp_path), allowed_extensions=[".jsonl"]
    )
    ours = find_splits(tmp_path).splits
    assert {split: sorted(map(str, files)) for split, files in ours.items()} == {
        str(split): sorted(map(str, files)) for split, files in theirs.items()
    }


def test_what_is_exchanged_for_exact_json_is_what_encodes_columns() -> None:
    column = datasets.Features({"a": datasets.Json()})
    assert column["a"].encode_example([1e-12]) == "[0.0]"  # else the exchange is no longer needed
    with exact_json():
        assert column["a"].encode_example([1e-12, 2**70]) == f"[1e-12, {2**70}]"
        rows = datasets.Dataset.from_dict({"a": [[1e-12], {"b": 2**70}]}, features=column)
        assert rows.map(lambda row: {"b": 1})["a"][:] == [[1e-12], {"b": 2**70}]
