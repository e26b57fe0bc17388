"""Which tasks of the harness are meant: packaged ones by name, own ones as files, which may run code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from handbook_utils.errors import DataError, MissingDependencyError, RecipeError, suggest

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Tasks:
    """Tasks to be run.

    Attributes:
        names: as the harness knows them.
        folders: of task files that are not the harness's own.
        has_packaged: whether any of them is the harness's own, whose index takes seconds to read.
    """

    names: Sequence[str]
    folders: Sequence[Path]
    has_packaged: bool


def require_harness() -> None:
    """Refuse to go on without the harness.

    Raises:
        MissingDependencyError: names the extra.
    """
    if find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "--tasks needs the lm-evaluation-harness, which is not installed: pip install "
            "'handbook-utils[lm-eval]'. It wants older versions of some libraries than a notebook does: "
            "an environment of its own is best."
        )


def named_tasks(wanted: Sequence[str], *, allow_code: bool) -> Tasks:
    """Sort names from files, before the harness is loaded.

    Args:
        wanted: names, or files of tasks; several may stand in one, between commas.
        allow_code: whether files may be read as tasks: a task's templates and functions are code.
    Raises:
        RecipeError: a file without `allow_code`, or no task at all.
        DataError: a file that is not there, or no task.
    """
    single = [name.strip() for names in wanted for name in names.split(",") if name.strip()]
    if not single:
        raise RecipeError("--tasks: name at least one, such as --tasks arc_easy,hellaswag")
    files = [Path(name).expanduser() for name in single if name.endswith(SUFFIXES)]
    if files and not allow_code:
        raise RecipeError(
            f"--tasks {files[0]}: a task file is code: its templates and functions run here, and its writer "
            "may be somebody else. Where you trust it, give --allow-code too."
        )
    names = [_task_in(Path(name).expanduser()) if name.endswith(SUFFIXES) else name for name in single]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"--tasks: '{twice}' is named twice.")
    return Tasks(names, list(dict.fromkeys(file.parent for file in files)), len(files) < len(names))


class _NameOnly(yaml.SafeLoader):
    """Reads a task file without what its tags would run."""


_NameOnly.add_multi_constructor("!", lambda loader, tag, node: None)


def _task_in(file: Path) -> str:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_NameOnly)
    except FileNotFoundError:
        raise DataError(f"--tasks {file}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"--tasks {file}: cannot be read as a task: {reason}") from None
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise DataError(f"--tasks {file}: no task of the harness: it has no line `task: NAME`.")
    return name


def task_manager(tasks: Tasks) -> Any:
    """The harness's own index of tasks, after a look at whether it knows all that are wanted.

    Raises:
        DataError: a task that does not exist; the nearest is named.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in tasks.folders]
    manager = TaskManager(include_path=folders or None, include_defaults=tasks.has_packaged)
    known = set(manager.all_tasks)
    for name in tasks.names:
        if name not in known:
            raise DataError(f"--tasks: the harness has no task '{name}'. {suggest(name, known)}")
    return manager
