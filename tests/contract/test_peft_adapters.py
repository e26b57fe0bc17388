"""What we rely on in PEFT, bitsandbytes and TRL where adapters are concerned, and what we mend."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from handbook_utils.data.load import load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.models.adapters import new_adapter
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.precision import Loading, dequantized, quantized
from handbook_utils.schema.sections import LoraSection
from tests.contract.conftest import train

Architecture = Callable[[str], Path]
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def pairs(pairs_file: Path) -> Dataset:
    return load_dataset(str(pairs_file), kind="preference", split="train[:4]")


def with_adapter(folder: Path, *, quantization: str = "none", is_trained: bool = True, **section: Any) -> Any:
    torch.manual_seed(0)
    model = load_model(str(folder), quantization=quantization, device="cpu")
    model = new_adapter(model, LoraSection(rank=4, alpha=8, **section), "causal")
    for name, weight in model.named_parameters():
        if is_trained and ".lora_B." in name:
            weight.data = 0.1 * torch.randn_like(weight)
    return model


def dpo_trainer(model: Any, folder: Path, pairs: Dataset, out: Path, *, is_ours: bool) -> Any:
    """A DPO trainer of TRL's own, or of ours."""
    from handbook_utils.training.trl_bridge import (
        CONFIGS,
        TRAINERS,
        installed_names,
        make_trainer,
        training_conditions,
    )

    arguments = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "logging_steps": 1,
        # transformers 5.24 saves an adapter that it loaded itself with a peft that is not released
        "save_strategy": "no",
    }
    tokenizer = load_tokenizer(str(folder))
    with quiet_libraries(), training_conditions():
        if is_ours:
            return make_trainer(
                "dpo", arguments=arguments, model=model, tokenizer=tokenizer, data=(pairs, None), callbacks=[]
            )
        return TRAINERS["dpo"](
            model=model,
            args=CONFIGS["dpo"](**installed_names(CONFIGS["dpo"], arguments)),
            processing_class=tokenizer,
            train_dataset=pairs,
        )


def trained_dtypes(trainer: Any) -> set[torch.dtype]:
    return {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}


def test_trl_rounds_the_adapter_of_a_quantised_model_to_bfloat16_and_we_do_not(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    folder = tiny_architecture("llama")
    dtypes = []
    for is_ours in (False, True):
        trainer = dpo_trainer(
            with_adapter(folder, quantization="nf4"), folder, pairs, tmp_path, is_ours=is_ours
        )
        dtypes.append(trained_dtypes(trainer))
    assert dtypes == [{torch.bfloat16}, {torch.float32}]
    first = train(trainer)[0]
    # the frozen copy was made before the rounding, so with it the loss would be off by about 1e-5
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)


def test_trl_copies_an_untrained_adapter_as_reference_and_we_take_the_base(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    folder = tiny_architecture("llama")
    adapters = []
    for is_ours in (False, True):
        model = with_adapter(folder, is_trained=False)
        trainer = dpo_trainer(model, folder, pairs, tmp_path, is_ours=is_ours)
        adapters.append(set(trainer.model.peft_config))
    assert adapters == [{"default", "ref"}, {"default"}]
    assert train(trainer)[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_trls_frozen_copy_leaves_out_new_tokens_and_ours_does_not(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tiny_architecture("llama")
    margins = []
    for is_ours in (False, True):
        config = LoraConfig(
            r=4,
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": list(range(20, 120))},
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        model = get_peft_model(load_model(str(folder), device="cpu"), config)
        for name, weight in model.named_parameters():
            if weight.requires_grad and ("lora_B" in name or "token" in name):
                weight.data = weight.data + 0.1 * torch.randn_like(weight)
        logged = train(dpo_trainer(model, folder, pairs, tmp_path, is_ours=is_ours))
        margins.append(abs(logged[0]["rewards/chosen"]))
    assert margins[0] > 0.01
    assert margins[1] == pytest.approx(0, abs=1e-6)


def test_an_adapter_loaded_by_transformers_is_no_reference(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_architecture("llama")
    with_adapter(folder).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    for weight in model.parameters():
        weight.requires_grad_(True)
    # TRL reloads the reference by the base's name, without the adapter: the loss does not start at ln 2
    logged = train(dpo_trainer(model, folder, pairs, tmp_path / "out", is_ours=False))
    assert abs(logged[0]["rewards/chosen"]) > 0.01


def test_a_quantised_model_can_be_made_from_weights_in_memory(tiny_architecture: Architecture) -> None:
    folder = str(tiny_architecture("mixtral"))
    how = Loading(quantization="nf4", device="cpu")
    from_memory = quantized(load_model(folder, device="cpu"), how)
    from_disk = load_model(folder, quantization="nf4", device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(from_memory(IDS).logits, from_disk(IDS).logits, rtol=0, atol=0)


def test_a_pass_in_evaluation_mode_leaves_4_bit_weights_as_they_were(tiny_architecture: Architecture) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_model(str(tiny_architecture("llama")), quantization="nf4", device="cpu")
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    # what has bitsandbytes pack them anew, on CPUs that compute in bfloat16
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False] * len(layers) != []
    before = [layer.weight.clone() for layer in layers]
    with torch.inference_mode():
        model(IDS)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_dequantised_weights_are_those_that_were_computed_with(
    quantization: str, tiny_architecture: Architecture
) -> None:
    model = load_model(str(tiny_architecture("llama")), quantization=quantization, device="cpu")
    with torch.inference_mode():
        packed = model(IDS).logits
        with quiet_libraries():
            plain = dequantized(model, torch.float32)(IDS).logits
    # int8 rounds the activations as well (LLM.int8())
    tolerance = 1e-4 if quantization == "nf4" else 0.1
    torch.testing.assert_close(plain, packed, rtol=0, atol=tolerance * float(packed.abs().max()))


def test_peft_merges_into_quantised_weights_by_rounding_the_sum_again(
    tiny_architecture: Architecture,
) -> None:
    folder = tiny_architecture("llama")
    with torch.inference_mode():
        expected = with_adapter(folder, quantization="nf4")(input_ids=IDS).logits
        with pytest.warns(UserWarning, match="may get different generations due to rounding errors"):
            merged = with_adapter(folder, quantization="nf4").merge_and_unload()
        error = (merged(IDS).logits - expected).abs().max() / expected.abs().max()
    # dequantising first, as `merge_adapter` does, leaves less than 1e-5 (tests/unit/test_models_adapters.py)
    assert error > 0.01


def test_llm_int8_and_nf4_leave_head_and_embeddings_alone(tiny_architecture: Architecture) -> None:
    for quantization in ("int8", "nf4"):
        for head in ("causal", "reward"):
            model = load_model(
                str(tiny_architecture("starcoder2")), head=head, quantization=quantization, device="cpu"
            )
            top = model.score if head == "reward" else model.get_output_embeddings()
            assert type(top) is torch.nn.Linear
            assert model.get_input_embeddings().weight.dtype == torch.float32
