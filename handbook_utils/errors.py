"""Every error the handbook raises on purpose: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HandbookError(Exception):
    """Base of all errors a user can cause and mend. The command line prints it and exits with 2."""


class RecipeError(HandbookError, ValueError):
    """A recipe, or a value set on the command line, that cannot be run as written."""


class DataError(HandbookError, ValueError):
    """A dataset, row or table that lacks what a stage needs."""


class TemplateError(HandbookError, ValueError):
    """A chat template that is missing or renders something a model cannot be trained on."""


class ModelError(HandbookError, ValueError):
    """A model or tokenizer that cannot be loaded or does not fit its use."""


class RunFolderError(HandbookError, RuntimeError):
    """A run folder that belongs to another recipe, is in use, damaged or cannot be written."""


class TrainingError(HandbookError, RuntimeError):
    """Training that must not go on, such as after a loss that is not a number."""


class LaunchError(HandbookError, RuntimeError):
    """Several processes that cannot train together here, or of which one has failed."""


class ClaimError(HandbookError, AssertionError):
    """A claim whose interval does not clear its bound."""


class MissingDependencyError(HandbookError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""


def suggest(unknown: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, or all of them when few.

    >>> suggest("max_lenght", ["max_length", "packing"])
    "Did you mean 'max_length'?"
    >>> suggest("zzz", ["a", "b"])
    'Choose from: a, b.'
    """
    names = sorted(known)
    near = difflib.get_close_matches(unknown, names, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    if len(names) <= 20:
        return f"Choose from: {', '.join(names)}."
    return f"There are {len(names)} valid names; none is close."
