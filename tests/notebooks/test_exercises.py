"""Exercises: the solution passes its check, and the stub does not."""

from __future__ import annotations

import re

import pytest
from book_pages import chapters

BLOCK = re.compile(
    r"```\{code-block\} python\n:class: exercise-(stub|check|solution) ([\w-]+)\n(.*?)```", re.DOTALL
)


def find_exercises() -> dict[str, dict[str, str]]:
    """Blocks by exercise; a name is used in one chapter only."""
    found: dict[str, dict[str, str]] = {}
    for path in chapters():
        for kind, name, code in BLOCK.findall(path.read_text(encoding="utf-8")):
            assert kind not in found.setdefault(f"{path.stem}-{name}", {}), f"two {kind} blocks for {name}"
            found[f"{path.stem}-{name}"][kind] = code
    return found


EXERCISES = find_exercises()
every_exercise = pytest.mark.parametrize("name", EXERCISES)


def test_there_are_exercises() -> None:
    assert EXERCISES


@every_exercise
def test_exercise_has_stub_check_and_solution(name: str) -> None:
    assert set(EXERCISES[name]) == {"stub", "check", "solution"}


@every_exercise
def test_solution_passes_its_check(name: str) -> None:
    exec(EXERCISES[name]["solution"] + EXERCISES[name]["check"], {})


@every_exercise
def test_stub_fails_the_check(name: str) -> None:
    with pytest.raises((AssertionError, TypeError)):
        exec(EXERCISES[name]["stub"] + EXERCISES[name]["check"], {})
