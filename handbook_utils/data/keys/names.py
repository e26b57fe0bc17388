"""Names of columns in the words of other tools, and the line of a recipe that reads them under ours."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

# what is asked, what more is given to it, and what is answered; in small letters, without separators
_ASKS = (
    *("prompt", "question", "query", "problem", "instruction", "inputtext", "textinput", "userprompt", "ask"),
    *("user", "human", "input", "inputs"),
)
_GIVEN = ("input", "context", "inputs")
_ANSWERS = (
    *("completion", "response", "answer", "output", "generation", "solution", "outputtext", "textoutput"),
    *("answers", "target", "targets", "reply", "assistant", "gpt", "responsetext", "finalanswer"),
    "generatedsolution",
)
# what the model thought, where that is not among the names that are read as they are
_THOUGHTS = ("complexcot", "cot", "chainofthought")
_LABELS = ("label", "desirable", "liked", "thumbsup", "isgood")
_BETTER = (
    *("chosen", "better", "preferred", "positive", "chosenresponse", "winner", "accepted"),
    "responsej",  # of lvwerra/stack-exchange-paired, whose response_k is the worse one
)
# whole conversations, which hold their prompt: torchtune's
_BETTER_TALKS = ("chosenconversations", "chosenconversation", "chosendialogue")
_WORSE_TALKS = ("rejectedconversations", "rejectedconversation", "rejecteddialogue")
_WORSE = ("rejected", "worse", "dispreferred", "negative", "rejectedresponse", "loser", "responsek")

# a column that says which of two answers is better
VERDICT = re.compile(
    r"^labels?$|(?:^|[^a-z])(?:winner|better|best|preferred|preference|safer|choice|vote|verdict)(?:[^a-z]|$)"
)
# columns of two answers, such as response_0 and response_1, and of what else there are two
_ONE_OF_TWO = re.compile(r"(.*?)[ _-]?([ab012])", re.IGNORECASE)
_SAID = re.compile(r"response|answer|output|completion|generation|reply|ref|text")


def asking_column(columns: Sequence[str]) -> str | None:
    """The column that holds what is asked, by its name; None where none is called so."""
    return _first(_plain_names(columns), _ASKS)


def answering_column(columns: Sequence[str]) -> str | None:
    """The column that holds an answer, by its name; None where none is called so."""
    return _first(_plain_names(columns), _ANSWERS)


def mapping_for(columns: Sequence[str], kind: str) -> str:
    """What to write into a recipe where columns have other names; "" where that cannot be told.

    Args:
        columns: of a row whose format is not known.
        kind: what is to be made of it.

    >>> mapping_for(["question", "answer"], "conversation")
    'To read it as a question and its answer: `columns: {question: prompt, answer: completion}` in a recipe, \
`--column question=prompt --column answer=completion` for `handbook data`.'
    """
    plain = _plain_names(columns)
    talks = _first(plain, _BETTER_TALKS), _first(plain, _WORSE_TALKS)
    if kind == "preference" and all(talks):
        return mapping_line("a pair of conversations", {str(talks[0]): "chosen", str(talks[1]): "rejected"})
    asks = _first(plain, _ASKS)
    if kind == "preference" and (judged := _judged(list(map(str, columns)), asks)):
        return judged
    if asks is None:
        return ""
    if kind == "prompt":
        return mapping_line("a prompt", {asks: "prompt"})
    if kind == "preference":
        better, worse = _first(plain, _BETTER), _first(plain, _WORSE)
        found = better is not None and worse is not None
        names = {asks: "prompt", str(better): "chosen", str(worse): "rejected"}
        return mapping_line("a pair", names) if found else ""
    answers = _first(plain, [name for name in _ANSWERS if plain.get(name) != asks])
    if kind not in ("conversation", "feedback") or answers is None:
        return ""
    given = _first(plain, [name for name in _GIVEN if plain.get(name) not in (asks, answers)])
    names = (
        {asks: "prompt", answers: "completion"}
        if given is None
        else {asks: "instruction", given: "input", answers: "output"}
    )
    if thought := _first(plain, _THOUGHTS):
        names[thought] = "reasoning_content"
    if kind == "feedback":
        label = _first(plain, _LABELS)
        return "" if label is None else mapping_line("a labelled answer", {**names, label: "label"})
    return mapping_line("a question and its answer", names)


def _judged(columns: Sequence[str], asks: str | None) -> str:
    """How to read two answers and a column that says which is better; "" where there are no such."""
    sides: dict[str, list[str]] = {}
    for column in columns:
        if found := _ONE_OF_TWO.fullmatch(column):
            sides.setdefault(found[1].lower(), []).append(column)
    twos = {stem: pair for stem, pair in sides.items() if len(pair) == 2}
    answers = next(
        (pair for stem, pair in twos.items() if _SAID.search(stem) and not VERDICT.search(stem)), None
    )
    # one column for each answer that says whether it has won is another thing
    if answers is None or any(VERDICT.search(stem) for stem in twos):
        return ""
    single = [column for column in columns if not any(column in pair for pair in twos.values())]
    verdict = next((column for column in single if VERDICT.search(column.lower())), None)
    if verdict is None:
        return ""
    first, second = sorted(answers)
    names = {asks or "PROMPT": "prompt", first: "answer_a", second: "answer_b", verdict: "preference"}
    line = mapping_line("two answers and which is better", names)
    return f"{line} '{verdict}' then has to say a, b or tie, or 0 for the first and 1 for the second."


def _plain_names(columns: Sequence[str]) -> dict[str, str]:
    """Columns by their names in small letters, without separators."""
    return {"".join(filter(str.isalnum, str(column))).lower(): str(column) for column in columns}


def _first(plain: dict[str, str], names: Sequence[str]) -> str | None:
    return next((plain[name] for name in names if name in plain), None)


def mapping_line(what: str, names: Mapping[str, str]) -> str:
    """What to write so that columns are read under our names (theirs to ours); "" where they are ours."""
    renamed = {theirs: ours for theirs, ours in names.items() if theirs != ours}
    if not renamed:
        return ""
    recipe = ", ".join(f"{theirs}: {ours}" for theirs, ours in renamed.items())
    options = " ".join(f"--column {shlex.quote(f'{theirs}={ours}')}" for theirs, ours in renamed.items())
    return f"To read it as {what}: `columns: {{{recipe}}}` in a recipe, `{options}` for `handbook data`."
