"""Mixtures: exact counts, drawn by the seed and never from the top, test rows kept out of training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_utils.data.load import ResolvedInputs, load_dataset, load_mixture
from handbook_utils.data.mixture import LeakedRowsWarning, draw_rows
from handbook_utils.data.training_data import load_training_data
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import DataSource

SIZES = st.integers(1, 300)
WEIGHTS = st.floats(0.01, 5)


@given(rows=SIZES, weight=WEIGHTS, seed=st.text(max_size=3))
def test_each_row_comes_as_often_as_the_weight_says_or_once_more(rows: int, weight: float, seed: str) -> None:
    if int(rows * weight + 0.5) == 0:
        with pytest.raises(DataError, match="less than one row"):
            draw_rows(rows, weight=weight, seed=seed)
        return
    drawn = draw_rows(rows, weight=weight, seed=seed)
    assert len(drawn) == int(rows * weight + 0.5)
    counts = Counter(drawn)
    assert set(counts) <= set(range(rows))
    least = len(drawn) // rows
    assert all(least <= counts[row] <= least + 1 for row in range(rows))
    assert drawn == draw_rows(rows, weight=weight, seed=seed)


@given(rows=SIZES, smaller=WEIGHTS, larger=WEIGHTS)
def test_a_smaller_weight_draws_part_of_what_a_larger_one_does(
    rows: int, smaller: float, larger: float
) -> None:
    smaller, larger = sorted((max(smaller, 1 / rows), max(larger, 1 / rows)))
    few, many = Counter(draw_rows(rows, weight=smaller)), Counter(draw_rows(rows, weight=larger))
    assert few <= many


@given(rows=SIZES, weight=st.floats(0.5, 3), cap=st.integers(1, 50))
def test_a_cap_holds_and_is_no_cut_from_the_top(rows: int, weight: float, cap: int) -> None:
    drawn = draw_rows(rows, weight=weight, max_rows=cap)
    assert len(drawn) == min(cap, int(rows * weight + 0.5))


def test_a_sample_is_not_the_first_rows_and_depends_on_the_seed() -> None:
    first, second = draw_rows(1000, weight=0.1, seed="0 a"), draw_rows(1000, weight=0.1, seed="1 a")
    assert first != list(range(100))
    assert max(first) > 900
    assert first != second


def rows_file(path: Path, rows: int, mark: str) -> str:
    lines = [json.dumps({"prompt": f"{mark} {i}?", "completion": f"{mark} {i}."}) for i in range(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> list[DataSource]:
    half = rows_file(tmp_path / "half.jsonl", 10, "h")
    twice = rows_file(tmp_path / "twice.jsonl", 10, "t")
    capped = rows_file(tmp_path / "capped.jsonl", 10, "c")
    return [
        DataSource(name=half, weight=0.5),
        DataSource(name=twice, weight=2.3),
        DataSource(name=capped, max_rows=3),
    ]


def test_a_mixture_has_exactly_the_rows_its_weights_say_and_reports_them(sources: list[DataSource]) -> None:
    mixture = load_mixture(sources, ResolvedInputs(), kind="conversation", seed=0)
    marks = Counter(example["prompt"][0]["content"][0] for example in mixture.examples)
    # 10 * 0.5, 10 * 2 + 10 * 0.3, at most 3
    assert marks == {"h": 5, "t": 23, "c": 3}
    assert [(r.rows, r.used, r.examples) for r in mixture.reports] == [(10, 5, 5), (10, 23, 23), (10, 3, 3)]
    assert "23 of 10 rows, 23 examples, prompt_completion (it has" in str(mixture.reports[1])


def test_a_mixture_is_the_same_for_a_seed_and_another_for_another(sources: list[DataSource]) -> None:
    def load(seed: int) -> list[Any]:
        return list(load_mixture(sources, ResolvedInputs(), kind="conversation", seed=seed).examples)

    assert load(1) == load(1) != load(2)


def test_a_wrong_row_keeps_its_number_also_in_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = '{"prompt": "a", "completion": "b"}\n'
    path.write_text(good * 9 + '{"prompt": "a", "completion": 5}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 10, column 'completion'"):
        load_dataset(str(path), kind="conversation", split="train[4:]", weight=2.0)


def test_a_weight_that_leaves_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 0\.01 of 10 rows is less than one row"):
        load_dataset(rows_file(tmp_path / "a.jsonl", 10, "a"), kind="conversation", weight=0.01)


def test_prompts_to_be_sampled_cannot_be_weighted_up(tmp_path: Path) -> None:
    name = rows_file(tmp_path / "a.jsonl", 10, "a")
    assert len(load_dataset(name, kind="prompt", weight=0.5)) == 5
    with pytest.raises(DataError, match="a prompt is asked once"):
        load_dataset(name, kind="prompt", weight=2.0)


def recipe(data: list[dict[str, Any]], **fields: Any) -> Any:
    content = {"stage": "sft", "model": {"name": "no/model"}, "data": data, "global_batch_size": 2, **fields}
    return check_recipe(content, "test")


@pytest.mark.parametrize("split", ["test", "test[:10]", "test_sft", "Test_prefs[5:]"])
def test_a_test_split_is_not_trained_on_unless_the_recipe_says_so(split: str) -> None:
    with pytest.raises(RecipeError, match=r"^test: `data` reads the split .* test rows are not trained on"):
        recipe([{"name": "x.jsonl"}, {"name": "y.jsonl", "split": split}])
    assert recipe([{"name": "y.jsonl", "split": split, "allow_test": True}])
    assert recipe([{"name": "x.jsonl"}], eval_data=[{"name": "y.jsonl", "split": split}])


def test_rows_that_are_tested_on_are_left_out_of_training_and_counted(tmp_path: Path) -> None:
    name = rows_file(tmp_path / "a.jsonl", 10, "a")
    leaky = recipe([{"name": name}], eval_data=[{"name": name, "split": "train[7:]"}])
    with pytest.warns(LeakedRowsWarning, match="3 training examples have a prompt of `eval_data`"):
        data = load_training_data(leaky, ResolvedInputs())
    assert data.evaluation is not None
    prompts = {row["prompt"][0]["content"] for row in data.train}
    assert prompts == {f"a {i}?" for i in range(7)}
    notes = data.notes()
    assert (notes["train_rows"], notes["test_rows_left_out"]) == (7, 3)
    assert (notes["sources"][0]["examples"], notes["sources"][0]["left_out"]) == (7, 3)


def test_a_source_that_allows_test_rows_keeps_them(tmp_path: Path) -> None:
    name = rows_file(tmp_path / "a.jsonl", 4, "a")
    kept = recipe([{"name": name, "allow_test": True}], eval_data=[{"name": name}])
    assert load_training_data(kept, ResolvedInputs()).rows == 4


def test_when_every_row_is_tested_on_nothing_is_left(tmp_path: Path) -> None:
    name = rows_file(tmp_path / "a.jsonl", 4, "a")
    with pytest.raises(DataError, match="nothing is left to train on"):
        load_training_data(recipe([{"name": name}], eval_data=[{"name": name}]), ResolvedInputs())


def test_of_plain_text_the_whole_text_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    leaky = recipe(
        [{"name": str(path)}], eval_data=[{"name": str(path), "split": "train[:1]"}], stage="pretrain"
    )
    with pytest.warns(LeakedRowsWarning):
        assert load_training_data(leaky, ResolvedInputs()).train["text"] == ["b"]
