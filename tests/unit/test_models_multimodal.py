"""A model that also takes pictures, trained on text: its vision tower stays, its processor travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from handbook_utils import merge_adapter
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.schema.recipe import check_recipe
from tests.tiny_models import tiny_model

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PROCESSOR = ("preprocessor_config.json", "processor_config.json")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with a vision tower, and its processor's files."""
    text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "eos_token_id": 1}
    folder = tmp_path_factory.mktemp("gemma") / "base"
    tiny_model("gemma3", folder, text_config={**text, **heads}, vision_config=VISION)
    for name in PROCESSOR:
        (folder / name).write_text(f'{{"of": "{name}"}}', encoding="utf-8")
    return folder


def trained(base: Path, out: Path, conversations: Path, **changes: Any) -> Path:
    content = {
        "stage": "sft",
        "model": {"name": str(base)},
        "data": [{"name": str(conversations), "split": "train[:2]"}],
        "global_batch_size": 2,
        "training": {"use_cpu": True, "max_steps": 1, "learning_rate": 1e-2, "packing": False},
    }
    run_stage(check_recipe(content | changes, "test"), out, progress=False)
    return out / "model"


def test_training_on_text_leaves_the_vision_tower_as_it_is(
    gemma: Path, conversations_file: Path, tmp_path: Path
) -> None:
    model = trained(gemma, tmp_path / "full", conversations_file)
    before, after = load_file(gemma / "model.safetensors"), load_file(model / "model.safetensors")
    assert before.keys() == after.keys()
    towers = {name for name in before if "vision_tower" in name or "projector" in name}
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)
    assert not all(torch.equal(before[name], after[name]) for name in before.keys() - towers)
    assert all((model / name).read_text("utf-8") == (gemma / name).read_text("utf-8") for name in PROCESSOR)


def test_a_low_rank_adapter_is_on_the_text_part_alone_and_merges_with_the_processor(
    gemma: Path, conversations_file: Path, tmp_path: Path
) -> None:
    model = trained(gemma, tmp_path / "lora", conversations_file, lora={"rank": 2})
    weights = load_file(model / "adapter_model.safetensors")
    assert any("language_model" in name for name in weights)
    assert not any("vision" in name or "projector" in name for name in weights)
    merge_adapter(str(tmp_path / "lora"), tmp_path / "merged", device="cpu")
    for folder in (model, tmp_path / "merged"):
        assert all((folder / name).is_file() for name in PROCESSOR)
