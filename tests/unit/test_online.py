"""The stages `grpo` and `rloo` on a tiny random model: what they leave, refuse, say, and how they resume."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from handbook_utils.errors import HandbookError, RecipeError, TrainingError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.online.rewards import EqualRewardsWarning, Rewards, UnscoredAnswersWarning
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import Completion
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.schema.recipe import check_recipe, recipe_to_dict
from tests.ranks import run_ranks

Make = Callable[..., Any]
STEPS = 4


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts to train on, then four that are held out."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    words = "river stone cloud lamp table green quick north paper seven mouse field ocean candle winter spoon"
    rows = [{"prompt": f"Say {word} twice, then stop"} for word in words.split()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def make(tiny_model_folder: Path, prompts_file: Path) -> Make:
    """A recipe: the reward, and by another name the second opinion, is the share of vowels in an answer."""

    def recipe(stage: str = "grpo", *, training: dict[str, Any] | None = None, **changes: Any) -> Any:
        content = {
            "stage": stage,
            "model": {"name": str(tiny_model_folder)},
            "data": [{"name": str(prompts_file), "split": "train[:12]"}],
            "eval_data": [{"name": str(prompts_file), "split": "train[12:]"}],
            "scorers": {"vowels": function("share_of_vowels")},
            "prompts_per_step": 3,
            "samples": 4,
            "steps": STEPS,
            "max_new_tokens": 6,
            "held_out": {"every": 2, "scorers": {"opinion": function("share_of_vowels")}},
            **changes,
            "training": {
                "use_cpu": True,
                "learning_rate": 3e-2,
                "lr_scheduler_type": "constant",
                "save_steps": 1,
                **(training or {}),
            },
        }
        return check_recipe({key: value for key, value in content.items() if value is not None}, "test")

    return recipe


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "function", "function": f"{__name__}:{name}", "allow_code": True, **more}


def share_of_vowels(prompt: Any, answer: str) -> float:
    return sum(letter in "aeiou" for letter in answer.lower()) / max(1, len(answer))


def none(prompt: Any, answer: str) -> None:
    return None


def text(prompt: Any, answer: str) -> str:
    return "good"


def several(prompt: Any, answer: str) -> list[float]:
    return [1.0, 2.0]


def not_a_number(prompt: Any, answer: str) -> float:
    return float("nan")


def raises(prompt: Any, answer: str) -> float:
    raise KeyError("no such answer")


def sometimes(prompt: Any, answer: str) -> float | None:
    return None if len(answer) % 2 else 1.0 / (1 + len(answer))


def changes_its_input(prompt: Any, answer: str) -> float:
    prompt.append({"role": "user", "content": "something else"})
    return float(len(prompt)) + len(answer)


def equal(prompt: Any, answer: str) -> float:
    return 1.0


CALLS: list[int] = []


def counts_calls(prompt: Any, answer: str) -> float:
    CALLS.append(1)
    return float(len(CALLS))


def slow(prompt: Any, answer: str) -> float:
    end = time.process_time() + 60
    while time.process_time() < end:
        pass
    return 1.0


def train(recipe: Any, place: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_stage(recipe, place, progress=False, allow_code=True)


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "model" / "model.safetensors")


def same_end(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[name], b[name]) for name in a)


def records(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Uninterrupted runs by stage, made when a test first asks."""
    return {}


def whole_run(whole: dict[str, Any], make: Make, tmp_path_factory: Any, stage: str) -> Path:
    if stage not in whole:
        whole[stage] = tmp_path_factory.mktemp("whole") / stage
        whole[f"{stage}.result"] = train(make(stage), whole[stage])
    return whole[stage]


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_a_run_trains_stores_its_answers_and_shows_a_second_opinion(
    stage: str, make: Make, whole: dict[str, Any], tmp_path_factory: Any, tiny_model_folder: Path
) -> None:
    place = whole_run(whole, make, tmp_path_factory, stage)
    result = whole[f"{stage}.result"]
    assert {"vowels", "opinion", "kl"} <= result.final_metrics.keys()
    notes = read_manifest(place)["notes"]
    assert notes["shared_prefix"] is True
    assert notes["chosen_by"] == "opinion"
    rollouts, rewards = read_table(place / "rollouts"), read_table(place / "rewards")
    assert len(rollouts) == len(rewards) == STEPS * 12
    assert rollouts["prompt_id"].to_pylist() == rewards["prompt_id"].to_pylist()
    assert len(set(rollouts["prompt_id"].to_pylist()[:12])) == 3
    assert max(map(len, rollouts["token_ids"].to_pylist())) <= 6
    steps = [record["step"] for record in records(place)]
    assert steps == list(range(STEPS + 1))  # one record per step, held-out figures beside the others
    assert all("held_out/opinion" in record for record in records(place)[::2])
    last = records(place)[-1]
    assert {"reward", "reward_group_std", "entropy", "completions/clipped_ratio"} <= last.keys()
    assert not (place / "checkpoints").exists()
    assert not (place / "kept").exists()
    load_model(str(place), device="cpu")
    assert load_tokenizer(str(place)).chat_template


def test_rewards_that_are_learned_from_rise(make: Make, tmp_path: Path) -> None:
    recipe = make(steps=12, held_out=None, eval_data=None, training={"learning_rate": 3e-2})
    train(recipe, tmp_path / "run")
    rewards = [record["reward"] for record in records(tmp_path / "run")]
    assert np.mean(rewards[-3:]) > 2 * np.mean(rewards[:3])


def test_the_kept_step_is_the_one_that_looked_best(
    make: Make, whole: dict[str, Any], tmp_path_factory: Any
) -> None:
    place = whole_run(whole, make, tmp_path_factory, "grpo")
    kept = read_manifest(place)["notes"]["kept_step"]
    looks = {r["step"]: r["held_out/opinion"] for r in records(place) if "held_out/opinion" in r}
    assert kept == max(looks, key=lambda step: looks[step]) > 0
    assert whole["grpo.result"].final_metrics["opinion"].value == pytest.approx(looks[kept])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_stops_beyond_the_budget_of_kl_and_keeps_a_step_within_it(
    keep: str, make: Make, tmp_path: Path
) -> None:
    held_out = {"every": 1, "keep": keep}
    train(make(stop_at_kl=0.02, held_out=held_out, training={"learning_rate": 3e-2}), tmp_path / "run")
    notes = read_manifest(tmp_path / "run")["notes"]
    found = [record for record in records(tmp_path / "run") if "held_out/kl" in record]
    assert "above stop_at_kl 0.02" in notes["stopped"]
    assert found[-1]["held_out/kl"] > 0.02 >= max(record["held_out/kl"] for record in found[:-1])
    assert found[-1]["step"] < STEPS
    assert notes["kept_step"] < found[-1]["step"]


def test_where_no_step_is_better_the_start_model_is_kept_and_it_is_said(
    make: Make, tmp_path: Path, tiny_model_folder: Path
) -> None:
    recipe = make(steps=2, held_out={"every": 1, "scorers": {"same": function("equal")}})
    with pytest.warns(UserWarning, match="the start model is kept"):
        run_stage(recipe, tmp_path / "run", progress=False, allow_code=True)
    start = load_file(tiny_model_folder / "model.safetensors")
    assert all(torch.equal(weight, start[name]) for name, weight in weights(tmp_path / "run").items())


def die(where: str, step: int) -> None:
    """Have this process killed at a point of its training."""
    from handbook_utils.online import held_out, rewards, rollouts
    from handbook_utils.training import fit
    from handbook_utils.training.callbacks import RecordMetrics

    def killed(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "answers sampled, not scored":
        original = rewards.Rewards.of
        seen: list[int] = []

        def of(self: Any, rows: Any, *, step: int) -> Any:
            seen.append(step)
            return killed() if step >= 2 else original(self, rows, step=step)

        rollouts.Rewards.of = of  # type: ignore[method-assign]
    elif where == "after a checkpoint":
        RecordMetrics.on_save = lambda self, args, state, control, **_: (  # type: ignore[attr-defined]
            killed() if state.global_step == step else None
        )
    elif where == "before the kept weights are stored":
        held_out.HeldOut._keep = killed  # type: ignore[method-assign]
    else:
        from handbook_utils.online import stage

        stage.save_model = killed
    assert fit


@pytest.mark.parametrize(
    "where",
    [
        "answers sampled, not scored",
        "after a checkpoint",
        "before the kept weights are stored",
        "before the model is saved",
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one_and_pays_for_no_answer_twice(
    where: str, make: Make, whole: dict[str, Any], tmp_path_factory: Any, tmp_path: Path
) -> None:
    uninterrupted = whole_run(whole, make, tmp_path_factory, "grpo")
    place = tmp_path / "run"

    def killed() -> None:
        die(where, step=3)
        train(make(), place)

    assert run_ranks(killed, count=1) == [-signal.SIGKILL]
    stored = {file: file.stat().st_mtime_ns for file in place.glob("r*/*.parquet")}
    assert stored
    train(make(), place)
    assert same_end(place, uninterrupted)
    assert {file: file.stat().st_mtime_ns for file in stored} == stored
    assert read_table(place / "rollouts").equals(read_table(uninterrupted / "rollouts"))


def test_two_processes_take_the_same_prompts_and_noise_and_end_at_the_same_weights(
    make: Make, tmp_path: Path
) -> None:
    # Adam makes a step of its own size of a gradient that is all rounding, SGD does not
    sizes = {"prompts_per_step": 4, "steps": 3, "training": {"learning_rate": 0.3, "optim": "sgd"}}
    recipe, alone = (make(**sizes, launch={"processes": count}) for count in (2, 1))
    train(alone, tmp_path / "one")
    assert run_ranks(lambda: train(recipe, tmp_path / "two"), count=2) == [0, 0]
    one, two = (read_table(tmp_path / name / "rollouts") for name in ("one", "two"))
    assert one["prompt_id"].equals(two["prompt_id"])
    assert one["token_ids"].equals(two["token_ids"])
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def test_a_run_resumes_with_another_number_of_processes(make: Make, tmp_path: Path) -> None:
    plain = {"held_out": None, "eval_data": None, "training": {"learning_rate": 0.3, "optim": "sgd"}}
    alone = make(prompts_per_step=4, steps=3, launch={"processes": 1}, **plain)
    train(alone, tmp_path / "one")

    def killed() -> None:
        die("after a checkpoint", step=2)
        train(alone, tmp_path / "two")

    assert run_ranks(killed, count=1) == [-signal.SIGKILL]
    assert run_ranks(lambda: train(alone, tmp_path / "two"), count=2) == [0, 0]
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "TypeError"),
        ("text", "could not convert string"),
        ("several", "TypeError"),
        ("not_a_number", "the verifier gave nan"),
        ("raises", "KeyError: 'no such answer'"),
    ],
)
def test_a_reward_function_without_any_number_ends_the_run_and_its_answers_are_kept(
    name: str, reason: str, make: Make, tmp_path: Path
) -> None:
    recipe = make(scorers={"mine": function(name)}, held_out=None, eval_data=None)
    with pytest.raises(TrainingError, match=rf"scorers\.mine has no number for any .*{reason}"):
        train(recipe, tmp_path / "run")
    assert len(read_table(tmp_path / "run" / "rollouts")) == 12


def completions(texts: Sequence[str], samples: int = 2) -> list[Completion]:
    prompt: Any = [{"role": "user", "content": "?"}]
    return [
        Completion(f"p{place // samples}", place % samples, prompt, text, 3, "stop", -1.0)
        for place, text in enumerate(texts)
    ]


def scorer_of(name: str, **more: Any) -> Rewards:
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.sampling.scoring.scorers.load import load_scorers
    from handbook_utils.schema.recipe import scorer_sections

    section = json.dumps(function(name, **more))
    [scorer] = load_scorers(scorer_sections([f"mine={section}"]), ResolvedInputs())
    return Rewards({"mine": scorer})


def test_answers_without_a_number_are_said_once_and_have_none() -> None:
    rewards = scorer_of("sometimes")
    with pytest.warns(UnscoredAnswersWarning, match="no number for 1 of 2 answers"):
        scored = rewards.of(completions(["a", "ab"]), step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards.of(completions(["a", "ab"]), step=1)
    found = rewards.total(scored)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1 / 3)


def test_a_reward_function_that_keeps_state_is_refused() -> None:
    rewards = scorer_of("counts_calls")
    scored = rewards.of(completions(["a", "b"]), step=0)
    with pytest.raises(TrainingError, match="a function of prompt and answer"):
        rewards.check_repeats(scored)


def test_a_reward_function_cannot_change_what_it_is_given() -> None:
    rewards, rows = scorer_of("changes_its_input"), completions(["a", "b"])
    scored = rewards.of(rows, step=0)
    rewards.check_repeats(scored)
    assert rewards.table(scored).tolist() == [[3.0], [3.0]]
    assert len(rows[0].prompt) == 1


def test_a_reward_function_beyond_its_deadline_has_no_number() -> None:
    rewards = scorer_of("slow", timeout_s=1)
    with pytest.raises(TrainingError, match="TimeoutError: it took longer than 1 s"):
        rewards.of(completions(["a"]), step=0)


def test_equal_rewards_are_said_and_move_nothing(make: Make, tmp_path: Path, tiny_model_folder: Path) -> None:
    recipe = make(steps=2, scorers={"mine": function("equal")}, held_out=None, eval_data=None)
    with pytest.warns(EqualRewardsWarning, match="equal rewards"):
        run_stage(recipe, tmp_path / "run", progress=False, allow_code=True)
    start = load_file(tiny_model_folder / "model.safetensors")
    assert all(torch.equal(weight, start[name]) for name, weight in weights(tmp_path / "run").items())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a sampler that the loss does not model": ({"training": {"top_p": 0.9}}, "`training.top_p` is 0.9"),
    "top-k": ({"training": {"top_k": 5}}, "drawn at `temperature` alone"),
    "a repetition penalty": ({"training": {"repetition_penalty": 1.2}}, "has to be 1.0"),
    "dropout of an adapter": ({"lora": {"dropout": 0.1}}, "`lora.dropout` has to be 0"),
    "dropout left on": ({"training": {"disable_dropout": False}}, "has to be True"),
    "groups that are split": ({"training": {"per_device_train_batch_size": 6}}, "would split groups of 4"),
    "a save inside a rollout": (
        {"training": {"num_iterations": 2, "save_steps": 3}},
        "multiple of 2",
    ),
    "groups of one": ({"samples": 1}, "samples"),
    "a batch of other size": ({"global_batch_size": 8}, "leave it out, or change `prompts_per_step`"),
    "a loss that depends on the pass": ({"training": {"loss_type": "bnpo"}}, "Take dapo"),
    "an unknown loss": ({"training": {"loss_type": "drgrpo"}}, "dr_grpo"),
    "the same in two places": ({"training": {"num_generations": 8}}, "`samples` says"),
    "vLLM": ({"training": {"vllm_mode": "colocate"}}, "sampled in the training process"),
    "a weight without a scorer": ({"weights": {"vowel": 2.0}}, "Did you mean 'vowels'"),
    "a second opinion that is trained on": (
        {"held_out": {"scorers": {"vowels": {"name": "pocket:gold"}}}},
        "no second opinion",
    ),
    "held-out prompts that nobody looks at": ({"held_out": None}, "add that section"),
    "a look at nothing": ({"eval_data": None}, "`held_out` needs `eval_data`"),
    "weights that are split": ({"launch": {"strategy": "fsdp2"}}, "take ddp"),
    "an unknown key": ({"trainig": {}}, "trainig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_is_refused_that_asks_for(case: str, make: Make) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(RecipeError) as refused:
        make(**changes)
    assert message in str(refused.value)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any load of a model is an error."""
    from handbook_utils.online import stage

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(stage, "start_model", loaded)


def test_before_a_model_is_loaded_these_are_refused(
    make: Make, no_weights: None, tmp_path: Path, tiny_model_folder: Path
) -> None:
    plain = {"held_out": None, "eval_data": None}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompts_per_step": 13}, "12 distinct prompts"),
        ({"max_new_tokens": 512}, "beyond the model's 512 positions"),
        ({"scorers": {"x": function("no_such")}}, "no function 'no_such'"),
        ({"scorers": {"x": {"name": "pocket:golt"}}}, "pocket:gold"),
        ({"scorers": {"tokens": function("equal")}}, "samples have a column 'tokens' already"),
        ({"launch": {"processes": 1}, "prompts_per_step": 0}, "prompts_per_step"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(HandbookError) as refused:
            train(make(**{**plain, **changes}), tmp_path / str(number))
        assert message in str(refused.value), changes
        assert not (tmp_path / str(number)).exists()


def test_a_model_with_attention_dropout_is_refused(
    make: Make, no_weights: None, tmp_path: Path, tiny_model_folder: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    with pytest.raises(RecipeError, match=r"attention_dropout 0\.1"):
        train(make(model={"name": str(folder)}), tmp_path / "run")


def test_code_runs_only_where_it_is_allowed(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--allow-code"):
        run_stage(make(), tmp_path / "run", progress=False)


def test_repeated_prompts_are_left_out_and_held_out_ones_are_not_trained_on(
    make: Make, prompts_file: Path
) -> None:
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.online.checks import checked_prompts

    twice = [{"name": str(prompts_file), "split": "train[:12]"}, {"name": str(prompts_file)}]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = checked_prompts(make(data=twice), ResolvedInputs())
    assert len(found.train.prompts) == 12
    texts = " ".join(str(each.message) for each in said)
    assert "12 rows repeat the prompt of an earlier row" in texts
    assert "4 training examples have a prompt of `eval_data`" in texts


def test_a_tokenizer_without_padding_and_answers_without_an_end_are_no_problem(
    make: Make, tmp_path: Path, tiny_model_folder: Path
) -> None:
    folder = tmp_path / "model"
    model, tokenizer = (
        load_model(str(tiny_model_folder), device="cpu"),
        load_tokenizer(str(tiny_model_folder)),
    )
    with torch.no_grad():  # the end of a turn is never drawn
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0.0
    model.save_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    recipe = make(model={"name": str(folder)}, steps=1, held_out=None, eval_data=None, max_new_tokens=3)
    train(recipe, tmp_path / "run")
    assert records(tmp_path / "run")[-1]["completions/clipped_ratio"] > 0.9


def test_an_empty_answer_is_counted_and_learned_from(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.online import rollouts

    original = rollouts.sample_tokens

    def ended(model: Any, prompts: Any, *, stop_ids: Any, **how: Any) -> Any:
        rows = original(model, prompts, stop_ids=stop_ids, **how)
        for row in rows[::2]:
            row.__dict__.update(token_ids=[next(iter(stop_ids))], finish_reason="stop")
        return rows

    monkeypatch.setattr(rollouts, "sample_tokens", ended)
    train(make(steps=1, held_out=None, eval_data=None), tmp_path / "run")
    assert records(tmp_path / "run")[-1]["completions/empty"] >= 0.5


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_is_trained_and_measured_against_its_base(
    quantization: str, make: Make, tiny_architecture: Any, tmp_path: Path
) -> None:
    model = {"name": str(tiny_architecture("llama")), "quantization": quantization}
    lora = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    recipe = make(model=model, lora=lora, steps=2, training={"learning_rate": 0.1})
    result = train(recipe, tmp_path / "run")
    looks = {r["step"]: r["held_out/kl"] for r in records(tmp_path / "run") if "held_out/kl" in r}
    assert abs(looks[0]) < 1e-3
    assert abs(looks[2]) > 1e-3
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()
    assert result.final_metrics["kl"].unit == "nats"


def test_a_recipe_written_out_is_the_same_recipe(make: Make) -> None:
    recipe = make()
    assert recipe.global_batch_size == 12
    assert "global_batch_size" not in recipe_to_dict(recipe)
    assert check_recipe(recipe_to_dict(recipe), "again") == recipe


def test_a_reward_model_that_was_trained_on_the_prompts_is_told(
    make: Make, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.online.checks import ScorerSawPromptsWarning, checked_prompts
    from handbook_utils.runs.folder import open_run

    prompts = [json.loads(line)["prompt"] for line in prompts_file.read_text().splitlines()[:5]]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": text, "chosen": "a b", "rejected": "c"}) + "\n" for text in prompts)
    )
    reward = check_recipe(
        {
            "stage": "reward",
            "model": {"name": "pocket:base"},
            "data": [{"name": str(pairs)}],
            "global_batch_size": 1,
        },
        "test",
    )
    with open_run(tmp_path / "reward", reward) as run:
        run.finish({})
    scorers = {"proxy": {"name": str(tmp_path / "reward")}}
    monkeypatch.setattr("handbook_utils.online.checks.check_scorers", lambda *_: {})  # it has no weights
    with pytest.warns(ScorerSawPromptsWarning, match="5 of 12 prompts"):
        checked_prompts(make(scorers=scorers), ResolvedInputs())


def test_memory_of_a_run_is_planned_from_its_prompts_and_scorers(make: Make, tmp_path: Path) -> None:
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.pipeline.checks.preflight import preflight
    from handbook_utils.planning.gpus import read_gpu
    from handbook_utils.planning.whole import plan_training_memory

    plan = plan_training_memory(make(prompts_per_step=4, training={"beta": 0.04}), ResolvedInputs())
    assert plan.memory.reference == plan.memory.weights
    assert plan.memory.scorers == 0, "a function holds no weights"
    assert any("6 tokens" in sentence for sentence in plan.assumed)
    found = preflight(make(), tmp_path / "run", gpu=read_gpu("24GiB"))
    lights = {finding.check: finding.light for finding in found.findings if finding.check != "scorers"}
    assert lights["prompts"] == lights["memory"] == "green"
    said = [finding.says for finding in found.findings if finding.check == "scorers"]
    assert sum("runs no code" in sentence for sentence in said) == 2, "the reward and the second opinion"
    few = preflight(make(prompts_per_step=13), tmp_path / "run")
    assert few.light == "red"
    assert any("12 distinct prompts" in finding.says for finding in few.findings)
    with pytest.raises(RecipeError, match="12 distinct prompts"):
        plan_training_memory(make(prompts_per_step=13), ResolvedInputs())


def test_a_reward_model_s_weights_are_held_and_too_small_a_gpu_is_told_what_fits(
    make: Make, tmp_path: Path
) -> None:
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.planning.gpus import read_gpu
    from handbook_utils.planning.whole import plan_training_memory

    wide = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=256, num_attention_heads=16
    )
    wide.save_pretrained(tmp_path / "reward")
    changes = {"scorers": {"proxy": {"name": str(tmp_path / "reward")}}, "rows_per_batch": 512}
    recipe = make(**changes, samples=64, max_new_tokens=64)
    plan = plan_training_memory(recipe, ResolvedInputs(), gpu=read_gpu("3500MiB"))
    assert plan.memory.scorers > 2**31, "a billion weights in bfloat16"
    assert plan.memory.moment.startswith("scoring")
    assert plan.changes[0].how.startswith("rows_per_batch=")
    assert plan.shared is None, "answers are sampled with whole weights"
