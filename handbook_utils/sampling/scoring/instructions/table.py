"""The one table of verifiable instructions: IFEval's ids, their arguments, and where verdicts may differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from handbook_utils.sampling.scoring.instructions import checks
from handbook_utils.sampling.scoring.instructions.checks import Check

LITERAL: Final = "a keyword is taken as it is written; the original reads it as a regular expression"
LANGUAGE: Final = (
    "script and frequent words tell the language, and what they cannot tell fails; the original asks "
    "langdetect, and passes what that cannot tell"
)
ENGLISH: Final = (
    "fails where script and frequent words tell another language than English; the original asks langdetect, "
    "which takes much English in capitals for another language"
)


@dataclass(frozen=True)
class Instruction:
    """An instruction that code can check.

    Attributes:
        check: whether a text follows it.
        arguments: by name, what each is: "count", "position", "relation", "text", "texts", "letter" or
            "language". All are needed.
        differs: where a verdict may differ from the original's; empty where it does not.
    """

    check: Check
    arguments: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""


INSTRUCTIONS: Final[dict[str, Instruction]] = {
    "keywords:existence": Instruction(checks.has_keywords, {"keywords": "texts"}, LITERAL),
    "keywords:frequency": Instruction(
        checks.keyword_frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}, LITERAL
    ),
    "keywords:forbidden_words": Instruction(checks.lacks_words, {"forbidden_words": "texts"}, LITERAL),
    "keywords:letter_frequency": Instruction(
        checks.letter_frequency,
        {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
        "# and ! are counted as well; older copies of the original draw a letter at random in their place",
    ),
    "language:response_language": Instruction(checks.in_language, {"language": "language"}, LANGUAGE),
    "length_constraints:number_sentences": Instruction(
        checks.number_sentences,
        {"num_sentences": "count", "relation": "relation"},
        "sentences end by rules written here; the original asks nltk's Punkt",
    ),
    "length_constraints:number_paragraphs": Instruction(
        checks.number_paragraphs, {"num_paragraphs": "count"}
    ),
    "length_constraints:number_words": Instruction(
        checks.number_words, {"num_words": "count", "relation": "relation"}
    ),
    "length_constraints:nth_paragraph_first_word": Instruction(
        checks.paragraph_first_word,
        {"num_paragraphs": "count", "nth_paragraph": "position", "first_word": "text"},
    ),
    "detectable_content:number_placeholders": Instruction(
        checks.number_placeholders, {"num_placeholders": "count"}
    ),
    "detectable_content:postscript": Instruction(
        checks.has_postscript,
        {"postscript_marker": "text"},
        "a marker other than P.S. and P.P.S is taken as it is written, not as a regular expression",
    ),
    "detectable_format:number_bullet_lists": Instruction(checks.number_bullets, {"num_bullets": "count"}),
    "detectable_format:constrained_response": Instruction(checks.constrained_response),
    "detectable_format:number_highlighted_sections": Instruction(
        checks.number_highlights, {"num_highlights": "count"}
    ),
    "detectable_format:multiple_sections": Instruction(
        checks.number_sections, {"section_spliter": "text", "num_sections": "count"}
    ),
    "detectable_format:json_format": Instruction(checks.is_json),
    "detectable_format:title": Instruction(checks.has_title),
    "combination:two_responses": Instruction(checks.two_responses),
    "combination:repeat_prompt": Instruction(checks.repeats_prompt, {"prompt_to_repeat": "text"}),
    "startend:end_checker": Instruction(checks.ends_with, {"end_phrase": "text"}),
    "startend:quotation": Instruction(checks.is_quoted),
    "change_case:capital_word_frequency": Instruction(
        checks.capital_frequency,
        {"capital_frequency": "count", "capital_relation": "relation"},
        "words end by rules written here; the original asks nltk, which splits I'M into two",
    ),
    "change_case:english_capital": Instruction(checks.all_capitals, {}, ENGLISH),
    "change_case:english_lowercase": Instruction(checks.all_lowercase, {}, ENGLISH),
    "punctuation:no_comma": Instruction(checks.no_comma),
}
