"""Held-out prompts sampled while a stage trains: what is kept, that nothing is changed, the best model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from handbook_utils import diagnose
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.pipeline.while_training import held_out
from handbook_utils.pipeline.while_training.held_out import SampleHeldOut, _undisturbed
from handbook_utils.reporting.held_out import LivePlot, plot_held_out
from handbook_utils.reporting.report import _training_pictures
from handbook_utils.reporting.runs import read_run
from handbook_utils.runs.state import read_manifest, read_metrics, read_table
from handbook_utils.sampling.generation.generate import generate
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training import fit
from handbook_utils.training.dry_run import plan_training
from handbook_utils.training.plan_table import _lines

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
]
PROMPTS = [{"prompt": f"Question {number}?"} for number in range(8)]
JUDGE = {"kind": "judge", "url": "http://localhost:1/v1", "model": "m", "max_requests": 1}
# what a random model says is long: an answer of few words is one that has learned to end
SHORT = {"short": {"kind": "length", "at_most": 3}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def make(prompts: Path, tiny_model_folder: Path) -> Callable[..., Any]:
    """A recipe of five steps; with looks at every second one unless `section` is None."""

    def made(section: dict[str, Any] | None, *, stage: str = "sft", **more: Any) -> Any:
        data = Path(__file__).parents[1] / "data" / ("pairs" if stage == "dpo" else "conversations")
        looks = {"data": [{"name": str(prompts)}], "every": 2, "max_new_tokens": 8, "scorers": SHORT}
        return check_recipe(
            {
                "stage": stage,
                "model": {"name": str(tiny_model_folder)},
                "data": [{"name": f"{data}.jsonl"}],
                "global_batch_size": 4,
                "training": {"max_steps": 5, "save_steps": 2, "learning_rate": 1e-2, "use_cpu": True},
                **({} if section is None else {"held_out_samples": looks | section}),
                **more,
            },
            "test",
        )

    return made


@pytest.fixture(scope="module")
def looked(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with looks; tests read it and leave it alone."""
    run = tmp_path_factory.mktemp("runs") / "looked"
    run_stage(make({}), run, progress=False)
    return run


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def looks(run: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in read_metrics(run) if "held_out/words" in record}


def test_a_run_with_looks_ends_with_the_bytes_of_one_without(
    looked: Path, make: Callable[..., Any], tmp_path: Path
) -> None:
    run_stage(make(None), tmp_path / "plain", progress=False)
    assert weights(looked) == weights(tmp_path / "plain")
    plain = [record for record in read_metrics(looked) if "loss" in record]
    assert plain == [record for record in read_metrics(tmp_path / "plain") if "loss" in record]


def test_each_look_keeps_answers_and_figures_and_the_run_says_what_they_took(looked: Path) -> None:
    found = looks(looked)
    assert list(found) == [0, 2, 4, 5]
    assert (
        {"held_out/score", "held_out/low", "held_out/high", "held_out/kl", "held_out/cut"}
        <= (found[0].keys())
        < found[5].keys()
    )
    assert "held_out/win_rate" not in found[0]
    for record in found.values():
        rows = read_table(looked / "held_out" / f"step-{record['step']:06d}.parquet")
        assert record["held_out/score"] == pytest.approx(np.mean(rows["short"].to_numpy()), abs=1e-6)
        assert rows["prompt"][0].as_py()[0]["content"] == "Question 0?"
    gain = found[5]["held_out/score"] - found[0]["held_out/score"]
    assert found[5]["held_out/gain"] == pytest.approx(gain, abs=2e-6)
    notes = read_manifest(looked)["notes"]["held_out_samples"]
    assert notes["looks"] == 4
    assert 0 < notes["share"] < 1


def test_the_last_look_is_at_the_model_that_is_saved(looked: Path) -> None:
    model, tokenizer = load_model(str(looked / "model")), load_tokenizer(str(looked))
    ids = read_table(looked / "held_out" / "step-000005.parquet")
    asked = list(zip(ids["prompt_id"].to_pylist(), ids["prompt"].to_pylist(), strict=True))
    answers = generate(model, tokenizer, asked, max_new_tokens=8, seed=0)
    assert [each.completion for each in answers] == ids["completion"].to_pylist()


def test_an_interrupted_run_ends_as_a_whole_one(
    looked: Path, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = SampleHeldOut._look

    def interrupted(self: SampleHeldOut, model: Any, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        look(self, model, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SampleHeldOut, "_look", interrupted)
        run_stage(make({}), tmp_path / "run", progress=False)
    run_stage(make({}), tmp_path / "run", progress=False)
    assert "going on from checkpoint-2" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert weights(tmp_path / "run") == weights(looked)
    assert looks(tmp_path / "run") == looks(looked)


def test_the_best_look_gives_the_model_that_is_saved(
    looked: Path, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = SampleHeldOut._measured
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def best_at_two(self: SampleHeldOut, model: Any, step: int) -> dict[str, float]:
        seen[step] = held_out._trained_weights(model)
        return measured(self, model, step) | {"held_out/score": 1.0 if step == 2 else 0.5}

    monkeypatch.setattr(SampleHeldOut, "_measured", best_at_two)
    run_stage(make({"keep": "best"}), tmp_path / "run", progress=False)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in seen[2].items())
    assert not all(torch.equal(seen[2][name], weight) for name, weight in seen[5].items())
    notes = read_manifest(tmp_path / "run")["notes"]["held_out_samples"]
    assert (notes["kept_step"], notes["kept_score"]) == (2, 1.0)
    assert weights(looked) != weights(tmp_path / "run")


def test_preferences_and_adapters_are_looked_at_and_kl_begins_at_zero(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make({"every": 3, "scorers": {}}, stage="dpo", lora={"rank": 2, "targets": ["q_proj"]})
    run_stage(recipe, tmp_path / "run", progress=False)
    found = looks(tmp_path / "run")
    assert list(found) == [0, 3, 5]
    assert found[0]["held_out/kl"] == 0.0
    assert found[5]["held_out/kl"] != 0.0
    assert "held_out/score" not in found[5]


def test_looking_changes_no_random_state_and_no_mode(tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder))
    model.train()
    model.model.layers[0].eval()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with _undisturbed(model):
        assert not any(module.training for module in model.modules())
        random.random(), np.random.rand(), torch.rand(1)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states
    assert model.training
    assert not model.model.layers[0].training


def test_a_training_row_with_a_held_out_prompt_is_left_out(make: Callable[..., Any], tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Question 3?"}, {"role": "assistant", "content": "No."}]}
    conversations = Path(__file__).parents[1] / "data" / "conversations.jsonl"
    file = tmp_path / "rows.jsonl"
    file.write_text(conversations.read_text(encoding="utf-8") + json.dumps(row) + "\n", encoding="utf-8")
    recipe = make({}, data=[{"name": str(file)}], training={"max_steps": 1, "use_cpu": True})
    with pytest.warns(UserWarning, match="1 training examples have a prompt of `eval_data` or `held_out"):
        run_stage(recipe, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"keep": "best", "scorers": {}}, "goes by the first of `scorers`"),
        ({"scorers": {"j": JUDGE}}, "judge, paid per reply"),
        ({"evry": 3}, "Did you mean 'every'"),
    ],
)
def test_a_section_that_cannot_be_done_is_refused(
    make: Callable[..., Any], section: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        make(section)


def test_weights_that_are_spread_out_are_not_sampled(make: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"all weights in one process.*zero3.*Take ddp"):
        make({}, launch={"strategy": "zero3"})


def test_too_few_prompts_are_refused_before_a_model_is_loaded(
    make: Callable[..., Any], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "start_model", lambda *_: pytest.fail("a model was loaded"))
    recipe = make({"data": [{"name": str(prompts), "split": "train[:7]"}]})
    with pytest.raises(DataError, match=r"held_out_samples\.data: 7 prompts, and an interval needs 8"):
        run_stage(recipe, tmp_path / "run", progress=False)


def test_a_call_after_each_look_needs_looks_and_may_fail(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no section `held_out_samples`"):
        run_stage(make(None), tmp_path / "none", progress=False, on_look=LivePlot())
    seen: list[Path] = []

    def draw(run: Path) -> None:
        seen.append(run)
        raise OSError("no display")

    training = {"max_steps": 2, "use_cpu": True}
    run_stage(make({}, training=training), tmp_path / "run", progress=False, on_look=draw)
    assert seen == [tmp_path / "run"]
    assert "on_look failed" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_the_looks_are_drawn_and_a_run_without_any_is_refused(looked: Path, tmp_path: Path) -> None:
    titles = [axes.get_title(loc="left") for axes in plot_held_out(looked).axes]
    assert titles == [
        *("mean score", "win rate against the start"),
        *("KL to the start, nats per answer", "words per answer"),
    ]
    LivePlot()(looked)  # no notebook: nothing is shown
    manifest = read_manifest(looked) | {"status": "running"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="no held-out samples were taken"):
        plot_held_out(tmp_path)


def test_the_report_shows_the_looks_and_a_dry_run_what_they_will_take(
    looked: Path, make: Callable[..., Any]
) -> None:
    names = [picture["wide"] for picture in _training_pictures({"looked": read_run(looked)})]
    assert len(names) == 2  # the loss, and the looks
    plan = plan_training(make({}), {})
    assert plan["held_out_samples"] == {"looks": 4, "answers": 32, "most_tokens": 256}
    assert _lines(plan)["held-out samples"] == "4 looks, 32 answers, at most 256 tokens"


def record(step: int, score: float, gain: float, *, spread: float = 0.05) -> dict[str, Any]:
    figures = {"score": score, "low": score - spread, "high": score + spread, "cut": 0.0}
    figures |= {"gain": gain, "gain_low": gain - spread, "gain_high": gain + spread} if step else {}
    return {"step": step, **{f"held_out/{name}": value for name, value in figures.items()}}


LOSSES = [{"step": n, "loss": 2.0 - n / 100, "learning_rate": 1e-5} for n in range(1, 61)]


@pytest.mark.parametrize(
    ("scores", "rule"),
    [
        ((0.5, 0.55, 0.3), "worse_than_start"),
        ((0.5, 0.8, 0.6), "held_out_score_fell"),
        ((0.5, 0.6, 0.55), None),
        ((0.5, 0.6, 0.7), None),
    ],
)
def test_looks_are_diagnosed_by_their_intervals(scores: tuple[float, ...], rule: str | None) -> None:
    seen = [record(step, score, score - scores[0]) for step, score in zip((0, 30, 60), scores, strict=True)]
    records = sorted([*LOSSES, *seen], key=lambda record: record["step"])
    found = {finding.rule for finding in diagnose(records).findings}
    assert {"worse_than_start", "held_out_score_fell"} & found == ({rule} if rule else set())
