"""The stage `select` on disk: the choice beside its control, missing scores, slices."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import RunResult
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.tables import MESSAGES, SAMPLES, UnscoredWarning
from handbook_utils.schema.recipe import check_recipe

pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


def write_samples(file: Path, scores: dict[str, list[float | None]]) -> Path:
    """Samples of prompts with the given scores, in one parquet file."""
    rows = [
        {
            "prompt_id": name,
            "sample_index": index,
            "prompt": [{"role": "user", "content": f"Question {name}"}],
            "completion": f"answer {index}",
            "tokens": 2,
            "finish_reason": "stop",
            "logprob": -1.0,
            "proxy": value,
            "gold": None if value is None else -value,
        }
        for name, values in scores.items()
        for index, value in enumerate(values)
    ]
    schema = pa.schema([*SAMPLES, ("proxy", pa.float64()), ("gold", pa.float64())])
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return file


@pytest.fixture
def samples(tmp_path) -> Path:
    """Twelve prompts of four samples in three files of a folder; the scores are 0, 1, 2, 3."""
    for part in range(3):
        prompts = {f"p{part}{p}": [0.0, 1.0, 2.0, 3.0] for p in range(4)}
        write_samples(tmp_path / "samples" / f"part-{part}.parquet", prompts)
    return tmp_path / "samples"


def run_select(samples: Path, out: Path, **changes: Any) -> RunResult:
    content = {"stage": "select", "data": [{"name": str(samples)}], **changes}
    return run_stage(check_recipe(content, "test"), out, progress=False)


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"strategy": "best"}, 1),
        ({"strategy": "top_k", "k": 2}, 2),
        ({"strategy": "threshold", "threshold": 1.0}, 3),
        ({"strategy": "rso", "beta": 0.5, "k": 2}, 2),
        ({"strategy": "pairs"}, 1),
        ({"strategy": "rso_pairs", "beta": 0.5, "k": 4}, 2),
    ],
)
def test_every_selection_lies_beside_its_control_of_the_same_prompts_and_size(
    samples, tmp_path, changes, each
):
    run_select(samples, tmp_path / "run", **changes)
    chosen, control = (read_table(tmp_path / "run" / name) for name in ("selected", "control"))
    assert chosen.schema == control.schema
    assert chosen["prompt_id"].to_pylist() == control["prompt_id"].to_pylist()
    assert set(Counter(chosen["prompt_id"].to_pylist()).values()) == {each}
    assert not chosen.equals(control)


def test_the_gain_over_the_control_is_paired_by_prompt_and_has_the_sign_of_each_score(samples, tmp_path):
    metrics = run_select(samples, tmp_path / "run").final_metrics
    control = read_table(tmp_path / "run" / "control")["proxy"].to_pylist()
    # every best is 3, and gold is minus the proxy
    assert metrics["proxy"].value == 3
    assert metrics["proxy_gain_vs_random"].value == pytest.approx(3 - sum(control) / 12)
    assert metrics["gold_gain_vs_random"].value == pytest.approx(-metrics["proxy_gain_vs_random"].value)
    assert metrics["proxy_gain_vs_random"].n == 12


def test_the_control_can_be_trained_on_in_place_of_the_selection(samples, tmp_path):
    run_select(samples, tmp_path / "run")
    control = load_dataset(str(tmp_path / "run"), kind="conversation", subset="control")
    stored = read_table(tmp_path / "run" / "control")
    assert [row["completion"] for row in control] == stored["completion"].to_pylist()
    assert (
        load_dataset(str(tmp_path / "run"), kind="conversation")[0]["completion"][0]["content"] == "answer 3"
    )
    with pytest.raises(DataError, match=r"no table 'controll'. Did you mean 'control'"):
        load_dataset(str(tmp_path / "run"), kind="conversation", subset="controll")


def test_a_random_selection_is_a_control_itself_and_has_none(samples, tmp_path):
    result = run_select(samples, tmp_path / "run", strategy="random", by="anything")
    assert set(result.final_metrics) == {"proxy", "gold"}
    assert not (tmp_path / "run" / "control").exists()


def test_scores_that_are_missing_are_counted_named_and_left_out(tmp_path):
    file = write_samples(tmp_path / "rows.parquet", {"p": [0.0, math.nan, 1.0], "q": [None, 2.0, 5.0]})
    with pytest.warns(UnscoredWarning, match="2 of 6 samples have no score 'proxy'"):
        run_select(file, tmp_path / "run", strategy="threshold", threshold=-1)
    notes = read_manifest(tmp_path / "run")["notes"]
    assert notes["unscored"] == 2
    assert notes["first_unscored"] == "prompt 'p', sample 1: nan"
    assert (
        len(read_table(tmp_path / "run" / "selected")) == len(read_table(tmp_path / "run" / "control")) == 4
    )


def test_nothing_selected_is_an_error_that_says_why(samples, tmp_path):
    with pytest.raises(DataError, match=r"none of 48 samples has a score 'proxy' of 9.0 or higher"):
        run_select(samples, tmp_path / "run", strategy="threshold", threshold=9)
    assert read_manifest(tmp_path / "run")["status"] == "failed"


def test_a_slice_counts_prompts_over_all_files(samples, tmp_path):
    recipe = {"data": [{"name": str(samples), "split": "train[3:9]"}]}
    run_select(samples, tmp_path / "run", **recipe)
    ids = read_table(tmp_path / "run" / "selected")["prompt_id"].to_pylist()
    assert ids == ["p03", "p10", "p11", "p12", "p13", "p20"]


def test_two_slices_of_one_folder_may_not_overlap(samples, tmp_path):
    def both(second: str) -> dict[str, Any]:
        return {"data": [{"name": str(samples), "split": split} for split in ("train[:6]", second)]}

    run_select(samples, tmp_path / "run", **both("train[6:]"))
    with pytest.raises(DataError, match="prompt 'p11' has samples in an earlier file too"):
        run_select(samples, tmp_path / "other", **both("train[5:]"))


def test_files_that_were_scored_by_different_scorers_are_refused(samples, tmp_path):
    file = samples / "part-2.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["gold"]), file)
    with pytest.raises(DataError, match=r"has the scores \['proxy'\], an earlier file \['gold', 'proxy'\]"):
        run_select(samples, tmp_path / "run")


def test_what_is_selected_has_the_types_that_training_reads(samples, tmp_path):
    run_select(samples, tmp_path / "run", strategy="pairs")
    table = read_table(tmp_path / "run" / "selected")
    # Parquet renames a list's items, so only what they are is compared
    kinds = [table.schema.field(name).type.value_type for name in ("prompt", "chosen", "rejected")]
    assert kinds == [MESSAGES.value_type] * 3
    pairs = load_dataset(str(tmp_path / "run"), kind="preference")
    assert pairs[0]["gold_chosen"] < pairs[0]["gold_rejected"]


def test_several_pairs_of_a_prompt_are_all_read_for_training_and_so_is_their_control(samples, tmp_path):
    # 12 prompts of 4 samples each, all accepted
    metrics = run_select(samples, tmp_path / "run", strategy="rso_pairs", beta=1e9, k=4).final_metrics
    for subset in (None, "control"):
        assert len(load_dataset(str(tmp_path / "run"), kind="preference", subset=subset)) == 24
    # the three ways to pair 0, 1, 2 and 3 have margins of 1 and 1, 2 and 2, 3 and 1
    assert 1 < metrics["margin.proxy"].value < 2
    assert metrics["margin.gold"].value == -metrics["margin.proxy"].value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "thresold"}, "Did you mean 'threshold'"),
        ({"treshold": 1}, "unknown key 'treshold'. Did you mean 'threshold'"),
        ({"strategy": "rso"}, "`strategy: rso` needs `beta`"),
        ({"distinct": "texts"}, "Did you mean 'text'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_before_anything_is_read(changes, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe({"stage": "select", "data": [{"name": "x"}], **changes}, "test")
