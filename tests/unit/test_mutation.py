"""`make mutate`: wrong changes are small, many, of all kinds, and drawn by the seed from every module."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.mutation.mutants import mutants_of, mutated, sample
from tests.mutation.run import ROOT, assigned_tests, modules

SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in modules()}
FOUND = {name: mutants_of(text, name) for name, text in SOURCES.items()}


@pytest.mark.parametrize(
    ("source", "becomes"),
    [
        ("x = a < b", ["a <= b", "a > b"]),
        ("x = a + b * 2", ["a - b * 2", "b / 2", "b + 2", "3", "1"]),
        ("x = y and not z", ["y or not z", "z"]),
        ("x = f(a, b, key=c)", ["f(b, a, key=c)", "f(a, b)"]),
        ("x = min(a, b)", ["max(a, b)"]),
        ("x = rows[1:]", [":", "2", "0"]),
        ("x = 'left'", ["'XXleft'"]),
        ("raise ValueError(f'{a + b} is wrong, not 3')", ["pass"]),
        ("def f(a: int = 1) -> 'int':\n    '''Says 1 + 1.'''", ["2", "0"]),
        ("from a import b\nPairs = tuple[int, 'b']", []),
    ],
)
def test_a_change_is_one_wrong_expression_or_statement(source: str, becomes: list[str]) -> None:
    assert sorted(mutant.after for mutant in mutants_of(source, "m.py")) == sorted(becomes)


def test_every_mutant_compiles_and_differs_from_its_module() -> None:
    for name, mutants in FOUND.items():
        for mutant in mutants[:: max(1, len(mutants) // 10)]:
            tree = mutated(SOURCES[name], mutant)
            compile(tree, name, "exec")
            assert ast.unparse(tree) != ast.unparse(ast.parse(SOURCES[name])), mutant


def test_the_sample_has_300_mutants_of_all_modules_in_proportion_and_is_the_seeds() -> None:
    drawn = sample(FOUND, 300, 0)
    assert len({mutant.name for mutant in drawn}) == len(drawn) >= 300
    assert drawn == sample(FOUND, 300, 0) != sample(FOUND, 300, 1)
    total, counts = sum(map(len, FOUND.values())), Counter(mutant.module for mutant in drawn)
    for name, mutants in FOUND.items():
        assert counts[name] >= max(5, 300 * len(mutants) / total)
    assert {mutant.module for mutant in sample({"one": FOUND[drawn[0].module]}, 300, 0)} == {drawn[0].module}


def test_what_is_changed_is_what_the_figures_rest_on_and_has_tests() -> None:
    rooms = {name.partition("handbook_utils/")[2].rpartition("/")[0] for name in FOUND}
    assert rooms == {
        *("evaluation", "evaluation/judged", "evaluation/reward"),
        *("sampling/selection", "shared_prefix", "chat", "pipeline"),
    }
    for name in FOUND:
        assert all((ROOT / file.partition("::")[0]).is_file() for file in assigned_tests(name))
