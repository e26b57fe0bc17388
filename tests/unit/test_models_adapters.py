"""Adapters on disk: found with their base, refused on another one, merged with a check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handbook_utils import merge_adapter
from handbook_utils.errors import MissingDependencyError, ModelError
from handbook_utils.models import precision
from handbook_utils.models.adapters import AdapterBase, new_adapter, save_adapter
from handbook_utils.models.load import load_merged, load_model, load_pair, load_tokenizer
from handbook_utils.models.places import is_adapter, resolve_model, weights_fingerprint
from handbook_utils.models.precision import Loading, choose_attention, is_quantized, quantized_share
from handbook_utils.schema.sections import LoraSection
from tests.tiny_models import build_tiny_tokenizer, tiny_model

Architecture = Callable[[str], Path]
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def llama(tiny_architecture: Architecture, tmp_path: Path) -> Path:
    """A base model as a run."""
    folder = shutil.copytree(tiny_architecture("llama"), tmp_path / "runs" / "base" / "model")
    (tmp_path / "runs" / "base" / "manifest.json").write_text("{}", encoding="utf-8")
    return Path(folder).parent


def make_adapter(
    base: Path, run: Path, *, head: Any = "causal", quantization: str = "none", **section: Any
) -> Path:
    """A run whose `model/` is an adapter with random weights, as a training stage would have left it."""
    torch.manual_seed(1)
    place, how = resolve_model(str(base)), Loading(head, quantization=quantization, device="cpu")
    whole: Any = {"head": head, "quantization": quantization, "device": "cpu"}
    model = load_merged(place, how) if is_adapter(place) else load_model(str(base), **whole)
    model = new_adapter(model, LoraSection(rank=4, alpha=8, **section), head)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.05 * torch.randn_like(weight)
    folder = run / "model"
    folder.mkdir(parents=True)
    fingerprint = weights_fingerprint(str(base / "model"))
    save_adapter(model, folder, AdapterBase(str(base), None, quantization, fingerprint), final=folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    return run


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def test_an_adapter_finds_its_base_beside_it_also_in_a_copy(llama: Path, tmp_path: Path) -> None:
    first = make_adapter(llama, llama.parent / "sft", quantization="nf4")
    second = make_adapter(first, llama.parent / "dpo")
    before = logits(load_model(str(second), device="cpu"))
    assert not torch.allclose(before, logits(load_model(str(first), device="cpu")), atol=0.1)
    copy = tmp_path / "elsewhere"
    shutil.move(llama.parent, copy)
    torch.testing.assert_close(logits(load_model(str(copy / "dpo"), device="cpu")), before)
    assert str(tmp_path) not in (copy / "dpo" / "model" / "adapter_config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_an_adapter_is_loaded_on_its_base_as_it_was_in_training(llama: Path, quantization: str) -> None:
    run = make_adapter(llama, llama.parent / "sft", quantization=quantization)
    model = load_model(str(run), device="cpu")
    assert is_quantized(model) == (quantization != "none")
    # dequantised, it is the same model but for the rounding of the arithmetic
    whole = load_model(str(run), quantization="none", device="cpu")
    assert not is_quantized(whole)
    base = logits(load_model(str(llama), device="cpu"))
    moved = (logits(whole) - base).abs().max()
    assert (logits(whole) - logits(model)).abs().max() < (0.05 if quantization == "int8" else 1e-3) * moved


def test_a_base_with_other_weights_is_refused(llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft")
    tiny_model("llama", llama / "model", seed=7)
    with pytest.raises(ModelError, match=r"sft.model: .* trained on .*base.* now holds other weights"):
        load_model(str(run))


@pytest.mark.parametrize(("other", "reason"), [("starcoder2", "gate_proj"), ("wide", "size mismatch")])
def test_an_adapter_for_another_base_is_refused_and_both_are_named(
    other: str, reason: str, llama: Path, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    run = make_adapter(llama, llama.parent / "sft", targets=["gate_proj", "q_proj"])
    base = tiny_model("llama", tmp_path / "wide", hidden_size=128) if other == "wide" else None
    base = base or tiny_architecture(other)
    point_to(run, str(base))
    with pytest.raises(
        ModelError, match=rf"sft.model: this adapter does not fit its base .*{other}.*{reason}"
    ):
        load_model(str(run))


def point_to(run: Path, base: str) -> None:
    """Make an adapter's own note name another base, as PEFT alone would write it."""
    (run / "model" / "base.json").unlink()
    file = run / "model" / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"base_model_name_or_path": base}), encoding="utf-8")


@pytest.mark.parametrize(
    ("base", "message"),
    [("", "names the base of this adapter"), ("./gone", "base of this adapter, .*gone, cannot be found")],
)
def test_an_adapter_without_a_base_is_refused(base: str, message: str, llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft")
    point_to(run, base)
    with pytest.raises(ModelError, match=message):
        load_model(str(run))


def test_pickled_adapters_are_refused(llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft")
    (run / "model" / "adapter_model.safetensors").rename(run / "model" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"found only adapter_model\.bin, which can run code"):
        load_model(str(run))


def test_a_reward_adapter_is_no_language_model(llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "reward", head="reward")
    with pytest.raises(ModelError, match="Load it with head='reward'"):
        load_model(str(run))


def test_an_adapter_without_a_tokenizer_has_its_bases(llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft")
    for file in (run / "model").glob("*token*"):
        file.unlink()
    assert load_tokenizer(str(run)).eos_token == "<|end|>"


def test_a_tokenizer_larger_than_the_embeddings_is_refused_and_a_smaller_one_is_fine(tmp_path: Path) -> None:
    tokens = len(build_tiny_tokenizer())
    padded = tiny_model("llama", tmp_path / "padded", vocab_size=tokens + 59)
    assert load_pair(str(padded), device="cpu")[0].config.vocab_size == tokens + 59
    short = tiny_model("llama", tmp_path / "short", vocab_size=tokens - 1)
    with pytest.raises(ModelError, match=f"the tokenizer has {tokens} tokens and the model {tokens - 1}"):
        load_pair(str(short), device="cpu")


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_merged_model_says_what_the_adapter_said(quantization: str, llama: Path, tmp_path: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft", quantization=quantization)
    report = merge_adapter(str(run), tmp_path / "merged", device="cpu")
    assert report.difference < 1e-5
    assert report.same_generations == report.probes
    assert (report.quantized_difference is None) == (quantization == "none")
    merged = load_model(str(tmp_path / "merged"), device="cpu")
    expected = logits(load_model(str(run), quantization="none", device="cpu"))
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert load_tokenizer(str(tmp_path / "merged")).chat_template


def test_handbook_merge_writes_a_model_that_says_what_the_adapter_said(
    llama: Path, tmp_path: Path, handbook: Callable[..., tuple[int, str, str]]
) -> None:
    run = make_adapter(llama, llama.parent / "sft", quantization="nf4")
    code, out, err = handbook("merge", run, "--out", tmp_path / "merged")
    assert (code, err) == (0, "")
    assert "5 of 5 are the same, token by token" in out
    assert "from the adapter on its nf4 base" in out
    adapter, merged = load_model(str(run), quantization="none"), load_model(str(tmp_path / "merged"))
    torch.testing.assert_close(logits(merged), logits(adapter), atol=1e-4, rtol=1e-4)
    prompt = {
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS),
        "max_new_tokens": 12,
        "do_sample": False,
    }
    assert torch.equal(adapter.generate(**prompt), merged.generate(**prompt))
    # a second merge into the same folder would mix two models
    code, _, err = handbook("merge", run, "--out", tmp_path / "merged")
    assert code == 2
    assert "merged: not empty. Choose another --out" in err
    code, _, err = handbook("merge", run, "--out", run / "manifest.json")
    assert code == 2
    assert "manifest.json: a file. Choose another --out" in err


def test_the_scores_of_a_merged_reward_model_are_the_adapters(llama: Path, tmp_path: Path) -> None:
    run = make_adapter(llama, llama.parent / "reward", head="reward", quantization="nf4")
    report = merge_adapter(str(run), tmp_path / "merged", device="cpu")
    assert report.head == "reward"
    assert report.same_generations is None
    merged = load_model(str(tmp_path / "merged"), head="reward", device="cpu")
    expected = logits(load_model(str(run), head="reward", quantization="none", device="cpu"))
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_tied", [True, False])
def test_trained_embeddings_survive_saving_and_merging(is_tied: bool, tmp_path: Path) -> None:
    base = tmp_path / "runs" / "base"
    tiny_model("llama", base / "model", tie_word_embeddings=is_tied)
    (base / "manifest.json").touch()
    to_save = ["embed_tokens"] if is_tied else ["embed_tokens", "lm_head"]
    run = make_adapter(base, tmp_path / "runs" / "sft", modules_to_save=to_save)
    trained = load_model(str(run), device="cpu")
    embeddings = trained.get_input_embeddings().weight
    assert not torch.equal(embeddings, load_model(str(base), device="cpu").get_input_embeddings().weight)
    assert merge_adapter(str(run), tmp_path / "merged", device="cpu").difference < 1e-5
    merged = load_model(str(tmp_path / "merged"), device="cpu")
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_new_tokens_survive_loading_training_on_and_merging(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(str(llama))
    tokenizer.add_tokens(["<|tool|>", "<|result|>"])
    model = load_model(str(llama), device="cpu")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = tmp_path / "peft"
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    expected = logits(model)
    loaded, _ = load_pair(str(folder), device="cpu")
    assert loaded.get_input_embeddings().num_embeddings == len(tokenizer)
    torch.testing.assert_close(logits(loaded), expected)
    again = tmp_path / "again" / "model"
    again.mkdir(parents=True)
    save_adapter(loaded, again, AdapterBase(str(llama)), final=again)
    tokenizer.save_pretrained(again)
    assert merge_adapter(str(again), tmp_path / "merged", device="cpu").difference < 1e-5
    merged, _ = load_pair(str(tmp_path / "merged"), device="cpu")
    torch.testing.assert_close(logits(merged), expected)


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    run = make_adapter(llama, llama.parent / "sft", quantization="int8")  # merged in memory
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(ModelError, match="merged model is another one: outputs differ by"):
        merge_adapter(str(run), tmp_path / "merged", device="cpu")
    assert not (tmp_path / "merged").exists()


def test_a_whole_model_or_a_full_folder_is_not_merged(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to merge"):
        merge_adapter(str(llama / "model"), tmp_path / "merged")
    run = make_adapter(llama, llama.parent / "sft")
    with pytest.raises(ModelError, match="not empty"):
        merge_adapter(str(run), llama)


def test_a_damaged_note_of_the_base_is_named(llama: Path) -> None:
    run = make_adapter(llama, llama.parent / "sft")
    for content in ("{", "[]", '{"nam": 1}', '{"name": "x", "quantization": "fp5"}'):
        (run / "model" / "base.json").write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=r"model"):
            load_model(str(run))


@pytest.mark.parametrize(
    ("missing", "option"),
    [("bitsandbytes", {"quantization": "nf4"}), ("flash_attn", {"attention": "flash_attention_2"})],
)
def test_a_missing_library_is_named_with_its_way_out(
    missing: str, option: Any, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install " + missing.replace("_attn", "-attn")):
        load_model(str(llama / "model"), device="cpu", **option)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cuda:0", "bfloat16", (8, 0), "flash_attention_2"),
        ("cuda:0", "float16", (9, 0), "flash_attention_2"),
        ("cuda:0", "float32", (9, 0), None),
        ("cuda:0", "float16", (7, 5), None),
        ("cpu", "bfloat16", (8, 0), None),
    ],
)
def test_flash_attention_is_taken_where_it_can_run(
    device: str, dtype: str, capability: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "test GPU")
    how = Loading(dtype=dtype, device=device)
    assert choose_attention("auto", how, has_flash=True) == expected
    assert choose_attention("auto", how, has_flash=False) is None
    assert choose_attention("eager", how, has_flash=True) == "eager"
    if how.target.type == "cpu":
        with pytest.raises(ModelError, match="no backward pass on a CPU"):
            choose_attention("flex_attention", how, has_flash=True)
    else:
        assert choose_attention("flex_attention", how, has_flash=True) == "flex_attention"
    if expected is None:
        with pytest.raises(ModelError, match=r"flash_attention_2' needs .* Set attention to 'sdpa'"):
            choose_attention("flash_attention_2", how, has_flash=True)


def test_packed_weights_pass_as_the_others_under_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    how = Loading(dtype="bfloat16", quantization="nf4", device="cpu")
    storages = []
    for under_fsdp in ("false", "true"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", under_fsdp)
        storages.append(precision.quantization_options(how)["quantization_config"].bnb_4bit_quant_storage)
    assert storages == [torch.uint8, torch.bfloat16]


def test_the_share_of_quantised_weights_is_counted_in_weights_and_not_in_bytes() -> None:
    import bitsandbytes as bnb

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 64)  # 640 weights, as they are
            self.linear = bnb.nn.Linear4bit(64, 30, bias=False, quant_type="nf4")  # 1,920, in 960 bytes

    assert quantized_share(Model().to("cpu")) == pytest.approx(1920 / (1920 + 640))
