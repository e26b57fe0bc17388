"""A pair's prompt computed once: TRL's trainers get the losses, metrics and gradients they get without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from handbook_utils.data.load import load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import RecipeError
from handbook_utils.models.adapters import new_adapter
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.runs.folder import open_run
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import WITHOUT_REFERENCE
from handbook_utils.shared_prefix.decoder import decoder_of
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.plan import make_plan
from handbook_utils.training.rows.batches import without_waste
from handbook_utils.training.trl_bridge import make_trainer, training_conditions
from tests.tiny_models import ARCHITECTURES, tiny_model

Recipe = dict[str, Any]
Architecture = Callable[[str], Path]
STAGES = ("dpo", "orpo", "reward")
# every loss that TRL's DPO has, those that are averaged over a batch's rows and those that are not
LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)


@pytest.fixture
def pairs(pairs_file: Path) -> Dataset:
    """Six pairs: of different answers, of equal ones, and one whose answers are a single letter."""
    rows = load_dataset(str(pairs_file), kind="preference", split="train[:4]").to_list()
    equal = {**rows[0], "rejected": rows[0]["chosen"]}
    letters = {
        **rows[1],
        **{side: [{"role": "assistant", "content": side[0]}] for side in ("chosen", "rejected")},
    }
    return Dataset.from_list([*rows, equal, letters])


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """Tokens, padding among them, of each pass through the first layer."""
    counts: list[int] = []
    embedding = decoder_of(model).get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    yield counts
    handle.remove()


def one_step(
    stage: str, folder: Path, rows: Dataset, place: Path, *, shared: str, changes: Recipe
) -> dict[str, Any]:
    """Loss, logs, gradients and tokens computed of one step over all rows, the weights left as they were."""
    training = {"use_cpu": True, "max_steps": 1, "logging_steps": 1, "max_grad_norm": 1e9, "optim": "sgd"}
    recipe: Any = check_recipe(
        {
            "stage": stage,
            "model": {"name": str(folder), **changes.get("model", {})},
            "data": [{"name": "unused"}],
            "global_batch_size": len(rows),
            "shared_prefix": shared,
            "training": {**training, "learning_rate": 0.0, **changes.get("training", {})},
            **({"lora": changes["lora"]} if "lora" in changes else {}),
        },
        "test",
    )
    head = "reward" if stage == "reward" else "causal"
    torch.manual_seed(0)
    how = {"quantization": recipe.model.quantization, "dtype": recipe.model.dtype}
    model = load_model(str(folder), head=head, device="cpu", **how)  # type: ignore[arg-type]
    if recipe.lora:
        model = new_adapter(model, recipe.lora, head)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero, it would hide the other factor's gradient
                torch.nn.init.normal_(weight, std=0.05)
    gradients: dict[str, torch.Tensor] = {}
    with open_run(place, recipe) as run, quiet_libraries(), training_conditions():
        trainer = make_trainer(
            recipe.trainer,
            arguments=trainer_arguments(recipe, make_plan(recipe, len(rows)), place / "checkpoints"),
            model=model,
            tokenizer=load_tokenizer(str(folder)),
            data=(rows, None),
            callbacks=[],
        )
        optimise = trainer.create_optimizer

        def watched(*arguments: Any, **options: Any) -> Any:
            made = optimise(*arguments, **options)
            made.register_step_pre_hook(lambda *_: gradients.update(_gradients(trainer.model)))
            return made

        trainer.create_optimizer = watched
        with without_waste(recipe, run, trainer), counted_tokens(model) as tokens:
            trainer.train()
    return {"logs": trainer.state.log_history[0], "gradients": gradients, "tokens": sum(tokens)}


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


def compare(
    stage: str,
    folder: Path,
    rows: Dataset,
    place: Path,
    *,
    rtol: float = 1e-5,
    grad: float = 1e-4,
    **changes: Any,
) -> None:
    """One step with sharing and one without: the same numbers from fewer tokens."""
    apart, once = (
        one_step(stage, folder, rows, place / shared, shared=shared, changes=changes)
        for shared in ("off", "on")
    )
    assert once["tokens"] < apart["tokens"]
    for name, value in apart["logs"].items():
        # their mean logits run over padding too, where there is nothing to be equal to
        is_of_padding = stage in WITHOUT_REFERENCE and name.startswith("logits/")
        if not (is_of_padding or name.endswith(("_per_second", "_runtime", "flos"))):
            assert once["logs"][name] == pytest.approx(value, rel=10 * rtol, abs=rtol), name
    assert apart["gradients"].keys() == once["gradients"].keys()
    whole = torch.cat([each.flatten() for each in apart["gradients"].values()]).norm()
    assert whole > 1e-4
    for name, gradient in apart["gradients"].items():
        # a key's bias moves no softmax: its gradient is rounding, and has nothing to be relative to
        gap = (once["gradients"][name] - gradient).norm()
        assert gap <= grad * gradient.norm() + 1e-2 * grad * whole, name


# CPO's trainer is made as ORPO's is: one architecture tells that it still is
@pytest.mark.parametrize(("stage", "architecture"), [*product(STAGES, ARCHITECTURES), ("cpo", "llama")])
def test_a_step_is_the_same_for_every_architecture(
    stage: str, architecture: str, tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    folder = tiny_architecture(architecture)
    if architecture == "mixtral":
        folder = tiny_model("mixtral", tmp_path / "model", router_aux_loss_coef=0.0)
    compare(stage, folder, pairs, tmp_path)


def test_an_auxiliary_loss_of_the_router_is_left_to_separate_rows(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    """TRL adds it wherever its coefficient is not 0, as it is not by default."""
    with pytest.raises(
        RecipeError, match=r"'shared_prefix: on' would not be exact: the router's auxiliary loss"
    ):
        one_step("dpo", tiny_architecture("mixtral"), pairs, tmp_path, shared="on", changes={})


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_the_same_under_every_loss_of_dpo(
    loss: str, tiny_model_folder: Path, pairs: Dataset, tmp_path: Path
) -> None:
    smoothing = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair") else {}
    compare("dpo", tiny_model_folder, pairs, tmp_path, training={"loss_type": loss, **smoothing})


def test_a_model_that_cannot_share_is_refused_before_its_weights_are_read(
    tmp_path: Path, pairs_file: Path
) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    from handbook_utils import run_stage

    config = MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "m")
    recipe = {
        "stage": "dpo",
        "model": {"name": str(tmp_path / "m")},
        "data": [{"name": str(pairs_file)}],
        "global_batch_size": 4,
        "shared_prefix": "on",
        "training": {"use_cpu": True},
    }
    with pytest.raises(RecipeError, match="would not be exact: mamba keeps a state along the row"):
        run_stage(check_recipe(recipe, "test"), tmp_path / "run", progress=False)


LORA = {"rank": 4, "alpha": 8}
WAYS: dict[str, tuple[str, Recipe]] = {
    "lora": ("dpo", {"lora": LORA}),
    "lora-reward": ("reward", {"lora": LORA}),
    "qlora": ("dpo", {"lora": LORA, "model": {"quantization": "nf4"}}),
    "qlora-reward": ("reward", {"lora": LORA, "model": {"quantization": "nf4"}}),
    "checkpointing": ("dpo", {"training": {"activation_checkpointing": True}}),
    "checkpointing-lora": ("dpo", {"lora": LORA, "training": {"activation_checkpointing": True}}),
    "ld-alpha": ("dpo", {"training": {"ld_alpha": 0.4}}),
    "weighted": ("dpo", {"training": {"use_weighting": True}}),
    "several-losses": ("dpo", {"training": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}}),
    "divergence": ("dpo", {"training": {"f_divergence_type": "js_divergence"}}),
    "cut": ("dpo", {"training": {"max_length": 70}}),
    "accumulated": ("dpo", {"training": {"per_device_train_batch_size": 2}}),
    "margin-centred": ("reward", {"training": {"center_rewards_coefficient": 0.1}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_same_however_it_is_trained(
    way: str, tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    stage, changes = WAYS[way]
    compare(stage, tiny_architecture("llama"), pairs, tmp_path, **changes)


def test_in_bfloat16_the_gap_is_that_of_rounding(
    tiny_architecture: Architecture, pairs: Dataset, tmp_path: Path
) -> None:
    """As far from float32 with sharing as without; a reward model's new head would differ with the dtype."""
    folder = tiny_architecture("llama")
    half: Recipe = {"model": {"dtype": "bfloat16"}}
    exact = one_step("dpo", folder, pairs, tmp_path / "exact", shared="off", changes={})
    apart = one_step("dpo", folder, pairs, tmp_path / "apart", shared="off", changes=half)
    once = one_step("dpo", folder, pairs, tmp_path / "once", shared="on", changes=half)

    def gap(rounded: dict[str, Any]) -> float:
        pairs_of = [(rounded["gradients"][name], each) for name, each in exact["gradients"].items()]
        return float(torch.cat([(a.float() - b).flatten() for a, b in pairs_of]).norm())

    assert 0 < gap(once) < 1.5 * gap(apart)
    assert abs(once["logs"]["loss"] - exact["logs"]["loss"]) < 2e-2
