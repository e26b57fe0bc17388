"""What tells one model from another wherever it lies: checksums of what it computes with, and no path."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from handbook_utils.errors import ModelError
from handbook_utils.models.adapters import read_base, read_lora
from handbook_utils.models.places import is_adapter, not_found, resolve_model, weights_fingerprint


def model_fingerprint(name: str, *, revision: str | None = None) -> str:
    """Checksum of a model's weights and settings; that of an adapter covers all it stands on.

    Args:
        name: as for `load_model`, but not `pocket:init`.
        revision: of a hub name, which is told by its commit.
    Raises:
        ModelError: nothing there.
    """
    place = resolve_model(name, revision=revision)
    folder = Path(place)
    if not folder.is_dir():
        return f"{name} {hub_commit(name, revision)}"
    parts = [str(weights_fingerprint(place))]
    if is_adapter(place):
        base = read_base(place)
        parts += [json.dumps(read_lora(place), sort_keys=True), base.quantization]
        parts.append(model_fingerprint(base.name, revision=base.revision))
    else:
        parts.append(hashlib.sha256((folder / "config.json").read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hub_commit(name: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub name stands for now; offline, that which is stored."""
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "config.json", revision=revision)
    except OSError as error:
        raise not_found(name, "cannot tell its version", revision=revision) from error
    if found is None:
        raise ModelError(f"{name}: no config.json, so this is not a model.")
    return Path(found).parent.name
