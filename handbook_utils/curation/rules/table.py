"""The one table of curation's rules: what each finds, why it matters, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from handbook_utils.errors import DataError, suggest

Action = Literal["drop", "flag", "off"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: as it is switched on and off, and as reports name it.
        action: what becomes of a row by default: "drop" removes it, "flag" keeps it and lists it.
        finds: what it finds, in a line.
        because: why such a row harms, or why it is only listed.
    """

    name: str
    action: Action
    finds: str
    because: str


@dataclass(frozen=True)
class Thresholds:
    """Where rules begin.

    Attributes:
        near: Jaccard similarity of word runs from which two texts are near-duplicates. At 0.8 about one word
            in 25 may differ.
        repeated_words: words from which an answer that comes again is called repeated; short ones may be.
        boilerplate_share: share of all answers that open or close with the same sentence.
        boilerplate_rows: and at least so many answers.
        repetition: share of an answer's runs of four words that came before in it.
        leak_words: words of a run that a row and a test prompt must share.
        leak_share: share of a test prompt's runs that a row must hold.
        leak_near: Jaccard similarity of word runs from which a row's prompt is nearly a test prompt. Lower
            than `near`, for prompts are short: of 17 words one is changed at 0.67.
    """

    near: float = 0.8
    repeated_words: int = 8
    boilerplate_share: float = 0.01
    boilerplate_rows: int = 20
    repetition: float = 0.5
    leak_words: int = 8
    leak_share: float = 0.5
    leak_near: float = 0.6

    def __post_init__(self) -> None:
        for name in ("near", "boilerplate_share", "repetition", "leak_share", "leak_near"):
            if not 0 < getattr(self, name) <= 1:
                raise DataError(
                    f"threshold '{name}' is {getattr(self, name)}; it lies above 0 and at most at 1."
                )
        for name in ("repeated_words", "boilerplate_rows", "leak_words"):
            if getattr(self, name) < 1:
                raise DataError(f"threshold '{name}' is {getattr(self, name)}; it is at least 1.")


@dataclass(frozen=True)
class Settings:
    """How rows are curated.

    Attributes:
        actions: what becomes of the rows of a rule, where it is not the default.
        thresholds: where rules begin.
        languages: codes of the languages that answers may be in; none: that of their prompt.
        tested: names of the files of prompts that are tested on.
        tokenizer: name of the model whose control tokens are looked for.
    """

    actions: Mapping[str, Action] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)
    languages: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()
    tokenizer: str | None = None

    def action(self, rule: str) -> Action:
        """What becomes of a rule's rows."""
        return self.actions.get(rule, RULES[rule].action)

    def is_on(self, *rules: str) -> bool:
        """Whether one of the rules is on."""
        return any(self.action(rule) != "off" for rule in rules)

    def not_checked(self) -> dict[str, str]:
        """Rules that are on and lack what they need, each with what to give them."""
        lacking = {}
        if self.is_on("test_prompt") and not self.tested:
            lacking["test_prompt"] = "name the files you test on: --against EVAL"
        if self.is_on("control_tokens") and not self.tokenizer:
            lacking["control_tokens"] = "name the model to be trained: --model NAME"
        return lacking

    def to_json(self) -> dict[str, Any]:
        """All that decides which rows are kept."""
        actions = {name: self.action(name) for name in RULES}
        return {
            **asdict(self),
            "actions": actions,
            "languages": list(self.languages),
            "tested": list(self.tested),
        }


def chosen_actions(
    *, drop: Iterable[str] = (), flag: Iterable[str] = (), off: Iterable[str] = ()
) -> dict[str, Action]:
    """Actions by rule, from lists of rules; "all" means every rule, and a rule named for itself goes before.

    Raises:
        DataError: there is no such rule (the nearest is named), or one is in two lists.
    """
    chosen: dict[str, Action] = {}
    lists: tuple[tuple[Action, list[str]], ...] = (("drop", [*drop]), ("flag", [*flag]), ("off", [*off]))
    for action, names in lists:
        if "all" in names:
            chosen |= dict.fromkeys(RULES, action)
    named: dict[str, Action] = {}
    for action, names in lists:
        for name in (name for name in names if name != "all"):
            if name not in RULES:
                raise DataError(f"--{action}: there is no rule '{name}'. {suggest(name, RULES)}")
            if named.setdefault(name, action) != action:
                raise DataError(f"the rule '{name}' is in --{named[name]} and in --{action}. Choose one.")
    return chosen | named


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("unreadable", "drop", "rows that training would refuse", "training stops at the first such row"),
        Rule(
            "role_order",
            "drop",
            "speakers out of order, or nobody answers",
            "which answer is learned is unclear",
        ),
        Rule(
            "nothing_learned",
            "flag",
            "rows of which no token carries loss",
            "training skips them; marks on every answer may be a mistake",
        ),
        Rule("empty", "drop", "a message or answer without text", "it teaches to say nothing"),
        Rule(
            "control_tokens",
            "drop",
            "text that the tokenizer reads as control tokens",
            "it ends turns or opens others inside a message; needs the tokenizer",
        ),
        Rule("test_prompt", "drop", "prompts that are tested on, or nearly", "the score would be too good"),
        Rule(
            "equal_pair", "drop", "a chosen answer that equals the rejected one", "there is nothing to prefer"
        ),
        Rule("repetitive", "drop", "answers that say the same again and again", "loops are learned quickly"),
        Rule("duplicate", "drop", "prompt and answer in the same words as an earlier row", "it counts twice"),
        Rule(
            "near_duplicate",
            "drop",
            "prompt and answer nearly as in an earlier row",
            "it counts nearly twice",
        ),
        Rule(
            "repeated_prompt",
            "flag",
            "the prompt of an earlier row, or nearly, with another answer",
            "several answers per prompt may be meant; keep them on one side of any split",
        ),
        Rule(
            "repeated_answer",
            "flag",
            "the answer of an earlier row, or nearly, to another prompt",
            "a canned answer may be meant",
        ),
        Rule("cut", "flag", "answers that stop in the middle of a sentence", "answers learn to stop there"),
        Rule("refused", "flag", "answers that refuse", "refusals may be meant, where they are safe ones"),
        Rule(
            "boilerplate",
            "flag",
            "an opening or closing sentence that many answers share",
            "it is learned first and soon opens every answer",
        ),
        Rule(
            "wrong_language",
            "flag",
            "answers in another language than their prompt",
            "translations are meant; other such answers are mistakes",
        ),
        Rule(
            "private_data", "flag", "personal data, keys and addresses", "a model can repeat them to anyone"
        ),
    )
}
