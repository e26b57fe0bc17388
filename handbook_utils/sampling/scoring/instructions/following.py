"""Does an answer follow its prompt's instructions: strictly, and loosely, as IFEval tells these apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handbook_utils.sampling.scoring.instructions.asked import Asked, asked_in
from handbook_utils.sampling.scoring.instructions.table import INSTRUCTIONS


@dataclass(frozen=True)
class Followed:
    """Which instructions an answer follows, in the order in which they were asked.

    Attributes:
        strict: in the answer as it is.
        loose: in it, or in one of its variants (`loose_variants`).
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@dataclass(frozen=True)
class Checked:
    """One answer's verdicts, beside the prompt and what that asks for."""

    prompt: str
    asked: Sequence[Asked]
    found: Followed


def followed(text: str, asked: Sequence[Asked]) -> Followed:
    """Check an answer; an empty one follows nothing, whatever was asked.

    Args:
        text: the answer, without special tokens.
        asked: what its prompt asks for.
    Source: Zhou et al. 2023, arXiv:2311.07911, section 2.2. Book: chapter "Which metrics to watch".

    >>> comma = [Asked("punctuation:no_comma", {})]
    >>> followed("Here you are, my friend:\\nA poem", comma)
    Followed(strict=(False,), loose=(True,))
    """
    strict = tuple(_follows(text, one) for one in asked)
    variants = loose_variants(text)[1:] if not all(strict) else []
    loose = tuple(
        found or any(_follows(variant, one) for variant in variants)
        for found, one in zip(strict, asked, strict=True)
    )
    return Followed(strict, loose)


def follows_instructions(
    text: str, instruction_id_list: Sequence[str], kwargs: Sequence[Mapping[str, Any]]
) -> Followed:
    """Check one answer against verifiable instructions, named as in IFEval's file.

    Args:
        text: the answer, without special tokens.
        instruction_id_list: such as ["punctuation:no_comma"]; `handbook instruction-report --ids` lists them.
        kwargs: the arguments of each, {} where it takes none.
    Raises:
        DataError: an instruction that cannot be checked, or arguments that do not fit it.
    Source: Zhou et al. 2023, arXiv:2311.07911. Book: chapter "Which metrics to watch".

    >>> ids = ["length_constraints:number_words", "punctuation:no_comma"]
    >>> follows_instructions("Yes, sir.", ids, [{"num_words": 3, "relation": "less than"}, {}])
    Followed(strict=(True, False), loose=(True, False))
    """
    row = {"instruction_id_list": list(instruction_id_list), "kwargs": list(kwargs)}
    return followed(text, asked_in(row, "instructions"))


def loose_variants(text: str) -> list[str]:
    """The answer as it is; without its first line, its last, or both; and each of these without stars.

    The first line may be an introduction ("Sure, here it is:"), the last one a farewell, and stars may be
    emphasis.

    >>> loose_variants("Sure:\\n*a*")
    ['Sure:\\n*a*', '*a*', 'Sure:', '', 'Sure:\\na', 'a', 'Sure:', '']
    """
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(variant.replace("*", "") for variant in cut)]


def _follows(text: str, one: Asked) -> bool:
    return bool(text.strip()) and INSTRUCTIONS[one.id].check(text, one.arguments)
