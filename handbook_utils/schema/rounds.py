"""What a recipe says of rounds of rejection sampling: how each selects, trains, is measured and may end."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from handbook_utils.errors import suggest
from handbook_utils.schema.fields import checked_field, trainer_fields
from handbook_utils.schema.sampling import PAIRS, Distinct, ScorerSection, check_selection
from handbook_utils.schema.sections import DataSource, LaunchSection, LoraSection, Section


class RoundSelection(Section):
    """What of its scored samples a round trains on; fields as in a recipe of stage `select`."""

    by: str = Field("proxy", description="the score that selects, a name under `scorers`")
    strategy: Literal["best", "top_k", "threshold", "rso", "pairs", "rso_pairs"] = "best"
    k: PositiveInt | None = None
    threshold: float | None = None
    beta: float | None = None
    distinct: Distinct = "none"
    max_similarity: float = Field(0.8, ge=0, lt=1)

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        check_selection(self.strategy, k=self.k, threshold=self.threshold, beta=self.beta)
        return self


class RoundTraining(Section):
    """How a round trains: a recipe of stage sft or dpo, without `model` and `data`, which the rounds give."""

    stage: Literal["sft", "dpo"]
    lora: LoraSection | None = Field(None, description="train an adapter; later rounds train it on")
    global_batch_size: PositiveInt = Field(le=2**24)
    training: dict[str, Any] = Field(
        default_factory=dict, description="any field of the trainer's TRL config"
    )
    launch: LaunchSection = Field(default_factory=LaunchSection)

    @field_validator("training")
    @classmethod
    def _known_fields(cls, training: dict[str, Any], others: ValidationInfo) -> dict[str, Any]:
        if "stage" not in others.data:  # it is wrong, and that is said already
            return training
        fields = trainer_fields(others.data["stage"])
        return {key: checked_field(key, value, fields) for key, value in training.items()}


class RoundEvaluation(Section):
    """Held-out prompts on which the start model, each round's model and each control are measured."""

    data: list[DataSource] = Field(min_length=1, description="none of them may be sampled to train on")
    samples: PositiveInt = Field(1, description="answers per prompt")
    scorers: dict[str, ScorerSection] = Field(
        default_factory=dict, description="beside those of the recipe, such as the gold reward"
    )


class StopSection(Section):
    """When to end before the last round. A round that meets a rule is measured, and not kept."""

    max_kl: PositiveFloat | None = Field(
        None, description="nats per answer: KL to the model before round 1 is above it"
    )
    stalled: bool = Field(
        False, description="`select.by` on held-out prompts is not above the round before by its interval"
    )


def check_rounds(recipe: Any) -> None:
    """Raise ValueError where the sections of a `rejection` recipe contradict each other."""
    by, strategy, stage = recipe.select.by, recipe.select.strategy, recipe.train.stage
    if by not in recipe.scorers:
        raise ValueError(f"`select.by` is none of `scorers`: '{by}'. {suggest(by, recipe.scorers)}")
    if (strategy in PAIRS) != (stage == "dpo"):
        fitting = (
            "dpo trains on pairs: `strategy: pairs` or `rso_pairs`"
            if stage == "dpo"
            else "pairs are for `stage: dpo`"
        )
        raise ValueError(f"`select.strategy` is '{strategy}' and `train.stage` is '{stage}': {fitting}.")
    kept = recipe.select.k or (2 if strategy == "rso_pairs" else 1)
    if recipe.samples <= kept:
        raise ValueError(f"`samples: {recipe.samples}` of which {kept} are kept is no choice. Sample more.")
    if recipe.prompts == "fresh" and len(recipe.data) != recipe.rounds:
        raise ValueError(
            f"`prompts: fresh` reads one source of `data` per round: {recipe.rounds} rounds, "
            f"{len(recipe.data)} sources. Write slices, such as train[:1000] and train[1000:2000]."
        )
    if recipe.engine.kind == "endpoint":
        raise ValueError(
            "`engine: endpoint` answers with the one model it serves, and every round has another. "
            "Take transformers or vllm."
        )
    if twice := sorted(set(recipe.scorers) & set(recipe.evaluate.scorers)):
        raise ValueError(f"`evaluate.scorers` has '{twice[0]}' again: those of `scorers` count there too.")
