"""Where a model is: `pocket:base`, a folder, a run or the hub; what is missing is told before any loading."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from handbook_utils.environment import is_offline
from handbook_utils.errors import ModelError, suggest
from handbook_utils.models.model_files import check_model_files
from handbook_utils.pocket.base_model import base_path

BASE, INIT = "pocket:base", "pocket:init"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT_BYTES = 1 << 20


def resolve_model(name: str, *, revision: str | None = None) -> str:
    """The folder, or the hub name, to load from.

    Args:
        name: `pocket:base`, a folder, a run folder (its `model/` is read), or a name on the hub. An adapter
            on the hub is fetched, so that adapters are always folders.
        revision: branch, tag or commit of a hub name.
    Raises:
        ModelError: nothing there, or not a model with safetensors weights.
    """
    if name.startswith("pocket:"):
        if name != BASE:
            raise ModelError(f"unknown model '{name}'. {suggest(name, (BASE, INIT))}")
        return str(base_path())
    path = Path(name).expanduser()
    if (path / "manifest.json").exists():
        path = path / "model"
        if not path.is_dir():
            raise ModelError(f"{name}: this run holds no model. Name a run of sft, dpo, reward or pretrain.")
    if path.is_dir():
        _check_folder(path)
        return str(path)
    if path.exists():
        raise ModelError(f"{name}: a file. Give the folder that holds config.json and the weights.")
    if not is_hub_name(name):
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, beside) if beside else f"The folder {path.parent} is missing or empty."
        raise ModelError(f"{name}: no such folder. {hint}")
    return _fetched_adapter(name, revision) or name


def is_hub_name(name: str) -> bool:
    """Whether a model's name can only be one of the hub: no folder is there, and it looks like no path."""
    is_path = name.startswith(("pocket:", ".", "/", "~")) or name.count("/") > 1
    return not (is_path or Path(name).expanduser().exists())


def not_found(name: str, what: str, *, revision: str | None = None, reason: str = "") -> ModelError:
    """The error about a name of the hub that gave nothing; offline it lists the revisions that are stored."""
    wanted = name if revision is None else f"{name}, revision '{revision}'"
    why = f" ({reason})" if reason else ""
    if not is_offline():
        return ModelError(
            f"{wanted}: {what}: no such folder here, and the hub does not give it. For a private one run "
            f"`hf auth login` first.{why}"
        )
    stored = stored_revisions(name)
    hint = f" Stored here: {', '.join(stored)}." if stored else ""
    return ModelError(
        f"{wanted}: {what}: no such folder here, and HF_HUB_OFFLINE is set, so the hub is not asked. "
        f"Unset it, or give the path of a folder.{hint}{why}"
    )


def stored_revisions(name: str) -> list[str]:
    """Branches, tags and commits of a hub name that the local cache holds."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    refs = [ref for ref in (folder / "refs").rglob("*") if ref.is_file()]  # a pull request's is refs/pr/1
    named = {str(ref.relative_to(folder / "refs")): ref.read_text(encoding="utf-8").strip() for ref in refs}
    commits = {entry.name for entry in folder.glob("snapshots/*")} - set(named.values())
    return [*sorted(named), *sorted(commits)]


def is_adapter(place: str) -> bool:
    """Whether a place found by `resolve_model` holds an adapter instead of a whole model."""
    return (Path(place) / ADAPTER_CONFIG).exists()


def weights_fingerprint(place: str) -> str | None:
    """Checksum of the names, sizes and ends of a folder's weight files; None for a name on the hub.

    The ends suffice: training moves every weight, and a whole model can take minutes to read.
    """
    folder = Path(place)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(FINGERPRINT_BYTES))
            stream.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def local_folder(place: str, revision: str | None = None) -> Path | None:
    """The folder on this machine of a whole model found by `resolve_model`, which has been loaded already."""
    if Path(place).is_dir():
        return Path(place)
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(place, "config.json", **options, _raise_exceptions_for_connection_errors=False)
    return None if found is None else Path(found).parent


def _check_folder(path: Path) -> None:
    if not (path / "config.json").exists() and not is_adapter(str(path)):
        raise ModelError(f"{path}: no config.json, so this is not a model folder.")
    if not list(path.glob("*.safetensors")):
        others = [entry.name for entry in path.glob("*.bin")]
        found = f"only {others[0]}, which can run code when it is loaded" if others else "none"
        raise ModelError(
            f"{path}: weights have to be .safetensors; found {found}. Where you trust them, "
            "load the model with transformers and save_pretrained it: that writes safetensors."
        )
    check_model_files(path)


def _fetched_adapter(name: str, revision: str | None) -> str | None:
    """The local copy of an adapter on the hub; None for a whole model, or when the hub cannot be asked."""
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(name, ADAPTER_CONFIG, **options, _raise_exceptions_for_connection_errors=False)
    if found is None:
        return None
    weights = cached_file(name, ADAPTER_WEIGHTS, **options)
    if weights is None:
        raise ModelError(f"{name}: this adapter has no {ADAPTER_WEIGHTS}; other weights can run code.")
    return str(Path(weights).parent)
