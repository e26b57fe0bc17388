"""Models that also take pictures or sound, trained on text: what it does not reach stays as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from handbook_utils.models.adapters import read_base
from handbook_utils.models.places import INIT, is_adapter, resolve_model
from handbook_utils.models.towers import tower_names
from handbook_utils.runs.log import LOGGER

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def freeze_towers(model: Any) -> None:
    """Keep training on text from changing what text does not go through; nothing of other models."""
    names = tower_names(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    if names:
        LOGGER.info("not trained, as text does not go through it: %s", ", ".join(names))


def copy_processor(name: str, folder: Path, *, revision: str | None = None) -> None:
    """Put the settings with which pictures or sound are prepared beside a model trained from another.

    Args:
        name: the model that it was trained from, as for `load_model`.
        folder: of the new model.
        revision: of a hub name.
    """
    if name == INIT:
        return
    place = resolve_model(name, revision=revision)
    if is_adapter(place):
        base = read_base(place)
        copy_processor(base.name, folder, revision=base.revision)
    for file in PROCESSOR_FILES:
        if (source := _stored(place, file, revision)) is not None:
            shutil.copyfile(source, folder / file)


def _stored(place: str, file: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    if Path(place).is_dir():
        path = Path(place) / file
        return path if path.is_file() else None
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(place, file, **options, _raise_exceptions_for_connection_errors=False)
    return None if found is None else Path(found)
