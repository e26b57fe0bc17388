"""Sections that several recipe types share: origins, models, data, processes, LoRA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

# the trainers' losses read the head's weight directly, past any adapter on it, and the frozen copy that is
# DPO's reference leaves adapters on embeddings out
WITHOUT_ADAPTER = ("lm_head", "embed_tokens", "embed_out", "wte", "score", "classifier")
# trainers on pairs that hold no reference: TRL's experimental ones, both of one make
WITHOUT_REFERENCE = ("orpo", "cpo")
ADAPTER_MODES = {
    "continue": "train the loaded adapter on; for dpo a frozen copy of it is the reference",
    "stack": "merge it into its base in memory and train a new adapter (`lora:`) on that",
    "merge": "write the merged model first, then train as the recipe says: with `lora:`, or all weights",
}


@dataclass(frozen=True)
class Reads:
    """Marks a text field that may name something else to read: its content is part of a run's identity.

    Attributes:
        what: "file": the path of one; "code": a Python function, `package.module:name`.
    """

    what: Literal["file", "code"]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Source(Section):
    """Something to read: by `name` (hub, path, `pocket:...`) or from an earlier run (`from`)."""

    name: str | None = Field(None, description="hub name, local path, or a built-in such as pocket:base")
    from_: str | None = Field(None, alias="from", description="run folder beside this run, or a path to one")
    revision: str | None = Field(None, description="branch, tag or commit of a hub name")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.name is None) == (self.from_ is None):
            raise ValueError(
                "give exactly one of `name` and `from`; to change one into the other set the whole section, "
                "such as --set 'model={name: my/model}'"
            )
        return self


class ModelSection(Source):
    """Which model to load and how."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["auto", "none", "int8", "nf4"] = Field(
        "auto", description="auto: an adapter's base as it was in training, a whole model not at all"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"


class TrainedModelSection(ModelSection):
    """The model that a training stage starts from."""

    chat_template: Annotated[str | None, Reads("file")] = Field(
        None, description="for a tokenizer without one: zephyr, tulu, chatml, a .jinja file or text"
    )
    adapter: Literal["continue", "stack", "merge"] | None = Field(
        None, description="what to do where the start model is an adapter"
    )


class PairsSection(Section):
    """How a pair is chosen where rows hold rated answers, and which pairs are ties."""

    rating: str | list[str] | None = Field(
        None, description="by which rating; of several the mean; needed where rows hold more than one"
    )
    rejected: Literal["worst", "random", "all"] = Field(
        "worst",
        description="set against the best; random: one of the others; all: a pair for every two answers",
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="answers whose ratings differ by no more than this are a tie, which gives no pair",
    )


class DataSource(Source):
    """Rows to read; `split` takes slices such as `train[:200]`."""

    split: str = "train"
    subset: str | None = Field(
        None, description="configuration of a hub dataset that has several; of a `select` run: control"
    )
    format: Literal[
        "auto",
        "text",
        "messages",
        "sharegpt",
        "prompt_completion",
        "alpaca",
        "preference",
        "transcript",
        "ultrafeedback",
        "feedback",
        "messages_feedback",
        "sharegpt_feedback",
        "alpaca_feedback",
        "messages_ranking",
        "sharegpt_ranking",
        "alpaca_ranking",
        "swift_ranking",
        "swift_conversations",
        "preference_messages",
        "openai_preference",
        "argilla_pair",
        "helpsteer2_preference",
        "helpsteer3",
        "argilla_ranking",
        "judged",
        "arena",
        "arena_votes",
        "shp",
        "summaries",
        "ultrafeedback_ratings",
        "distilabel_ratings",
        "rated_answers",
        "rated_rows",
        "contents",
        "conversation",
        "ultrachat",
        "lima",
        "turns_in_text",
        "glaive",
        "prompt",
    ] = "auto"
    columns: dict[str, str] = Field(default_factory=dict, description="their column names to ours")
    pairs: PairsSection | None = Field(None, description="how a pair is chosen among rated answers")
    weight: float = Field(
        1.0, gt=0, description="how often each row is used; on a stream, the source's share of the draws"
    )
    max_rows: PositiveInt | None = Field(None, description="at most this many rows, drawn by the seed")
    allow_test: bool = Field(
        False, description="train on rows of a split test*, and on rows that `eval_data` has too"
    )

    @property
    def label(self) -> str:
        """What to call it."""
        return str(self.name or self.from_)


ZERO3_QUANTIZED = (
    "'launch.strategy' zero3 does not shard quantised weights: transformers leaves them out of ZeRO-3's "
    "partitioned loading, so every process would hold the whole base. Use fsdp2, which shards 4-bit weights, "
    "or zero2, which shards the optimiser."
)


class LaunchSection(Section):
    """How many processes train together and what is split between them; never changes what is computed."""

    strategy: Literal["ddp", "fsdp2", "zero2", "zero3", "none"] = "ddp"
    processes: Literal["auto"] | PositiveInt = Field(
        "auto", description="over all nodes; auto: a GPU each, as many as divide the batch; on a CPU one"
    )
    nodes: PositiveInt = 1

    @model_validator(mode="after")
    def _none_is_one(self) -> Self:
        if self.strategy == "none" and (self.processes not in ("auto", 1) or self.nodes > 1):
            raise ValueError("`strategy: none` is a single process; ddp is the plainest for several")
        return self


class LoraSection(Section):
    """A low-rank adapter: only its weights are trained (Hu et al. 2021). Absent: all weights are."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = Field(32, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="module names, such as q_proj; all-linear: every linear layer but the head"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
    router: bool = Field(
        True, description="false: of a mixture of experts, leave the router of `targets` as it is"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole and saved with the adapter"
    )

    @field_validator("targets")
    @classmethod
    def _not_on_the_head(cls, targets: str | list[str]) -> str | list[str]:
        if targets == "all-linear":
            return targets
        wrong = next((name for name in targets if name.rpartition(".")[2] in WITHOUT_ADAPTER), None)
        if wrong:
            raise ValueError(
                f"'{wrong}' cannot carry a low-rank adapter: losses and references would pass it by. To "
                f"train it whole, write modules_to_save: [{wrong}] and take it out of `targets`."
            )
        if not targets:
            raise ValueError("no target. Name modules such as q_proj, or write all-linear.")
        return targets


def check_trainable(model: TrainedModelSection, lora: LoraSection | None) -> None:
    """Raise ValueError for a recipe in which nothing could be trained."""
    if lora is not None or model.adapter == "continue":
        return
    if model.adapter == "stack":
        raise ValueError("`adapter: stack` trains a new adapter, so the recipe needs a `lora:` section.")
    if model.quantization in ("int8", "nf4"):
        raise ValueError(
            f"weights in {model.quantization} cannot be trained themselves. Add a `lora:` section to train "
            "an adapter on them, or set `model.quantization: none` to train all weights."
        )


def check_streaming(recipe: Any) -> None:
    """Raise ValueError for a training recipe that asks of a stream what a stream cannot give."""
    only = recipe.data[0] if len(recipe.data) == 1 else None
    problems = {
        "`streaming` needs `training.max_steps`: a stream has no length to count epochs of.": (
            (recipe.training.get("max_steps") or -1) <= 0
        ),
        "`training.precompute_ref_log_probs` goes through all rows first: no `streaming`.": bool(
            recipe.training.get("precompute_ref_log_probs")
        ),
        f"TRL's trainer of {recipe.trainer} takes rows in memory only: no `streaming`.": (
            recipe.trainer in WITHOUT_REFERENCE
        ),
        "`max_rows` draws from counted rows. With `streaming` write a slice: train[:1000].": any(
            source.max_rows for source in recipe.data
        ),
        "`weight` is a share of the draws with `streaming`, and there is one source only.": (
            only is not None and only.weight != 1
        ),
    }
    for problem, is_there in problems.items():
        if recipe.streaming and is_there:
            raise ValueError(problem)


def check_reference_logps(recipe: Any) -> Any:
    """Raise ValueError for a recipe whose reference cannot be computed in advance as it says."""
    named, asked = recipe.reference_logps is not None, recipe.training.get("precompute_ref_log_probs")
    problems = {
        "`training.sync_ref_model` moves the reference while it trains, so its log-probabilities cannot be "
        "computed before: drop it, or `reference_logps` and `training.precompute_ref_log_probs`.": (
            (named or asked) and recipe.training.get("sync_ref_model")
        ),
        "`reference_logps` goes through all rows first: no `streaming`.": named and recipe.streaming,
        "`reference_logps` keeps what is computed before training, and `training.precompute_ref_log_probs` "
        "is false: drop one of the two.": named and asked is False,
        "`reference_logps` cannot be kept under `launch.strategy` zero3, which splits the reference too: "
        "take ddp, fsdp2 or zero2, or `training.precompute_ref_log_probs` alone, which keeps nothing.": (
            named and recipe.launch.strategy == "zero3"
        ),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem)
    return recipe


# a stage's name is that of its run folder, beside the pipeline's own files
STAGE_NAME = re.compile(r"\w(?:[\w.-]{0,98}[\w-])?")
TAKEN = ("pipeline.yaml", "report.html")


def check_stage_names(stages: dict[str, PipelineStage]) -> dict[str, PipelineStage]:
    """Raise ValueError for a stage whose name is not that of one plain folder, or of another stage's."""
    folders: dict[str, str] = {}
    for name in stages:
        if not STAGE_NAME.fullmatch(name) or name.casefold() in TAKEN:
            plain = re.sub(r"[^\w-]+", "-", name).strip("-")[:100] or "sft"
            raise ValueError(
                f"{name!r:.120} names a stage and so its folder: write at most 100 letters, digits, '-', "
                f"'_' and dots between them, such as '{plain}'."
            )
        other = folders.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(f"'{other}' and '{name}' are one folder on many disks. Rename one of them.")
    return stages


class PipelineStage(BaseModel):
    """One stage of a pipeline: a recipe, and what to change in it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    recipe: str

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of the recipe that this pipeline replaces (`training` is merged instead)."""
        return dict(self.__pydantic_extra__ or {})

    @model_serializer
    def _with_nulls(self) -> dict[str, Any]:
        # a change to null, such as `lora: null`, says something: elsewhere null is left out
        return {"recipe": self.recipe, **self.changes}
