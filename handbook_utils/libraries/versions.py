"""Which releases of other libraries were tested, and what to say when an untested one breaks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib.resources import files
from typing import ParamSpec, TypeVar

from packaging.version import Version

from handbook_utils.environment import installed_version
from handbook_utils.errors import HandbookError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# what calling another library by a changed interface raises; a warning is raised where it is made an error
_CHANGED_INTERFACE = (AttributeError, ImportError, KeyError, NotImplementedError, TypeError, Warning)


@functools.cache
def tested_versions() -> dict[str, tuple[str, str]]:
    """The oldest and the newest tested release of each library that the package needs."""
    text = files("handbook_utils").joinpath("libraries", "tested.json").read_text(encoding="utf-8")
    return {name: (oldest, newest) for name, (oldest, newest) in json.loads(text).items()}


def untested_versions() -> list[str]:
    """What to say of each installed library that is older or newer than the tested releases.

    Returns:
        One sentence per library, with what to install; nothing where all are tested releases. A bugfix
        release of the newest one counts as tested.
    """
    return [
        sentence
        for name, (oldest, newest) in tested_versions().items()
        if (sentence := _judged(name, installed_version(name), oldest, newest))
    ]


def version_advice() -> str:
    """What to install so that only tested releases are left; empty where there are no others."""
    return " ".join(untested_versions())


def naming_untested_versions(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function's error end with the libraries whose release was not tested, where there are any.

    Only errors that a changed interface causes; those the package raises on purpose stay as they are.
    """

    @functools.wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except _CHANGED_INTERFACE as error:
            if not isinstance(error, HandbookError):
                note_untested_versions(error)
            raise

    return called


def note_untested_versions(error: BaseException) -> None:
    """Add what is untested to an error, once."""
    noted = set(getattr(error, "__notes__", ()))
    for sentence in untested_versions():
        if sentence not in noted:
            error.add_note(sentence)


def _judged(name: str, installed: str | None, oldest: str, newest: str) -> str | None:
    if installed is None:
        return None
    if Version(installed).release < Version(oldest).release:
        return _sentence(name, installed, "older", oldest, newest, f"{name}>={oldest}")
    # a bugfix release of the newest one counts as tested: 5.24.1 beside 5.24.0
    major, minor = Version(newest).major, Version(newest).minor
    if Version(installed).release[:2] > (major, minor):
        return _sentence(name, installed, "newer", oldest, newest, f"{name}<{major}.{minor + 1}")
    return None


def _sentence(name: str, installed: str, how: str, oldest: str, newest: str, wanted: str) -> str:
    return (
        f"{name} {installed} is {how} than what this release was tested with ({oldest} to {newest}): "
        f"pip install '{wanted}'"
    )
