"""Which files of a folder are read: by its README, else by names; what belongs to no split is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from handbook_utils.data.load import ResolvedInputs, load_dataset
from handbook_utils.data.reading.folders import UnreadFilesWarning
from handbook_utils.data.stream import stream_sources
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import DataSource


def folder(path: Path, *names: str, readme: str = "") -> str:
    """A folder of files, each with one row that is its name."""
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"text": name})
        if name.endswith(".gz"):
            file.write_bytes(gzip.compress(line.encode()))
        else:
            file.write_text(f"text\n{name}\n" if name.endswith(".csv") else line, encoding="utf-8")
    if readme:
        (path / "README.md").write_text(f"---\n{readme}\n---\n# A card\n", encoding="utf-8")
    return str(path)


def read(name: str, **options: str) -> list[str]:
    """The texts of a split, the same in memory and streamed."""
    loaded: list[str] = load_dataset(name, kind="text", **options)["text"][:]  # type: ignore[arg-type]
    rows, *_ = stream_sources([DataSource(name=name, **options)], ResolvedInputs(), kind="text", seed=0)
    assert sorted(row["text"] for row in rows) == sorted(loaded)
    return loaded


def refused(name: str, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, kind="text", **options)  # type: ignore[arg-type]
    return str(caught.value)


SPLITS = [
    (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
    (["train.jsonl.gz", "test.jsonl.gz"], ["train.jsonl.gz"], ["test.jsonl.gz"]),
    (["Train.csv", "Test.csv", "val.csv"], ["Train.csv"], ["Test.csv"]),
    (["my-train-set.jsonl", "my_eval.jsonl"], ["my-train-set.jsonl"], ["my_eval.jsonl"]),
    (
        ["train_1.jsonl", "train_0.jsonl", "testing.jsonl"],
        ["train_0.jsonl", "train_1.jsonl"],
        ["testing.jsonl"],
    ),
    (
        ["train/b.jsonl", "train/a.jsonl", "test/a.jsonl"],
        ["train/a.jsonl", "train/b.jsonl"],
        ["test/a.jsonl"],
    ),
    (["data/train.jsonl", "data/test.jsonl"], ["data/train.jsonl"], ["data/test.jsonl"]),
    (["train.jsonl", "test/a.jsonl"], ["train.jsonl"], ["test/a.jsonl"]),
    (
        ["a/train.jsonl", "a/test.jsonl", "b/train.jsonl"],
        ["a/train.jsonl", "b/train.jsonl"],
        ["a/test.jsonl"],
    ),
    (
        ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
        ["data/train-00000-of-00001.jsonl"],
        ["data/test-00000-of-00001.jsonl"],
    ),
]


@pytest.mark.parametrize(("names", "train", "test"), SPLITS)
def test_each_split_is_its_own_files(
    tmp_path: Path, names: list[str], train: list[str], test: list[str]
) -> None:
    name = folder(tmp_path / "rows", *names)
    assert read(name) == train
    assert read(name, split="train") == train
    assert read(name, split="test") == test


@pytest.mark.parametrize(
    "names",
    [
        ["part-0.jsonl", "part-1.jsonl"],
        ["only.jsonl"],
        ["latest.jsonl", "contested.jsonl"],
        ["a/x.jsonl", "b/y.jsonl"],
    ],
)
def test_a_folder_of_one_split_is_read_whole(tmp_path: Path, names: list[str]) -> None:
    name = folder(tmp_path / "test", *names)  # the folder's own name says nothing
    assert read(name) == sorted(names)
    assert "no split 'dev'. Choose from: train. By its data files there are the splits 'train' (" in refused(
        name, split="dev"
    )


def test_splits_saved_one_by_one_are_read_by_their_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        Dataset.from_list([{"text": split}]).save_to_disk(tmp_path / split)
    assert read(str(tmp_path)) == ["train"]
    assert read(str(tmp_path), split="test") == ["test"]


def test_a_split_of_any_name_is_read_where_it_was_pushed(tmp_path: Path) -> None:
    shards = [f"data/{split}-00000-of-00001.jsonl" for split in ("train_sft", "test_sft", "train_gen")]
    name = folder(tmp_path, *shards)
    assert read(name, split="train_sft") == [shards[0]]
    message = refused(name)
    assert "no split 'train'" in message
    assert "'test_sft' (test_sft-00000-of-00001.jsonl)" in message


def test_several_splits_without_train_are_listed(tmp_path: Path) -> None:
    message = refused(folder(tmp_path, "dev.jsonl", "test.jsonl"))
    assert "no split 'train'" in message
    assert "'validation' (dev.jsonl), 'test' (test.jsonl); `split` says which is read" in message


def test_files_of_no_split_are_told_and_hidden_ones_left_alone(tmp_path: Path) -> None:
    name = folder(tmp_path, "train.jsonl", "extra.jsonl", ".cache/test.jsonl", "__old__/train.jsonl")
    with pytest.warns(UnreadFilesWarning, match=r"not read, as no name tells a split: extra.jsonl"):
        assert load_dataset(name, kind="text")["text"] == ["train.jsonl"]
    below = folder(tmp_path / "other", "rows.jsonl", "old/rows.jsonl")
    with pytest.warns(UnreadFilesWarning, match="rows.jsonl"):
        assert load_dataset(below, kind="text")["text"] == ["rows.jsonl"]


def test_a_name_that_tells_two_splits_is_refused(tmp_path: Path) -> None:
    message = refused(folder(tmp_path, "train-test.jsonl", "train.jsonl"))
    assert "'train-test.jsonl' could mean the splits test and train. Rename it" in message


DECLARED = """
configs:
- config_name: default
  data_files:
  - split: train
    path: one.jsonl
  - split: test
    path: [two.jsonl, "more/*.jsonl"]
- config_name: small
  data_dir: small
- config_name: all
  data_files: "**/*.jsonl"
"""


def test_a_readme_declares_splits_and_subsets(tmp_path: Path) -> None:
    names = ["one.jsonl", "two.jsonl", "three.jsonl", "more/a.jsonl", "small/train.jsonl", "small/test.jsonl"]
    name = folder(tmp_path, *names, readme=DECLARED)
    assert read(name) == ["one.jsonl"]
    assert read(name, split="test") == ["two.jsonl", "more/a.jsonl"]
    assert read(name, subset="small") == ["small/train.jsonl"]
    assert read(name, subset="small", split="test") == ["small/test.jsonl"]
    assert sorted(read(name, subset="all")) == sorted(names)
    assert "declares no subset 'smal'. Did you mean 'small'?" in refused(name, subset="smal")
    assert "no split 'dev'" in refused(name, split="dev")


BAD_CARDS = [
    (
        "configs:\n- config_name: a\n  data_files: one.jsonl\n- config_name: b\n  data_files: x",
        "subsets a, b. Choose one",
    ),
    ("configs:\n- config_name: a\n  data_files: ../x/*.jsonl", "which is not in this folder"),
    ("configs:\n- config_name: a\n  data_files: https://host/x.jsonl", "which is not in this folder"),
    (
        "configs:\n- config_name: a\n  data_files: gone.jsonl",
        "none of the files that its README declares for 'a'",
    ),
    (
        "configs:\n- config_name: a\n  sep: ;\n  data_files: one.jsonl",
        "its README sets 'sep' for the subset 'a'",
    ),
    ("configs: x", "`configs` needs a list"),
    ("configs: [", "its YAML header cannot be read"),
]


@pytest.mark.parametrize(("card", "message"), BAD_CARDS)
def test_a_readme_that_cannot_be_heeded_is_refused(tmp_path: Path, card: str, message: str) -> None:
    assert message in refused(folder(tmp_path / "rows", "one.jsonl", readme=card))


def test_a_readme_that_declares_nothing_changes_nothing(tmp_path: Path) -> None:
    assert read(folder(tmp_path, "a.jsonl", "b.jsonl", readme="license: mit")) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    "copy", ["train (1).jsonl", "train - Copy.jsonl", "train copy 2.jsonl", "train(2).jsonl"]
)
def test_a_copy_beside_its_file_is_refused_and_alone_it_is_a_file(tmp_path: Path, copy: str) -> None:
    both = folder(tmp_path / "both", "train.jsonl", copy)
    with pytest.raises(DataError, match=r"looks like a copy of 'train\.jsonl'.*read twice"):
        load_dataset(both, kind="text")
    alone = folder(tmp_path / "alone", copy)
    assert load_dataset(alone, kind="text")["text"] == [copy]
    parts = folder(tmp_path / "parts", "train-1.jsonl", "train_2.jsonl", "train v2.jsonl")
    assert len(load_dataset(parts, kind="text")) == 3


def test_the_index_of_another_trainer_is_named_with_its_files(tmp_path: Path) -> None:
    name = folder(tmp_path, "a.jsonl", "b.jsonl")
    index = {f"set-{n}": {"file_name": f"{n}.json"} for n in "abcdefg"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(DataError, match=r"LLaMA-Factory.*'a\.json', .*'e\.json' and 2 more\. Name one"):
        load_dataset(name, kind="text")
    (tmp_path / "dataset_info.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="damaged dataset"):
        load_dataset(name, kind="text")
