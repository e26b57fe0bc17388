"""Bases whose own files are quantised already: held as what they are, whatever is done with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from handbook_utils import merge_adapter
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import LaunchError, RecipeError
from handbook_utils.models.adapters import AdapterBase, new_adapter, read_base, save_adapter
from handbook_utils.models.load import load_merged, load_model, load_tokenizer, stored_as
from handbook_utils.models.precision import Loading, is_quantized, quantized
from handbook_utils.runs.folder import open_run
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import LoraSection
from handbook_utils.training.initial_model import check_start, held_quantization, start_base, start_model
from tests.tiny_models import tiny_model

IDS = torch.tensor([[20, 21, 30, 40, 50]])
BITS: dict[str, Any] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},  # bitsandbytes' own default
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module", params=BITS)
def packed(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As others publish them: quantised, saved, and the modules that are not quantised listed by name."""
    folder = tmp_path_factory.mktemp("packed") / request.param
    how = BitsAndBytesConfig(**BITS[request.param], llm_int8_skip_modules=["lm_head"])
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=how, dtype=torch.bfloat16, device_map={"": "cpu"}
        )
        model.save_pretrained(folder)
    load_tokenizer(str(plain)).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def recipe(base: Path | str, *, stage: str = "sft", lora: bool = True, **changes: Any) -> Any:
    content: dict[str, Any] = {
        "stage": stage,
        "model": {"name": str(base)} | changes.pop("model", {}),
        "data": [{"name": "x"}],
        "global_batch_size": 2,
        "training": {"use_cpu": True},
    }
    return check_recipe(content | changes | ({"lora": {"rank": 4}} if lora else {}), "test")


def trained_adapter(packed: Path, folder: Path, head: Any = "causal") -> Path:
    """An adapter with random weights on the base, as a training stage would have left it."""
    made = recipe(packed, stage="reward" if head == "reward" else "sft")
    torch.manual_seed(0)
    with open_run(folder.parent / "run", made, progress=False) as run:
        start = start_model(made, run, head)
    for weight in start.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.05 * torch.randn_like(weight)
    folder.mkdir()
    assert start.base is not None
    save_adapter(start.model, folder, start.base, final=folder)
    load_tokenizer(str(packed)).save_pretrained(folder)
    return folder


def test_an_adapter_on_it_is_trained_recorded_loaded_and_merged_as_on_what_it_is(
    packed: Path, plain: Path, tmp_path: Path
) -> None:
    folder = trained_adapter(packed, tmp_path / "adapter")
    assert read_base(folder).quantization == packed.name == stored_as(str(packed))
    assert held_quantization(recipe(packed), str(packed)) == packed.name
    held = load_model(str(folder), device="cpu")
    assert is_quantized(held)
    report = merge_adapter(str(folder), tmp_path / "merged", dtype="float32", device="cpu")
    assert report.quantization == packed.name
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    merged = load_model(str(tmp_path / "merged"), device="cpu")
    assert not is_quantized(merged)
    moved = (logits(held) - logits(load_model(str(packed), device="cpu"))).abs().max()
    tolerance = 0.1 if packed.name == "int8" else 0.01
    assert (logits(merged) - logits(held)).abs().max() < tolerance * moved


def test_an_adapter_of_peft_alone_stands_on_it_as_it_is(packed: Path, tmp_path: Path) -> None:
    folder = trained_adapter(packed, tmp_path / "adapter")
    expected = logits(load_model(str(folder), device="cpu"))
    (folder / "base.json").unlink()
    assert read_base(folder).quantization == "none"  # PEFT does not say
    model = load_model(str(folder), device="cpu")
    assert is_quantized(model)
    torch.testing.assert_close(logits(model), expected)
    assert not is_quantized(load_merged(str(folder), Loading(device="cpu", quantization="none")))


def test_a_new_adapter_is_stacked_on_it(packed: Path, tmp_path: Path) -> None:
    folder = trained_adapter(packed, tmp_path / "adapter")
    made = recipe(folder, model={"adapter": "stack"})
    check_start(made, str(folder))
    with open_run(tmp_path / "stacked", made, progress=False) as run:
        start = start_model(made, run, "causal")
    assert start.base == AdapterBase(str(folder), None, packed.name, start.base and start.base.fingerprint)
    assert is_quantized(start.model)
    assert any(weight.requires_grad for weight in start.model.parameters())


def test_a_reward_head_on_it_is_whole_and_trains(packed: Path, tmp_path: Path) -> None:
    made = recipe(packed, stage="reward")
    with open_run(tmp_path / "run", made, progress=False) as run:
        model = start_model(made, run, "reward").model
    head = model.get_base_model().score.modules_to_save["default"]
    assert type(head) is torch.nn.Linear
    assert head.weight.is_floating_point()
    model(input_ids=IDS).logits.sum().backward()
    assert head.weight.grad.abs().sum() > 0
    folder = trained_adapter(packed, tmp_path / "adapter", "reward")
    expected = logits(load_model(str(folder), head="reward", device="cpu"))
    merge_adapter(str(folder), tmp_path / "merged", dtype="float32", device="cpu")
    merged = load_model(str(tmp_path / "merged"), head="reward", device="cpu")
    torch.testing.assert_close(logits(merged), expected, atol=0.05, rtol=0.05)


def test_it_is_refused_for_full_training_unless_it_is_dequantised(
    packed: Path, plain: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"weights in {packed.name}, .* `lora:` .*quantization: none"):
        check_start(recipe(packed, lora=False), str(packed))
    made = recipe(packed, lora=False, model={"quantization": "none"})
    check_start(made, str(packed))
    with open_run(tmp_path / "run", made, progress=False) as run:
        start = start_base(made, run, "causal")
    assert start.base is None
    assert not is_quantized(start.model)
    assert all(weight.dtype == torch.float32 for weight in start.model.parameters())
    near, whole = logits(start.model), logits(load_model(str(plain), device="cpu"))
    assert (near - whole).abs().max() < (0.1 if packed.name == "int8" else 0.6) * whole.abs().max()
    # a base of plain weights needs no word on it
    check_start(recipe(plain, lora=False), str(plain))
    assert held_quantization(recipe(plain), str(plain)) == "none"


def test_zero_3_refuses_it(packed: Path) -> None:
    with pytest.raises(LaunchError, match=f"weights in {packed.name}.*zero3 does not shard"):
        check_start(recipe(packed, launch={"strategy": "zero3"}), str(packed))


@pytest.mark.parametrize(
    ("method", "way"), [("gptq", "Take the model whose weights are not"), ("mxfp4", "quantization: none")]
)
def test_other_methods_are_refused_by_name(
    method: str, way: str, tiny_architecture: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model("llama", tmp_path / "other")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"quantization_config": {"quant_method": method}}
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"weights in {method}, .*{way}"):
        check_start(recipe(folder), str(folder))


def test_one_quantised_here_is_still_held_as_the_recipe_says(plain: Path) -> None:
    model = new_adapter(
        load_model(str(plain), quantization="nf4", device="cpu"), LoraSection(rank=2), "causal"
    )
    assert is_quantized(model)
    again = quantized(load_model(str(plain), device="cpu"), Loading(quantization="nf4", device="cpu"))
    torch.testing.assert_close(logits(model), logits(again))
