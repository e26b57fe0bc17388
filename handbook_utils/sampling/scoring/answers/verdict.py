"""The verdict on a completion: is its answer the one on record?"""

from __future__ import annotations

from dataclasses import dataclass

import regex

from handbook_utils.sampling.scoring.answers.formulas import is_formula, same_formula
from handbook_utils.sampling.scoring.answers.reading import (
    Formula,
    Group,
    Named,
    Reading,
    Words,
    option_letter,
    read,
    same_reading,
)
from handbook_utils.sampling.scoring.answers.texts import after_thinking, clean, stated_answers

PATTERN_S = 1.0
# a longer text is a solution, and equal to no answer that a model gives
MOST_WORDS = 20
_THOUSANDS = regex.compile(r"\d{1,3}(?:,\d{3})+")


def reference_answer(text: str) -> str:
    """The answer that a reference gives: all of it, or the end of a worked solution.

    Raises:
        ValueError: says what about it cannot be read.

    >>> reference_answer("6 * 7 = <<6*7=42>>42 apples.\\n#### 42")
    '42'
    """
    stated, is_marked = stated_answers(text)
    if not text.strip():
        raise ValueError("it is empty")
    if not stated:
        raise ValueError("no answer is written in it")
    reading = None if is_marked else read(text)
    if isinstance(reading, Words) and ("\n" in text.strip() or len(reading.text.split()) > MOST_WORDS):
        raise ValueError(f"it is a text of {len(text.split())} words that states no answer")
    # a reference that says nothing of an answer is the answer
    for candidate in stated if is_marked else [text]:
        if _is_readable(candidate):
            return candidate
    shown = clean(stated[0])
    if not shown:
        raise ValueError("no answer is written in it")
    raise ValueError(f"'{shown[:60]}' is neither a number, nor words, nor LaTeX that can be read to its end")


@dataclass(frozen=True)
class AnswerVerdict:
    """Judges (reference, completion), the reference as `reference_answer` gives it.

    Attributes:
        pattern: what of a completion is its answer: the last match, its first group where it has one; None to
            look for `\\boxed{}`, `####`, "the answer is", and then at the end.
    """

    pattern: str | None = None

    def __call__(self, item: tuple[str, str]) -> float:
        """1 for the answer on record, else 0."""
        reference, completion = item
        if self.pattern is not None:
            found = list(regex.compile(self.pattern).finditer(completion, timeout=PATTERN_S))
            stated = [found[-1][1 if found[-1].re.groups else 0] or ""] if found else []
        else:
            rest = after_thinking(completion)
            stated = stated_answers(rest)[0] if rest is not None else []
        return float(_is_stated(reference, stated))


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are one: by value, as sets, as words, or as formulas by math-verify.

    >>> same_answer("1,2", "12"), same_answer("1,000", "1e3"), same_answer("\\\\sqrt{12}", "2\\\\sqrt{3}")
    (False, True, True)
    """
    first, second = _read_as(a, read(b)), _read_as(b, read(a))
    if first is None or second is None:
        return False
    if clean(a) == clean(b):
        return True
    for words, other in ((first, b), (second, a)):
        if isinstance(words, Words) and len(words.text) == 1 and option_letter(other) == words.text:
            return True
    same = same_reading(first, second)
    return same_formula(a, b) if same is None else same


def _read_as(text: str, other: Reading | None) -> Reading | None:
    """A reading; `100,200` is a list beside a list, else a number."""
    cleaned = clean(text)
    if isinstance(other, Group) and _THOUSANDS.fullmatch(cleaned):
        return read(cleaned.replace(",", ", "))
    return read(text)


def _is_readable(text: str) -> bool:
    reading = read(text)
    if isinstance(reading, Formula) or (isinstance(reading, Named) and isinstance(reading.value, Formula)):
        return is_formula(text)
    return reading is not None


def _is_stated(reference: str, stated: list[str]) -> bool:
    """Whether the first of the candidates that can be an answer is the right one."""
    wants_words = isinstance(read(reference), Words)
    for candidate in stated:
        if wants_words:
            if same_answer(reference, candidate):
                return True
        elif _is_readable(candidate) and (len(stated) == 1 or not isinstance(read(candidate), Words)):
            return same_answer(reference, candidate)
    return False
