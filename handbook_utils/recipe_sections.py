"""Sections that several recipe types share: where something is read from, models, data, processes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


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
            raise ValueError("give exactly one of `name` and `from`")
        return self


class ModelSection(Source):
    """Which model to load and how."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"


class DataSource(Source):
    """Rows to read; `split` takes slices such as `train[:200]`."""

    split: str = "train"
    subset: str | None = Field(None, description="configuration of a hub dataset that has several")
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
        "prompt",
    ] = "auto"
    columns: dict[str, str] = Field(default_factory=dict, description="their column names to ours")
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
