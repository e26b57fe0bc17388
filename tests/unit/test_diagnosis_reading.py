"""Logs of every tool, and all that real logs hold that no record should."""

# ruff: noqa: E501
from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_utils.diagnosis.curves import run_log
from handbook_utils.diagnosis.diagnose import diagnose
from handbook_utils.diagnosis.finding import sparkline
from handbook_utils.diagnosis.reading.logs import merge_tags, read_log
from handbook_utils.diagnosis.table import Table
from handbook_utils.errors import DataError
from tests.diagnosis.formats import FORMATS, LOSSY, event, framed, metrics_jsonl, tensorboard, trainer_state


def history(n: int = 30) -> list[dict[str, Any]]:
    """An SFT run whose loss becomes NaN, with evaluations between."""
    drawn = random.Random(0)
    records: list[dict[str, Any]] = []
    for step in range(1, n + 1):
        loss = 2 - step / n + drawn.gauss(0, 0.01) if step <= n - 5 else math.nan
        rate = 1e-5 * (1 - step / (n + 1))
        records.append(
            {"loss": loss, "grad_norm": 1.5, "learning_rate": rate, "epoch": step / n, "step": step}
        )
        if step % 10 == 0:
            records.append(
                {"eval_loss": 2.1 - step / n, "eval_runtime": 3.0, "epoch": step / n, "step": step}
            )
    return records


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_verdict_and_loss(name: str, tmp_path: Path) -> None:
    path = FORMATS[name](history(), tmp_path)
    log = run_log(read_log(path))
    given = [record["loss"] for record in history() if "loss" in record]
    assert log["loss"].values == pytest.approx(given, rel=1e-3, nan_ok=True)
    assert log["eval_loss"].values == pytest.approx([2.1 - 1 / 3, 2.1 - 2 / 3, 1.1], rel=1e-3)
    found = diagnose(path)
    assert (found.kind, found.verdict, found.findings[0].rule) == ("sft", "faulty", "nan")
    if "printed" not in name:
        assert found.findings[0].steps == (26, 30)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in LOSSY])
def test_parts_of_a_reward_survive_each_format(name: str, tmp_path: Path) -> None:
    records = [
        {"step": n, "loss": 0.0, "reward": n / 50, "reward_std": 0.3, "rewards/format/mean": n / 50, "rewards/right/mean": -2.0}
        for n in range(1, 51)
    ]  # fmt: skip
    found = diagnose(FORMATS[name](records, tmp_path))
    assert found.kind == "grpo"
    assert "constant_reward_part" in {finding.rule for finding in found.findings}


def test_a_file_that_tensorboard_wrote_is_read() -> None:
    log = run_log(read_log(Path(__file__).parents[1] / "diagnosis" / "events.out.tfevents.1.host"))
    assert log["loss"].values == pytest.approx([2.0, 1.5, 1.25], rel=1e-6)
    assert log["eval_loss"].values == pytest.approx([1.75], rel=1e-6)
    assert log["loss"].steps.tolist() == [10, 20, 30]


def test_an_event_file_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tensorboard(history(), tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    found = diagnose(path)
    assert found.findings[0].rule == "nan"
    assert any("breaks off" in remark for remark in found.remarks)


@pytest.mark.parametrize("content", [b"\xff" * 40, struct.pack("<Q", 1 << 60), b"\x08"])
def test_damaged_records_end_the_reading(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(framed(b"\x1a\x0dbrain.Event:2") + event(1, "train/loss", 2.0) + framed(content)[:-1])
    assert run_log(read_log(path))["loss"].values.tolist() == [2.0]


def test_half_a_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    path = metrics_jsonl(history(), tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + '{"loss": 1.', encoding="utf-8")
    found = diagnose(path)
    assert found.records == len(history())
    assert "1 line is no JSON object and left out" in found.remarks


def test_a_state_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = trainer_state(history(), tmp_path)
    path.write_text(path.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    assert 0 < diagnose(path).records < len(history())


def test_an_empty_history_is_too_short(tmp_path: Path) -> None:
    assert diagnose(trainer_state([], tmp_path)).verdict == "too_short"
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    found = diagnose(tmp_path / "metrics.jsonl")
    assert (found.verdict, found.kind) == ("too_short", "unknown")
    assert "empty" in found.remarks[0]


def test_a_run_folder_and_the_newest_checkpoint_are_found(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        trainer_state(history()[:step], folder)
    assert diagnose(tmp_path / "out").records == 10
    metrics_jsonl(history()[:5], tmp_path / "out")
    assert diagnose(tmp_path / "out").records == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("log.bin", "\0\1\2", "binary"),
        ("config.json", '{\n"hidden_size": 4\n}', "no list of records"),
        ("notes.txt", "it went well\n", "no training records"),
        ("scalars.csv", "Wall time,Step,Value\n1,2,3\n", "run-RUN-tag"),
        ("a.ipynb", '{"cells": 3}', "not a whole notebook"),
    ],
)
def test_what_is_no_log_is_refused_with_what_to_do(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        diagnose(tmp_path / name)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    trainer_state(history(), tmp_path)
    with pytest.raises(DataError, match=r"Did you mean .*trainer_state\.json"):
        diagnose(tmp_path / "trainer_stat.json")
    with pytest.raises(DataError, match="no training log in this folder"):
        (tmp_path / "empty").mkdir()
        diagnose(tmp_path / "empty")


def restarted(before: int, again: int, jump: float = 0.0) -> list[dict[str, Any]]:
    """A run that is resumed: steps to `before`, then on from `again`, with another loss where there is a jump."""
    drawn = random.Random(1)
    steps = [*range(1, before + 1), *range(again, 61)]
    return [
        {"step": s, "loss": 2 - s / 60 + drawn.gauss(0, 0.01) + jump * (i >= before), "learning_rate": 1e-5}
        for i, s in enumerate(steps)
    ]


def test_a_resumed_run_counts_the_records_after_the_restart() -> None:
    found = diagnose(restarted(40, 31))
    assert found.records == 60
    assert [(f.rule, f.severity) for f in found.findings] == [("resumed", "note")]
    assert found.findings[0].steps == (31, 40)


def test_a_restart_with_another_loss_is_out_of_phase() -> None:
    assert "resumed_out_of_phase" in {finding.rule for finding in diagnose(restarted(40, 31, 0.5)).findings}


def test_of_two_runs_in_one_log_the_longer_is_read() -> None:
    found = diagnose(restarted(5, 1))
    assert (found.records, found.verdict) == (60, "caution")
    assert any("2 runs in one log" in remark for remark in found.remarks)


def test_a_summary_joined_to_the_end_is_no_step_back() -> None:
    records = [*restarted(60, 61), {"step": 7, "train_runtime": 9.0, "train_loss": 1.5, "total_flos": 1e15}]
    found = diagnose(records)
    assert (found.verdict, found.records, found.findings) == ("healthy", 60, ())


def test_nan_of_joined_records_is_missing_and_not_broken(tmp_path: Path) -> None:
    rows = "".join(
        f"{n},{2 - n / 40},1.0,nan,nan,nan\n{n},nan,nan,{2.1 - n / 40},1,5\n" for n in range(1, 41)
    )
    path = tmp_path / "joined.csv"
    path.write_text(
        "step,loss,grad_norm,eval_loss,eval_runtime,eval_steps_per_second\n" + rows, encoding="utf-8"
    )
    assert diagnose(path).verdict == "healthy"


def test_runs_beside_each_other_in_a_charts_export_are_told_apart(tmp_path: Path) -> None:
    head = '"Step","a - train/loss","a - train/loss__MIN","a - train/loss__MAX","b - train/loss"\n'
    path = tmp_path / "chart.csv"
    path.write_text(head + "".join(f"{n},{2 - n / 40},0,9,5\n" for n in range(1, 41)), encoding="utf-8")
    found = diagnose(path)
    assert found.verdict == "healthy"
    assert found.remarks == ("columns of 2 runs in one file; read is 'a'",)


def test_a_row_per_value_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    rows = "".join(f"loss,{2 - n / 40},{n}\nlearning_rate,1e-5,{n}\n" for n in range(1, 41))
    path.write_text("key,value,step\n" + rows, encoding="utf-8")
    assert diagnose(path).verdict == "healthy"


@pytest.mark.parametrize("row", ["| {} | {} |", "{}\t{}", "{}    {}"])
def test_tables_are_read_as_people_copy_them(row: str, tmp_path: Path) -> None:
    lines = [row.format("Step", "Training Loss"), *(row.format(n, 2 - n / 40) for n in range(1, 41))]
    (tmp_path / "table.txt").write_text("\n".join(lines), encoding="utf-8")
    log = run_log(read_log(tmp_path / "table.txt"))
    assert len(log["loss"]) == 40
    assert log["loss"].steps[-1] == 40


def test_lines_of_verl_are_read(tmp_path: Path) -> None:
    lines = [f"(pid) step:{n} - actor/entropy:0.4 - critic/score/mean:{n / 50} - response_length/mean:100.0" for n in range(1, 51)]  # fmt: skip
    (tmp_path / "verl.log").write_text("\n".join(lines), encoding="utf-8")
    found = diagnose(tmp_path / "verl.log")
    assert (found.kind, found.verdict) == ("grpo", "healthy")


def test_numbers_are_read_as_tools_print_them() -> None:
    table = Table()
    table.add(
        {"global_step/max_steps": "1/100", "percentage": "1.00%", "loss": "1.5", "elapsed_time": "0:01:02"}
    )
    table.add(
        {"global_step/max_steps": "2/100", "percentage": "2.00%", "loss": "nan", "elapsed_time": "0:01:04"}
    )
    log = run_log(table)
    assert log["loss"].steps.tolist() == [1, 2]
    assert table.texts == {"elapsed_time"}
    assert np.isnan(log["loss"].values[1])


def test_files_of_one_tag_each_belong_together(tmp_path: Path) -> None:
    folder = FORMATS["tensorboard_csv"](history(), tmp_path)
    assert len(merge_tags(sorted(folder.iterdir()))) == 1


def test_a_picture_shows_what_is_not_finite() -> None:
    curve = run_log(_table(history()))["loss"]
    assert sparkline(curve, 30).endswith("×××××")
    assert sparkline(curve, 30)[0] == "█"


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table()
    for record in records:
        table.add(record)
    return table


def test_odd_records_do_no_harm() -> None:
    records: list[dict[str, Any]] = [
        {},
        {"loss": {"a": 1}},
        {"loss": [1, 2]},
        {"loss": 10**400, "step": 1},
        {"loss": True},
        {"loss": "text", "step": "x"},
        {"": 1.0, "step": 3},
    ]
    assert json.dumps(diagnose(records).to_json())


def test_names_that_never_repeat_are_read() -> None:
    records = [{"step": n, f"key{n}": 1.0, "loss": 2 - n / 50} for n in range(1, 41)]
    assert diagnose(records).verdict == "healthy"


def test_a_first_line_that_a_kill_cut_short_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.', encoding="utf-8")
    found = diagnose(tmp_path / "metrics.jsonl")
    assert (found.verdict, found.records) == ("too_short", 0)


def test_a_history_far_down_in_its_document_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from handbook_utils.diagnosis.reading import json_logs

    monkeypatch.setattr(json_logs, "CHUNK", 100)
    state = {"trial_params": {"x" * 50: "y" * 333}, "log_history": history()}
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(state, indent=2), encoding="utf-8")
    assert diagnose(path).records == len(history())
