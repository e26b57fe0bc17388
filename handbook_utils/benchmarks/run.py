"""Run tasks of the harness one after the other; each is kept when it is done, and none is run twice."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handbook_utils.benchmarks.scores import BenchmarkScore, scored
from handbook_utils.benchmarks.tasks import named_tasks, require_harness, task_manager
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.environment import installed_version, is_offline
from handbook_utils.errors import DataError, ModelError, RunFolderError
from handbook_utils.export.source import export_source
from handbook_utils.export.texts import settle_end
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.places import resolve_model, weights_fingerprint
from handbook_utils.runs.atomic import explained_os_errors, locked, write_json

RECORD, TASKS = "benchmark.json", "tasks"


@dataclass(frozen=True)
class BenchmarkSettings:
    """How tasks are run.

    Attributes:
        shots: examples before each question; None: as the task says.
        limit: questions per task, the first ones; None: all.
        rows: per batch.
        dtype: of the model, as `load_model` takes it.
        by_template: whether questions are asked through the chat template.
        seed: of the harness's draws.
    """

    shots: int | None = None
    limit: int | None = None
    rows: int = 8
    dtype: str = "auto"
    by_template: bool = True
    seed: int = 0


@dataclass(frozen=True)
class BenchmarkResult:
    """What tasks gave.

    Attributes:
        folder: where it is kept.
        model: as it was named.
        settings: how it was asked, and by which harness.
        scores: of each task and metric.
        cautions: what to know before they are compared.
    """

    folder: Path
    model: str
    settings: Mapping[str, Any]
    scores: Sequence[BenchmarkScore]
    cautions: Sequence[str]


def run_benchmarks(
    model: str,
    tasks: Sequence[str],
    out: str | Path,
    settings: BenchmarkSettings | None = None,
    *,
    allow_code: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> BenchmarkResult:
    """Run tasks of the lm-evaluation-harness on a model, asked as in training.

    An adapter is put on its base as it was trained, quantised or not. Every task is stored when it is done,
    with the score of each question; the same command again runs what is missing.

    Args:
        model: a finished run, or any model as `load_model` takes it.
        tasks: names of the harness, or files of tasks.
        out: folder for the results.
        settings: how tasks are run.
        allow_code: let task files run their code, and tasks run code that the model writes.
        overwrite: delete what another run left in `out`.
        announce: told the name of each task before it runs.
    Raises:
        MissingDependencyError: the extra `lm-eval` is not installed.
        DataError: no such task, or its data are not there.
        RecipeError: a task file without `allow_code`.
        ModelError: no such model, or prompts would not be those of training.
        RunFolderError: `out` holds something else, or the run is not finished.
    Book: chapter "Which metrics to watch".
    """
    settings = settings or BenchmarkSettings()
    wanted = named_tasks(tasks, allow_code=allow_code)
    require_harness()
    out = Path(out)
    place = _place(model)
    identity = _identity(place, settings)
    _check_out(out, identity, overwrite=overwrite)
    tokenizer = load_tokenizer(place, for_chat=settings.by_template)
    with _quiet_harness():
        manager = task_manager(wanted)
        with explained_os_errors(out):
            (out / TASKS).mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", out):
            write_json(out / RECORD, {"format": 1, "model": model, "identity": identity})
            missing = [name for name in wanted.names if not _file(out, name).exists()]
            if missing:
                _run(place, tokenizer, missing, manager, out, settings, allow_code, announce)
    return read_benchmarks(out, wanted.names)


def _place(model: str) -> str:
    if (Path(model).expanduser() / "manifest.json").exists():
        return str(export_source(model).run)
    return model


def _identity(place: str, settings: BenchmarkSettings) -> dict[str, Any]:
    """What a result rests on: the model, how it is asked, and the harness."""
    folder = resolve_model(place)
    harness = installed_version("lm_eval") or installed_version("lm-eval")
    of_model = weights_fingerprint(folder) or folder
    return {
        "weights": of_model,
        "harness": harness,
        **{k: v for k, v in asdict(settings).items() if k != "rows"},
    }


def _check_out(out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
    if not out.exists() or not any(
        file for file in out.rglob("*") if file.is_file() and file.name != ".lock"
    ):
        return
    try:
        earlier = json.loads((out / RECORD).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{out}: not empty, and not the folder of benchmarks. Choose another --out; nothing was touched."
        ) from None
    changed = [
        f"  {key}: {earlier.get(key)!r} -> {value!r}"
        for key, value in identity.items()
        if earlier.get(key) != value
    ]
    if not changed:
        return
    if not overwrite:
        raise RunFolderError(
            f"{out}: holds benchmarks that differ:\n" + "\n".join(changed) + "\nChoose another --out, or "
            "--overwrite to delete them."
        )
    shutil.rmtree(out)


def _file(out: Path, task: str) -> Path:
    return out / TASKS / f"{task.replace('/', '__')}.json"


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep the harness's many lines off the terminal; its errors stay."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries():
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _run(
    place: str,
    tokenizer: Any,
    names: Sequence[str],
    manager: Any,
    out: Path,
    settings: BenchmarkSettings,
    allow_code: bool,
    announce: Callable[[str], None] | None,
) -> None:
    from handbook_utils.benchmarks.chat_lm import TrainedLM, check_asked_as_trained

    model = load_model(place, dtype=settings.dtype)
    asked = 0
    if settings.by_template:
        settle_end(tokenizer)
    lm = TrainedLM(model, tokenizer, rows=settings.rows, by_template=settings.by_template)
    if settings.by_template:
        asked = check_asked_as_trained(lm, tokenizer)
    for name in names:
        if announce is not None:
            announce(name)
        lm.cut.clear()
        results = _evaluate(lm, name, manager, settings, allow_code)
        record = {
            "task": name,
            "scores": [score.to_json() for score in scored(results, seed=settings.seed)],
            "versions": results.get("versions", {}),
            "cut": len(lm.cut),
            "compared_prompts": asked,
        }
        write_json(_file(out, name), record)


def _evaluate(
    lm: Any, name: str, manager: Any, settings: BenchmarkSettings, allow_code: bool
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        results = simple_evaluate(
            lm,
            tasks=[name],
            task_manager=manager,
            num_fewshot=settings.shots,
            limit=settings.limit,
            apply_chat_template=settings.by_template,
            log_samples=True,
            confirm_run_unsafe_code=allow_code,
            **dict.fromkeys(seeds, settings.seed),
        )
    except AssertionError as error:
        raise ModelError(f"{name}: the harness cannot ask this model: {error}") from error
    except (OSError, ConnectionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = " HF_HUB_OFFLINE is set: unset it, so that they can be fetched." if is_offline() else ""
        raise DataError(f"{name}: the harness cannot read the task's data: {reason}.{hint}") from error
    except ValueError as error:
        raise DataError(f"{name}: {(str(error).splitlines() or ['refused'])[0]}") from error
    if results is None:
        raise DataError(f"{name}: the harness gave no results.")
    found: dict[str, Any] = results
    return found


def read_benchmarks(folder: str | Path, tasks: Sequence[str] | None = None) -> BenchmarkResult:
    """Read a folder that `run_benchmarks` wrote.

    Args:
        folder: the folder.
        tasks: which; None: all that are there.
    Raises:
        RunFolderError: no such folder, or it holds no finished task.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = (
            sorted((folder / TASKS).glob("*.json")) if tasks is None else [_file(folder, t) for t in tasks]
        )
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    except (OSError, ValueError):
        raise RunFolderError(
            f"{folder}: not the folder of benchmarks, or it is damaged. Name the --out of `handbook evaluate "
            "MODEL --tasks ...`."
        ) from None
    if not parts:
        raise RunFolderError(f"{folder}: no task is finished yet. Run its command again.")
    cautions = [
        f"{part['task']}: {part['cut']} prompts were longer than the model takes, and cut at their beginning"
        for part in parts
        if part["cut"]
    ]
    limit = record["identity"].get("limit")
    if limit is not None:
        cautions.append(f"only the first {limit} questions of each task were asked (--limit)")
    scores = [BenchmarkScore.from_json(score) for part in parts for score in part["scores"]]
    settings = {key: value for key, value in record["identity"].items() if key != "weights"}
    return BenchmarkResult(folder, record["model"], settings, scores, cautions)


def asked_otherwise(a: BenchmarkResult, b: BenchmarkResult) -> list[str]:
    """How two results were asked differently, one line each: then the models alone do not explain it."""
    return [
        f"asked otherwise than the baseline: {key} is {b.settings.get(key)!r}, there it is {value!r}"
        for key, value in a.settings.items()
        if b.settings.get(key) != value
    ]
