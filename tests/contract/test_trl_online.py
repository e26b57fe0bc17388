"""GRPO and RLOO with prompts computed once get the losses, logs and gradients of TRL's own path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.libraries.transformers_internals import use_one_device
from handbook_utils.models.adapters import new_adapter
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.schema.sections import LoraSection
from handbook_utils.shared_prefix.decoder import decoder_of
from handbook_utils.training.trl_bridge import training_conditions

Architecture = Callable[[str], Path]
ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma3_text", "smollm3")
# each is a sum over rows, or over tokens of the whole step: which rows stand in one pass does not matter
LOSSES = ("grpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
SAMPLES, PROMPTS, LIMIT = 4, 3, 12
REWARDS = np.random.default_rng(1).normal(size=(PROMPTS * SAMPLES, 2))


class FixedSource:
    """Answers of set lengths, one of them cut, and set rewards; one scorer has no number for one row."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.end = tokenizer, tokenizer.eos_token_id
        self.ids: list[list[int]] = []
        self.drawn: Any = None

    def prompt_tokens(self, rows: Sequence[Any]) -> list[list[int]]:
        return [
            self.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True)[
                "input_ids"
            ]
            for row in rows
        ]

    def answers(self, rows: Sequence[Any], *, step: int, model: Any) -> list[list[int]]:
        self.prompts, self.model = self.prompt_tokens(rows), model
        draw = np.random.default_rng(step)
        self.ids = [
            [*draw.integers(7, 200, size=1 + place % (LIMIT - 2)).tolist(), self.end]
            for place in range(len(rows) - 1)
        ]
        self.ids.append(draw.integers(7, 200, size=LIMIT).tolist())
        return self.ids

    def rewards(self) -> Any:
        found = REWARDS[: len(self.ids)].copy()
        found[1, 0] = np.nan
        return found

    def logprobs(self) -> Any:
        return self.drawn

    def metrics(self) -> dict[str, float]:
        return {}


def prompts() -> Dataset:
    texts = ["A short one", "One that is rather longer than the one before it", "Say river two times."]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])


def arguments(place: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(place),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 1e9,
        "optim": "sgd",
        "num_generations": SAMPLES,
        "per_device_train_batch_size": SAMPLES * PROMPTS,
        "gradient_accumulation_steps": 1,
        "max_completion_length": LIMIT,
        "remove_unused_columns": False,
        "shuffle_dataset": False,
        "reward_weights": [1.0, 0.5],
        "beta": 0.04,
        "seed": 0,
        **changes,
    }


def policy(folder: Path, *, lora: bool = False, **how: Any) -> Any:
    """A model that is not the one on disk, so that a reference which is read from disk is noticed."""
    model = load_model(str(folder), device="cpu", **how)
    torch.manual_seed(1)
    if lora:
        return new_adapter(model, LoraSection(rank=4), "causal")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


def moved(model: Any) -> None:
    """Move the policy away from its reference after the trainer is built: a KL of 0 would prove nothing."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.03 * torch.randn_like(weight))


def trl_trainer(stage: str, model: Any, tokenizer: Any, source: FixedSource, given: dict[str, Any]) -> Any:
    """TRL's own trainer, on the same answers and rewards; its reference is set, not read from disk."""
    from handbook_utils.online import trl_bridge as bridge

    base = {"grpo": bridge.GRPOTrainer, "rloo": bridge.RLOOTrainer}[stage]

    class Own(base):  # type: ignore[misc, valid-type]
        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.rows = inputs
            return super()._generate_and_score_completions(inputs)

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            assert prompt_ids == source.prompt_tokens(self.rows)
            ids = source.answers(self.rows, step=self.state.global_step, model=self.model)
            return ids if stage == "rloo" else (ids, None)

    def reward(column: int) -> Any:
        def of(**_: Any) -> list[float | None]:
            return [None if np.isnan(value) else value for value in source.rewards()[:, column]]

        of.__name__ = f"reward{column}"
        return of

    beta = given["beta"]
    reference = None if hasattr(model, "peft_config") else bridge.frozen_copy(model, {"bf16": False})
    names = bridge.installed_names(
        bridge.CONFIGS[stage], {**given, "beta": beta if reference is None else 0.0}
    )
    config = bridge.CONFIGS[stage](**names)
    use_one_device(config)
    trainer = Own(
        model=model,
        reward_funcs=[reward(0), reward(1)],
        args=config,
        processing_class=tokenizer,
        train_dataset=prompts(),
    )
    if reference is not None and beta:
        bridge.add_fused_lm_head(reference, temperature=config.temperature)
        trainer.beta, trainer.ref_model = beta, reference.eval()
    return trainer


def one_step(
    stage: str,
    folder: Path,
    place: Path,
    *,
    ours: bool,
    layout: Any = None,
    lora: bool = False,
    attention: str = "auto",
    **changes: Any,
) -> dict[str, Any]:
    """Logs, gradients, and tokens computed of one step, with our path or TRL's own."""
    from handbook_utils.online.trl_bridge import make_online_trainer

    tokenizer = load_tokenizer(str(folder))
    source, given = FixedSource(tokenizer), arguments(place, **changes)
    model = policy(folder, lora=lora, attention=attention)
    gradients: dict[str, torch.Tensor] = {}
    with quiet_libraries(), training_conditions():
        if ours:
            trainer = make_online_trainer(
                stage,
                arguments=given,
                model=model,
                tokenizer=tokenizer,
                data=prompts(),
                source=source,
                rewards=["reward0", "reward1"],
                keeps_start=False,
                callbacks=[],
            )
            trainer.layout = layout
        else:
            trainer = trl_trainer(stage, model, tokenizer, source, given)
        moved(model)
        optimise = trainer.create_optimizer

        def watched(*options: Any, **named: Any) -> Any:
            made = optimise(*options, **named)
            made.register_step_pre_hook(
                lambda *_: gradients.update(
                    {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
                )
            )
            return made

        trainer.create_optimizer = watched
        counts: list[int] = []
        decoder_of(model).get_input_embeddings().register_forward_hook(
            lambda _, inputs, __: counts.append(inputs[0].numel())
        )
        trainer.train()
    return {"logs": trainer.state.log_history[-2], "gradients": gradients, "tokens": sum(counts)}


def compare(
    stage: str, folder: Path, place: Path, layouts: Sequence[Any] = ("rows",), **changes: Any
) -> None:
    # what is logged as a mean over passes depends on which rows stand together, which no gradient does
    of_passes = ("kl", "entropy") if changes.get("gradient_accumulation_steps", 1) > 1 else ()
    own = one_step(stage, folder, place / "trl", ours=False, **changes)
    whole = torch.cat([each.flatten() for each in own["gradients"].values()]).norm()
    assert whole > 1e-4
    for layout in layouts:
        once = one_step(stage, folder, place / str(layout), ours=True, layout=layout, **changes)
        assert once["tokens"] < own["tokens"], layout
        for name, value in own["logs"].items():
            if not name.endswith(("_per_second", "_runtime", "flos", "step_time", *of_passes)):
                assert once["logs"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), (layout, name)
        assert own["gradients"].keys() == once["gradients"].keys()
        for name, gradient in own["gradients"].items():
            gap = (once["gradients"][name] - gradient).norm()
            assert gap <= 1e-4 * gradient.norm() + 1e-6 * whole, (layout, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_grpo_step_is_trls_for_every_architecture(
    architecture: str, tiny_architecture: Architecture, tmp_path: Path
) -> None:
    layouts = ("rows", "cache") if architecture in ("llama", "qwen3", "smollm3") else ("rows", None)
    compare("grpo", tiny_architecture(architecture), tmp_path, layouts)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_grpo_loss_is_trls(loss: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    # the second iteration on the same answers: the ratio to the old log-probabilities is no longer 1
    changes = {"num_iterations": 2, "steps_per_generation": 1, "max_steps": 2, "learning_rate": 0.01}
    compare("grpo", tiny_model_folder, tmp_path, loss_type=loss, **changes)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_rloo_step_is_trls(temperature: float, tiny_model_folder: Path, tmp_path: Path) -> None:
    compare("rloo", tiny_model_folder, tmp_path, ("rows", "cache"), temperature=temperature)


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_masked_cut_answers_and_accumulation_are_trls(
    stage: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    changes = {"per_device_train_batch_size": SAMPLES, "gradient_accumulation_steps": PROMPTS}
    compare(
        stage,
        tiny_model_folder,
        tmp_path,
        ("rows", "cache", None),
        mask_truncated_completions=True,
        temperature=0.7,
        **changes,
    )


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_an_adapters_reference_is_its_base(stage: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    compare(stage, tiny_model_folder, tmp_path, ("rows", "cache"), lora=True)


def test_rloo_takes_the_samplers_log_probabilities_where_they_are_the_policys(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.models.logprobs import sequence_logprob_sums

    def drawn(self: FixedSource) -> Any:
        rows = [*zip(self.prompts, self.ids, strict=True)]
        sequences = [([*prompt, *ids], len(prompt)) for prompt, ids in rows]
        with torch.no_grad():
            return sequence_logprob_sums(self.model, sequences, pad_token_id=0)[0]

    from handbook_utils.online.trl_bridge import _OnlineTrainer

    passes, original = [0], _OnlineTrainer._scored

    def counted(self: Any, *given: Any) -> Any:
        passes[-1] += 1
        return original(self, *given)

    monkeypatch.setattr(_OnlineTrainer, "_scored", counted)
    computed = one_step("rloo", tiny_model_folder, tmp_path / "computed", ours=True)
    passes.append(0)
    monkeypatch.setattr(FixedSource, "logprobs", drawn)
    taken = one_step("rloo", tiny_model_folder, tmp_path / "taken", ours=True)
    assert passes == [3, 2]  # the reference, the loss, and before also the policy
    for name, gradient in computed["gradients"].items():
        assert (taken["gradients"][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6
    assert taken["logs"]["kl"] == pytest.approx(computed["logs"]["kl"], rel=1e-4)


def test_without_a_reference_and_with_eager_attention(tiny_model_folder: Path, tmp_path: Path) -> None:
    compare("grpo", tiny_model_folder, tmp_path, ("rows", "cache"), beta=0.0, attention="eager")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
