"""One check per verifiable instruction: does a text do what was asked? Each takes time linear in the text.

The rules are those of IFEval (Zhou et al. 2023, arXiv:2311.07911), its oddities included, so that figures can
be compared; where one of ours differs, `table.py` says how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from handbook_utils.sampling.scoring.instructions.texts import (
    capital_words,
    count_sentences,
    count_words,
    language_of,
    may_be_english,
)

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]
RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def related(count: int, relation: str, bound: int) -> bool:
    """Whether a count is "less than" a bound, or "at least" as large.

    >>> related(3, "at least", 3), related(3, "less than", 3)
    (True, False)
    """
    return count < bound if relation == "less than" else count >= bound


def has_keywords(text: str, a: Arguments) -> bool:
    """Every keyword is found, in any case, also inside words."""
    return all(_found(word, text) for word in a["keywords"])


def keyword_frequency(text: str, a: Arguments) -> bool:
    """How often a keyword is found, in any case, also inside words."""
    return related(_found(a["keyword"].strip(), text), a["relation"], a["frequency"])


def lacks_words(text: str, a: Arguments) -> bool:
    """None of the words is found, in any case, as a word of its own."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, flags=re.IGNORECASE) for word in a["forbidden_words"]
    )


def letter_frequency(text: str, a: Arguments) -> bool:
    """How often a character is found, in any case."""
    return related(text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"])


def in_language(text: str, a: Arguments) -> bool:
    """The text is in one language; what cannot be told is not."""
    return bool(language_of(text) == a["language"])


def number_sentences(text: str, a: Arguments) -> bool:
    """How many sentences there are."""
    return related(count_sentences(text), a["relation"], a["num_sentences"])


def number_words(text: str, a: Arguments) -> bool:
    """How many words there are."""
    return related(count_words(text), a["relation"], a["num_words"])


def number_paragraphs(text: str, a: Arguments) -> bool:
    """Exactly so many paragraphs, divided by `***`; an empty one between two dividers fails."""
    paragraphs = _without_empty_ends(text.split("***"))
    return all(paragraphs) and len(paragraphs) == a["num_paragraphs"]


def paragraph_first_word(text: str, a: Arguments) -> bool:
    """Exactly so many paragraphs, divided by an empty line, of which one begins with a word."""
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    number = sum(map(bool, paragraphs))
    # empty paragraphs keep their place in the count, as they do in IFEval
    if number != a["num_paragraphs"]:
        return False
    begun = paragraphs[a["nth_paragraph"] - 1]
    word = begun.split()[0].lstrip("'").lstrip('"') if begun else ""
    return bool(word) and re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == a["first_word"].lower()


def number_placeholders(text: str, a: Arguments) -> bool:
    """At least so many placeholders in square brackets, such as [name]."""
    found = sum(_brackets(line) for line in text.split("\n"))
    return bool(found >= a["num_placeholders"])


def _brackets(line: str) -> int:
    count, place = 0, line.find("[")
    while place >= 0:
        end = line.find("]", place)
        if end < 0:
            break
        count, place = count + 1, line.find("[", end)
    return count


def has_postscript(text: str, a: Arguments) -> bool:
    """The postscript's marker is found, wherever it is."""
    marker, lower = a["postscript_marker"].strip(), text.lower()
    known = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(known.get(marker, re.escape(marker.lower())), lower) is not None


def number_bullets(text: str, a: Arguments) -> bool:
    """Exactly so many lines that begin with one `*`, or with `-`; a line of dashes counts as well."""
    lines = [line.lstrip() for line in text.split("\n")]
    starred = sum(line[:1] == "*" and line[1:2] != "*" for line in lines) - (lines[-1] == "*")
    dashed = sum(line[:1] == "-" for line in lines)
    return bool(starred + dashed == a["num_bullets"])


def constrained_response(text: str, a: Arguments) -> bool:
    """One of the three answers of IFEval is found."""
    return any(option in text for option in OPTIONS)


def number_highlights(text: str, a: Arguments) -> bool:
    """At least so many parts in stars, *so* or **so**, none longer than a line."""
    found = sum(_highlights(line) for line in text.split("\n"))
    return bool(found >= a["num_highlights"])


def _highlights(line: str) -> int:
    pieces = line.split("*")
    # stars are paired from the left: what is between the first and the second, the third and the fourth
    single = sum(bool(piece.strip()) for piece in pieces[1:-1:2])
    double, place = 0, 1
    while place + 2 < len(pieces):
        # two stars are an empty piece between them
        if not pieces[place] and not pieces[place + 2] and place + 3 < len(pieces):
            double, place = double + bool(pieces[place + 1].strip()), place + 4
        else:
            place += 1
    return single + double


def number_sections(text: str, a: Arguments) -> bool:
    """At least so many times the word that opens a section, with a number after it."""
    pattern = rf"{re.escape(a['section_spliter'].strip())}\s?\d"
    return bool(sum(1 for _ in re.finditer(pattern, text)) >= a["num_sections"])


def is_json(text: str, a: Arguments) -> bool:
    """All of the text is JSON, with or without the fences of a block of code."""
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str, a: Arguments) -> bool:
    """A title in double angular brackets, on one line: <<so>>."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end > start + 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str, a: Arguments) -> bool:
    """Two different answers, divided by six stars."""
    answers = _without_empty_ends(text.split("******"))
    return len(answers) == 2 and all(answers) and answers[0] != answers[1]


def repeats_prompt(text: str, a: Arguments) -> bool:
    """The text begins with the request, in any case."""
    return text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower())


def ends_with(text: str, a: Arguments) -> bool:
    """The text ends with a phrase, in any case; quotation marks around the text do not count."""
    return text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


def capital_frequency(text: str, a: Arguments) -> bool:
    """How many words are in capital letters."""
    return related(capital_words(text), a["capital_relation"], a["capital_frequency"])


def all_capitals(text: str, a: Arguments) -> bool:
    """No lower-case letter, and in no other language than English."""
    return text.isupper() and may_be_english(text)


def all_lowercase(text: str, a: Arguments) -> bool:
    """No capital letter, and in no other language than English."""
    return text.islower() and may_be_english(text)


def no_comma(text: str, a: Arguments) -> bool:
    """No comma."""
    return "," not in text


def is_quoted(text: str, a: Arguments) -> bool:
    """The text is wrapped in double quotation marks."""
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def _found(word: str, text: str) -> int:
    return sum(1 for _ in re.finditer(re.escape(word), text, flags=re.IGNORECASE))


def _without_empty_ends(parts: list[str]) -> list[str]:
    """Parts stripped, the first and the last left out where they are empty."""
    stripped = [part.strip() for part in parts]
    last = len(stripped) - 1
    return [part for place, part in enumerate(stripped) if part or place not in (0, last)]
