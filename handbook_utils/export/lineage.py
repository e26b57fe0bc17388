"""The runs that a model came from, one after the other: what each started from and what it learned from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.errors import RunFolderError
from handbook_utils.export.licences import stated_licence
from handbook_utils.models.places import is_hub_name
from handbook_utils.runs.state import read_manifest

MOST_STAGES = 32  # a circle of runs ends here
_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class LearnedFrom:
    """Rows that a stage learned from.

    Attributes:
        name: `pocket:...`, a hub name, or the last part of a path, which says nothing of its machine.
        on_hub: whether it is the name of a dataset there.
        split: and slice.
        rows: used; None where the run did not note it.
        licence: as its own card states it.
    """

    name: str
    on_hub: bool
    split: str
    rows: int | None
    licence: str


@dataclass(frozen=True)
class Step:
    """One run on the way to a model.

    Attributes:
        stage: of the run.
        data: what it learned from.
        start: the model that it started from; None where that is the step before.
        start_on_hub: whether `start` is a name there.
        start_licence: as the card of `start` states it.
        missing: the earlier run that it names and that is not beside it; None: there is none.
        adapter: the LoRA section of its recipe; None where all weights were trained.
    """

    stage: str
    data: list[LearnedFrom]
    start: str | None = None
    start_on_hub: bool = False
    start_licence: str = "not stated"
    missing: str | None = None
    adapter: Mapping[str, Any] | None = None


def is_repository(name: str | None) -> bool:
    """Whether a text can be the name of a repository of the hub.

    >>> is_repository("org/rows-2"), is_repository("org/rows: x")
    (True, False)
    """
    return name is not None and _REPO.fullmatch(name) is not None


def lineage(run: Path) -> list[Step]:
    """The runs that made a model, the first one first.

    Args:
        run: the last of them. An earlier one is looked for where its recipe says: beside it, or by its path.
    """
    steps: list[Step] = []
    folder: Path | None = run
    while folder is not None and len(steps) < MOST_STAGES:
        step, folder = _step(folder)
        steps.append(step)
    return steps[::-1]


def _step(run: Path) -> tuple[Step, Path | None]:
    """A run, and the one before it."""
    manifest = read_manifest(run)
    recipe = manifest["recipe"]
    section = recipe.get("model", {})
    step = {"stage": manifest["stage"], "data": list(_data(manifest, run)), "adapter": recipe.get("lora")}
    earlier = section.get("from") or _run_of(section.get("name"))
    if earlier is not None:
        folder = _beside(run, str(earlier))
        return Step(**step, missing=None if folder else Path(str(earlier)).name), folder
    name = str(section.get("name", "not recorded"))
    shown, on_hub = _shown(name)
    licence = stated_licence(name, kind="model", revision=section.get("revision"))
    return Step(**step, start=shown, start_on_hub=on_hub, start_licence=licence), None


def _run_of(name: Any) -> str | None:
    """A model's name, where it is the folder of a run."""
    is_run = isinstance(name, str) and (Path(name).expanduser() / "manifest.json").exists()
    return str(name) if is_run else None


def _beside(run: Path, name: str) -> Path | None:
    for folder in (run.parent / name, Path(name).expanduser()):
        try:
            read_manifest(folder)
        except RunFolderError:
            continue
        return folder
    return None


def _shown(name: str) -> tuple[str, bool]:
    """A name as others may read it, and whether the hub has it."""
    if name.startswith("pocket:"):
        return name, False
    on_hub = is_hub_name(name) and is_repository(name)
    return (name if on_hub else Path(name).name), on_hub


def _data(manifest: Mapping[str, Any], run: Path) -> Iterator[LearnedFrom]:
    noted = manifest.get("notes", {}).get("sources", [])
    for place, source in enumerate(manifest["recipe"].get("data", [])):
        earlier = source.get("from")
        name = str(earlier or source.get("name", "not recorded"))
        shown, on_hub = _shown(name)
        on_hub = on_hub and earlier is None and not (run.parent / name).exists()
        licence = "of that run" if earlier else stated_licence(name, kind="dataset")
        note = noted[place] if place < len(noted) else {}
        yield LearnedFrom(shown, on_hub, str(source.get("split", "train")), note.get("used"), licence)
