"""Warnings about intervals, kept beside the figures they are about."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from handbook_utils.evaluation.statistics import CoverageWarning

Value = TypeVar("Value")


def with_cautions(measure: Callable[[], Value]) -> tuple[Value, tuple[str, ...]]:
    """What `measure` returns, and the coverage warnings it gave; all other warnings go their way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CoverageWarning)
        value = measure()
    cautions = []
    for warning in caught:
        if issubclass(warning.category, CoverageWarning):
            cautions.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return value, tuple(dict.fromkeys(cautions))
