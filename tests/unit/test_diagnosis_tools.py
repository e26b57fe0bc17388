"""Logs in the shapes of other trainers and trackers: a run that is well, one that diverges, one with NaN."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_utils.diagnosis.diagnose import diagnose
from handbook_utils.errors import DataError

Records = Sequence[Mapping[str, Any]]
RED, PLAIN = "\x1b[31m", "\x1b[39m"


def run(end: str = "well") -> list[dict[str, Any]]:
    """A loss with noise, each tenth step, beside an evaluation now and then."""
    draw, records = np.random.default_rng(7), []
    for n in range(1, 81):
        loss = 1.1 + 1.1 * math.exp(-n / 14) + 0.04 * draw.standard_normal()
        if end == "diverges" and n > 40:
            loss += 0.3 * (n - 40)
        if end == "nan" and n > 50:
            loss = math.nan
        rate = 2e-5 * (1 - n / 81)
        records.append(
            {"step": 10 * n, "loss": round(float(loss), 4), "learning_rate": rate, "grad_norm": 1.25}
        )
        if n % 20 == 0:
            records.append({"step": 10 * n, "eval_loss": round(1.3 + math.exp(-n / 14), 4)})
    return records


def lines(of_loss: str, of_eval: str = "") -> Callable[[Records], str]:
    """A format of one line for each record."""

    def write(records: Records) -> str:
        made = (
            (of_loss if "loss" in record else of_eval).format(**record, red=RED, plain=PLAIN)
            for record in records
            if "loss" in record or of_eval
        )
        return "\n".join(["[2026-11-30 10:00:00] starting, 2 GPUs", *made, "done"])

    return write


def table(records: Iterable[Mapping[str, Any]], delimiter: str = ",", point: str = ".") -> str:
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows([str(row.get(name, "")).replace(".", point) for name in names] for row in rows)
    return stream.getvalue()


def values(records: Records, name: str, value: str, **more: Any) -> list[dict[str, Any]]:
    """A row for each value."""
    return [
        {**more, name: key, value: number, "step": record["step"]}
        for record in records
        for key, number in record.items()
        if key != "step"
    ]


def clearml(records: Records) -> str:
    series = {
        name: {
            "train": {
                "x": [r["step"] for r in records if name in r],
                "y": [r[name] for r in records if name in r],
            }
        }
        for name in ("loss", "learning_rate")
    }
    return json.dumps(series)


def named_values(records: Records) -> str:
    """Of a tracker with clocks of its own, where what is missing is written as NaN."""
    kept = ("loss", "learning_rate", "eval_loss")
    return table(
        {"_step": n, "_runtime": 3.5 * n, **{name: record.get(name, "NaN") for name in kept}}
        for n, record in enumerate(records)
    )


TOOLS: dict[str, tuple[str, Callable[[Records], str]]] = {
    "torchtune": ("log.txt", lines("Step {step} | loss:{loss} lr:{learning_rate} tokens_per_second:1234.5 ")),
    "torchtune_bar": (
        "log.txt",
        lines("1|{step}|Loss: {loss}:  10%|█   | {step}/800 [00:10<01:00,  1.2it/s]"),
    ),
    "torchtitan": (
        "log.txt",
        lines(
            "[rank0]:[titan] 2026-11-30 10:00:00,123 - root - INFO - {red}step: {step:2}  loss: {loss:7.4f}  "
            "grad_norm: {grad_norm}  memory: 40.1GiB(42.2%)  tps: 1,234{plain}"
        ),
    ),
    "megatron": (
        "log.txt",
        lines(
            " [2026-11-30 10:00:00] iteration {step:8d}/     800 | consumed samples:   640 | elapsed time "
            "per iteration (ms): 512.3 | learning rate: {learning_rate:.6E} | "
            "lm loss: {loss:.6E} | grad norm: 1.2 |"
        ),
    ),
    "nemo": (
        "log.txt",
        lines(
            "Training epoch 0, iteration {step}/800 | lr: {learning_rate} | reduced_train_loss: {loss} | x"
        ),
    ),
    "nanogpt": (
        "log.txt",
        lines(
            "iter {step}: loss {loss:.4f}, time 102.33ms, mfu 20.10%",
            "step {step}: train loss {eval_loss:.4f}, val loss {eval_loss:.4f}",
        ),
    ),
    "litgpt": (
        "log.txt",
        lines("Epoch 1 | iter {step} step 5 | loss train: {loss:.3f}, val: n/a | iter time: 102.3 ms"),
    ),
    "mlx": (
        "log.txt",
        lines(
            "Iter {step}: Train loss {loss:.3f}, Learning Rate {learning_rate:.3e}, Peak mem 5.1 GB",
            "Iter {step}: Val loss {eval_loss:.3f}, Val took 3.210s",
        ),
    ),
    "progress_bar": (
        "log.txt",
        lines("Episode [1/1]: 10%|█   | {step}/800 [00:10<01:00, 1.2s/it, loss={loss}, v_num=0]"),
    ),
    "trainer_behind_dates": (
        "log.txt",
        lines("[INFO|trainer.py:143] >> {{'loss': {loss}, 'epoch': {step}}}"),
    ),
    "verl_of_numpy": (
        "log.txt",
        lines("(TaskRunner pid=1) step:{step} - actor/pg_loss:np.float64({loss}) - lr:1e-6"),
    ),
    "gzip": ("trainer_state.json.gz", lambda records: json.dumps({"log_history": list(records)})),
    "mlflow": ("metrics.csv", lambda records: table(values(records, "key", "value", run_id="a"))),
    "comet": (
        "metrics.json",
        lambda records: json.dumps(values(records, "metricName", "metricValue", epoch=None)),
    ),
    "neptune": ("metrics.csv", lambda records: table(values(records, "path", "value", **{"sys/id": "A-1"}))),
    "clearml": ("scalars.json", clearml),
    "columns": (
        "history.json",
        lambda records: json.dumps({"loss": [r["loss"] for r in records if "loss" in r]}),
    ),
    "one_column": (
        "loss.csv",
        lambda records: "loss\n" + "\n".join(str(r["loss"]) for r in records if "loss" in r),
    ),
    "nested": (
        "log.jsonl",
        lambda rs: "\n".join(json.dumps({"step": r["step"], "train": dict(r)}) for r in rs),
    ),
    "lightning": (
        "metrics.csv",
        lambda rs: table(
            {"step": r["step"], "train_loss_step": r["loss"], "lr-AdamW": 1e-5} for r in rs if "loss" in r
        ),
    ),
    "decimal_commas": ("log.csv", lambda records: table(records, delimiter=";", point=",")),
    "decimal_commas_in_quotes": ("log.csv", lambda records: table(records, point=",")),
}


def write(folder: Path, tool: str, records: Records) -> Path:
    name, text = TOOLS[tool]
    file = folder / name
    content = text(records).encode()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


@pytest.mark.parametrize("tool", TOOLS)
def test_the_log_of_any_tool_is_read_as_the_run_that_it_is(tool: str, tmp_path: Path) -> None:
    well = diagnose(write(tmp_path, tool, run()))
    assert (well.verdict, well.findings) == ("healthy", ())
    assert well.kind == "sft"
    for end, rule in (("diverges", "diverged"), ("nan", "nan")):
        found = diagnose(write(tmp_path, tool, run(end)), kind="sft")
        assert (found.verdict, rule in {finding.rule for finding in found.findings}) == ("faulty", True)


def test_what_a_tracker_writes_as_nan_where_a_record_has_no_such_number_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    file.write_text(named_values(run()), encoding="utf-8")
    assert diagnose(file).verdict == "healthy"
    file.write_text(named_values(run("nan")), encoding="utf-8")
    assert [finding.rule for finding in diagnose(file).findings if finding.severity == "fault"] == ["nan"]


def test_of_several_runs_in_rows_of_values_the_longest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    rows = values(run("diverges")[:60], "key", "value", run_id="short") + values(
        run(), "key", "value", run_id="long"
    )
    file.write_text(table(sorted(rows, key=lambda row: str(row["key"]))), encoding="utf-8")
    found = diagnose(file)
    assert found.verdict == "healthy"
    assert "rows of 2 runs in one file; read is the longest, 'long'" in found.remarks


def test_commas_between_thousands_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    rows = [{"step": f"{100 * n:,}", "loss": 2.5, "tokens": "1,234"} for n in range(1, 31)]
    file.write_text(table(rows), encoding="utf-8")
    assert diagnose(file).steps == (100.0, 3000.0)


@pytest.mark.parametrize(
    "row",
    [
        {"epoch": 1, "accuracy": 0.3, "loss": 2.3, "val_accuracy": 0.3, "val_loss": 2.3},
        {
            "time/total_timesteps": 2048,
            "rollout/ep_rew_mean": 3.5,
            "train/loss": 0.3,
            "train/value_loss": 1.0,
        },
        {"iter": 1, "d_loss": 0.7, "g_loss": 1.2, "loss": 1.9},
    ],
)
def test_logs_of_other_models_get_no_verdict(row: dict[str, float], tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    first = next(iter(row))
    file.write_text(table({**row, first: n} for n in range(40)), encoding="utf-8")
    assert diagnose(file).verdict == "unknown"


def test_lines_that_speak_of_a_loss_and_count_nothing_are_no_records(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("loss: 2.5\nthe loss was 3 yesterday\n" * 40, encoding="utf-8")
    with pytest.raises(DataError, match="no training records found"):
        diagnose(file)


def test_an_archive_and_a_broken_gzip_file_are_told(tmp_path: Path) -> None:
    archive, broken = tmp_path / "log.zip", tmp_path / "log.jsonl.gz"
    archive.write_bytes(b"PK\x03\x04 and more\0")
    with pytest.raises(DataError, match="a zip archive"):
        diagnose(archive)
    whole = gzip.compress("".join(json.dumps(record) + "\n" for record in run()).encode())
    broken.write_bytes(whole[:-20])
    found = diagnose(broken)
    assert found.records > 20
    assert any("breaks off" in remark for remark in found.remarks)
