"""Finding the newest checkpoint that was written whole."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint and delete those that a kill left unfinished.

    The trainer writes `trainer_state.json` last, but a machine that goes down, or a full disk, can cut short
    files that were written before it: each is checked for its end.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if _is_whole(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    if f"checkpoint-{state.get('global_step')}" != checkpoint.name:
        return False
    return all(_has_its_end(file) for file in checkpoint.rglob("*") if file.is_file())


def _has_its_end(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return _is_whole_safetensors(file)
    # torch writes zip archives, whose table of contents comes last
    return file.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(file)


def _is_whole_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says: 8 bytes of length, the header, the tensors."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + length + max(ends, default=0)
