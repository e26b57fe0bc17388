"""Speculative rejection: who goes on, what becomes of the others, and that survivors are as without it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import Completion
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.load import load_engine
from handbook_utils.sampling.generation.generate import TransformersEngine
from handbook_utils.sampling.generation.speculative import Speculation, replay, survivors
from handbook_utils.sampling.scoring.score import NoScore, score
from handbook_utils.sampling.selection.annotate import annotate, load_annotator
from handbook_utils.sampling.selection.choose import Rule, choose
from handbook_utils.schema.stages import (
    BestOfNRecipe,
    EvaluateRecipe,
    GenerateRecipe,
    ScoreRecipe,
    SelectRecipe,
)

# a handful of prompts is too few for an interval to rely on, and the figures say so
pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")

PROMPTS = [
    (name, [{"role": "user", "content": text}])
    for name, text in {"moon": "Say moon once.", "drinks": "Name two drinks, please.", "tea": "Tea?"}.items()
]
SETTINGS = SamplingSettings(samples=9, max_new_tokens=24)
AFTER, ALPHA = (4, 9), 0.5


@pytest.mark.parametrize(
    ("scores", "alpha", "goes_on"),
    [
        ([3.0, 1.0, 2.0, 4.0], 0.5, [True, False, False, True]),
        ([3.0, 1.0, 2.0, 4.0], 0.49, [True, False, True, True]),  # floor(1.96) = 1 is stopped
        ([1.0, 1.0, 1.0], 0.34, [True, True, False]),  # of equals the later one is stopped
        ([math.nan, 1.0, 2.0, math.nan], 0.5, [True, False, True, True]),  # one of two scores is stopped
        ([math.nan, math.nan], 0.5, [True, True]),
        ([5.0], 0.99, [True]),
        ([], 0.5, []),
        ([float(k) for k in range(100)], 0.29, [False] * 29 + [True] * 71),  # 0.29 * 100 < 29 in floats
    ],
)
def test_the_lowest_share_is_stopped_and_ties_follow_the_sample_index(scores, alpha, goes_on):
    assert survivors(scores, alpha).tolist() == goes_on


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=20),
    st.floats(0.01, 0.99),
)
def test_no_stopped_answer_scores_above_one_that_goes_on(scores, alpha):
    goes_on = survivors(scores, alpha)
    assert goes_on.any()
    assert (~goes_on).sum() <= alpha * len(scores) + 1e-6
    assert (~goes_on).sum() > alpha * len(scores) - 1
    kept, stopped = np.array(scores)[goes_on], np.array(scores)[~goes_on]
    assert not len(stopped) or stopped.max() <= kept.min()


class Letters:
    """Any score of a text will do for deciding; this one tells most texts apart."""

    def __call__(self, rows: list[Completion]) -> dict[str, list[float]]:
        return {"letters": [sum(map(ord, row.completion)) % 97 / 7 for row in rows]}


@pytest.fixture(scope="module")
def pair(tiny_model_folder) -> tuple[Any, Any]:
    """A model that ends its turns now and then, and its tokenizer."""
    model, tokenizer = load_model(str(tiny_model_folder)), load_tokenizer(str(tiny_model_folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 3
    return model, tokenizer


def speculation(scorer: Any = None, **changes: Any) -> Speculation:
    options = {"column": "letters", "after": AFTER, "alpha": ALPHA, **changes}
    return Speculation(scorer or Letters(), **options)


@pytest.mark.parametrize("rows_per_batch", [9, 18, 512])
def test_a_surviving_answer_is_token_for_token_the_one_of_plain_sampling(pair, rows_per_batch):
    settings = SamplingSettings(samples=9, max_new_tokens=24, rows_per_batch=rows_per_batch)
    plain = TransformersEngine(*pair).answer(PROMPTS, settings).completions
    answers = TransformersEngine(*pair, speculation=speculation()).answer(PROMPTS, settings)
    made = answers.completions
    stopped = [row.finish_reason == "rejected" for row in made]
    assert 0 < sum(stopped) < len(made)
    assert {row.finish_reason for row in plain} == {"stop", "length"}
    for row, whole, is_stopped in zip(made, plain, stopped, strict=True):
        if is_stopped:
            assert row.tokens in AFTER
            assert whole.completion.startswith(row.completion.rstrip("\ufffd"))
            assert whole.tokens > row.tokens
        else:
            assert (row.completion, row.tokens, row.finish_reason) == (
                whole.completion,
                whole.tokens,
                whole.finish_reason,
            )
            assert row.logprob == pytest.approx(whole.logprob, abs=1e-4)


def test_replaying_finished_answers_tells_what_the_engine_does_and_what_it_costs(pair):
    tokenizer = pair[1]
    watched: list[Completion] = []

    class Remembering(Letters):
        def __call__(self, rows: list[Completion]) -> dict[str, list[float]]:
            watched.extend(rows)
            return super().__call__(rows)

    plain = TransformersEngine(*pair).answer(PROMPTS, SETTINGS).completions
    answers = TransformersEngine(*pair, speculation=speculation(Remembering())).answer(PROMPTS, SETTINGS)
    lengths = {
        name: len(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        )
        for name, messages in PROMPTS
    }
    beginnings = {(row.prompt_id, row.sample_index, row.tokens): row for row in watched}
    scored_tokens = 0
    for place, (name, _) in enumerate(PROMPTS):
        rows = plain[9 * place : 9 * place + 9]
        partial = [
            [
                Letters()([found])["letters"][0] if (found := beginnings.get((name, k, length))) else math.nan
                for length in AFTER
            ]
            for k in range(9)
        ]
        finished, generated, scored = replay(partial, [row.tokens for row in rows], after=AFTER, alpha=ALPHA)
        made = answers.completions[9 * place : 9 * place + 9]
        assert finished.tolist() == [row.finish_reason != "rejected" for row in made]
        assert generated.tolist() == [row.tokens for row in made]
        assert np.isfinite(np.array(partial)).tolist() == scored.tolist()
        scored_tokens += sum((lengths[name] + np.array(AFTER)) @ scored.T)
    assert answers.scored_tokens == scored_tokens > 0


def test_a_scorer_without_an_opinion_stops_nobody(pair, caplog):
    class Silent:
        def __call__(self, rows: list[Completion]) -> dict[str, list[NoScore]]:
            return {"letters": [NoScore("no idea")] * len(rows)}

    answers = TransformersEngine(*pair, speculation=speculation(Silent(), after=[4])).answer(
        PROMPTS, SamplingSettings(samples=9, max_new_tokens=6)
    )
    assert "no idea" in caplog.text
    assert sum(row.finish_reason == "rejected" for row in answers.completions) == 0


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"after": [9, 4]}, {}, "ascend"),
        ({"after": [24]}, {}, "below `max_new_tokens`"),
        ({"alpha": 0.1}, {}, "stops none"),
        ({}, {"rows_per_batch": 8}, r"`rows_per_batch` \(8\) must be at least `samples` \(9\)"),
    ],
)
def test_decisions_that_would_decide_nothing_are_refused(pair, changes, settings, message):
    engine = TransformersEngine(*pair, speculation=speculation(**changes))
    with pytest.raises(DataError, match=message):
        engine.answer(PROMPTS, SamplingSettings(**{"samples": 9, "max_new_tokens": 24, **settings}))


def recipe(model: Path, reward: Path, **changes: Any) -> GenerateRecipe:
    section = {"scorer": {"name": str(reward)}, "after": [3, 5], "alpha": 0.5}
    content = {
        "stage": "generate",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": "test[:6]"}],
        "samples": 8,
        "prompts_per_part": 3,
        "max_new_tokens": 8,
        "rows_per_batch": 16,
        "speculative": section | changes.pop("speculative", {}),
    }
    return GenerateRecipe(**{**content, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"kind": "endpoint", "url": "http://localhost:1/v1"}}, "shows them when they are done"),
        ({"engine": {"kind": "vllm"}}, "shows them when they are done"),
        ({"executor": {"kind": "processes"}}, "Leave `executor` out"),
        ({"rows_per_batch": 7}, "must be at least `samples`"),
        ({"samples": 1}, "stops none"),
        ({"speculative": {"after": [8]}}, "below `max_new_tokens`"),
        ({"speculative": {"after": [5, 5]}}, "ascend"),
        ({"speculative": {"alpha": 1.0}}, "less than 1"),
        ({"speculative": {"scorer": {"kind": "json_schema", "schema": {}}}}, "judges whole answers"),
        ({"speculative": {"scorer": {"kind": "length", "at_most": 5}}}, "judges whole answers"),
    ],
)
def test_a_recipe_that_cannot_speculate_says_why(changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe(Path("model"), Path("reward"), **changes)


def test_an_evaluation_cannot_speculate():
    with pytest.raises(ValidationError, match="speculative"):
        EvaluateRecipe(
            stage="evaluate",
            model={"name": "m"},
            data=[{"name": "d"}],
            scorers={},
            speculative={"after": [3]},
        )


def test_a_worker_that_cannot_find_the_scorer_says_so_before_it_loads_a_model():
    with pytest.raises(RecipeError, match="several processes"):
        load_engine(recipe(Path("nowhere"), Path("reward")), "nowhere")


@pytest.fixture(scope="module")
def runs(tiny_model_folder, tmp_path_factory) -> Path:
    """Samples with speculation, their scores and the best of them."""
    folder = tmp_path_factory.mktemp("speculative")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_model(str(tiny_model_folder), head="reward").save_pretrained(folder / "reward")
    load_tokenizer(str(tiny_model_folder)).save_pretrained(folder / "reward")
    run_stage(recipe(tiny_model_folder, folder / "reward"), folder / "samples", progress=False)
    scorers = {"proxy": {"name": str(folder / "reward")}, "gold": {"name": "pocket:gold"}}
    scoring = ScoreRecipe(stage="score", data=[{"from": "samples"}], scorers=scorers)
    run_stage(scoring, folder / "scores", progress=False)
    return folder


def test_the_table_of_samples_marks_the_stopped_and_the_run_counts_what_it_cost(runs):
    table, notes = read_table(runs / "samples" / "samples"), read_manifest(runs / "samples")["notes"]
    stopped = np.array(table["finish_reason"].to_pylist()) == "rejected"
    # eight answers per prompt, hardly one of which ends early: four are stopped after 3 tokens, two after 5
    assert len(table) == 48
    assert 30 <= stopped.sum() <= 36
    assert notes["rejected"] == stopped.sum()
    assert notes["tokens"] == sum(table["tokens"].to_pylist())
    assert notes["scored_tokens"] > 5 * stopped.sum()


def test_what_was_stopped_has_no_score_and_counts_in_no_mean(runs):
    table = read_table(runs / "scores" / "scores")
    stopped = np.array(table["finish_reason"].to_pylist()) == "rejected"
    for name in ("proxy", "gold", "words"):
        assert np.isfinite(table[name].to_numpy()).tolist() == (~stopped).tolist()
    metrics = read_result(runs / "scores").final_metrics
    assert {"proxy", "gold", "words"} <= set(metrics)
    assert not any(name.endswith("failed_rate") for name in metrics)


@pytest.mark.parametrize("strategy", ["best", "random", "pairs"])
def test_what_was_stopped_is_neither_selected_nor_a_control(runs, strategy):
    rows = read_table(runs / "scores" / "scores")
    keys = {(row["prompt_id"], row["sample_index"]): row["finish_reason"] for row in rows.to_pylist()}
    found = choose(rows, "proxy", Rule(strategy=strategy))
    for chosen in (found.chosen, found.control):
        reasons = {
            keys[rows["prompt_id"][int(row)].as_py(), rows["sample_index"][int(row)].as_py()]
            for row in chosen.ravel()
        }
        assert reasons <= {"stop", "length"}
    assert len(found.unscored) == 0
    assert len(found.chosen) > 0


def test_fewer_finished_answers_than_k_are_an_error():
    table = pa.table(
        {
            "prompt_id": ["p"] * 3,
            "sample_index": [0, 1, 2],
            "completion": ["a", "b", "c"],
            "finish_reason": ["stop", "rejected", "rejected"],
            "proxy": [1.0, math.nan, math.nan],
        }
    )
    with pytest.raises(DataError, match="has 1 samples, so 2"):
        choose(table, "proxy", Rule(strategy="top_k", k=2))


def test_select_works_on_such_samples_and_best_of_n_refuses_them(runs):
    selecting = SelectRecipe(stage="select", data=[{"from": "scores"}], by="proxy")
    result = run_stage(selecting, runs / "best", progress=False)
    assert result.final_metrics["proxy"].n == 6
    curve = BestOfNRecipe(
        stage="best_of_n", data=[{"from": "scores"}], arms=["proxy"], measures=["gold"], ns=[1]
    )
    with pytest.raises(DataError, match="stopped by speculative rejection"):
        run_stage(curve, runs / "curve", progress=False)


def test_a_damaged_part_is_made_again_with_the_same_bytes(runs, tiny_model_folder):
    part = runs / "samples" / "samples" / "part-00001.parquet"
    before = part.read_bytes()
    part.write_bytes(before[:-7])
    run_stage(recipe(tiny_model_folder, runs / "reward"), runs / "samples", progress=False)
    assert part.read_bytes() == before


def test_an_annotator_is_not_shown_what_was_stopped():
    prompt = [{"role": "user", "content": "Say river two times, then say moon once."}]
    rows = [
        Completion("p", index, prompt, text, 3, reason, None)
        for index, (text, reason) in enumerate([("Ri", "rejected"), ("River.", "stop"), ("Moon.", "stop")])
    ]
    [pair] = annotate(rows, load_annotator("pocket:annotator")).pairs
    assert {pair.chosen, pair.rejected} == {"River.", "Moon."}


def test_scorers_are_not_asked_about_what_was_stopped():
    prompt = [{"role": "user", "content": "Hi"}]
    rows = [
        Completion("p", 0, prompt, "He", 1, "rejected", None),
        Completion("p", 1, prompt, "Hello you", 2, "stop", None),
    ]
    asked: list[str] = []

    def scorer(given: list[Completion]) -> dict[str, list[float]]:
        asked.extend(row.completion for row in given)
        return {"proxy": [1.0] * len(given)}

    first, second = score(rows, scorer)
    assert asked == ["Hello you"]
    assert math.isnan(first.scores["proxy"])
    assert math.isnan(first.scores["words"])
    assert second.scores == {"proxy": 1.0, "words": 2.0}
