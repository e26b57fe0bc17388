"""The examples in the docstrings of the book's tools and extensions hold."""

from __future__ import annotations

import doctest
from types import ModuleType

import handbook_formats
import handbook_results
import handbook_world
import pytest


@pytest.mark.parametrize(
    "module", [handbook_formats, handbook_results, handbook_world], ids=lambda module: module.__name__
)
def test_docstring_examples_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0
