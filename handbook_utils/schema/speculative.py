"""The section `speculative` of recipes that sample: answers that begin badly are not finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, PositiveInt, field_validator

from handbook_utils.schema.engines import TransformersSection
from handbook_utils.schema.sampling import (
    EnsembleSection,
    FunctionSection,
    ScorerSection,
    ScoringModelSection,
)
from handbook_utils.schema.sections import Section


class SpeculativeSection(Section):
    """Speculative rejection: the answers whose beginnings score lowest are not finished."""

    scorer: ScorerSection = Field(description="of beginnings: a reward model, an ensemble, or a function")
    after: list[PositiveInt] = Field(
        min_length=1, description="tokens of an answer after which its beginning is scored, ascending"
    )
    alpha: float = Field(
        0.5, gt=0, lt=1, description="share of a prompt's unfinished answers that is stopped each time"
    )

    @field_validator("scorer")
    @classmethod
    def _scores_beginnings(cls, scorer: ScorerSection) -> ScorerSection:
        if not isinstance(scorer, ScoringModelSection | EnsembleSection | FunctionSection):
            raise ValueError(
                f"a scorer of kind '{scorer.kind}' judges whole answers, and says nothing of beginnings. "
                "Take a reward model, an ensemble of them, or a function."
            )
        return scorer


def check_speculation(recipe: Any) -> Any:
    """The recipe of a stage that samples, if what its `speculative` says can be done.

    Raises:
        ValueError: another engine, several processes, or decisions that would decide nothing.
    """
    section = recipe.speculative
    if section is None:
        return recipe
    if not isinstance(recipe.engine, TransformersSection):
        raise ValueError(
            f"`speculative` looks at answers while they are written, and an engine of kind "
            f"'{recipe.engine.kind}' shows them when they are done. Take `engine: {{kind: transformers}}`."
        )
    if recipe.executor is not None and recipe.executor.kind == "processes":
        raise ValueError("`speculative` keeps model and scorer in one process. Leave `executor` out.")
    problem = speculation_problem(
        section.after,
        section.alpha,
        samples=recipe.samples,
        max_new_tokens=recipe.max_new_tokens,
        rows_per_batch=recipe.rows_per_batch,
    )
    if problem:
        raise ValueError(problem)
    return recipe


def speculation_problem(
    after: Sequence[int], alpha: float, *, samples: int, max_new_tokens: int, rows_per_batch: int
) -> str | None:
    """What is wrong with decisions after so many tokens; None where nothing is."""
    if list(after) != sorted(set(after)) or after[-1] >= max_new_tokens:
        return (
            f"`speculative.after` is {list(after)}: write numbers of tokens that ascend and stay below "
            f"`max_new_tokens` ({max_new_tokens})."
        )
    if alpha * samples < 1:
        return (
            f"`speculative.alpha` is {alpha}, which of {samples} answers per prompt stops none. Raise it, or "
            "`samples`."
        )
    if rows_per_batch < samples:
        return (
            f"`speculative` compares all answers to a prompt while they are written, so `rows_per_batch` "
            f"({rows_per_batch}) must be at least `samples` ({samples})."
        )
    return None
