"""Finding the newest checkpoint that was written whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint and delete those that a kill left unfinished.

    The trainer writes `trainer_state.json` last, so a checkpoint with a readable one is whole.
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
    return f"checkpoint-{state.get('global_step')}" == checkpoint.name
