"""Adapters that PEFT alone made, in every way it knows: loaded, copied, saved and merged as they are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import load_file, save_file

from handbook_utils import merge_adapter
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import ModelError, RecipeError
from handbook_utils.models.adapters import AdapterBase, save_adapter
from handbook_utils.models.load import load_model, load_on_base, load_pair, load_tokenizer
from handbook_utils.models.precision import Loading
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.sampling.scoring.scorers.reward_model import check_reward_model
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.initial_model import check_start
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", "ignore::UserWarning:peft"
)
IDS = torch.tensor([[20, 21, 30, 40, 50]])
EXPECTED = "expected.pt"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases, tied embeddings, and more of these than its tokenizer has tokens."""
    return tiny_model("qwen2", tmp_path_factory.mktemp("base"), tie_word_embeddings=True, vocab_size=300)


def peft_adapter(
    base: Path, folder: Path, *, rows: int | None = None, embeddings: Any = "auto", **settings: Any
) -> Path:
    """An adapter with random weights, saved by PEFT alone; what it says stands beside it."""
    torch.manual_seed(1)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(str(base), device="cpu")
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        model = get_peft_model(model, LoraConfig(**{**chosen, **settings}))
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data + 0.05 * torch.randn_like(weight)
        model.save_pretrained(folder, save_embedding_layers=embeddings)
    load_tokenizer(str(base)).save_pretrained(folder)
    torch.save(logits(model.eval()), folder / EXPECTED)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora": {"use_dora": True},
    "trained tokens": {"trainable_token_indices": [20, 21]},
    "new trained tokens": {"rows": 302, "trainable_token_indices": [300, 301]},
    "new trained tokens alone": {"rows": 302, "trainable_token_indices": [300, 301], "embeddings": False},
    "more embeddings": {"rows": 305},
    "fewer embeddings": {"rows": 270},
    "fewer, trained whole": {"rows": 270, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embeddings trained whole, head not": {"modules_to_save": ["embed_tokens"]},
    "on embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on both": {"target_modules": ["embed_tokens", "lm_head"]},
    "kasa": {"kasa_config": KasaConfig()},
    "biases": {"bias": "all"},
    "biases beside the adapter": {"bias": "lora_only"},
    "a bias of its own": {"lora_bias": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_says_the_same_as_in_peft_when_loaded_saved_again_and_merged(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter", **KINDS[kind])
    expected = torch.load(folder / EXPECTED)
    model, tokenizer = load_pair(str(folder), device="cpu")
    torch.testing.assert_close(logits(model), expected)
    again = tmp_path / "again"
    again.mkdir()
    save_adapter(model, again, AdapterBase(str(base)), final=again)
    tokenizer.save_pretrained(again)
    torch.testing.assert_close(logits(load_model(str(again), device="cpu")), expected)
    merge_adapter(str(folder), tmp_path / "merged", device="cpu")
    merged = load_model(str(tmp_path / "merged"), device="cpu")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda name: ".layers.0." in name, "lacks 4 of its weights"),
        (lambda name: name.endswith("layers.1.self_attn.v_proj.lora_B.weight"), r"lacks 1 .*v_proj\.lora_B"),
        (lambda name: True, "lacks .* of its weights"),
    ],
)
def test_an_adapter_that_was_not_saved_whole_is_refused_and_a_whole_one_is_not(
    lost: Callable[[str], bool], said: str, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(str(folder), device="cpu")), torch.load(folder / EXPECTED))
    file = folder / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if not lost(name)}, file)
    with pytest.raises(ModelError, match=said):
        load_model(str(folder), device="cpu")
    with pytest.raises(ModelError, match=said):
        merge_adapter(str(folder), tmp_path / "merged", device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_holds_no_numbers_is_refused(value: float, base: Path, tmp_path: Path) -> None:
    folder = peft_adapter(base, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = value
    save_file(weights, file)
    with pytest.raises(ModelError, match="holds what is no number"):
        load_model(str(folder), device="cpu")


def test_an_adapter_that_works_behind_some_tokens_alone_is_refused(base: Path, tmp_path: Path) -> None:
    folder = peft_adapter(base, tmp_path / "adapter", alora_invocation_tokens=[20, 21])
    with pytest.raises(ModelError, match="activated LoRA"):
        load_model(str(folder), device="cpu")


def test_an_adapter_that_uses_layers_several_times_is_loaded_and_not_merged(tmp_path: Path) -> None:
    base = tiny_model("llama", tmp_path / "base")
    folder = peft_adapter(base, tmp_path / "adapter", layer_replication=[[0, 2], [1, 2]])
    torch.testing.assert_close(logits(load_model(str(folder), device="cpu")), torch.load(folder / EXPECTED))
    with pytest.raises(ModelError, match=r"layer_replication.*Use it as an adapter"):
        merge_adapter(str(folder), tmp_path / "merged", device="cpu")


# TRL's DPO takes none on the head, of which it would train nothing
OF_DPO = [kind for kind in KINDS if not kind.startswith("biases") and kind not in ("on the head", "on both")]


@pytest.mark.parametrize("kind", OF_DPO)
def test_the_policy_and_the_reference_of_dpo_are_the_adapter_as_loaded(
    kind: str, base: Path, tmp_path: Path, pairs_file: Path
) -> None:
    from handbook_utils.data.load import load_dataset
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    folder = peft_adapter(base, tmp_path / "adapter", **KINDS[kind])
    model = load_on_base(str(folder), Loading(device="cpu"), is_trainable=True)
    arguments = {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
    }
    pairs = load_dataset(str(pairs_file), kind="preference", split="train[:2]")
    with quiet_libraries(), training_conditions():
        trainer = make_trainer(
            "dpo",
            arguments=arguments,
            model=model,
            tokenizer=load_tokenizer(str(folder)),
            data=(pairs, None),
            callbacks=[],
        )
    expected = torch.load(folder / EXPECTED)
    trainer.model.eval()
    torch.testing.assert_close(logits(trainer.model), expected)
    trainer.model.set_adapter("ref")
    torch.testing.assert_close(logits(trainer.model), expected)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_an_adapter_that_took_a_part_of_its_base_is_saved_as_what_it_is(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter", **KINDS[kind])
    model = load_model(str(folder), device="cpu")
    save_adapter(model, tmp_path, AdapterBase(str(base)), final=tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["init_lora_weights"] == kind
    # as PEFT itself loads it
    own = PeftModel.from_pretrained(load_model(str(base), device="cpu"), str(tmp_path)).eval()
    torch.testing.assert_close(logits(own), torch.load(folder / EXPECTED))


def told(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_an_adapter_whose_part_of_the_base_cannot_be_told_is_refused_with_the_way_out(
    init: str, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter")
    told(folder, init_lora_weights=init)
    message = rf"init_lora_weights='{init}'.*path_initial_model_for_weight_conversion"
    with pytest.raises(ModelError, match=message):
        load_model(str(folder), device="cpu")
    with pytest.raises(ModelError, match=message):
        check_start(recipe("sft", folder), str(folder))


def reward_adapter(base: Path, folder: Path, *, reward_base: Path | None = None, **settings: Any) -> Path:
    """An adapter on a model with a score head, as a trainer saves it with this `LoraConfig`."""
    torch.manual_seed(2)
    model = load_model(str(reward_base or base), head="reward", device="cpu")
    with quiet_libraries():
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], **settings))
        model.save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


def test_a_reward_adapter_without_its_head_is_refused_and_one_with_it_is_not(
    base: Path, tmp_path: Path
) -> None:
    lost = reward_adapter(base, tmp_path / "lost")  # TRL's RewardTrainer with LoraConfig(r=4)
    with pytest.raises(ModelError, match=r"lost: .*without its score head.*SEQ_CLS"):
        check_reward_model(str(lost))
    check_reward_model(str(reward_adapter(base, tmp_path / "task", task_type="SEQ_CLS")))
    told_to = reward_adapter(base, tmp_path / "told", modules_to_save=["score"])
    check_reward_model(str(told_to))
    scores = [logits(load_model(str(told_to), head="reward", device="cpu")) for _ in range(2)]
    torch.testing.assert_close(*scores)
    # nor can what was lost be merged, where the adapter says that it is a reward model's
    told(lost, task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="without its score head"):
        merge_adapter(str(lost), tmp_path / "merged", device="cpu")


def test_an_adapter_without_a_head_on_a_reward_model_has_that_models(base: Path, tmp_path: Path) -> None:
    reward = load_model(str(base), head="reward", device="cpu")
    reward.save_pretrained(tmp_path / "reward")
    load_tokenizer(str(base)).save_pretrained(tmp_path / "reward")
    folder = reward_adapter(base, tmp_path / "adapter", reward_base=tmp_path / "reward")
    check_reward_model(str(folder))
    found = logits(load_model(str(folder), head="reward", device="cpu"))
    torch.testing.assert_close(found, logits(reward))  # the adapter is untrained


def test_sft_trains_tokens_one_by_one_under_a_tied_head(
    base: Path, tmp_path: Path, conversations_file: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter", **KINDS["trained tokens"])
    content = {
        "stage": "sft",
        "model": {"name": str(folder), "adapter": "continue"},
        "data": [{"name": str(conversations_file), "split": "train[:2]"}],
        "global_batch_size": 2,
        "training": {"use_cpu": True, "max_steps": 1, "learning_rate": 1e-2, "packing": False},
    }
    run_stage(check_recipe(content, "test"), tmp_path / "run", progress=False)
    before, after = (
        load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "run/model")
    )
    name = next(name for name in before if "trainable_tokens_delta" in name)
    assert before.keys() == after.keys()
    assert not torch.equal(before[name], after[name])


def test_other_adapters_than_lora_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = peft_adapter(base, tmp_path / "adapter")
    told(folder, peft_type="IA3")
    with pytest.raises(ModelError, match="an adapter of type IA3; only LoRA is read"):
        load_model(str(folder), device="cpu")


def test_new_tokens_of_which_only_some_were_saved_are_refused(base: Path, tmp_path: Path) -> None:
    settings: Any = {"rows": 303, "trainable_token_indices": [302], "embeddings": False}
    folder = peft_adapter(base, tmp_path / "adapter", **settings)
    with pytest.raises(
        ModelError, match=r"trains token 302, its base has embeddings for 300 .*save_embedding"
    ):
        load_model(str(folder), device="cpu")


def recipe(stage: str, folder: Path) -> Any:
    content = {
        "stage": stage,
        "model": {"name": str(folder), "adapter": "continue"},
        "data": [{"name": "x"}],
        "global_batch_size": 2,
    }
    return check_recipe(content, "test")


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_biases_that_a_reference_would_share_are_refused_with_the_way_out(
    stage: str, base: Path, tmp_path: Path, tiny_architecture: Callable[[str], Path]
) -> None:
    folder = peft_adapter(base, tmp_path / "adapter", bias="all")
    with pytest.raises(RecipeError, match=rf"trains biases .*reference of {stage}.*stack or merge"):
        check_start(recipe(stage, folder), str(folder))
    check_start(recipe("sft", folder), str(folder))  # which has no reference
    plain = peft_adapter(base, tmp_path / "plain")
    check_start(recipe(stage, plain), str(plain))
