"""What of a run can be put to use: a finished run that holds a language model, as it wrote it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from handbook_utils.errors import ModelError, RunFolderError, suggest
from handbook_utils.models.merge import stored_dtype
from handbook_utils.models.places import is_adapter, resolve_model
from handbook_utils.models.precision import DTYPES
from handbook_utils.planning.gpus import GIB
from handbook_utils.runs.state import check_unaltered, read_manifest, run_fingerprint
from handbook_utils.schema.stage_table import STAGES

HEADER_BYTES = 8
# kept free beside the weights, for the tokenizer and what a file system needs
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ExportSource:
    """A run whose model can be put to use.

    Attributes:
        run: the run folder.
        place: its model's folder.
        manifest: of the run.
        is_adapter: whether `place` holds an adapter, to be merged into what it was trained on.
        fingerprint: of what the run made.
    """

    run: Path
    place: Path
    manifest: Mapping[str, Any]
    is_adapter: bool
    fingerprint: str

    @property
    def stage(self) -> str:
        """Which stage the run is of."""
        return str(self.manifest["stage"])


def export_source(run: str | Path) -> ExportSource:
    """Look at a run that is to be put to use; no model is loaded.

    Raises:
        RunFolderError: not a run folder, not finished, or altered since.
        ModelError: it holds no model, or a reward model, which answers nothing.
    """
    run = Path(run).expanduser()
    if not (run / "manifest.json").exists():
        raise RunFolderError(_no_run(run))
    manifest = read_manifest(run)
    if manifest["status"] != "finished":
        raise RunFolderError(
            f"{run}: the run is {manifest['status']}, not finished, so its model is not there whole. Run the "
            "command that made it again, which goes on from where it ended, then export it."
        )
    stage = manifest["stage"]
    if stage == "reward":
        raise ModelError(
            f"{run}: a reward model. It gives scores and no answers, so a chat server cannot serve it. Score "
            f"answers with it: handbook score ANSWERS.jsonl --scorer proxy={run}"
        )
    if not (run / "model").exists():
        raise ModelError(f"{run}: a run of stage '{stage}', which holds no model. {_runs_beside(run)}")
    check_unaltered(run)
    place = Path(resolve_model(str(run)))
    return ExportSource(run, place, manifest, is_adapter(str(place)), run_fingerprint(run))


def _no_run(run: Path) -> str:
    if not run.exists():
        beside = [entry.name for entry in run.parent.iterdir()] if run.parent.is_dir() else []
        near = f" {suggest(run.name, beside)}" if beside else ""
        return f"{run}: no such folder.{near}"
    inside = _with_model(run)
    if inside:
        return f"{run}: the folder of a pipeline, not of one run. Name one of its runs: {', '.join(inside)}."
    return (
        f"{run}: not a run folder (it has no manifest.json), so there is nothing to write a card from. "
        "Name the folder that `handbook train` wrote."
    )


def _runs_beside(run: Path) -> str:
    names = _with_model(run.parent)
    return f"Runs beside it that hold one: {', '.join(names)}." if names else "Name a run of sft, dpo, orpo."


def _with_model(folder: Path) -> list[str]:
    """Runs in a folder that hold a language model, as paths."""
    found = []
    for file in sorted(folder.glob("*/manifest.json")):
        try:
            stage = read_manifest(file.parent)["stage"]
        except RunFolderError:
            continue
        if stage in STAGES and stage != "reward" and (file.parent / "model").exists():
            found.append(str(file.parent))
    return found


def export_dtype(source: ExportSource, wanted: str) -> str:
    """Number format of the weights to be written; "auto": as they are stored.

    Raises:
        ModelError: no such format; the nearest is named.
    """
    if wanted not in (*DTYPES, "auto"):
        raise ModelError(f"--dtype: unknown dtype '{wanted}'. {suggest(wanted, [*DTYPES, 'auto'])}")
    return stored_dtype(str(source.place)) if wanted == "auto" else wanted


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a whole model's files hold quantised weights.

    >>> is_quantised({"quantization_config": {"load_in_4bit": True}}), is_quantised({})
    (True, False)
    """
    return bool(config.get("quantization_config"))


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes that the weights of a folder take in a number format; read from the files' headers alone."""
    size = DTYPES[dtype].itemsize
    return sum(
        prod(entry["shape"]) * size
        for file in folder.glob("*.safetensors")
        for name, entry in tensor_headers(file).items()
    )


def tensor_headers(file: Path) -> dict[str, dict[str, Any]]:
    """What the header of a safetensors file says of each tensor: `dtype`, `shape`, `data_offsets`."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_BYTES), "little")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


def check_room(out: Path, needed: int) -> None:
    """Refuse a disk on which an export has no room.

    Args:
        out: the folder to be made.
        needed: bytes of its weights.
    Raises:
        RunFolderError: says how much there is and how much is needed.
    """
    place = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed + SPARE_BYTES:
        raise RunFolderError(
            f"{out}: the weights take {needed / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free there. Free "
            "some space, choose another --out, or a smaller --dtype, such as bfloat16. Nothing was written."
        )
