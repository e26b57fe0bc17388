"""Public names: importable, documented, listed on the API page, and enough to use the public functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest

import handbook_utils
from handbook_utils.data.load import Locator
from handbook_utils.schema.sections import Section

PAGE = Path(__file__).parents[2] / "book" / "api.md"
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|exception):: (\S+)$", re.MULTILINE)


def test_names_are_sorted_and_those_of_the_table() -> None:
    assert handbook_utils.__all__ == sorted(handbook_utils._PUBLIC)


@pytest.mark.parametrize("name", handbook_utils.__all__)
def test_a_public_name_loads_and_says_what_it_is(name: str) -> None:
    assert getattr(handbook_utils, name).__doc__


def test_the_api_page_lists_every_public_name_once_and_no_other() -> None:
    assert sorted(DIRECTIVE.findall(PAGE.read_text(encoding="utf-8"))) == handbook_utils.__all__


def types_in(hint: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield hint
    for part in get_args(hint):
        yield from types_in(list(part) if isinstance(part, tuple) else part)
    if isinstance(hint, list):
        for part in hint:
            yield from types_in(part)


def is_ours(kind: Any) -> bool:
    return inspect.isclass(kind) and kind.__module__.startswith("handbook_utils") and not is_typeddict(kind)


@pytest.mark.parametrize(
    "name", [n for n in handbook_utils.__all__ if inspect.isfunction(getattr(handbook_utils, n))]
)
def test_what_a_public_function_asks_for_and_returns_is_public_too(name: str) -> None:
    hints = get_type_hints(getattr(handbook_utils, name)).values()
    used = {kind for hint in hints for kind in types_in(hint) if is_ours(kind)}
    # sections are made by `scorer_sections`, and what finds earlier runs by stages
    hidden = {kind.__name__ for kind in used if kind is not Locator and not issubclass(kind, Section)}
    assert hidden <= set(handbook_utils.__all__)


@pytest.mark.parametrize("name", ["train_sft", "train_reward_model", "train_dpo"])
def test_who_imports_a_dropped_name_is_told_what_to_call(name: str) -> None:
    with pytest.raises(ImportError, match="run_stage"):
        exec(f"from handbook_utils import {name}")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train_ppo'"):
        _ = handbook_utils.train_ppo
