"""Verifiers: checks of an answer that give 1 or 0, or a number. Each is a function of a completion."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.score import NoScore
from handbook_utils.schema.sampling import JsonSection, LengthSection

Check = Callable[[Completion], float]
# patterns exist that take for ever on some texts, and a model may well write such a text
PATTERN_S = 1.0


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


def json_check(rule: JsonSection, *, name: str) -> Check:
    """Whether the answer is JSON that fits the schema; nothing that a schema refers to is fetched.

    Raises:
        RecipeError: the schema itself is wrong.
    """
    import jsonschema
    from referencing import Registry

    kind = jsonschema.validators.validator_for(rule.schema_, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(rule.schema_)
    except jsonschema.SchemaError as error:
        raise RecipeError(f"scorers.{name}.schema: {error.message} (at '{error.json_path}').") from None
    validator = kind(rule.schema_, registry=Registry())  # a registry that retrieves nothing

    def check(row: Completion) -> bool:
        try:
            value = json.loads(row.completion, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return bool(validator.is_valid(value))

    return check


def answer_check(answers: Mapping[str, str], *, pattern: str | None = None) -> Check:
    """Whether the answer is the one on record for its prompt.

    Compared without regard to case and white space; numbers by their value, `1,000` and `1000.0` alike.

    Args:
        answers: the right answer by prompt id.
        pattern: what of a completion is its answer; the last match counts, its first group where it has one.
            A completion without a match is wrong.
    """
    compiled = regex.compile(pattern) if pattern is not None else None

    def check(row: Completion) -> bool:
        if row.prompt_id not in answers:
            raise DataError("no answer is on record for this prompt")
        right = answers[row.prompt_id]
        given: str | None = row.completion
        if compiled is not None:
            found = list(compiled.finditer(row.completion, timeout=PATTERN_S))
            given = found[-1][1 if compiled.groups else 0] if found else None
        return given is not None and comparable(given) == comparable(right)

    return check


def comparable(answer: str) -> str | float:
    """An answer in the form in which it is compared.

    >>> comparable(" $1,000. "), comparable("New  York")
    (1000.0, 'new york')
    """
    text = " ".join(answer.split()).casefold().rstrip(".")
    try:
        number = float(text.replace(",", "").lstrip("$"))
    except ValueError:
        return text
    return number if math.isfinite(number) else text


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
    return lambda row: function(row.prompt, row.completion)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
