"""Reading a run folder's state: its manifest, whether it is done, how it differs from what is asked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handbook_utils.errors import RunFolderError
from handbook_utils.runs.atomic import explained_os_errors
from handbook_utils.runs.checksums import checksum_of, is_same_input

if TYPE_CHECKING:
    import pyarrow as pa

# how many processes train or sample changes nothing of what is computed
NOT_PART_OF_A_RUN = {"description", "launch", "executor"}


REDO = "Run the stage that made it again with --overwrite, which deletes the run and starts again."


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        missing = "not a run folder (it has no manifest.json)" if Path(path).exists() else "no such folder"
        raise RunFolderError(f"{path}: {missing}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise RunFolderError(f"{file}: damaged, so what the folder holds cannot be trusted. {REDO}") from None
    if not isinstance(manifest, dict) or not {"format", "stage", "status", "recipe"} <= manifest.keys():
        raise RunFolderError(f"{file}: not a manifest of a run. {REDO}")
    return manifest


def require_finished(path: str | Path) -> None:
    """Refuse the folder of a run that has not finished: what it holds is not all there.

    Raises:
        RunFolderError: it is not finished, or no run folder.
    """
    status = read_manifest(path)["status"]
    if status != "finished":
        raise RunFolderError(f"{path}: the run is {status}, not finished. Run it again to go on.")


def is_finished(path: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    folder = Path(path)
    return (folder / "manifest.json").exists() and read_manifest(folder)["status"] == "finished"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl by step; of a step logged again after a resume, the last one counts."""
    file = Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line a kill cut short; its step was logged again
            continue
        records[(record.get("step"), *sorted(record))] = record
    return sorted(records.values(), key=lambda record: record.get("step") or 0)


def read_table(path: Path) -> pa.Table:
    """One parquet file, or all parts of a folder in order of their names."""
    import pyarrow as pa

    if path.is_dir():
        return pa.concat_tables([read_part(part) for part in sorted(path.glob("*.parquet"))])
    return read_part(path)


def read_part(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One parquet file, or some columns of it.

    Raises:
        RunFolderError: it is damaged.
    """
    import pyarrow.parquet as pq

    with explained_os_errors(file, reading=True):
        return pq.read_table(file, columns=columns if columns is None else list(columns))


def read_schema(file: Path) -> pa.Schema:
    """The columns of a parquet file; raises as `read_part`."""
    import pyarrow.parquet as pq

    with explained_os_errors(file, reading=True):
        return pq.read_schema(file)


def run_fingerprint(path: str | Path) -> str:
    """Checksum of what a finished run made: not of when, where or how fast it made it."""
    import hashlib

    outputs = read_manifest(path).get("outputs", {})
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def output_checksums(path: Path, *, leave_out: Collection[str]) -> dict[str, str]:
    """Checksum of each file that a run made, by its name in the run folder.

    A run folder inside has checksums of its own, and a link leads to what is counted elsewhere.
    """
    own = [
        entry
        for entry in path.iterdir()
        if entry.name not in leave_out and not entry.is_symlink() and not (entry / "manifest.json").exists()
    ]
    files = [file for entry in own for file in ([entry] if entry.is_file() else entry.rglob("*"))]
    return {str(file.relative_to(path)): checksum_of(file) for file in sorted(files) if file.is_file()}


def damaged_outputs(path: str | Path, *, by_checksum: bool = True) -> list[str]:
    """Files of a finished run that are gone, or (by their checksums) not as they were written."""
    folder = Path(path)
    written = read_manifest(folder).get("outputs", {})
    return [
        name
        for name, checksum in written.items()
        if not (folder / name).is_file() or (by_checksum and checksum_of(folder / name) != checksum)
    ]


def check_unaltered(path: str | Path) -> None:
    """Refuse a finished run whose files are not as it wrote them; those of runs inside it count as well.

    Raises:
        RunFolderError: names the run, a file, and how to have it made again.
    """
    for folder in (Path(path), *inner_runs(path)):
        if damaged := damaged_outputs(folder):
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise RunFolderError(
                f"{folder}: {damaged[0]}{more} is missing or was altered since the run wrote it, so what is "
                "read would not be what its manifest says. Put the files back, or run that stage again with "
                "--overwrite."
            )


def inner_runs(path: str | Path) -> list[Path]:
    """Run folders inside a run folder, such as those of rounds."""
    return [manifest.parent for manifest in Path(path).glob("*/manifest.json")]


def differences(
    earlier: Mapping[str, Any], recipe: Mapping[str, Any], inputs: Mapping[str, str]
) -> list[str]:
    """How a run's recipe and inputs differ from those asked for now, one line each."""
    before, after = _flat(earlier["recipe"]), _flat(recipe)
    lines = [
        f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
        for key in [*before, *(key for key in after if key not in before)]
        if key.removeprefix("train.").partition(".")[0] not in NOT_PART_OF_A_RUN
        and before.get(key) != after.get(key)
    ]
    stored = earlier.get("inputs", {})
    lines += [
        f"input '{name}' has changed since"
        for name in inputs
        if name in stored and not is_same_input(name, stored[name], inputs[name])
    ]
    return lines


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key.

    >>> _flat({"a": {"b": [1, 2]}})
    {'a.b.0': 1, 'a.b.1': 2}
    """
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
