"""Placeholders and half downloads in a model folder are told for what they are, before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from handbook_utils.errors import ModelError
from handbook_utils.models.load import check_numbers, load_model
from handbook_utils.models.places import resolve_model

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 4976698672\n"


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a Git LFS pointer.*git lfs pull"),
        ("/annex/objects/SHA256E-s1--2.bin\n", "a git-annex pointer.*git annex get"),
        ("<!doctype html><title>Log in</title>", "a web page"),
    ],
)
def test_a_placeholder_is_named_with_what_fetches_the_file(
    name: str, content: str, message: str, folder: Path
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=f"{name}: {message}"):
        resolve_model(str(folder))


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_weights_that_are_cut_short_are_named(left: int, folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, left if left >= 0 else size - 1)
    with pytest.raises(
        ModelError, match=f"{WEIGHTS}: (no safetensors file, or only|cut short: {size - 1} of {size})"
    ):
        resolve_model(str(folder))


def test_settings_that_are_cut_short_are_named(folder: Path) -> None:
    for content, what in (("", "empty"), ('{"hidden_size": 3', "damaged; it is not JSON")):
        (folder / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=f"config.json: {what}.*Download it again"):
            resolve_model(str(folder))


@pytest.fixture
def sharded(folder: Path, tmp_path: Path) -> Path:
    """The same model in several files."""
    out = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, max_shard_size="40KB")
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


@pytest.mark.parametrize("has_index", [True, False])
def test_a_missing_shard_is_named(has_index: bool, sharded: Path) -> None:
    resolve_model(str(sharded))  # all are there
    if not has_index:
        (sharded / "model.safetensors.index.json").unlink()
    gone = sorted(sharded.glob("*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(ModelError, match=f"1 of its files of weights are missing, such as {gone.name}"):
        resolve_model(str(sharded))


def test_weights_that_are_there_twice_are_refused_for_the_older_ones_would_load(
    folder: Path, sharded: Path
) -> None:
    older = AutoModelForCausalLM.from_pretrained(folder)
    newer = AutoModelForCausalLM.from_pretrained(sharded)
    with torch.no_grad():
        newer.lm_head.weight += 1
    newer.save_pretrained(folder, max_shard_size="40KB")
    # transformers 5.24: the one file, saved before, is left beside the shards and is what loads
    found = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    assert torch.equal(found, older.lm_head.weight)
    with pytest.raises(ModelError, match=rf"{WEIGHTS} and in \d+ files .*such as model-00001-of.*Delete"):
        resolve_model(str(folder))
    (folder / WEIGHTS).unlink()
    resolve_model(str(folder))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).lm_head.weight, newer.lm_head.weight)


def test_an_index_that_is_left_beside_one_file_does_not_matter(sharded: Path) -> None:
    AutoModelForCausalLM.from_pretrained(sharded).save_pretrained(sharded)
    assert {file.name for file in sharded.glob("*.safetensors*")} == {WEIGHTS, f"{WEIGHTS}.index.json"}
    resolve_model(str(sharded))


def test_a_link_to_a_file_that_is_gone_is_named(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "blob")
    (folder / WEIGHTS).symlink_to(folder.parent / "blob")
    resolve_model(str(folder))
    (folder.parent / "blob").unlink()
    with pytest.raises(ModelError, match=f"{WEIGHTS}: a link to a file that is gone"):
        resolve_model(str(folder))


def test_other_files_beside_a_model_do_not_matter(
    folder: Path, tiny_architecture: Callable[[str], Path]
) -> None:
    (folder / "README.md").write_text(POINTER, encoding="utf-8")
    (folder / "original").mkdir()
    (folder / "training.json").write_text(json.dumps([1]), encoding="utf-8")
    resolve_model(str(folder))
    resolve_model(str(tiny_architecture("llama")))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_with_a_weight_that_is_no_number_is_refused_by_the_weights_name(
    broken: float, folder: Path
) -> None:
    model = load_model(str(folder))
    check_numbers(model, "mine")
    name, weight = next((name, w) for name, w in model.named_parameters() if "mlp" in name)
    with torch.no_grad():
        weight.fill_(60_000.0)
        check_numbers(model.half(), "mine")  # whose sum is beyond float16, and whose numbers are not
        dict(model.named_parameters())[name].view(-1)[0] = broken
    with pytest.raises(ModelError, match=f"mine: 1 of .* numbers of the weight {re.escape(name)} are NaN"):
        check_numbers(model, "mine")
