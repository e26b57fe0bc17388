"""Models by name: what is missing, incomplete or unsafe is refused before anything heavy."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from handbook_utils.errors import ModelError, TemplateError
from handbook_utils.models.load import UnusedWeightsWarning, load_model, load_tokenizer
from handbook_utils.models.padding import PaddingIsEndWarning, warn_if_end_pads
from handbook_utils.models.precision import resolve_dtype
from tests.tiny_models import tiny_model


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_folder_loads_in_float32_on_a_cpu_and_in_evaluation_mode(tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")
    assert model.dtype == torch.float32
    assert not model.training


def test_a_run_folder_gives_the_model_in_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    copied(tiny_model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "manifest.json").write_text("{}", encoding="utf-8")
    weights = load_model(str(tmp_path / "run"), device="cpu").state_dict()
    assert torch.equal(
        weights["lm_head.weight"], load_model(str(tiny_model_folder)).state_dict()["lm_head.weight"]
    )
    assert load_tokenizer(str(tmp_path / "run")).eos_token == "<|end|>"


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="this run holds no model"):
        load_model(str(tmp_path))


def test_a_new_score_head_is_drawn_from_torchs_seed_and_silently(
    tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_model(str(tiny_model_folder), head="reward", device="cpu").score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert capfd.readouterr() == ("", "")


def test_a_reward_model_knows_its_padding(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}), encoding="utf-8")
    model = load_model(str(folder), head="reward")
    assert model.config.pad_token_id == load_tokenizer(str(folder)).pad_token_id


@pytest.mark.parametrize(
    ("tokens", "padding"),
    [
        ({}, "<|pad|>"),  # known to the tokenizer, which does not say what it is for
        ({"vocab": {"<|pad|>": "<|filler|>"}, "unk_token": "<|filler|>"}, "<|filler|>"),
        ({"vocab": {"<|pad|>": "<|filler|>"}}, "<|end|>"),
    ],
)
def test_a_tokenizer_without_padding_gets_one_that_no_answer_ends_in(
    tokens: dict[str, Any], padding: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model_folder, tmp_path / "model")
    for name, key in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content.pop(key)
        more = {"unk_token": tokens["unk_token"]} if "unk_token" in tokens and key == "pad_token" else {}
        (folder / name).write_text(json.dumps(content | more), encoding="utf-8")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in tokens.get("vocab", {}).items():
        text = text.replace(old, new)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == padding
    model = load_model(str(folder), head="reward", device="cpu")
    end = tokenizer.eos_token_id
    rows = torch.tensor([[5, 6, end], [5, 6, tokenizer.pad_token_id]])
    whole, cut = model(rows, attention_mask=torch.ones_like(rows)).logits.flatten().tolist()
    # transformers 5.24 reads the score at the last token that is not padding: not at an end that pads
    assert (abs(whole - cut) < 1e-5) == (padding == "<|end|>")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_if_end_pads(tokenizer, str(folder))
    assert [each.category for each in told] == [PaddingIsEndWarning] * (padding == "<|end|>")


def test_missing_weights_are_an_error_and_not_noise(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight missing"):
        load_model(str(folder))


def test_pickled_weights_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_model_folder, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"have to be \.safetensors; found only pytorch_model\.bin"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/model", "no such folder"),
        ("pocket:bass", "Did you mean 'pocket:base'"),
        ("someone/something", "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_is_not_there_is_a_model_error(name: str, message: str) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            load(name)


def test_offline_an_unknown_revision_is_named_beside_those_that_are_stored(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache, commit = tmp_path / "models--someone--tiny", "a" * 40
    shutil.copytree(tiny_model_folder, cache / "snapshots" / commit)
    (cache / "refs" / "pr").mkdir(parents=True)
    for ref in ("v1", "pr/1"):
        (cache / "refs" / ref).write_text(commit, encoding="utf-8")
    for revision in ("v1", commit):
        load_model("someone/tiny", revision=revision, device="cpu")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError) as caught:
            load("someone/tiny", revision="v2")
        assert "someone/tiny, revision 'v2': cannot load the" in str(caught.value)
        assert "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it" in str(caught.value)
        assert "Stored here: pr/1, v1." in str(caught.value)


def test_a_folder_without_config_or_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "weights").touch()
    with pytest.raises(ModelError, match="a file"):
        load_model(str(tmp_path / "weights"))


def test_a_missing_folder_is_answered_with_the_nearest(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'model'"):
        load_model(str(tiny_model_folder.parent / "modell"))


def test_a_tokenizer_without_a_chat_template_serves_plain_text_only(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match="no chat template"):
        load_tokenizer(str(folder))
    assert load_tokenizer(str(folder), for_chat=False).eos_token == "<|end|>"


def test_an_unknown_dtype_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        resolve_dtype("bfloat", torch.device("cpu"))


def test_loading_leaves_progress_bars_and_verbosity_as_they_were(tiny_model_folder: Path) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_model(str(tiny_model_folder))
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_the_untrained_pocket_model_is_drawn_from_torchs_seed() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(load_model("pocket:init", device="cpu").lm_head.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_layers_that_the_config_does_not_count_are_told_and_others_shapes_refused(tmp_path: Path) -> None:
    whole = tiny_model("llama", tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedWeightsWarning)
        load_model(str(whole), device="cpu")
        load_model(str(whole), device="cpu", head="reward")  # whose head is another one on purpose
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    fewer, other = tmp_path / "fewer", tmp_path / "other"
    for folder, change in ((fewer, {"num_hidden_layers": 1}), (other, {"vocab_size": 300})):
        shutil.copytree(whole, folder)
        (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.warns(
        UnusedWeightsWarning, match=r"weights of its files are not used, such as model\.layers\.1"
    ):
        load_model(str(fewer), device="cpu")
    with pytest.raises(ModelError, match=r"the weights do not fit the config: .*embed_tokens\.weight"):
        load_model(str(other), device="cpu")
