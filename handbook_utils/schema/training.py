"""The strict shape of training recipes: one type per stage, shared sections, no unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from handbook_utils.errors import suggest
from handbook_utils.schema.fields import (
    check_online_fields,
    checked_field,
    losses_of,
    trainer_fields,
    unread_smoothing,
)
from handbook_utils.schema.sampling import HeldOutSamples, ScorerSection
from handbook_utils.schema.sections import (
    WITHOUT_REFERENCE,
    DataSource,
    LaunchSection,
    LoraSection,
    Section,
    TrainedModelSection,
    check_reference_logps,
    check_streaming,
    check_trainable,
)

# losses that compare the rows of a batch, or keep a running mean of them: what a batch holds changes them
OF_A_BATCH = ("aot", "aot_unpaired", "bco_pair")


def _spelled_out(value: Any) -> Any:
    # YAML 1.1 reads a bare on or off as true or false
    return ("on" if value else "off") if isinstance(value, bool) else value


OnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_spelled_out)]


class StageRecipe(Section):
    """What every stage has."""

    stage: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)


class TrainingRecipe(StageRecipe):
    """What every training stage has."""

    trainer: ClassVar[str]
    model: TrainedModelSection
    lora: LoraSection | None = Field(None, description="train an adapter; absent: train all weights")
    data: list[DataSource] = Field(min_length=1)
    eval_data: list[DataSource] = Field(default_factory=list)
    streaming: bool = Field(False, description="read `data` while training; needs training.max_steps")
    global_batch_size: PositiveInt = Field(
        le=2**24, description="examples an optimiser step, over all processes"
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="any field of the trainer's TRL config"
    )
    launch: LaunchSection = Field(default_factory=LaunchSection)
    skip_padding: OnOff | None = Field(
        None, description="compute rows of different length apart, without padding; absent: auto, on a CPU"
    )

    @field_validator("training")
    @classmethod
    def _known_fields(cls, training: dict[str, Any]) -> dict[str, Any]:
        fields = trainer_fields(cls.trainer)
        training = {key: checked_field(key, value, fields) for key, value in training.items()}
        for key, why in unread_smoothing(cls.trainer, training).items():
            raise ValueError(f"`training.{key}` would have no effect: {why}. Else drop it.")
        return training

    @model_validator(mode="after")
    def _test_rows_stay_out(self) -> Self:
        for source in self.data:
            if source.split.strip().lower().startswith("test") and not source.allow_test:
                raise ValueError(
                    f"`data` reads the split '{source.split}' of {source.label}, and test rows are not "
                    "trained on. Take another split, or say `allow_test: true` beside it."
                )
        return self

    @model_validator(mode="after")
    def _can_stream(self) -> Self:
        check_streaming(self)
        return self

    @model_validator(mode="after")
    def _something_is_trainable(self) -> Self:
        check_trainable(self.model, self.lora)
        return self


def check_batching(recipe: Any) -> Any:
    """Raise ValueError for a training recipe whose batches cannot be made as it says."""
    asked = [
        name
        for name, value in {
            "length_batching": recipe.length_batching,
            "max_tokens_per_batch": recipe.max_tokens_per_batch,
        }.items()
        if value
    ]
    if not asked:
        return recipe
    training = recipe.training
    unfit = losses_of(training) & set(OF_A_BATCH)
    problems = {
        "`{}` cannot be combined with `streaming`, because it sorts the rows.": recipe.streaming,
        "`{}` sorts rows by length, and packing makes them equally long: drop one.": training.get("packing"),
        "`{}` and `training.train_sampling_strategy` both say which rows stand together: drop one.": (
            "train_sampling_strategy" in training
        ),
        f"`{{}}` changes which rows are compared by the loss {', '.join(sorted(unfit))}: drop one.": unfit,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem.format(asked[0]))
    if recipe.max_tokens_per_batch:
        _check_budget(recipe)
    return recipe


def _check_budget(recipe: Any) -> None:
    if recipe.trainer in WITHOUT_REFERENCE:
        raise ValueError(
            "`max_tokens_per_batch` splits a step into passes of different sizes, and part of "
            f"{recipe.trainer.upper()}'s loss is a mean over the tokens of each pass: use `length_batching` "
            "instead."
        )
    if "per_device_train_batch_size" in recipe.training:
        raise ValueError(
            "`max_tokens_per_batch` says how much a device takes at once, and so does "
            "`training.per_device_train_batch_size`: drop one."
        )
    if recipe.launch.strategy in ("zero2", "zero3"):
        raise ValueError(
            "`max_tokens_per_batch` counts the passes of a step when the rows are known, and DeepSpeed has "
            "to know before: take `launch.strategy` ddp or fsdp2."
        )


class BatchedRecipe(TrainingRecipe):
    """A training stage whose rows may stand in batches of like length."""

    length_batching: bool = Field(False, description="batches of rows of like length, drawn at random")
    max_tokens_per_batch: PositiveInt | None = Field(
        None, description="most tokens per forward pass on a device; batches then differ in numbers of rows"
    )

    _can_be_batched = model_validator(mode="after")(check_batching)


class PairRecipe(BatchedRecipe):
    """A training stage on preference pairs, whose two answers share a prompt."""

    shared_prefix: OnOff = Field(
        "auto", description="compute a pair's prompt once; auto: where no number changes by it"
    )


class PolicyRecipe(TrainingRecipe):
    """A training stage whose model answers conversations, so that it can be sampled while it trains."""

    held_out_samples: HeldOutSamples | None = Field(
        None, description="sample and score held-out prompts every few steps; absent: do not"
    )

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        if self.held_out_samples is not None and self.launch.strategy in ("zero3", "fsdp2"):
            raise ValueError(
                f"`held_out_samples` needs all weights in one process, and `launch.strategy: "
                f"{self.launch.strategy}` spreads them. Take ddp or zero2, or evaluate the model afterwards."
            )
        return self


class PretrainRecipe(BatchedRecipe):
    """Next-token training on plain text."""

    trainer = "sft"
    stage: Literal["pretrain"]


class SftRecipe(PolicyRecipe, BatchedRecipe):
    """Supervised fine-tuning on conversations; loss on the answers only."""

    trainer = "sft"
    stage: Literal["sft"]


class RewardRecipe(PairRecipe):
    """A reward model from preference pairs."""

    trainer = "reward"
    stage: Literal["reward"]


class DpoRecipe(PolicyRecipe, PairRecipe):
    """Direct preference optimisation; the start model is the reference."""

    trainer = "dpo"
    stage: Literal["dpo"]
    reference_logps: str | None = Field(
        None,
        min_length=1,
        description="folder, made where it is missing, that keeps the reference's log-probabilities, for "
        "other runs too; they are then computed before training, and no reference is held",
    )

    _reference_stays = model_validator(mode="after")(check_reference_logps)

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's log-probabilities are computed before training."""
        return self.reference_logps is not None or bool(self.training.get("precompute_ref_log_probs"))


class OrpoRecipe(PolicyRecipe, PairRecipe):
    """Odds ratio preference optimisation: SFT and preferences in one, without a reference."""

    trainer = "orpo"
    stage: Literal["orpo"]


class CpoRecipe(PolicyRecipe, PairRecipe):
    """Contrastive preference optimisation and SimPO: a margin of log-probabilities, without a reference."""

    trainer = "cpo"
    stage: Literal["cpo"]


class KtoRecipe(PolicyRecipe):
    """Kahneman-Tversky optimisation: answers marked good or bad, no pairs needed."""

    trainer = "kto"
    stage: Literal["kto"]


class HeldOutSection(Section):
    """Held-out prompts (`eval_data`) answered while the model trains."""

    every: PositiveInt = Field(
        5, description="optimiser steps between two looks; step 0 and the last count too"
    )
    samples: PositiveInt = Field(1, description="answers per prompt")
    scorers: dict[str, ScorerSection] = Field(
        default_factory=dict,
        description="a second opinion, which nothing is trained on; the first of them chooses what is kept",
    )
    keep: Literal["best", "last"] = Field(
        "best", description="the step with the highest second opinion, or the last one within `stop_at_kl`"
    )


class OnlineRecipe(TrainingRecipe):
    """Reinforcement learning on the model's own answers: sampled, scored, and learned from, step by step."""

    model: TrainedModelSection
    scorers: dict[str, ScorerSection] = Field(min_length=1, description="what answers are rewarded by")
    weights: dict[str, float] = Field(
        default_factory=dict, description="of each scorer in the reward; 1 unless told"
    )
    prompts_per_step: PositiveInt = Field(
        le=2**20, description="prompts per optimiser step, over all processes"
    )
    samples: int = Field(
        8, ge=2, le=2**12, description="answers per prompt, which are compared with each other"
    )
    steps: PositiveInt = Field(description="optimiser steps")
    global_batch_size: PositiveInt = Field(
        1, exclude=True, description="is prompts_per_step x samples; need not be written"
    )
    max_new_tokens: PositiveInt = Field(256, description="answers are cut here")
    temperature: float = Field(1.0, gt=0)
    rows_per_batch: PositiveInt = Field(512, description="answers decoded, or scored, at once")
    long_prompts: Literal["error", "skip", "cut"] = Field(
        "error", description="prompts beyond the model's window; cut: their oldest part is left out"
    )
    shared_prefix: OnOff = Field(
        "auto", description="compute a prompt once for all its answers; auto: where no number changes by it"
    )
    held_out: HeldOutSection | None = Field(None, description="look at held-out prompts (`eval_data`)")
    stop_at_kl: float | None = Field(
        None, gt=0, description="nats per held-out answer from the start model; training ends beyond them"
    )

    @model_validator(mode="before")
    @classmethod
    def _batch_is_of_whole_groups(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        parts = (content.get("prompts_per_step"), content.get("samples", cls.model_fields["samples"].default))
        if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
            return content
        whole = parts[0] * parts[1]
        given = content.get("global_batch_size", whole)
        if given != whole:
            raise ValueError(
                f"`global_batch_size` is {given}, and {parts[0]} prompts with {parts[1]} answers are "
                f"{whole}: leave it out, or change `prompts_per_step`."
            )
        return {**content, "global_batch_size": whole}

    @model_validator(mode="after")
    def _can_be_learned_online(self) -> Self:
        check_online(self)
        return self


class GrpoRecipe(OnlineRecipe):
    """GRPO: an answer's reward against those of its group (Shao et al. 2024)."""

    trainer = "grpo"
    stage: Literal["grpo"]


class RlooRecipe(OnlineRecipe):
    """RLOO: an answer's reward against the mean of the other answers (Ahmadian et al. 2024)."""

    trainer = "rloo"
    stage: Literal["rloo"]


def check_online(recipe: OnlineRecipe) -> None:
    """Raise ValueError for a recipe whose loss would model another sampler, or that splits groups."""
    check_online_fields(recipe.training, recipe.samples)
    names = {*recipe.scorers}
    if unknown := sorted(recipe.weights.keys() - names):
        near = suggest(unknown[0], names)
        raise ValueError(f"`weights` names '{unknown[0]}', which is no scorer of the recipe. {near}")
    if recipe.held_out is not None and (both := sorted(names & recipe.held_out.scorers.keys())):
        raise ValueError(
            f"'{both[0]}' is in `scorers` and in `held_out.scorers`: what is trained on is no second "
            "opinion. Its held-out score is shown in any case; give the other one a name of its own."
        )
    problems = {
        "`held_out` needs `eval_data`: prompts that are not trained on.": (
            recipe.held_out is not None and not recipe.eval_data
        ),
        "`eval_data` is read by `held_out` only: add that section, if only `held_out: {}`.": (
            recipe.held_out is None and bool(recipe.eval_data)
        ),
        "`stop_at_kl` is measured on held-out prompts: add `eval_data` and `held_out`.": (
            recipe.stop_at_kl is not None and recipe.held_out is None
        ),
        "`streaming` is for rows that are read once; prompts are drawn from memory here.": recipe.streaming,
        f"`launch.strategy` {recipe.launch.strategy} splits the weights, and answers are sampled with whole "
        "ones: take ddp.": recipe.launch.strategy not in ("ddp", "none"),
        "`lora.dropout` has to be 0: with dropout the policy that samples is not the one that learns.": (
            recipe.lora is not None and recipe.lora.dropout > 0
        ),
        "`skip_padding` does not apply: answers are laid out by `shared_prefix`.": recipe.skip_padding
        == "on",
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem)
