"""A trainer's history of records, written to disk as each tool writes it."""

from __future__ import annotations

import csv
import html
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
History = Sequence[Record]


def trainer_state(history: History, folder: Path) -> Path:
    """transformers: trainer_state.json, with NaN as a literal."""
    path = folder / "trainer_state.json"
    state = {"best_metric": None, "epoch": 1.0, "global_step": len(history), "log_history": list(history)}
    path.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return path


def metrics_jsonl(history: History, folder: Path) -> Path:
    """The handbook: one record per line, null for what is not finite."""
    path = folder / "metrics.jsonl"
    lines = (json.dumps({key: _plain(value) for key, value in record.items()}) for record in history)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# LLaMA-Factory's own names for the few that its trainer_log.jsonl keeps
LLAMA_FACTORY = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "predict_loss": "predict_loss",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "learning_rate": "lr",
    "epoch": "epoch",
}


def trainer_log(history: History, folder: Path) -> Path:
    """LLaMA-Factory: trainer_log.jsonl, a few names, times as text."""
    path = folder / "trainer_log.jsonl"
    total = max((int(_step(record, n)) for n, record in enumerate(history, 1)), default=1)
    with path.open("w", encoding="utf-8") as stream:
        for n, record in enumerate(history, 1):
            step = _step(record, n)
            kept = {ours: record[key] for key, ours in LLAMA_FACTORY.items() if key in record}
            if "learning_rate" not in record and "lr" in record:
                kept["lr"] = record["lr"]
            times = {"elapsed_time": "0:01:02", "remaining_time": "1:02:03"}
            line = {
                "current_steps": step,
                "total_steps": total,
                **kept,
                "percentage": round(100 * step / max(total, 1), 2),
            }
            stream.write(json.dumps({**line, **times}) + "\n")
    return path


def _step(record: Record, default: int) -> float:
    for key in ("step", "current_steps", "total_steps"):
        if isinstance(record.get(key), int | float):
            return record[key]
    return default


def printed(history: History, folder: Path) -> Path:
    """transformers 4 on a terminal: dicts without their step, between a progress bar's returns."""
    path = folder / "train.log"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("Loading checkpoint shards: 100%|####| 2/2\n")
        for n, record in enumerate(history):
            shown = {key: value for key, value in record.items() if key not in ("step", "total_flos")}
            stream.write(f"\r {n}%|###   | {n}/99 [00:01<00:10, 1.2it/s]\r{shown}\n")
    return path


def printed_as_text(history: History, folder: Path) -> Path:
    """transformers 5: the same with every number as text."""
    path = folder / "train.log"
    lines = (
        {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in r.items() if k != "step"}
        for r in history
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _reported(record: Record) -> dict[str, Any]:
    """Names as transformers hands them to trackers."""
    step = {"train/global_step": record["step"]} if "step" in record else {}
    named = {
        key
        if "/" in key and key.startswith("train/")
        else f"eval/{key[5:]}"
        if key.startswith("eval_")
        else f"train/{key}": value
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float)
    }
    return {**named, **step}


def tracker_csv(history: History, folder: Path) -> Path:
    """Weights & Biases: the history as a table, empty where a record lacks a name."""
    path = folder / "history.csv"
    records = [{"_step": n, "_timestamp": 1.7e9 + n, **_reported(record)} for n, record in enumerate(history)]
    names = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows({key: str(value) for key, value in record.items()} for record in records)
    return path


def notebook(history: History, folder: Path) -> Path:
    """A notebook with the table that the Trainer shows."""
    path = folder / "train.ipynb"
    titles = {"loss": "Training Loss", "eval_loss": "Validation Loss", "step": "Step"}
    names = list(dict.fromkeys(key for record in history for key in record))
    names.sort(key=lambda name: name != "step")
    head = "".join(f"<th>{html.escape(titles.get(name, name.replace('/', ' / ')))}</th>" for name in names)
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(str(record.get(name, 'No log')))}</td>" for name in names)
        + "</tr>\n"
        for record in history
    )
    table = f'<table border="1"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    cell = {
        "cell_type": "code",
        "source": [],
        "outputs": [{"output_type": "display_data", "data": {"text/html": [table]}}],
    }
    path.write_text(json.dumps({"cells": [cell], "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def _varint(number: int) -> bytes:
    found = b""
    while True:
        number, low = number >> 7, number & 127
        found += bytes([low | (128 if number else 0)])
        if not number:
            return found


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def event(step: int, tag: str, value: float) -> bytes:
    """One framed event with one scalar, as TensorBoard's writer frames it (checksums left 0)."""
    summary = _field(1, _field(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))
    content = (
        _varint(1 << 3 | 1) + struct.pack("<d", 1.7e9) + _varint(2 << 3) + _varint(step) + _field(5, summary)
    )
    return framed(content)


def framed(content: bytes) -> bytes:
    """A record of an event file."""
    return struct.pack("<Q", len(content)) + bytes(4) + content + bytes(4)


def tensorboard(history: History, folder: Path) -> Path:
    """An event file: each scalar an event of its own, in single precision."""
    path = folder / "events.out.tfevents.1700000000.host.1.0"
    with path.open("wb") as stream:
        stream.write(framed(_varint(1 << 3 | 1) + struct.pack("<d", 1.7e9) + _field(3, b"brain.Event:2")))
        for n, record in enumerate(history, 1):
            for tag, value in _reported(record).items():
                if tag != "train/global_step":
                    stream.write(event(int(_step(record, n)), tag, _single(value)))
    return path


def _single(value: float) -> float:
    return value if abs(value) < 3e38 or not math.isfinite(value) else math.copysign(math.inf, value)


def tensorboard_csv(history: History, folder: Path) -> Path:
    """TensorBoard's download of each scalar: a folder of files named by run and tag."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for n, record in enumerate(history, 1):
        for tag, value in _reported(record).items():
            if tag != "train/global_step":
                rows.setdefault(tag, []).append((1.7e9 + n, _step(record, n), value))
    for tag, found in rows.items():
        with (folder / f"run-a-tag-{tag.replace('/', '_')}.csv").open(
            "w", encoding="utf-8", newline=""
        ) as stream:
            writer = csv.writer(stream)
            writer.writerow(["Wall time", "Step", "Value"])
            writer.writerows(found)
    return folder


FORMATS: Mapping[str, Callable[[History, Path], Path]] = {
    "trainer_state": trainer_state,
    "metrics_jsonl": metrics_jsonl,
    "printed": printed,
    "printed_as_text": printed_as_text,
    "tracker_csv": tracker_csv,
    "notebook": notebook,
    "tensorboard": tensorboard,
    "tensorboard_csv": tensorboard_csv,
    "trainer_log": trainer_log,
}
# names that a format does not keep make its score another question
LOSSY = ("trainer_log",)
