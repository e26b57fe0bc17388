"""The strict shape of every recipe: those that train are in `training.py`, the others here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from handbook_utils.schema.engines import EngineSection, TransformersSection, check_cut
from handbook_utils.schema.executor import ExecutorSection, RaySection, check_executor
from handbook_utils.schema.rounds import (
    RoundEvaluation,
    RoundSelection,
    RoundTraining,
    StopSection,
    check_rounds,
)
from handbook_utils.schema.sampling import Distinct, ScorerSection, Strategy, check_selection
from handbook_utils.schema.sections import (
    DataSource,
    ModelSection,
    PipelineStage,
    Source,
    TrainedModelSection,
    check_stage_names,
    check_trainable,
)
from handbook_utils.schema.speculative import SpeculativeSection, check_speculation
from handbook_utils.schema.training import StageRecipe


class SamplingRecipe(StageRecipe):
    """What every stage that samples answers has."""

    model: ModelSection
    data: list[DataSource] = Field(min_length=1)
    samples: PositiveInt = Field(1, description="answers per prompt")
    max_new_tokens: PositiveInt = 96
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    prompts_per_part: PositiveInt = Field(
        64, description="prompts per file (shard); a killed run redoes one per worker at most"
    )
    rows_per_batch: PositiveInt = 256
    engine: EngineSection = Field(default_factory=TransformersSection)
    bad_prompts: Literal["error", "skip"] = Field(
        "error", description="rows without a user's turn, with an empty one, or otherwise no prompt"
    )
    long_prompts: Literal["error", "skip", "cut"] = Field(
        "error", description="prompts beyond the model's window; cut: their oldest part is left out"
    )
    executor: ExecutorSection | None = Field(None, description="absent: this process. Changes no answer")

    _elsewhere = model_validator(mode="after")(check_executor)
    _can_be_cut = model_validator(mode="after")(check_cut)


class GenerateRecipe(SamplingRecipe):
    """Sample answers."""

    stage: Literal["generate"]
    speculative: SpeculativeSection | None = Field(None, description="do not finish answers that begin badly")

    _can_speculate = model_validator(mode="after")(check_speculation)


class AnnotateRecipe(StageRecipe):
    """Preference pairs from each prompt's first two distinct samples."""

    stage: Literal["annotate"]
    data: list[DataSource] = Field(min_length=1)
    annotator: str = "pocket:annotator"


class ScoreRecipe(StageRecipe):
    """One column of scores per scorer."""

    stage: Literal["score"]
    data: list[DataSource] = Field(min_length=1)
    scorers: dict[str, ScorerSection] = Field(min_length=1)
    rows_per_batch: PositiveInt = 256
    executor: RaySection | None = Field(None, description="absent: this process. Changes no score")

    _elsewhere = model_validator(mode="after")(check_executor)


class SelectRecipe(StageRecipe):
    """Choose among scored samples; a random control of the same size is drawn beside every selection."""

    stage: Literal["select"]
    data: list[DataSource] = Field(min_length=1)
    by: str = Field("proxy", description="the score column that selects")
    strategy: Strategy = Field(
        "best",
        description="best, top_k, threshold, rso (statistical rejection sampling), pairs (best and worst), "
        "rso_pairs (pairs of what rso accepts), or random",
    )
    k: PositiveInt | None = Field(
        None, description="samples per prompt: 1 unless told, for rso_pairs 2, for threshold no limit"
    )
    threshold: float | None = Field(None, description="for threshold: the lowest score that is kept")
    beta: float | None = Field(None, description="for rso, rso_pairs: temperature, in units of the score")
    distinct: Distinct = Field(
        "none", description="text: no text of a prompt twice; near: none that is nearly the same either"
    )
    max_similarity: float = Field(
        0.8, ge=0, lt=1, description="for near: highest share of common runs of three words (Jaccard)"
    )

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        check_selection(self.strategy, k=self.k, threshold=self.threshold, beta=self.beta)
        return self


class BestOfNRecipe(StageRecipe):
    """Expected figures of best-of-n from N scored samples per prompt."""

    stage: Literal["best_of_n"]
    data: list[DataSource] = Field(min_length=1)
    arms: list[str] = Field(min_length=1, description="score columns that select")
    measures: list[str] = Field(min_length=1, description="columns to report of the selected answer")
    ns: list[PositiveInt] = Field([1, 2, 4, 8, 16, 32, 64])
    late_from: PositiveInt = Field(4, description="the n that later ones are compared with (late_gain)")


class EvaluateRecipe(SamplingRecipe):
    """Sample a model on held-out prompts, score it, and compare it pairwise with earlier evaluations."""

    stage: Literal["evaluate"]
    reference: ModelSection | None = Field(None, description="KL is measured to this model")
    scorers: dict[str, ScorerSection] = Field(description="{}: no score is known, only lengths and KL")
    baselines: list[Source] = Field(default_factory=list, description="evaluate runs on the same prompts")

    @model_validator(mode="after")
    def _baselines_are_compared_by_a_score(self) -> Self:
        if self.baselines and not self.scorers:
            raise ValueError("`baselines` are compared by the first of `scorers`, and there is none.")
        return self


class RejectionRecipe(SamplingRecipe):
    """Rejection sampling: sample, score, select, train, measure, and again from the model that came out."""

    stage: Literal["rejection"]
    model: TrainedModelSection
    samples: PositiveInt = Field(4, description="answers per prompt to choose from")
    scorers: dict[str, ScorerSection] = Field(min_length=1)
    select: RoundSelection = Field(default_factory=RoundSelection)
    train: RoundTraining
    evaluate: RoundEvaluation
    rounds: PositiveInt = 1
    prompts: Literal["same", "fresh"] = Field(
        "same", description="same: each round answers all of `data` anew; fresh: one source of it a round"
    )
    pool: Literal["this_round", "all_rounds"] = Field(
        "this_round", description="train on what this round selected, or on that of all rounds so far"
    )
    start: Literal["previous", "first"] = Field(
        "previous", description="train the last round's model on, or `model` anew; both sample from the last"
    )
    control: bool = Field(True, description="train another model alike on as many random samples, each round")
    stop: StopSection = Field(default_factory=StopSection)

    @model_validator(mode="after")
    def _rounds_can_be_made(self) -> Self:
        check_rounds(self)
        check_trainable(self.model, self.train.lora)
        return self


class PipelineRecipe(StageRecipe):
    """Stages by name, in order; a stage reads earlier ones by `from: NAME`."""

    stage: Literal["pipeline"]
    stages: dict[str, PipelineStage] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _are_folder_names(cls, stages: dict[str, PipelineStage]) -> dict[str, PipelineStage]:
        return check_stage_names(stages)
