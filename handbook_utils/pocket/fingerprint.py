"""Checksums of what is behind a `pocket:` name, so that a run notices when the world has changed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from handbook_utils.atomic import sha256_of
from handbook_utils.pocket.base_model import base_path

PREFIX = "pocket:"


@cache
def pocket_fingerprint(name: str) -> str:
    """Checksum of the base model's files for `pocket:base`, of the world's code for every other name."""
    if name == f"{PREFIX}base":
        return sha256_of(base_path())
    folder = Path(__file__).parent
    code = sorted(folder.rglob("*.py"))
    return hashlib.sha256("".join(sha256_of(file) for file in code).encode()).hexdigest()
