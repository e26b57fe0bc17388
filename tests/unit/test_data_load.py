"""Datasets by name: files, folders, runs, the pocket world; what is missing or damaged is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_utils.data import load
from handbook_utils.data.fingerprint import dataset_fingerprint
from handbook_utils.data.load import load_dataset, load_sources
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import DataSource

ROWS = [{"prompt": f"question {index}", "completion": f"answer {index}"} for index in range(10)]


class Locator:
    """Finds sources by name, as a run folder does."""

    def locate(self, source: DataSource) -> str:
        return str(source.name)


def write_rows(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [f'"{row["prompt"]}","{row["completion"]}"' for row in ROWS]
        path.write_text("\n".join(["prompt,completion", *lines]), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_type_gives_the_same_conversations(tmp_path: Path, suffix: str) -> None:
    dataset = load_dataset(str(write_rows(tmp_path / f"rows{suffix}")), kind="conversation")
    assert len(dataset) == 10
    assert dataset[3]["completion"] == [{"role": "assistant", "content": "answer 3"}]


def test_a_slice_takes_the_rows_it_names(tmp_path: Path) -> None:
    name = str(write_rows(tmp_path / "rows.jsonl"))
    prompts = load_dataset(name, kind="prompt", split="train[2:5]")["prompt"]
    assert [prompt[0]["content"] for prompt in prompts] == ["question 2", "question 3", "question 4"]
    assert len(load_dataset(name, kind="prompt", split="train[80%:]")) == 2


@pytest.mark.parametrize("split", ["train[:11]", "train[10:]"])
def test_a_slice_past_the_end_is_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match="has 10"):
        load_dataset(str(write_rows(tmp_path / "rows.jsonl")), kind="prompt", split=split)


@pytest.mark.parametrize("split", ["train[:a]", "train[", "", "train[-5:]"])
def test_a_split_that_cannot_be_read_is_refused(split: str) -> None:
    with pytest.raises(DataError, match=r"such as train\[:200\]"):
        parse_split(split)


def test_a_file_has_no_split_but_train(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not 'test'"):
        load_dataset(str(write_rows(tmp_path / "rows.jsonl")), kind="prompt", split="test")


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "conversations.jsonl")
    with pytest.raises(DataError, match=r"no such file. Did you mean 'conversations.jsonl'"):
        load_dataset(str(tmp_path / "conversation.jsonl"), kind="prompt")
    with pytest.raises(DataError, match="is missing too"):
        load_dataset(str(tmp_path / "nowhere" / "rows.jsonl"), kind="prompt")


DAMAGED = [
    ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
    ("b.jsonl", "[1, 2]\n", "line 1 is a JSON list"),
    ("c.json", '{"prompt": "a"}', "holds a JSON dict, not a list"),
    ("d.json", "[", "not JSON"),
    ("e.csv", "prompt,completion\na,b\nc\n", "row 2 has not as many cells"),
    ("f.parquet", "no parquet", "not a readable parquet file"),
    ("g.jsonl", "", "no rows"),
    ("h.txt", "text", "unknown type '.txt'"),
    ("i.jsonl", "\xff", "not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / name), kind="prompt")


def test_folders_that_datasets_wrote_are_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"dev": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "many")
    assert len(load_dataset(str(tmp_path / "one"), kind="conversation", split="train[:4]")) == 4
    assert len(load_dataset(str(tmp_path / "many"), kind="conversation", split="dev")) == 10
    with pytest.raises(DataError, match="Choose from: dev"):
        load_dataset(str(tmp_path / "many"), kind="conversation", split="test")


def fake_run(path: Path, stage: str) -> Path:
    path.mkdir()
    manifest = {"format": 1, "stage": stage, "status": "finished", "recipe": {}}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def test_a_run_gives_the_parts_of_its_main_table_in_order(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "samples", "generate")
    (run / "samples").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[5:]), run / "samples" / "part-00001.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:5]), run / "samples" / "part-00000.parquet")
    dataset = load_dataset(str(run), kind="conversation")
    assert dataset["completion"][0][0]["content"] == "answer 0"
    assert len(dataset) == 10


def test_a_run_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a run of stage 'dpo' holds no rows"):
        load_dataset(str(fake_run(tmp_path / "dpo", "dpo")), kind="conversation")


def test_samples_of_one_prompt_give_one_prompt(tmp_path: Path) -> None:
    rows = [{"prompt_id": "a", "prompt": "Hi", "completion": text} for text in ("x", "y")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load_dataset(str(tmp_path / "rows.parquet"), kind="prompt")["prompt_id"] == ["a"]


def test_one_prompt_id_for_two_prompts_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt_id": "a", "prompt": text} for text in ("x", "y")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 2 has the prompt_id 'a' of another prompt"):
        load_dataset(str(tmp_path / "rows.parquet"), kind="prompt")


def test_sources_are_joined_in_order_on_the_columns_they_share(tmp_path: Path, pairs_file: Path) -> None:
    sources = [
        DataSource(name="pocket:preferences", split="train[:3]"),
        DataSource(name=str(pairs_file), split="train[:2]"),
    ]
    joined = load_sources(sources, Locator(), kind="preference", seed=0)
    assert joined.column_names == ["prompt", "chosen", "rejected"]
    assert len(joined) == 5
    assert joined[3]["prompt"][0]["content"].startswith("What should I cook")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pocket:prompts", "prompt"),
        ("pocket:demonstrations", "conversation"),
        ("pocket:preferences", "preference"),
        ("pocket:text", "text"),
    ],
)
def test_pocket_data_is_the_same_for_a_seed_and_slices_agree(name: str, kind: str) -> None:
    whole = load_dataset(name, kind=kind, split="dev[:8]", seed=3)  # type: ignore[arg-type]
    part = load_dataset(name, kind=kind, split="dev[4:8]", seed=3)  # type: ignore[arg-type]
    assert whole.to_list()[4:] == part.to_list()
    assert whole.to_list() != load_dataset(name, kind=kind, split="dev[:8]", seed=4).to_list()  # type: ignore[arg-type]


def test_an_unknown_pocket_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'demonstrations'"):
        load_dataset("pocket:demonstration", kind="conversation")


def test_a_hub_name_offline_says_that_the_hub_was_not_asked() -> None:
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        load_dataset("someone/something", kind="text")


def test_a_dataset_made_in_pieces_is_the_one_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Yo é"}]
    plain = {"prompt": asked, "completion": answer}
    rows = [
        plain,
        plain,
        plain,
        plain | {"tools": [{"name": "f"}]},
        plain | {"chat_template_kwargs": {"x": 1}},
    ]
    at_once = load.to_dataset(rows)
    monkeypatch.setattr(load, "BATCH", 2)
    in_pieces = load.to_dataset(rows)
    assert in_pieces.features == at_once.features
    assert in_pieces.to_list() == at_once.to_list()
    assert [row["tools"] for row in in_pieces] == [None, None, None, [{"name": "f"}], None]
    assert [row["chat_template_kwargs"] for row in in_pieces] == [{}, {}, {}, {}, {"x": 1}]
    assert [row["completion"] for row in in_pieces] == [answer] * 5


def test_a_dataset_is_named_by_its_rows_without_being_copied_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda dataset: pytest.fail("copied"))
    texts = ["a", "b", "c"], ["a", "b", "c"], ["a", "bc", ""]
    one, same, other = (load.to_dataset([{"text": text} for text in each]) for each in texts)
    # datasets' own name of a dataset: what is made from it is named by it
    assert one._fingerprint == same._fingerprint != other._fingerprint


def plain_fingerprint(rows: list[dict[str, Any]]) -> str:
    """The definition: the columns' names, and each row as JSON."""
    text = json.dumps(list(rows[0])) + "".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


SAID = st.text(st.sampled_from('ab"\\\n\r\t\b\x00\x7fé中🙂\u2028'), max_size=5)


@settings(max_examples=60)
@given(said=st.lists(st.tuples(SAID, SAID, st.integers(0, 3)), min_size=1, max_size=6))
def test_a_fingerprint_is_of_the_rows_as_json(said: list[tuple[str, str, int]]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": ask}] * (1 + more),
            "completion": [{"role": "assistant", "content": answer}],
            **({} if said[0][2] else {"tools": [{"x": 1e-12, ask: None}] if more else None}),
        }
        for ask, answer, more in said
    ]
    if all(row.get("tools") is None for row in rows):
        rows = [{key: value for key, value in row.items() if key != "tools"} for row in rows]
    with patch("handbook_utils.data.fingerprint.BATCH", 2):
        assert dataset_fingerprint(load.to_dataset(rows)) == plain_fingerprint(rows)
        texts = [{"text": ask, "gold_chosen": more / 3} for ask, _, more in said]
        assert dataset_fingerprint(Dataset.from_list(texts)) == plain_fingerprint(texts)


def test_a_fingerprint_depends_on_the_rows_alone() -> None:
    one, same = Dataset.from_list(ROWS), Dataset.from_list(ROWS)
    assert dataset_fingerprint(one) == dataset_fingerprint(same)
    assert dataset_fingerprint(one) != dataset_fingerprint(one.select(range(9)))


def test_hand_written_data_is_there(conversations_file: Path, pairs_file: Path) -> None:
    # 24 conversations, four of them with two answers: 28 examples
    assert len(load_dataset(str(conversations_file), kind="conversation")) == 28
    assert len(load_dataset(str(pairs_file), kind="preference")) == 24
