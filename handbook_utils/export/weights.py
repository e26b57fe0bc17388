"""The weights of an export: an adapter merged and checked, a whole model copied or rounded, and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from handbook_utils.errors import ModelError
from handbook_utils.export.source import (
    ExportSource,
    check_room,
    export_dtype,
    is_quantised,
    tensor_headers,
    weight_bytes,
)
from handbook_utils.models.adapters import read_base
from handbook_utils.models.merge import merge_adapter
from handbook_utils.models.merge_shards import MergePlan, check_merged, write_merged
from handbook_utils.models.model_files import INDEX
from handbook_utils.models.multimodal import copy_processor
from handbook_utils.models.places import is_adapter, local_folder, resolve_model
from handbook_utils.models.precision import DTYPES
from handbook_utils.runs.atomic import atomic_folder

_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_weights(source: ExportSource, out: Path, dtype: str) -> None:
    """Refuse what cannot be written, before anything is: no room, or a whole model whose weights are packed.

    Raises:
        ModelError: the weights of a whole model are quantised or of a format that cannot be rounded.
        RunFolderError: the disk has no room for them.
    """
    folder = _whole(source)
    if folder is not None:
        check_room(out, weight_bytes(folder, export_dtype(source, dtype)))
    if source.is_adapter:
        return
    config = json.loads((source.place / "config.json").read_text(encoding="utf-8"))
    if is_quantised(config):
        raise ModelError(
            f"{source.run}: its weights are stored quantised. Serve {source.place} as it is, with a server "
            "that has the same library, or train an adapter, which is merged into plain weights."
        )
    _plan(source.place, dtype)


def _whole(source: ExportSource) -> Path | None:
    """The folder with all of the model's weights; of an adapter its base's, None where that is not here."""
    place, revision = str(source.place), None
    while is_adapter(place):
        base = read_base(place)
        place, revision = resolve_model(base.name, revision=base.revision), base.revision
    return local_folder(place, revision)


def write_weights(
    source: ExportSource, out: Path, dtype: str, *, device: str | None = None
) -> dict[str, Any]:
    """Write weights and configuration into a new folder, whole or not at all.

    An adapter is merged, and compared with what was merged, as `merge_adapter` says. The tensors of a whole
    model are rounded one at a time where `dtype` is another than theirs, and each is read back and compared.

    Args:
        source: the run.
        out: the folder; it is not there yet.
        dtype: of the weights; "auto": as they are stored.
        device: where an adapter is merged; None for this process's GPU, or else the CPU.
    Returns:
        What was checked, in figures.
    Raises:
        ModelError: what was written is another model, or holds what is no number.
    """
    if source.is_adapter:
        report = merge_adapter(str(source.place), out, dtype=dtype, device=device)
        checked = {name: getattr(report, name) for name in ("weights", "difference", "tolerance")}
        return {"merged": True, **checked, "quantization": report.quantization}
    plan = _plan(source.place, dtype)
    with atomic_folder(out) as folder:
        if plan is None:
            files = [*source.place.glob("*.safetensors"), *source.place.glob(INDEX)]
            for file in files:
                shutil.copyfile(file, folder / file.name)
            weights = sum(len(tensor_headers(file)) for file in files if file.suffix == ".safetensors")
        else:
            write_merged(plan, folder)
            weights = check_merged(plan, folder)
        for name in ("config.json", "generation_config.json"):
            if (source.place / name).exists():
                shutil.copyfile(source.place / name, folder / name)
        copy_processor(str(source.place), folder)
    return {"merged": False, "weights": weights, "rounded": plan is not None}


def _plan(folder: Path, dtype: str) -> MergePlan | None:
    """How to round the files of a whole model; None for "auto", or where they are of that format already."""
    if dtype == "auto":
        return None
    headers = {file.name: tensor_headers(file) for file in sorted(folder.glob("*.safetensors"))}
    stored = {entry["dtype"] for tensors in headers.values() for entry in tensors.values()}
    if all(_STORED.get(code) == dtype for code in stored):
        return None
    others = stored - _STORED.keys()
    if others:
        raise ModelError(
            f"{folder}: holds tensors of the format {', '.join(sorted(others))}, which are not rounded to "
            f"{dtype}. Export with --dtype auto."
        )
    files = {
        file: sorted(tensors, key=lambda name, of=tensors: of[name]["data_offsets"])  # type: ignore[misc]
        for file, tensors in headers.items()
    }
    names = [name for tensors in files.values() for name in tensors]
    return MergePlan(folder, files, dict.fromkeys(names, DTYPES[dtype]), {})
