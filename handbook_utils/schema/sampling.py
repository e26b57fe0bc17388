"""What recipes say about scoring and selecting samples: shared by the stages, and checked before they run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, field_validator, model_validator

from handbook_utils.schema.engines import checked_extra, checked_url, checked_variable
from handbook_utils.schema.sections import DataSource, ModelSection, Reads, Section, Source

Strategy = Literal["best", "top_k", "threshold", "rso", "pairs", "rso_pairs", "random"]
Distinct = Literal["none", "text", "near"]
# strategies that choose pairs, not samples
PAIRS = ("pairs", "rso_pairs")
# options, and the strategies that need them: no other takes them
NEEDED_BY = {"threshold": ("threshold",), "beta": ("rso", "rso_pairs")}


def check_selection(strategy: str, *, k: int | None, threshold: float | None, beta: float | None) -> None:
    """Raise ValueError for a selection that cannot be made as written."""
    given = {"threshold": threshold, "beta": beta}
    for option, owners in NEEDED_BY.items():
        if strategy in owners and given[option] is None:
            raise ValueError(f"`strategy: {strategy}` needs `{option}`, in units of the score that selects.")
        if strategy not in owners and given[option] is not None:
            names = "` or `".join(owners)
            raise ValueError(f"`{option}` belongs to `strategy: {names}`, and the strategy is '{strategy}'.")
    if beta is not None and beta <= 0:
        raise ValueError(
            f"`beta` must be above 0, got {beta}. Towards 0 only the highest scores are accepted."
        )
    if k is not None and k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if k not in (None, 1) and strategy in ("best", "pairs"):
        raise ValueError(f"`strategy: {strategy}` has no `k`: for several samples per prompt write `top_k`.")
    if strategy == "rso_pairs" and k is not None and k % 2:
        raise ValueError(f"`strategy: rso_pairs` pairs `k` samples two and two, so {k} must be even.")


def checked_pattern(pattern: str | None) -> str | None:
    """The pattern, if it is a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}.") from None
    return pattern


class ScoringModelSection(ModelSection):
    """A reward model: a run of stage `reward`, or any sequence classifier with one label."""

    kind: Literal["model"] = "model"


class EnsembleSection(Section):
    """Several reward models as one; what they disagree on counts less than what they agree on."""

    kind: Literal["ensemble"]
    models: list[ModelSection] = Field(min_length=2)
    combine: Literal["mean", "minimum", "mean_minus_std"] = "mean_minus_std"
    k: float = Field(1.0, ge=0, description="for mean_minus_std: so many standard deviations below the mean")


class RegexSection(Section):
    """1 where the pattern is found in the answer, else 0."""

    kind: Literal["regex"]
    pattern: str
    whole: bool = Field(False, description="the whole answer has to match")

    _is_pattern = field_validator("pattern")(checked_pattern)


class AnswerSection(Section):
    """1 where the answer is the one on record, else 0; compared by value, as sets, words or formulas."""

    kind: Literal["answer"]
    answers: DataSource = Field(description="rows with the prompt (or its prompt_id) and the right answer")
    column: str = Field("answer", description="of the rows in `answers`")
    pattern: str | None = Field(
        None,
        description="what of a completion is its answer: the last match, its group where it has one; absent: "
        "the last \\boxed{}, what follows #### or `the answer is`, or what stands at the end",
    )

    _is_pattern = field_validator("pattern")(checked_pattern)


class JsonSection(Section):
    """1 where the answer is JSON that fits a JSON schema, else 0."""

    kind: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="absent keys allow anything: {} is any JSON")


class InstructionsSection(Section):
    """1 where the answer follows the prompt's verifiable instructions, as IFEval checks them, else 0."""

    kind: Literal["instructions"]
    prompts: DataSource = Field(description="rows with prompt, instruction_id_list and kwargs, as in IFEval")
    reward: Literal["all", "share"] = Field(
        "all", description="all: 1 where all of a prompt's instructions are followed; share: how many are"
    )
    loose: bool = Field(
        False, description="also without the first line, the last line or stars; else as the answer stands"
    )


class LengthSection(Section):
    """1 where the answer's length is within the bounds, else 0."""

    kind: Literal["length"]
    unit: Literal["words", "characters", "tokens"] = "words"
    at_least: int = Field(0, ge=0)
    at_most: PositiveInt | None = None


class FunctionSection(Section):
    """A Python function of (prompt messages, completion text) that gives a number, or true or false."""

    kind: Literal["function"]
    function: Annotated[str, Reads("code")] = Field(
        description="package.module:name, importable where the run runs"
    )
    allow_code: bool = Field(
        False, description="has to be true, and `--allow-code` given: the function is code, and it is run"
    )
    timeout_s: PositiveFloat | None = Field(
        None, description="processor seconds for one answer, which is then checked in another process"
    )

    @model_validator(mode="after")
    def _may_run(self) -> Self:
        if not self.allow_code:
            raise ValueError(
                f"'{self.function}' is code that would be run. Where you trust it, say `allow_code: true`."
            )
        if not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f"'{self.function}': write package.module:name.")
        return self


class JudgeSection(Section):
    """A language model at an endpoint that compares each answer with another one; answers are sent there."""

    kind: Literal["judge"]
    url: str = Field(description="up to /v1, such as http://localhost:8000/v1; what is judged is sent there")
    model: str = Field(description="the name the server knows the judge by")
    max_requests: PositiveInt = Field(
        description="replies that `cache` may come to hold: a bound on what is spent; a comparison takes two"
    )
    cache: str = Field("runs/judge-replies.jsonl", description="file of all replies; none is bought twice")
    against: Source | None = Field(
        None, description="samples to compare with, the first of each prompt; absent: the prompt's own first"
    )
    criterion: str = Field(
        "The better answer is the more helpful one: right, harmless, and no longer than it needs to be.",
        description="what makes an answer better, as told to the judge",
    )
    max_tokens: PositiveInt = Field(512, description="of a reply, its thinking included")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request, such as {reasoning_effort: low}"
    )
    key_env: str | None = Field(
        None, description="environment variable that holds the key; absent: none is sent"
    )
    timeout_s: PositiveFloat = Field(120, description="for one try of one reply, all of it")
    attempts: PositiveInt = Field(6, description="tries of one request before giving up")
    parallel: PositiveInt = Field(8, description="comparisons asked for at once")

    _is_http = field_validator("url")(checked_url)
    _adds_only = field_validator("extra_body")(checked_extra)
    _names_a_variable = field_validator("key_env")(checked_variable)


def _kind_of(scorer: Any) -> str:
    # recipes that name a model say no kind
    kind = scorer.get("kind", "model") if isinstance(scorer, dict) else getattr(scorer, "kind", "model")
    return str(kind)


ScorerSection = Annotated[
    Annotated[ScoringModelSection, Tag("model")]
    | Annotated[EnsembleSection, Tag("ensemble")]
    | Annotated[RegexSection, Tag("regex")]
    | Annotated[AnswerSection, Tag("answer")]
    | Annotated[JsonSection, Tag("json_schema")]
    | Annotated[InstructionsSection, Tag("instructions")]
    | Annotated[LengthSection, Tag("length")]
    | Annotated[FunctionSection, Tag("function")]
    | Annotated[JudgeSection, Tag("judge")],
    Discriminator(_kind_of),
]


class HeldOutSamples(Section):
    """Answers to fixed held-out prompts, sampled while training, scored and compared with the start."""

    data: list[DataSource] = Field(min_length=1, description="prompts; a training row with one is left out")
    every: PositiveInt = Field(
        description="optimiser steps from one look to the next; one more is taken before and after training"
    )
    samples: PositiveInt = Field(1, description="answers per prompt")
    max_new_tokens: PositiveInt = 96
    rows_per_batch: PositiveInt = Field(256, description="answers decoded at once")
    scorers: dict[str, ScorerSection] = Field(
        default_factory=dict, description="the first decides which look is best; {}: only lengths and KL"
    )
    kl: bool = Field(True, description="measure KL to the start, whose trained weights are kept in memory")
    keep: Literal["last", "best"] = Field(
        "last", description="best: the model that is saved is that of the look with the highest mean score"
    )

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if self.keep == "best" and not self.scorers:
            raise ValueError("`keep: best` goes by the first of `scorers`, and there is none.")
        judges = [name for name, scorer in self.scorers.items() if isinstance(scorer, JudgeSection)]
        if judges:
            raise ValueError(
                f"`scorers.{judges[0]}` is a judge, paid per reply, and would be asked at every look. "
                "Let it judge the finished model, by a recipe of stage evaluate."
            )
        return self
