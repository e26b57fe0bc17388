"""A plain LoRA merged from file to file: the same model as in memory, and a wrong weight is found."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from handbook_utils import merge_adapter
from handbook_utils.errors import ModelError
from handbook_utils.models import merge, merge_shards
from handbook_utils.models.load import load_model, load_on_base, load_tokenizer
from handbook_utils.models.merge_shards import MergePlan, check_merged, plan_merge, write_merged
from handbook_utils.models.precision import Loading
from tests.tiny_models import tiny_model
from tests.unit.test_models_foreign_adapters import KINDS, peft_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore::UserWarning:peft"
)
CHANGED = "model.layers.1.mlp.down_proj.weight"


def make(
    folder: Path, *, architecture: str = "llama", dtype: str = "float32", shard: str = "1GB", **lora: Any
) -> Path:
    """An adapter by PEFT on a random base beside it."""
    torch.manual_seed(0)
    tiny_model(architecture, folder / "whole")
    base = load_model(str(folder / "whole"), dtype=dtype, device="cpu")
    base.save_pretrained(folder / "base", max_shard_size=shard)
    load_tokenizer(str(folder / "whole")).save_pretrained(folder / "base")
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(**{**chosen, **lora}))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data + 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(folder / "base")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    load_tokenizer(str(folder / "whole")).save_pretrained(folder / "adapter")
    return folder / "adapter"


def plan_of(adapter: Path, base: Path, dtype: str = "float32") -> MergePlan | None:
    return plan_merge(load_on_base(str(adapter), Loading("causal", dtype, "none", device="cpu")), base)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {name: weight for file in files for name, weight in load_file(file).items()}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several files": {"shard": "60KB"},
    "a scale of its own": {
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 32},
        "rank_pattern": {"o_proj": 2},
    },
    "transposed weights": {
        "architecture": "gpt2",
        "fan_in_fan_out": True,
        "target_modules": ["c_attn", "c_fc"],
    },
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_from_file_to_file_it_is_the_model_that_is_merged_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make(tmp_path, **SETTINGS[kind])
    streamed = merge_adapter(str(adapter), tmp_path / "streamed", device="cpu")
    monkeypatch.setattr(merge, "plan_merge", lambda model, folder: None)
    in_memory = merge_adapter(str(adapter), tmp_path / "in-memory", device="cpu")
    ours, theirs, base = (weights_of(tmp_path / name) for name in ("streamed", "in-memory", "base"))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-6)
    assert any(not torch.equal(ours[name], weight) for name, weight in base.items())
    assert (streamed.weights, in_memory.weights) == (len(base), None)
    assert streamed.same_generations == in_memory.same_generations == streamed.probes
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "streamed" / file).read_bytes() == (tmp_path / "in-memory" / file).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_rounded_once_to_the_number_format_asked_for(dtype: str, tmp_path: Path) -> None:
    adapter = make(tmp_path, dtype=dtype)
    report = merge_adapter(str(adapter), tmp_path / "merged", device="cpu")
    assert report.dtype == dtype
    plan = plan_of(adapter, tmp_path / "base", dtype)
    assert plan is not None
    merged, base = weights_of(tmp_path / "merged"), weights_of(tmp_path / "base")
    expected = plan.updates[CHANGED].added_to(base[CHANGED]).to(getattr(torch, dtype))
    assert torch.equal(merged[CHANGED], expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("plain", "gaussian")])
def test_an_adapter_that_does_more_is_merged_in_memory(kind: str, tmp_path: Path) -> None:
    base = tiny_model("qwen2", tmp_path / "base", tie_word_embeddings=True, vocab_size=300)
    assert plan_of(peft_adapter(base, tmp_path / "adapter", **KINDS[kind]), base) is None
    assert plan_of(peft_adapter(base, tmp_path / "plain"), base) is not None


def test_a_head_tied_to_the_embeddings_is_merged_in_memory(tmp_path: Path) -> None:
    base = tiny_model("llama", tmp_path / "base", tie_word_embeddings=True)
    assert plan_of(peft_adapter(base, tmp_path / "adapter", target_modules=["lm_head"]), base) is None


def test_files_with_names_of_their_own_are_merged_in_memory(tmp_path: Path) -> None:
    # of a mixture transformers keeps each layer's experts in one weight, and its files have one for each
    adapter = make(tmp_path, architecture="mixtral", target_modules=["q_proj"])
    assert plan_of(adapter, tmp_path / "base") is None
    assert merge_adapter(str(adapter), tmp_path / "merged", device="cpu").weights is None


def left_out(merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return base.clone()


def too_large(merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return base + 1.5 * (merged - base)


def one_row(merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    changed = merged.clone()
    changed[3] = base[3]
    return changed


def rows_exchanged(merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return base + (merged - base).flip(0)


def no_number(merged: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    changed = merged.clone()
    changed[0, 0] = torch.nan
    return changed


Fault = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [left_out, too_large, one_row, rows_exchanged, no_number])
def test_one_wrong_layer_is_found_and_named_and_nothing_is_left(
    fault: Fault, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, right = make(tmp_path, dtype=dtype), merge_shards._merged

    def wrong(plan: MergePlan, name: str, weight: torch.Tensor) -> torch.Tensor:
        merged = right(plan, name, weight)
        return fault(merged, weight) if name == CHANGED else merged

    monkeypatch.setattr(merge_shards, "_merged", wrong)
    with pytest.raises(ModelError, match=f"merged model is another one: {CHANGED} is not the base's with"):
        merge_adapter(str(adapter), tmp_path / "merged", device="cpu")
    assert not (tmp_path / "merged").exists()


def test_one_changed_number_of_a_weight_without_an_update_is_found(tmp_path: Path) -> None:
    plan = plan_of(make(tmp_path, target_modules=["q_proj"], shard="60KB"), tmp_path / "base")
    assert plan is not None
    (tmp_path / "out").mkdir()
    write_merged(plan, tmp_path / "out")
    assert check_merged(plan, tmp_path / "out") == len(plan.dtypes)
    file = next(file for file, names in plan.files.items() if names[0] not in plan.updates)
    content = bytearray((tmp_path / "out" / file).read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 4 * 10 + 3] ^= 1  # the first tensor of the file
    (tmp_path / "out" / file).write_bytes(content)
    with pytest.raises(ModelError, match=f"{plan.files[file][0]} is not the base's. Nothing written"):
        check_merged(plan, tmp_path / "out")


def test_outputs_alone_would_not_have_shown_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: in bfloat16 one layer without its update stays within what outputs may differ by."""
    adapter, right = make(tmp_path, dtype="bfloat16", lora_alpha=2), merge_shards._merged
    monkeypatch.setattr(
        merge_shards, "_merged", lambda plan, name, w: w if name == CHANGED else right(plan, name, w)
    )
    with pytest.raises(ModelError, match=f"{CHANGED} is not the base's with the adapter's update"):
        merge_adapter(str(adapter), tmp_path / "merged", device="cpu")
    monkeypatch.setattr(merge, "check_merged", lambda plan, folder: 0)
    report = merge_adapter(str(adapter), tmp_path / "merged", device="cpu")
    assert report.difference < merge.TOLERANCES["bfloat16"]


def test_an_update_beyond_the_number_format_is_refused(tmp_path: Path) -> None:
    plan = plan_of(make(tmp_path), tmp_path / "base")
    assert plan is not None
    plan.updates[CHANGED].b[:] = torch.inf
    with pytest.raises(ModelError, match=f"{CHANGED} would hold values that are no numbers"):
        write_merged(plan, tmp_path)


def test_a_base_of_the_hubs_cache_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--lab--base" / "snapshots" / ("a" * 40)
    tiny_model("llama", snapshot)
    (cache / "models--lab--base" / "refs").mkdir()
    (cache / "models--lab--base" / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    from handbook_utils.models.places import local_folder

    assert local_folder("lab/base") == snapshot
    assert local_folder("lab/other") is None
