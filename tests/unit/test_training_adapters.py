"""LoRA and QLoRA through the stages: seven architectures, and DPO and rewards after an earlier adapter."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from handbook_utils.data.load import load_dataset
from handbook_utils.errors import LaunchError, ModelError, RecipeError
from handbook_utils.models.load import load_model, load_pair
from handbook_utils.models.logprobs import response_logprobs, reward_scores
from handbook_utils.models.precision import is_quantized, quantized_share
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.folder import open_run
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.schema.recipe import check_recipe, load_recipe
from handbook_utils.training import initial_model
from tests.conftest import DATA

ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma3_text", "smollm3", "starcoder2", "mixtral")
FILES = {"sft": "conversations.jsonl"} | dict.fromkeys(("reward", "dpo", "kto", "orpo"), "pairs.jsonl")
LORA = {"rank": 4, "alpha": 8}
ROWS = 8

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # said of every mixture of experts; one test asks for it
    pytest.mark.filterwarnings("ignore::handbook_utils.training.initial_model.RouterWarning"),
]


def recipe(stage: str, model: dict[str, Any], lora: dict[str, Any] | None = LORA, **training: Any) -> Any:
    """Two steps on eight hand-written rows, one batch per step."""
    content = {
        "stage": stage,
        "model": model,
        "data": [{"name": str(DATA / FILES[stage]), "split": f"train[:{ROWS}]"}],
        "global_batch_size": ROWS,
        "training": {
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "use_cpu": True,
            **training,
        },
    }
    return check_recipe(content | ({"lora": lora} if lora else {}), "test")


def run(folder: Path, *arguments: Any, **training: Any) -> Path:
    run_stage(recipe(*arguments, **training), folder, progress=False)
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder) if "loss" in record]


def notes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(folder)["notes"]
    return found


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def share_of_linear_layers(model: Any) -> float:
    """What can be quantised, from the shapes of the unquantised model: all linear layers but the head."""
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}
    linear = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and id(layer) not in heads]
    return sum(layer.weight.numel() for layer in linear) / sum(
        weight.numel() for weight in model.parameters()
    )


@pytest.mark.parametrize(
    ("stage", "architecture"),
    [*product(("sft", "reward", "dpo"), ARCHITECTURES), ("kto", "llama"), ("orpo", "llama")],
)
def test_qlora_trains_every_architecture(
    stage: str, architecture: str, tiny_architecture: Callable[[str], Path], tmp_path: Path
) -> None:
    start = tiny_architecture(architecture)
    head: Any = "reward" if stage == "reward" else "causal"
    folder = run(tmp_path / "run", stage, {"name": str(start), "quantization": "nf4"})
    assert [record["step"] for record in steps(folder)] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in steps(folder))
    # only the adapter is saved, every part of it has been trained, and what it stands on is noted
    assert not (folder / "model" / "model.safetensors").exists()
    weights = adapter_weights(folder)
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert (stage == "reward") == any("score" in name for name in weights)
    assert json.loads((folder / "model" / "base.json").read_text(encoding="utf-8"))["quantization"] == "nf4"
    # the share of weights that really are in NF4: all linear layers but the head, and that alone
    model = load_model(str(folder), head=head, device="cpu")
    share = quantized_share(model)
    assert share == pytest.approx(share_of_linear_layers(load_model(str(start), head=head, device="cpu")))
    assert notes(folder)["quantized_share"] == pytest.approx(share, abs=1e-4)
    print(f"{architecture}, {stage}: {share:.0%} of the weights are in NF4")


def test_the_experts_of_mixtral_are_not_quantised(tiny_architecture: Callable[[str], Path]) -> None:
    mixtral = load_model(str(tiny_architecture("mixtral")), quantization="nf4", device="cpu")
    experts = {name: weight for name, weight in mixtral.named_parameters() if ".experts." in name}
    assert len(experts) == 4  # two tensors per layer
    assert all(weight.is_floating_point() for weight in experts.values())
    assert quantized_share(mixtral) < 0.15
    llama = load_model(str(tiny_architecture("llama")), quantization="nf4", device="cpu")
    assert quantized_share(llama) > 0.6


@pytest.fixture(scope="module", params=["none", "nf4"])
def sft_run(
    request: pytest.FixtureRequest,
    tiny_architecture: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """An SFT run with an adapter far from its base; once on the base as it is, once on it in NF4."""
    model = {"name": str(tiny_architecture("llama")), "quantization": request.param}
    folder = tmp_path_factory.mktemp("runs") / "sft"
    return request.param, run(folder, "sft", model, max_steps=8, learning_rate=3e-2)


def mean_logprobs(name: str, side: str, **options: Any) -> float:
    """Mean over the training pairs of log pi(y|x)."""
    pairs = load_dataset(str(DATA / FILES["dpo"]), kind="preference", split=f"train[:{ROWS}]")
    rows = [(row["prompt"], row[side][0]["content"]) for row in pairs]
    return float(response_logprobs(*load_pair(name, device="cpu", **options), rows).mean())


@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_dpo_starts_from_the_earlier_adapter_and_refers_to_it(
    mode: str, sft_run: tuple[str, Path], tiny_architecture: Callable[[str], Path]
) -> None:
    quantization, sft = sft_run
    # in `merge` the recipe says anew how the merged model is held
    model = {"from": "sft", "adapter": mode, "quantization": quantization}
    dpo = run(sft.parent / f"dpo-{mode}", "dpo", model, None if mode == "continue" else LORA)
    first, second = steps(dpo)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["loss"] < first["loss"] - 0.01
    # rounding the merged weights to NF4 again moves them a little; otherwise the reference is exact
    tolerance = 1e-4 if quantization == "none" or mode == "continue" else 0.15
    for side in ("chosen", "rejected"):
        # beta * (log policy - log reference) is 0, so the policy's log-probabilities are the reference's
        assert first[f"rewards/{side}"] == pytest.approx(0, abs=1e-5)
        of_sft = mean_logprobs(str(sft), side)
        of_base = mean_logprobs(str(tiny_architecture("llama")), side, quantization=quantization)
        gap = abs(of_base - of_sft)
        assert gap > 10
        assert abs(first[f"logps/{side}"] - of_sft) <= tolerance * (1 if tolerance < 0.1 else gap)
    assert notes(dpo)["adapter"] == mode


def test_held_out_figures_of_an_adapter_that_is_trained_on_refer_to_what_it_was(
    sft_run: tuple[str, Path],
) -> None:
    quantization, sft = sft_run
    model = {"from": "sft", "adapter": "continue", "quantization": quantization}
    held_out = {"name": str(DATA / FILES["dpo"]), "split": f"train[{ROWS}:{2 * ROWS}]"}
    unmoved = recipe("dpo", model, None, max_steps=1, learning_rate=0.0)
    unmoved = load_recipe(unmoved, overrides={"eval_data": [held_out]})
    # the adapter is as it was, so it is its own reference; the base is some ten nats away (see above)
    found = run_stage(unmoved, sft.parent / "unmoved", progress=False).final_metrics
    assert found["margin"].value == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_a_reward_model_after_an_earlier_adapter_scores_alike_when_reloaded(
    mode: str, sft_run: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.training import fit

    quantization, sft = sft_run
    pairs = load_dataset(str(DATA / FILES["reward"]), kind="preference", split="train[:4]")
    rows = [(row["prompt"], row["chosen"][0]["content"]) for row in pairs]
    trained: list[Any] = []
    save = fit.save_model

    def score_and_save(trainer: Any, tokenizer: Any, *rest: Any) -> None:
        trained.append(reward_scores(trainer.model.eval(), tokenizer, rows))
        save(trainer, tokenizer, *rest)

    monkeypatch.setattr(fit, "save_model", score_and_save)
    model = {"from": "sft", "adapter": mode, "quantization": quantization}
    folder = run(sft.parent / f"reward-{mode}", "reward", model, None if mode == "continue" else LORA)
    torch.manual_seed(99)  # a head drawn anew would differ
    model, tokenizer = load_pair(str(folder), head="reward", device="cpu")
    assert is_quantized(model) == (quantization == "nf4")
    np.testing.assert_allclose(reward_scores(model, tokenizer, rows), trained[0], atol=1e-5)
    assert np.ptp(trained[0]) > 1e-3


def test_a_chain_of_runs_loads_from_a_copy_alone(sft_run: tuple[str, Path], tmp_path: Path) -> None:
    quantization, sft = sft_run
    model = {"from": "sft", "adapter": "stack"}
    run(sft.parent / "chained", "dpo", model)
    before = mean_logprobs(str(sft.parent / "chained"), "chosen")
    shutil.copytree(sft.parent, tmp_path / "copy")
    moved = sft.rename(sft.with_name("moved"))
    try:
        assert mean_logprobs(str(tmp_path / "copy" / "chained"), "chosen") == before
        with pytest.raises(ModelError, match=r"chained.*the base of this adapter, .*sft, cannot be found"):
            load_model(str(sft.parent / "chained"))
    finally:
        moved.rename(sft)
    # `quantization: auto` is that of the earlier adapter's base
    assert notes(sft.parent / "chained")["quantization"] == quantization


def test_merging_first_can_be_followed_by_training_all_weights(
    sft_run: tuple[str, Path], tmp_path: Path
) -> None:
    _, sft = sft_run
    folder = run(sft.parent / "full", "dpo", {"from": "sft", "adapter": "merge"}, None)
    assert (folder / "model" / "model.safetensors").exists()
    assert not (folder / "base").exists()
    assert steps(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    first = steps(folder)[0]["logps/chosen"]
    assert first == pytest.approx(mean_logprobs(str(sft), "chosen", quantization="none"), rel=1e-4)


@pytest.mark.parametrize(("quantization", "mode"), [("none", None), ("nf4", None), ("nf4", "continue")])
def test_an_adapter_interrupted_after_a_checkpoint_ends_as_one_that_was_not(
    quantization: str,
    mode: str | None,
    sft_run: tuple[str, Path],
    tiny_architecture: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from handbook_utils.training.callbacks import RecordMetrics

    _, sft = sft_run
    model: dict[str, Any] = {"name": str(tiny_architecture("llama")), "quantization": quantization}
    if mode is not None:
        model = {"name": str(sft), "adapter": mode}
    arguments: Any = ("dpo", model, None if mode else {**LORA, "dropout": 0.1})
    settings = {"max_steps": 4, "save_steps": 2, "save_total_limit": 2}
    whole = run(tmp_path / "whole", *arguments, **settings)

    def interrupt(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(RecordMetrics, "on_step_begin", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *arguments, **settings)
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2").is_dir()
    cut = run(tmp_path / "cut", *arguments, **settings)
    assert "going on from checkpoint-2" in (cut / "log.txt").read_text(encoding="utf-8")
    expected = adapter_weights(whole)
    for name, weight in adapter_weights(cut).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    # had the reference been lost, rewards would not have gone on from where they were
    assert [record["rewards/margins"] for record in steps(cut)] == [
        record["rewards/margins"] for record in steps(whole)
    ]


def test_checkpointing_activations_changes_no_gradient_of_an_adapter(
    tiny_architecture: Callable[[str], Path], tmp_path: Path
) -> None:
    model = {"name": str(tiny_architecture("llama")), "quantization": "nf4"}
    weights = []
    for is_on in (False, True):
        folder = run(tmp_path / str(is_on), "sft", model, activation_checkpointing=is_on)
        weights.append(adapter_weights(folder))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-6)


def test_an_earlier_adapter_without_a_word_on_it_is_refused_with_the_three_ways(
    sft_run: tuple[str, Path],
) -> None:
    _, sft = sft_run
    with pytest.raises(RecipeError, match=r"(?s)sft is an adapter.*continue: .*stack: .*merge: "):
        run(sft.parent / "dpo", "dpo", {"from": "sft"})
    assert not (sft.parent / "dpo").exists()


def test_a_word_on_an_adapter_is_refused_where_the_start_is_a_whole_model(
    tiny_architecture: Callable[[str], Path], tmp_path: Path
) -> None:
    start = str(tiny_architecture("llama"))
    with pytest.raises(RecipeError, match=r"llama is a whole model.*take `adapter: stack` out"):
        run(tmp_path / "run", "dpo", {"name": start, "adapter": "stack"})


def test_zero_3_refuses_an_earlier_adapter_whose_base_is_quantised(
    sft_run: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization, earlier = sft_run
    made = recipe("dpo", {"name": str(earlier), "adapter": "continue"}, None)
    made = load_recipe(made, overrides={"launch.strategy": "zero3"})
    # in the processes of a launcher; only the adapter's folder says what "auto" will be
    monkeypatch.setattr(initial_model, "load_on_base", lambda *_, **__: pytest.fail("a model was loaded"))
    if quantization == "none":
        initial_model.check_start(made, str(earlier))
        return
    with pytest.raises(LaunchError, match=r"trained on a base in nf4.*zero3 does not shard.*Use fsdp2"):
        initial_model.check_start(made, str(earlier))
    dequantised = load_recipe(made, overrides={"model.quantization": "none"})
    initial_model.check_start(dequantised, str(earlier))


def test_an_adapter_that_is_trained_on_keeps_its_settings(sft_run: tuple[str, Path]) -> None:
    _, sft = sft_run
    model = {"from": "sft", "adapter": "continue"}
    with pytest.raises(RecipeError, match=r"lora.rank is 4 there and 8 here; lora.dropout is 0.0 there"):
        run(sft.parent / "dpo", "dpo", model, {"rank": 8, "alpha": 8, "dropout": 0.1})
    assert steps(run(sft.parent / "same", "dpo", model, LORA, max_steps=1))


def test_an_adapter_on_a_model_drawn_anew_each_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="its adapter could not be reloaded"):
        run(tmp_path / "run", "sft", {"name": "pocket:init"})


def test_a_target_that_the_model_lacks_is_named(
    tiny_architecture: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"lora: .*q_prj"):
        run(tmp_path / "run", "sft", {"name": str(tiny_architecture("llama"))}, {"targets": ["q_prj"]})


BAD_RECIPES = [
    ({"quantization": "nf4"}, None, "Add a `lora:` section to train an adapter on them"),
    ({"quantization": "int8"}, None, "weights in int8 cannot be trained themselves"),
    ({"adapter": "stack"}, None, "the recipe needs a `lora:` section"),
    (
        {},
        {"targets": ["q_proj", "lm_head"]},
        r"'lm_head' cannot carry a low-rank adapter.*modules_to_save: \[lm_head\]",
    ),
    ({}, {"targets": ["model.embed_tokens"]}, "'model.embed_tokens' cannot carry"),
    ({}, {"targets": []}, "no target"),
    ({}, {"targets": "all-liner"}, "all-linear"),
    ({}, {"rnk": 4}, "Did you mean 'rank'"),
    ({"quantization": "nf5"}, LORA, "Did you mean 'nf4'"),
    ({"adapter": "stck"}, LORA, "Did you mean 'stack'"),
]


@pytest.mark.parametrize(("model", "lora", "message"), BAD_RECIPES)
def test_a_recipe_that_cannot_train_an_adapter_is_refused_when_read(
    model: Any, lora: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe("sft", {"name": "x", **model}, lora)


def test_a_quantised_adapter_may_be_trained_on_without_a_lora_section() -> None:
    assert recipe("dpo", {"name": "x", "quantization": "nf4", "adapter": "continue"}, None).lora is None


@pytest.mark.parametrize("trains", [True, False])
def test_the_router_of_a_mixture_is_trained_and_told_or_left_as_it_is(
    trains: bool, tiny_architecture: Callable[[str], Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    for architecture in ("mixtral", "llama"):
        made = recipe("sft", {"name": str(tiny_architecture(architecture))}, {**LORA, "router": trains})
        with open_run(tmp_path / architecture, made, progress=False) as opened:
            model = initial_model.start_model(made, opened, "causal").model
        moved = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert any(".gate.lora_" in name for name in moved) == (trains and architecture == "mixtral")
        assert any("q_proj.lora_" in name for name in moved)
    told = [warning for warning in recwarn if issubclass(warning.category, initial_model.RouterWarning)]
    assert len(told) == trains  # of the mixture alone
