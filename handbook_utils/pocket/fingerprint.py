"""Checksums of what is behind a `pocket:` name, so that a run notices when the world has changed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from handbook_utils.runs.atomic import sha256_of

PREFIX = "pocket:"
# not base_model.base_path: that module loads torch, and a dry run must not
FOLDER = Path(__file__).parent


@cache
def pocket_fingerprint(name: str) -> str:
    """Checksum of the base model's files for `pocket:base`, of the world's code for every other name."""
    if name == f"{PREFIX}base":
        return sha256_of(FOLDER / "base")
    code = sorted(file for file in FOLDER.rglob("*.py") if file != Path(__file__))  # this is not the world
    return hashlib.sha256("".join(sha256_of(file) for file in code).encode()).hexdigest()
