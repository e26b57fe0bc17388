"""The examples in the docstrings of the evaluation package run as printed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import handbook_utils.evaluation

MODULES = [module.name for module in pkgutil.iter_modules(handbook_utils.evaluation.__path__)]


def test_the_package_has_modules_with_examples() -> None:
    assert {"statistics", "best_of_n", "win_rate", "kl"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name: str) -> None:
    module = importlib.import_module(f"handbook_utils.evaluation.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
