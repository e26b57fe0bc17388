"""From ratings to pairs in a mixture: what the recipe says is done, and ties are counted and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.data.formats import Normaliser
from handbook_utils.data.load import EvenPairsWarning, Mixture, ResolvedInputs, load_dataset, load_mixture
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import DataSource

PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


def written(folder: Path, rows: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def mixture(name: str, **options: Any) -> Mixture:
    source = DataSource.model_validate({"name": name, **options})
    return load_mixture([source], ResolvedInputs(), kind="preference", seed=0)


def compared(*strengths: int) -> list[dict[str, Any]]:
    answers = {"response1": "4", "response2": "5"}
    return [
        {"context": [{"role": "user", "content": "?"}], **answers, "overall_preference": n} for n in strengths
    ]


def test_ties_are_counted_in_the_plan_and_the_manifest(tmp_path: Path) -> None:
    (report,) = mixture(written(tmp_path, compared(-3, 0, 1, 0))).reports
    assert (report.rows, report.examples, report.ties) == (4, 2, 2)
    assert "4 of 4 rows, 2 examples, 2 ties left out, helpsteer3" in str(report)
    assert report.to_json()["ties"] == 2
    (report,) = mixture(written(tmp_path, compared(-3, 0, 1, 0)), pairs={"margin": 1}).reports
    assert report.ties == 3
    # without ties nothing is said of any
    (report,) = mixture(written(tmp_path, compared(-3, 2))).reports
    assert "ties" not in {**report.to_json(), "shown": str(report)}


def test_ties_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every pair of `data` is a tie, so nothing is left to train on"):
        mixture(written(tmp_path, compared(0, 0)))


def test_rows_of_one_prompt_are_brought_together_and_a_wrong_one_keeps_its_number(tmp_path: Path) -> None:
    scored = [("a", "no", 1), ("b", "x", 2), ("a", "yes", 4), ("b", "y", 2)]
    rows = [{"prompt": prompt, "response": text, "helpfulness": n} for prompt, text, n in scored]
    made = mixture(written(tmp_path, rows), pairs={"rating": "helpfulness"})
    assert [row["chosen"][0]["content"] for row in made.examples] == ["yes"]
    assert (made.reports[0].format, made.reports[0].ties) == ("rated_rows", 1)
    with pytest.raises(
        DataError, match=r"row 1 holds 2 answers with the ratings 'helpfulness', and the recipe"
    ):
        mixture(written(tmp_path, rows))
    rows[1]["response"] = None
    with pytest.raises(DataError, match=r"row 2 has an answer without its text"):
        mixture(written(tmp_path, rows), pairs={"rating": "helpfulness"})


def test_pairs_that_carry_equal_ratings_are_told_and_kept_until_the_recipe_says_otherwise(
    tmp_path: Path,
) -> None:
    rated = [
        {**PAIR, "score_chosen": one, "score_rejected": other} for one, other in ((8, 8), (9, 1), (2, 7))
    ]
    name = written(tmp_path, rated)
    with pytest.warns(EvenPairsWarning, match="in 2 of 3 pairs the chosen answer is rated no higher"):
        assert len(load_dataset(name, kind="preference")) == 3
    assert len(load_dataset(name, kind="preference", pairs={"margin": 0})) == 1


def test_pairs_without_ratings_are_read_without_a_word(tmp_path: Path) -> None:
    assert len(load_dataset(written(tmp_path, [PAIR, PAIR]), kind="preference")) == 2


@pytest.mark.parametrize(
    ("preference", "wanted"),
    [("a", ("4", "5")), ("B", ("5", "4")), (0.2, ("4", "5")), (1, ("5", "4")), ("tie", None), (0.5, None)],
)
def test_judged_answers_give_the_pair_that_their_preference_says(preference: Any, wanted: Any) -> None:
    row = {"prompt": "2 + 2?", "answer_a": "4", "answer_b": "5", "preference": preference}
    made = Normaliser(kind="preference")(1, row)
    found = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in made]
    assert found == ([wanted] if wanted else [])


def test_a_verdict_that_is_none_is_refused_unless_its_row_counts_for_nothing() -> None:
    row = {"prompt": "2 + 2?", "answer_a": "4", "answer_b": "5", "preference": None}
    with pytest.raises(DataError, match="row 1 has in 'preference' neither"):
        Normaliser(kind="preference")(1, row)
    assert Normaliser(kind="preference")(1, {"weight": 0, **row}) == []
