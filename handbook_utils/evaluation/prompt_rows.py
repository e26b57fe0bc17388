"""Rows of scores as they come in: checked, and averaged to one value per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array


def value_bounds(rows: Array) -> tuple[float, float] | None:
    """Range of the scores as far as the rows show it: (0, 1) for zeros and ones, None where all are equal.

    >>> value_bounds(np.array([0.0, 0.0])), value_bounds(np.array([2.0, 5.0]))
    ((0.0, 1.0), (2.0, 5.0))
    """
    if np.isin(rows, (0.0, 1.0)).all():
        return 0.0, 1.0
    low, high = float(rows.min()), float(rows.max())
    return (low, high) if low < high else None


def finite_rows(values: ArrayLike, name: str) -> Array:
    """Return `values` as (rows,) float64.

    Raises:
        DataError: not one-dimensional, empty, or a value that is not finite; the row is named.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows):
        raise DataError(f"{name}: expected a list of at least one score, got shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows))
    if len(bad):
        raise DataError(
            f"{name}: row {bad[0]} is {rows[bad[0]]} ({len(bad)} of {len(rows)} rows are not finite). "
            "Score these rows again or drop the prompt from both sides."
        )
    return rows


def prompt_means(rows: Array, clusters: Sequence[Any] | NDArray[Any] | None) -> Array:
    """Mean of each prompt's rows, (prompts,), in the order of sorted prompt ids.

    >>> prompt_means(np.array([1.0, 3.0, 7.0]), ["a", "a", "b"]).tolist()
    [2.0, 7.0]
    """
    if clusters is None:
        return rows
    ids = np.asarray(clusters)
    if ids.shape != rows.shape:
        raise DataError(f"clusters: expected one prompt id per row ({len(rows)}), got shape {ids.shape}")
    codes = np.unique(ids.astype(str) if ids.dtype == object else ids, return_inverse=True)[1]
    return np.asarray(np.bincount(codes, weights=rows) / np.bincount(codes))


def sample_table(values: ArrayLike, name: str) -> Array:
    """Return `values` as (prompts, samples per prompt) float64.

    Raises:
        DataError: not two-dimensional, empty, or a value that is not finite; prompt and sample are named.
    """
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim != 2 or not samples.size:
        raise DataError(f"{name}: expected (prompts, samples per prompt), got shape {samples.shape}")
    bad = np.argwhere(~np.isfinite(samples))
    if len(bad):
        prompt, sample = bad[0]
        value = samples[prompt, sample]
        raise DataError(f"{name}: sample {sample} of prompt {prompt} is {value}. Score it again.")
    return samples
