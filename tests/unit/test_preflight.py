"""Preflight finds before training what would fail, or learn nothing, and names the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.pipeline.checks.preflight import Preflight, preflight
from handbook_utils.planning.gpus import read_gpu
from handbook_utils.schema.recipe import check_recipe


def conversation(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def looked(tmp_path: Path, data: str, *, gpu: str | None = None, **changes: Any) -> Preflight:
    content = {
        "stage": "sft",
        "model": {"name": "pocket:base"},
        "data": [{"name": data}],
        "global_batch_size": 2,
        "training": {"use_cpu": True, "max_length": 128, "num_train_epochs": 20},
    }
    recipe: Any = check_recipe(content | changes, "test")
    return preflight(recipe, tmp_path / "run", gpu=None if gpu is None else read_gpu(gpu))


def light_of(found: Preflight, check: str) -> list[str]:
    return [finding.light for finding in found.findings if finding.check == check]


ROWS = [conversation(f"Say {word}.", f"{word} it is.") for word in ("one", "two", "three", "four")]


def test_a_good_recipe_has_nothing_red(tmp_path: Path) -> None:
    held_out = write(tmp_path / "held.jsonl", [conversation("Say five.", "five it is.")])
    found = looked(tmp_path, write(tmp_path / "rows.jsonl", ROWS), eval_data=[{"name": held_out}])
    assert found.light != "red", [f for f in found.findings if f.light == "red"]
    assert {"data", "overlap", "masks", "lengths", "memory", "disk", "batch"} <= {
        finding.check for finding in found.findings
    }
    assert not (tmp_path / "run").exists()
    json.dumps(found.to_json())


def test_rows_that_are_tested_on_are_amber(tmp_path: Path) -> None:
    rows, held_out = write(tmp_path / "rows.jsonl", ROWS), write(tmp_path / "held.jsonl", ROWS[:1])
    assert light_of(looked(tmp_path, rows, eval_data=[{"name": held_out}]), "overlap") == ["amber"]


def test_an_evaluation_file_that_is_the_training_file_leaves_nothing_and_is_red(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    found = looked(tmp_path, rows, eval_data=[{"name": rows}])
    assert light_of(found, "data") == ["red"]


def test_an_empty_split_and_a_missing_file_are_red(tmp_path: Path) -> None:
    assert light_of(looked(tmp_path, write(tmp_path / "none.jsonl", [])), "data") == ["red"]
    found = looked(tmp_path, str(tmp_path / "nowhere.jsonl"))
    assert found.light == "red"


def test_a_conversation_of_100_000_tokens_says_what_max_length_costs(tmp_path: Path) -> None:
    long = conversation("Repeat.", "word " * 100_000)
    found = looked(tmp_path, write(tmp_path / "rows.jsonl", [*ROWS, long]))
    lengths = next(finding for finding in found.findings if finding.check == "lengths")
    assert lengths.light == "red"
    assert "99.8% of the tokens" in lengths.says or "99.9% of the tokens" in lengths.says
    assert "max_length" in lengths.remedy


def test_one_label_only_is_red(tmp_path: Path) -> None:
    rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:], "label": True} for row in ROWS]
    found = looked(tmp_path, write(tmp_path / "rows.jsonl", rows), stage="kto")
    labels = next(finding for finding in found.findings if finding.check == "labels")
    assert (labels.light, "one label only" in labels.says) == ("red", True)


def test_a_gpu_that_is_too_small_is_red_and_a_batch_that_cannot_be_split_too(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    assert light_of(looked(tmp_path, rows, gpu="100MiB"), "memory") == ["red"]
    odd = looked(tmp_path, rows, launch={"processes": 3})
    assert "red" in light_of(odd, "batch")


def test_the_command_exits_with_1_on_red(handbook: Any, tmp_path: Path) -> None:
    empty = write(tmp_path / "none.jsonl", [])
    code, out, _ = handbook("preflight", "pocket/sft", "--set", f"data=[{{name: '{empty}'}}]", "--json")
    assert code == 1
    assert json.loads(out)["light"] == "red"


def test_plan_and_preflight_split_the_batch_alike(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS)
    for gpu, said in (
        (None, "16 per device x 1 pass x 1 process = 16"),
        ("24GiB", "8 per device x 2 passes"),
    ):
        found = looked(tmp_path, rows, gpu=gpu, global_batch_size=16)
        batch = next(finding.says for finding in found.findings if finding.check == "batch")
        assert said in batch
        assert ("--gpu overrides" in batch) == (gpu is not None)
        assert found.plan is not None
        assert f"{found.plan.run.per_device} per device x {found.plan.run.accumulation} pass" in batch


def test_what_bad_data_leaves_unchecked_is_named(handbook: Any, tmp_path: Path) -> None:
    folder = tmp_path / ("a_long_name_" * 10)
    folder.mkdir()
    bad = folder / "rows.jsonl"
    bad.write_text("not json\n")
    found = looked(tmp_path, str(bad))
    left = [finding.says for finding in found.findings if finding.check == "not checked"]
    assert left == ["not checked: overlap, steps, masks, lengths, memory, disk; because 'data' is red"]
    code, out, _ = handbook("preflight", "pocket/sft", "--set", f"data=[{{name: '{bad}'}}]")
    assert code == 1
    assert "…" not in out
    good = looked(tmp_path, write(tmp_path / "rows.jsonl", ROWS))
    assert light_of(good, "not checked") == []


def test_a_plan_whose_start_model_is_missing_says_what_stands_in(
    handbook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = handbook("plan", "pocket/dpo")
    assert code == 2
    assert "--set 'model={name: MODEL}' --set 'data=[{name: FILE}]'" in said
    assert "handbook train pocket/sft" in said
    pairs = {"prompt": "Say one.", "chosen": "one it is.", "rejected": "two it is."}
    rows = write(tmp_path / "pairs.jsonl", [pairs] * 16)
    changes = ("--set", "model={name: 'pocket:base'}", "--set", f"data=[{{name: '{rows}'}}]")
    assert handbook("plan", "pocket/dpo", *changes)[0] == 0


def test_an_unknown_gpu_is_a_mistake_of_the_command_line(handbook: Any) -> None:
    code, _, said = handbook("plan", "pocket/sft", "--gpu", "h10")
    assert code == 2
    assert "h100" in said


@pytest.mark.parametrize("mfu", ["0", "2", "0.5-0.2", "a"])
def test_a_share_that_is_none_is_refused(handbook: Any, mfu: str) -> None:
    code, _, said = handbook("plan", "pocket/sft", "--mfu", mfu)
    assert (code, "--mfu" in said) == (2, True)
