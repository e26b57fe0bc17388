"""What is saved stops where training taught it to, and can be saved at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from handbook_utils import merge_adapter
from handbook_utils.errors import RecipeError
from handbook_utils.models.adapters import AdapterBase, new_adapter, save_adapter
from handbook_utils.models.generation_settings import GenerationSettingsWarning, settle_generation
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import LoraSection
from handbook_utils.training.rows.labelled import TemplateWarning

Architecture = Callable[[str], Path]


@pytest.fixture
def base(tiny_architecture: Architecture, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_architecture("llama"), tmp_path / "base"))


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return found


def write_settings(folder: Path, **settings: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")


def recipe(base: Path, conversations_file: Path, **changes: Any) -> Any:
    content: dict[str, Any] = {
        "stage": "sft",
        "model": {"name": str(base)},
        "data": [{"name": str(conversations_file), "split": "train[:2]"}],
        "global_batch_size": 2,
        "training": {"use_cpu": True, "max_steps": 1, "packing": False},
    }
    training = content["training"] | changes.pop("training", {})
    return check_recipe(content | changes | {"training": training}, "test")


def test_a_model_merged_of_an_adapter_stops_at_the_end_that_the_adapter_learned(
    base: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(base), chat_template="chatml")
    tokenizer.eos_token = "<|im_end|>"  # as SFT with `training.eos_token` saves it
    model = new_adapter(load_model(str(base), device="cpu"), LoraSection(rank=2), "causal")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, folder, AdapterBase(str(base)), final=folder)
    tokenizer.save_pretrained(folder)
    merge_adapter(str(folder), tmp_path / "merged", device="cpu")
    ends = settings_of(tmp_path / "merged")["eos_token_id"]
    assert ends == [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|end|>")]


@pytest.mark.parametrize(
    ("template", "configured", "expected"),
    [
        # the base's own end stays the only one where the template ends answers with it
        (None, "<|end|>", "<|end|>"),
        # chatml's end is learned also where nobody made it the tokenizer's
        ("chatml", "<|end|>", ["<|end|>", "<|im_end|>"]),
        (None, ["<|user|>", "<|end|>"], ["<|end|>", "<|user|>"]),
        (None, None, "<|end|>"),
    ],
)
def test_the_ends_of_a_saved_model_are_those_it_learned_and_those_it_had(
    template: str | None, configured: Any, expected: Any, base: Path
) -> None:
    model, tokenizer = load_model(str(base), device="cpu"), load_tokenizer(str(base), chat_template=template)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(configured) if configured else None
    settle_generation(model, tokenizer, name="base")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(expected)


@pytest.mark.parametrize(
    ("settings", "said", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, "do_sample: true", {"do_sample": True, "temperature": 0.9}),
        ({"do_sample": False, "temperature": 0.9}, "temperature left out", {"do_sample": False}),
        ({"temperature": 0.0}, "temperature left out", {}),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty left out", {}),
        ({"pad_token_id": -1}, "pad_token_id left out", {}),
    ],
)
def test_settings_that_contradict_themselves_are_mended_and_said(
    settings: dict[str, Any], said: str, kept: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    write_settings(base, eos_token_id=1, **settings)
    model, tokenizer = load_model(str(base), device="cpu"), load_tokenizer(str(base))
    with pytest.warns(GenerationSettingsWarning, match=f"base: generation_config.json .*{said}"):
        settle_generation(model, tokenizer, name="base")
    model.generation_config.top_k = 50  # it has been changed since it was loaded: now every fault counts
    model.save_pretrained(tmp_path / "saved")
    saved = settings_of(tmp_path / "saved")
    assert saved["eos_token_id"] == 1
    assert {key: saved.get(key) for key in kept} == kept
    assert not settings.keys() & saved.keys() - kept.keys() - {"top_p", "num_beams"}


def test_settings_that_can_be_saved_stay_as_they_are(base: Path) -> None:
    write_settings(base, eos_token_id=1, pad_token_id=0, do_sample=True, temperature=0.6, top_p=0.9)
    model, tokenizer = load_model(str(base), device="cpu"), load_tokenizer(str(base))
    before = model.generation_config.to_dict()
    settle_generation(model, tokenizer, name="base")
    assert model.generation_config.to_dict() == before


@pytest.mark.filterwarnings("ignore::handbook_utils.models.generation_settings.GenerationSettingsWarning")
def test_full_training_saves_a_base_whose_settings_could_not_be_saved(
    base: Path, conversations_file: Path, tmp_path: Path
) -> None:
    # Llama 2's: a temperature without do_sample, and special tokens that are not the tokenizer's
    write_settings(base, _from_model_config=True, eos_token_id=2, pad_token_id=3, temperature=0.9, top_p=0.6)
    run_stage(recipe(base, conversations_file), tmp_path / "run", progress=False)
    GenerationConfig.from_pretrained(tmp_path / "run" / "model").save_pretrained(tmp_path / "again")
    saved = settings_of(tmp_path / "run" / "model")
    assert saved["eos_token_id"] == [1, 2]
    assert (saved["do_sample"], saved["temperature"]) == (True, 0.9)
    assert "do_sample: true" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_an_end_of_the_recipe_is_the_tokenizers_before_the_template_is_checked(
    base: Path, conversations_file: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    made = recipe(
        base,
        conversations_file,
        model={"name": str(base), "chat_template": "chatml"},
        lora={"rank": 2},
        training={"eos_token": "<|im_end|>"},
    )
    run_stage(made, tmp_path / "run", progress=False)
    assert not [warning for warning in recwarn if issubclass(warning.category, TemplateWarning)]
    assert load_tokenizer(str(tmp_path / "run")).eos_token == "<|im_end|>"


def test_an_end_that_is_no_token_is_refused_with_the_nearest(
    base: Path, conversations_file: Path, tmp_path: Path
) -> None:
    made = recipe(base, conversations_file, training={"eos_token": "<|ende|>"})
    with pytest.raises(RecipeError, match=r"eos_token: '<\|ende\|>' is no token .*<\|end\|>"):
        run_stage(made, tmp_path / "run", progress=False)
