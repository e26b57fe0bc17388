"""Verifiers: checks of an answer that give 1 or 0, or a number. Each is a function of a completion."""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.answers.verdict import AnswerVerdict, reference_answer
from handbook_utils.sampling.scoring.bounded import BoundedPool
from handbook_utils.sampling.scoring.score import NoScore
from handbook_utils.schema.sampling import JsonSection, LengthSection

Check = Callable[[Completion], float]
# patterns exist that take for ever on some texts, and a model may well write such a text
PATTERN_S = 1.0
# algebra takes longer than a pattern, and a library for it has to be loaded
ANSWER_S = 5.0


@dataclass(frozen=True)
class VerifierScorer:
    """A check as a scorer; where the check raises, the row has no score and the run goes on."""

    name: str
    check: Check

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float | NoScore]]:
        """Check every answer."""
        return {self.name: [self._checked(row) for row in completions]}

    def _checked(self, row: Completion) -> float | NoScore:
        try:
            value = float(self.check(row))
        except Exception as error:  # noqa: BLE001 - a check may be anyone's code: its errors are results
            return NoScore(f"{type(error).__name__}: {error}")
        return value if math.isfinite(value) else NoScore(f"the verifier gave {value}")


def regex_check(pattern: str, *, whole: bool = False) -> Check:
    """Whether the pattern is found in the answer; for `whole`, whether it is all of it."""
    compiled = regex.compile(pattern)
    match = compiled.fullmatch if whole else compiled.search
    return lambda row: match(row.completion, timeout=PATTERN_S) is not None


def length_check(rule: LengthSection) -> Check:
    """Whether the answer's length is within bounds, both included."""

    def check(row: Completion) -> bool:
        lengths = {"words": len(row.completion.split()), "characters": len(row.completion)}
        length = row.tokens if rule.unit == "tokens" else lengths[rule.unit]
        return rule.at_least <= length and (rule.at_most is None or length <= rule.at_most)

    return check


@dataclass(frozen=True)
class BoundedScorer:
    """A check made in child processes, because a text can make it take for ever.

    Attributes:
        name: of the column.
        item_of: what of an answer is checked; `NoScore` where nothing can be.
        check: gives a number for an item; it can be pickled.
        pool: where it runs.
    """

    name: str
    item_of: Callable[[Completion], Any | NoScore]
    check: Callable[[Any], float]
    pool: BoundedPool

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float | NoScore]]:
        """Check every answer; one that breaks a limit has no score."""
        items = [self.item_of(row) for row in completions]
        results = iter(self.pool.map(self.check, [item for item in items if not isinstance(item, NoScore)]))
        return {self.name: [item if isinstance(item, NoScore) else next(results) for item in items]}


def json_scorer(rule: JsonSection, *, name: str) -> BoundedScorer:
    """Whether an answer is JSON that fits the schema; nothing that a schema refers to is fetched.

    Raises:
        RecipeError: the schema itself is wrong.
    """
    import jsonschema

    kind = jsonschema.validators.validator_for(rule.schema_, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(rule.schema_)
    except jsonschema.SchemaError as error:
        raise RecipeError(f"scorers.{name}.schema: {error.message} (at '{error.json_path}').") from None
    return BoundedScorer(
        name, lambda row: row.completion, JsonFits(rule.schema_), BoundedPool(seconds=PATTERN_S)
    )


@dataclass(frozen=True)
class JsonFits:
    """Whether a text is JSON that fits a schema."""

    schema: dict[str, Any]

    @cached_property
    def _validator(self) -> Any:
        import jsonschema
        from referencing import Registry

        kind = jsonschema.validators.validator_for(self.schema, default=jsonschema.Draft202012Validator)
        return kind(self.schema, registry=Registry())  # a registry that retrieves nothing

    def __call__(self, text: str) -> float:
        """1 where it fits; JSON nested without end, or a number beyond all bounds, does not."""
        validator = self._validator
        try:
            value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
            return float(validator.is_valid(value))
        except (ValueError, RecursionError, OverflowError):
            return 0.0


def answer_scorer(answers: Mapping[str, str], *, name: str, pattern: str | None = None) -> BoundedScorer:
    """Whether an answer is the one on record for its prompt, as `answers.verdict` judges it.

    Args:
        answers: the right answer by prompt id, as texts that people wrote: worked solutions too.
        name: of the column.
        pattern: what of a completion is its answer; the last match counts, its first group where it has one.
            A completion without a match is wrong.
    Raises:
        DataError: a right answer that cannot be read; its prompt id is named.
    """
    pool = BoundedPool(seconds=ANSWER_S)
    read = dict(zip(answers, pool.map(reference_answer, list(answers.values())), strict=True))
    for prompt_id, answer in read.items():
        if isinstance(answer, NoScore):
            raise UnreadableAnswerError(prompt_id, answer.reason.removeprefix("ValueError: "))

    def item_of(row: Completion) -> tuple[Any, str] | NoScore:
        if row.prompt_id not in read:
            return NoScore("DataError: no answer is on record for this prompt")
        return read[row.prompt_id], row.completion

    return BoundedScorer(name, item_of, AnswerVerdict(pattern), pool)


class UnreadableAnswerError(DataError):
    """An answer on record that nothing can be compared with."""

    def __init__(self, prompt_id: str, why: str) -> None:
        super().__init__(f"the answer to prompt '{prompt_id}' cannot be read: {why}")
        self.prompt_id, self.why = prompt_id, why


def function_check(dotted: str, *, name: str) -> Check:
    """A Python function of (prompt messages, completion text) by its name, `package.module:name`.

    Raises:
        RecipeError: it cannot be imported, or is no function.
    """
    module_name, _, function_name = dotted.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"scorers.{name}.function: '{module_name}' cannot be imported ({error}). Install it, or put its "
            "folder on PYTHONPATH."
        ) from None
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RecipeError(
            f"scorers.{name}.function: '{module_name}' has no function '{function_name}'. "
            f"{suggest(function_name, known)}"
        )
    # a copy: what is scored is also what is stored and learned from
    return lambda row: function(copy.deepcopy(row.prompt), row.completion)


@dataclass(frozen=True)
class FunctionCall:
    """A function of (prompt messages, completion text) by its name, which a child process imports itself."""

    dotted: str

    def __call__(self, item: tuple[Any, str]) -> float:
        """What it gives; raises what it raises, and ValueError for what is no finite number."""
        module, _, name = self.dotted.partition(":")
        value = float(getattr(importlib.import_module(module), name)(*item))
        if not math.isfinite(value):
            raise ValueError(f"the verifier gave {value}")
        return value


def bounded_function(dotted: str, *, name: str, seconds: float) -> BoundedScorer:
    """The same in child processes; an answer that takes longer than the limit has no score.

    Raises:
        RecipeError: it cannot be imported, or is no function.
    """
    function_check(dotted, name=name)
    pool = BoundedPool(seconds=seconds)
    return BoundedScorer(name, lambda row: (row.prompt, row.completion), FunctionCall(dotted), pool)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is beyond all bounds")
    return value
