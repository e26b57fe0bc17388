"""Run folders: what a stage leaves on disk, whole or not at all, and how it is found again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handbook_utils.environment import environment, peak_memory_gib, reset_peak_memory
from handbook_utils.errors import HandbookError, RunFolderError, TrainingError
from handbook_utils.records import Estimate, RunResult
from handbook_utils.redaction import redacted
from handbook_utils.runs.atomic import (
    TEMPORARY,
    atomic_folder,
    explained_os_errors,
    locked,
    remove_leftovers,
    write_json,
    write_table,
    write_text,
)
from handbook_utils.runs.log import LOGGER, log_file
from handbook_utils.runs.state import (
    damaged_outputs,
    differences,
    output_checksums,
    read_manifest,
    read_table,
    require_finished,
)
from handbook_utils.schema.recipe import recipe_to_dict, recipe_to_yaml
from handbook_utils.schema.sections import Source
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.training import StageRecipe

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST, RECIPE, METRICS = "manifest.json", "recipe.yaml", "metrics.jsonl"
RESULT, LOG, LOCK = "result.json", "log.txt", ".lock"
OWN_FILES = {MANIFEST, RECIPE, METRICS, RESULT, LOG, LOCK}


class RunFolder:
    """An open run folder; made by `open_run`, given to a stage's function.

    Attributes:
        path: the folder.
        progress: whether to show progress bars.
        recipe: the recipe as it was resolved.
        inputs: the run folder behind each `from` of it.
        is_main: whether this process owns the folder; of several that train together one does.
    """

    is_main = True

    def __init__(
        self,
        path: Path,
        recipe: StageRecipe,
        inputs: Mapping[str, Path],
        manifest: dict[str, Any],
        *,
        progress: bool,
    ) -> None:
        self.path = path
        self._manifest = manifest
        self._started = time.monotonic()
        self.recipe = recipe
        self.progress = progress
        self.inputs = dict(inputs)
        self._tokens = 0
        self._notes: dict[str, Any] = {}

    def locate(self, source: Source) -> str:
        """Where a section's `name` or `from` is to be read."""
        if source.from_ is not None:
            return str(self.inputs[source.from_])
        assert source.name is not None  # held by the schema
        return source.name

    def has(self, name: str) -> bool:
        """Whether an artefact is there, whole."""
        return (self.path / name).exists()

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write `name` (such as "samples/part-00000.parquet") whole or not at all."""
        write_table(self.path / name, table)

    def read_table(self, name: str) -> pa.Table:
        """Read one parquet file, or all parts of a folder in order."""
        return read_table(self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON artefact whole or not at all."""
        write_json(self.path / name, content)

    def folder(self, name: str) -> AbstractContextManager[Path]:
        """A temporary folder to fill; it becomes `name` when the block ends well."""
        return atomic_folder(self.path / name)

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl; a resumed run may log a step again, the last one counts."""
        line = json.dumps(dict(record), allow_nan=False)
        with (
            explained_os_errors(self.path / METRICS),
            (self.path / METRICS).open("a", encoding="utf-8") as stream,
        ):
            stream.write(line + "\n")

    def count_tokens(self, tokens: int) -> None:
        """Add to the tokens this session trained on or sampled, for tokens_per_s."""
        self._tokens += tokens

    def note(self, **facts: Any) -> None:
        """Keep facts in the manifest, such as row counts and fingerprints of the data."""
        self._notes.update(facts)

    def add_inner(self, result: RunResult) -> None:
        """Count the memory of a run inside this one: measuring it has begun anew there."""
        most = max(self._manifest["peak_memory_before_gib"], result.peak_memory_gib)
        self._manifest = {**self._manifest, "peak_memory_before_gib": most}

    def finish(self, metrics: Mapping[str, Estimate], cautions: Sequence[str] = ()) -> RunResult:
        """Write result.json, then mark the run finished: in this order, so a kill between redoes it."""
        manifest, session_s = self._manifest, time.monotonic() - self._started
        result = {
            "stage": manifest["stage"],
            "final_metrics": {name: figure.to_json() for name, figure in metrics.items()},
            "runtime_s": round(manifest["runtime_before_s"] + session_s, 3),
            "peak_memory_gib": round(max(peak_memory_gib(), manifest["peak_memory_before_gib"]), 3),
            "tokens_per_s": round(self._tokens / session_s, 1) if self._tokens else None,
            "cautions": list(cautions),
        }
        write_json(self.path / RESULT, result)
        outputs = output_checksums(self.path, leave_out=OWN_FILES)
        write_json(
            self.path / MANIFEST,
            {**manifest, "status": "finished", "finished": now(), "notes": self._notes, "outputs": outputs},
        )
        return read_result(self.path)


@contextmanager
def open_run(
    path: str | Path,
    recipe: StageRecipe,
    *,
    inputs: Mapping[str, Path] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Iterator[RunFolder]:
    """Open a run folder to work in, alone; an interrupted run of the same recipe and inputs goes on.

    Args:
        path: the folder; made where it is missing.
        recipe: the resolved recipe.
        inputs: the run folder each `from:` of the recipe names.
        fingerprints: checksum of each input, by name; a changed one is refused.
        overwrite: delete what another recipe, or a damaged run, left here.
        progress: whether stages show progress bars.
    Raises:
        RunFolderError: in use, of another recipe, damaged, not a run folder, or not writable.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    check_out(path, recipe, fingerprints or {}, overwrite=overwrite)
    with explained_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path / LOCK, path), log_file(path / LOG):
        try:
            manifest = _prepared(path, recipe, dict(fingerprints or {}), overwrite)
            with explained_os_errors(path):
                yield RunFolder(path, recipe, inputs or {}, manifest, progress=progress)
        except Exception as error:
            LOGGER.error("%s", error, exc_info=not isinstance(error, HandbookError))
            _leave(path, error, made)
            raise


def check_out(path: Path, recipe: StageRecipe, fingerprints: Mapping[str, str], *, overwrite: bool) -> None:
    """Refuse a folder as `open_run` would, and touch nothing in it.

    Raises:
        RunFolderError: of another recipe or of other inputs, damaged, or not a run folder.
    """
    _refuse_foreign(path)
    if (path / MANIFEST).exists() and not overwrite:
        _checked(path, recipe_to_dict(recipe), dict(fingerprints), overwrite=False)


def _refuse_changes(path: Path, earlier: Mapping[str, Any], changed: Sequence[str]) -> None:
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:12])
        raise RunFolderError(
            f"{path}: holds a {earlier['status']} run that differs:\n{shown}\n"
            "Choose another --out, or --overwrite to delete it and start again."
        )


def _refuse_foreign(path: Path) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if not path.is_dir() or (path / MANIFEST).exists():
        return
    left = (LOCK, LOG)  # by a session that was killed before it wrote more
    if any(entry.name not in left and not entry.name.startswith(TEMPORARY) for entry in path.iterdir()):
        raise RunFolderError(
            f"{path}: not empty and not a run folder. Choose another --out; nothing was touched."
        )


def _prepared(
    path: Path, recipe: StageRecipe, fingerprints: dict[str, str], overwrite: bool
) -> dict[str, Any]:
    """Check what is in the folder, clear it where asked, and write the manifest of this session."""
    content = recipe_to_dict(recipe)
    earlier: dict[str, Any] = {}
    if (path / MANIFEST).exists():
        earlier = _checked(path, content, fingerprints, overwrite)
    if earlier.get("status") == "finished":  # opened again as something in it is damaged: that is made anew
        _remove_damaged(path, earlier["stage"])
    remove_leftovers(path)
    before_s, before_gib = _earlier_sessions(path, earlier)
    manifest = {
        "format": 1,
        "stage": content["stage"],
        "status": "running",
        "seed": content["seed"],
        "started": earlier.get("started") or now(),
        "session": now(),
        "runtime_before_s": before_s,
        "peak_memory_before_gib": before_gib,
        "inputs": fingerprints,
        "recipe": content,
        **environment(),
    }
    write_json(path / MANIFEST, manifest)  # first: it is what tells this folder from anybody else's
    write_text(path / RECIPE, recipe_to_yaml(recipe))
    reset_peak_memory()
    return manifest


def _checked(path: Path, content: Any, fingerprints: dict[str, str], overwrite: bool) -> dict[str, Any]:
    """The manifest of an earlier session of the same run; {} after clearing a folder that may be cleared."""
    if not overwrite:
        earlier = read_manifest(path)
        _refuse_changes(path, earlier, differences(earlier, content, fingerprints))
        return earlier
    for entry in path.iterdir():
        if entry.name == LOCK or entry.name == LOG:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return {}


def _remove_damaged(path: Path, stage: str) -> None:
    """Delete what is not as it was written, so that it is made again; a trained model only as a whole."""
    for name in damaged_outputs(path):
        damaged = path / (Path(name).parts[0] if stage in STAGES and STAGES[stage].trains else name)
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink(missing_ok=True)


def _earlier_sessions(path: Path, earlier: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds and memory of earlier sessions.

    A session that was interrupted lasted until the last file it touched. Of a finished run the result says
    what it took; the time until somebody looked at it again, or damaged it, is none of its cost.
    """
    if not earlier:
        return 0.0, 0.0
    if earlier.get("status") == "finished":
        with suppress(RunFolderError):
            result = _result_of(path)
            return result["runtime_s"], result["peak_memory_gib"]
        ended = datetime.fromisoformat(earlier["finished"])
        return _until(earlier, ended.timestamp()), earlier["peak_memory_before_gib"]
    touched = max(file.stat().st_mtime for file in path.rglob("*") if file.name not in (LOCK, LOG))
    return _until(earlier, touched), earlier["peak_memory_before_gib"]


def _until(earlier: Mapping[str, Any], moment: float) -> float:
    began = datetime.fromisoformat(earlier.get("session") or earlier["sitting"]).timestamp()
    return round(float(earlier["runtime_before_s"]) + max(0.0, moment - began), 3)


def _leave(path: Path, error: Exception, made: Sequence[Path]) -> None:
    """After an error: of the folders made for it those without anything worth keeping go, innermost first.

    Anything else is marked as failed, and so is what failed by an error that nobody expected: its log tells.
    """
    others = [entry for entry in path.iterdir() if entry.name not in (MANIFEST, RECIPE, LOG, LOCK)]
    kept = [entry for entry in others if entry.is_file() or any(entry.iterdir())]
    if made and not kept and isinstance(error, HandbookError) and not isinstance(error, TrainingError):
        shutil.rmtree(path)
        with suppress(OSError):  # another run has begun beside this one
            for folder in made[1:]:
                folder.rmdir()
        return
    try:
        manifest = read_manifest(path)
    except RunFolderError:
        return
    if manifest["status"] != "running":
        return
    words = str(error) if isinstance(error, HandbookError) else f"{type(error).__name__}: {error}"
    try:
        write_json(path / MANIFEST, {**manifest, "status": "failed", "error": redacted(words)})
    except RunFolderError:  # no room for a second manifest: change as many bytes of the one there is
        content = (path / MANIFEST).read_bytes()
        with suppress(OSError), (path / MANIFEST).open("r+b") as stream:
            stream.write(content.replace(b'"status": "running"', b'"status": "failed" ', 1))


def read_result(path: str | Path) -> RunResult:
    """The final metrics of a finished run."""
    path = Path(path)
    require_finished(path)
    record = _result_of(path)
    named = "final_metrics" if "final_metrics" in record else "figures"  # runs up to November 2026
    metrics = {name: Estimate.from_json(figure) for name, figure in record.pop(named).items()}
    cautions = tuple(record.pop("cautions"))
    return RunResult(**record, path=path, final_metrics=metrics, cautions=cautions)


def has_result(path: str | Path) -> bool:
    """Whether the result of a finished run can be read."""
    try:
        _result_of(Path(path))
    except RunFolderError:
        return False
    return True


def _result_of(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((path / RESULT).read_text(encoding="utf-8"))
        if {"stage", "runtime_s", "peak_memory_gib", "cautions"} <= record.keys():
            return record
    except (FileNotFoundError, ValueError, AttributeError):
        pass
    raise RunFolderError(
        f"{path / RESULT}: gone or damaged. Run the stage that made it again, which measures anew."
    )


def now() -> str:
    """The present time, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()
