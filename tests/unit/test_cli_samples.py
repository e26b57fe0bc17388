"""`handbook score` and `handbook select` on rows a user has: columns kept, whole files, helpful mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Handbook = Callable[..., tuple[int, str, str]]
TEXTS = {"p": ["a", "b c", "d e f", "g h i j"], "q": ["k l", "m", "n o p", "q r s t u"]}
# the number of words: a score that anyone can check
WORDS = "fits={kind: length, at_most: 2}"


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with answers, pairs and scored answers; the command runs in it."""
    monkeypatch.chdir(tmp_path)
    answers = [
        {"prompt": f"Question {name}", "completion": text, "source": name}
        for name, texts in TEXTS.items()
        for text in texts
    ]
    write(tmp_path / "answers.jsonl", answers)
    write(tmp_path / "scored.jsonl", [{**row, "proxy": len(row["completion"])} for row in answers])
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no it is not so"} for n in range(3)]
    write(tmp_path / "pairs.jsonl", [*pairs, {"prompt": "3?", "chosen": "a b c", "rejected": "d"}])
    return tmp_path


def test_rows_keep_their_columns_and_get_one_a_score(handbook: Handbook, desk: Path):
    code, out, _ = handbook("score", "answers.jsonl", "-s", WORDS, "--out", "out.jsonl")
    assert code == 0
    rows = read(desk / "out.jsonl")
    assert [row["fits"] for row in rows] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert [{key: row[key] for key in row if key != "fits"} for row in rows] == read(desk / "answers.jsonl")
    assert "fits" in out
    assert "out.jsonl: 8 rows" in out


def test_as_json_the_figures_come_with_their_intervals(handbook: Handbook, desk: Path):
    _, out, _ = handbook("score", "answers.jsonl", "-s", WORDS, "--json", "--split", "train[:4]")
    record = json.loads(out)
    assert record["rows"] == 4
    assert record["metrics"]["fits"]["value"] == 0.5
    assert record["out"] == "answers.scored.jsonl"
    assert len(read(desk / "answers.scored.jsonl")) == 4


def test_of_pairs_both_answers_are_scored_and_how_often_the_chosen_one_wins(handbook: Handbook, desk: Path):
    _, out, _ = handbook("score", "pairs.jsonl", "-s", WORDS, "-o", "out.parquet", "--json")
    rows = pq.read_table(desk / "out.parquet").to_pylist()
    # "yes" fits and "no it is not so" does not, three times; then the other way round
    assert [row["fits.margin"] for row in rows] == [1, 1, 1, -1]
    assert (rows[0]["fits.chosen"], rows[0]["fits.rejected"]) == (1, 0)
    assert json.loads(out)["metrics"]["fits.accuracy"]["value"] == 0.75


def test_a_row_without_a_score_is_null_and_counted(handbook: Handbook, desk: Path, monkeypatch):
    (desk / "moods.py").write_text(
        "def mood(prompt, text):\n    return 1 / (len(text) - 1)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(desk)
    scorer = "mood={kind: function, function: 'moods:mood', allow_code: true}"
    _, out, _ = handbook("score", "answers.jsonl", "-s", scorer, "--json")
    assert json.loads(out)["failed"] == {"mood": 2}
    assert [row["mood"] for row in read(desk / "answers.scored.jsonl")].count(None) == 2


def test_rows_of_one_prompt_that_stand_apart_keep_their_order(handbook: Handbook, desk: Path, monkeypatch):
    monkeypatch.setattr("handbook_utils.sampling.scoring.rows.ROWS_AT_ONCE", 3)
    rows = read(desk / "answers.jsonl")
    mixed = write(
        desk / "mixed.jsonl", [row for pair in zip(rows[:4], rows[4:], strict=True) for row in pair]
    )
    handbook("score", "mixed.jsonl", "-s", WORDS, "--out", "out.jsonl")
    assert [row["fits"] for row in read(desk / "out.jsonl")] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [row["completion"] for row in read(desk / "out.jsonl")] == [
        row["completion"] for row in read(mixed)
    ]


def test_the_gold_reward_scores_rows_of_the_pocket_world(handbook: Handbook, desk: Path):
    _, out, _ = handbook(
        "score", "pocket:demonstrations", "-s", "gold=pocket:gold", "--split", "train[:20]", "--json"
    )
    assert 0.5 < json.loads(out)["metrics"]["gold"]["value"] <= 1


def test_the_best_of_each_prompt_lies_beside_a_random_control(handbook: Handbook, desk: Path):
    _, out, _ = handbook("select", "scored.jsonl", "--by", "proxy", "--out", "best.jsonl", "--json")
    assert [row["completion"] for row in read(desk / "best.jsonl")] == ["g h i j", "q r s t u"]
    control = read(desk / "best.control.jsonl")
    assert [row["source"] for row in control] == ["p", "q"]
    record = json.loads(out)
    assert (record["rows"], record["control"]) == (2, "best.control.jsonl")
    assert record["metrics"]["proxy"]["value"] == 8


def test_pairs_that_were_selected_are_pairs_that_training_reads(handbook: Handbook, desk: Path):
    from handbook_utils.data.load import load_dataset

    handbook("select", "scored.jsonl", "--by", "proxy", "--strategy", "pairs", "--out", "pairs-made.jsonl")
    pairs = load_dataset("pairs-made.jsonl", kind="preference")
    assert [row["chosen"][0]["content"] for row in pairs] == ["g h i j", "q r s t u"]
    assert [row["rejected"][0]["content"] for row in pairs] == ["a", "m"]
    assert len(load_dataset("pairs-made.control.jsonl", kind="preference")) == 2


def test_rows_without_a_score_are_left_out_and_told(handbook: Handbook, desk: Path):
    rows = read(desk / "scored.jsonl")
    write(
        desk / "holes.jsonl",
        [{**row, "proxy": None if row["completion"] == "g h i j" else row["proxy"]} for row in rows],
    )
    _, out, _ = handbook("select", "holes.jsonl", "--by", "proxy")
    assert "1 rows have no score 'proxy' and were left out" in out
    assert [row["completion"] for row in read(desk / "holes.best.jsonl")] == ["d e f", "q r s t u"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "answers.jsonl"], "these are rows, not a recipe. Add --scorer NAME=MODEL"),
        (["select", "scored.jsonl"], "Add --by COLUMN"),
        (["score", "answers.jsonl", "-s", "nonsense"], "write NAME=MODEL"),
        (["score", "answers.jsonl", "-s", "a={kind: lenght}"], "Did you mean 'length'"),
        (["score", "answers.jsonl", "-s", "source={kind: length}"], "have a column 'source' already"),
        (["score", "answers.jsonl", "-s", "a={kind: length, unit: tokens}"], "Take words"),
        (["score", "answers.jsonl", "-s", "a=pocket:golden"], "Did you mean 'pocket:gold'"),
        (["score", "answers.jsonl", "-s", WORDS, "--out", "out.csv"], "written to .jsonl or .parquet"),
        (["score", "answers.jsonl", "-s", WORDS, "--out", "pairs.jsonl"], "is there already"),
        (["score", "answers.jsonl", "-s", WORDS, "--set", "seed=1"], "--set is for recipes only"),
        (["score", "nowhere.jsonl", "-s", WORDS], "no such file"),
        (["select", "scored.jsonl", "--by", "proxi"], "Did you mean 'proxy'"),
        (["select", "scored.jsonl", "--by", "source"], "holds something that is no number"),
        (["select", "pairs.jsonl", "--by", "prompt"], "the rows are pairs already"),
        (["select", "scored.jsonl", "--by", "proxy", "--strategy", "bset"], "Did you mean 'best'"),
        (["select", "scored.jsonl", "--by", "proxy", "--strategy", "rso"], "needs `beta`"),
        (
            ["select", "scored.jsonl", "--by", "proxy", "--strategy", "threshold", "--threshold", "99"],
            "nothing is selected from 8 rows",
        ),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(handbook: Handbook, desk: Path, arguments, message):
    before = {file: file.read_bytes() for file in desk.iterdir()}
    code, out, err = handbook(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert {file: file.read_bytes() for file in desk.iterdir()} == before
