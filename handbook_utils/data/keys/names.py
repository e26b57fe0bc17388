"""Names of columns in the words of other tools, and the line of a recipe that reads them under ours."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

# what is asked, what more is given to it, and what is answered; in small letters, without separators
_ASKS = (
    *("prompt", "question", "query", "problem", "instruction", "inputtext", "textinput", "userprompt", "ask"),
    *("user", "human", "input"),
)
_GIVEN = ("input", "context", "inputs")
_ANSWERS = (
    *("completion", "response", "answer", "output", "generation", "solution", "outputtext", "textoutput"),
    *("answers", "target", "reply", "assistant", "gpt", "responsetext", "finalanswer"),
)
_LABELS = ("label", "desirable", "liked", "thumbsup", "isgood")
_BETTER = ("chosen", "better", "preferred", "positive", "chosenresponse", "winner", "accepted")
# whole conversations, which hold their prompt: torchtune's
_BETTER_TALKS = ("chosenconversations", "chosenconversation", "chosendialogue")
_WORSE_TALKS = ("rejectedconversations", "rejectedconversation", "rejecteddialogue")
_WORSE = ("rejected", "worse", "dispreferred", "negative", "rejectedresponse", "loser")


def mapping_for(columns: Sequence[str], kind: str) -> str:
    """What to write into a recipe where columns have other names; "" where that cannot be told.

    Args:
        columns: of a row whose format is not known.
        kind: what is to be made of it.

    >>> mapping_for(["question", "answer"], "conversation")
    'To read it as a question and its answer: `columns: {question: prompt, answer: completion}` in a recipe, \
`--column question=prompt --column answer=completion` for `handbook data`.'
    """
    plain = {"".join(filter(str.isalnum, str(column))).lower(): str(column) for column in columns}
    talks = _first(plain, _BETTER_TALKS), _first(plain, _WORSE_TALKS)
    if kind == "preference" and all(talks):
        return _line("a pair of conversations", {str(talks[0]): "chosen", str(talks[1]): "rejected"})
    asks = _first(plain, _ASKS)
    if asks is None:
        return ""
    if kind == "prompt":
        return _line("a prompt", {asks: "prompt"})
    if kind == "preference":
        better, worse = _first(plain, _BETTER), _first(plain, _WORSE)
        found = better is not None and worse is not None
        names = {asks: "prompt", str(better): "chosen", str(worse): "rejected"}
        return _line("a pair", names) if found else ""
    answers = _first(plain, [name for name in _ANSWERS if plain.get(name) != asks])
    if kind not in ("conversation", "feedback") or answers is None:
        return ""
    given = _first(plain, [name for name in _GIVEN if plain.get(name) not in (asks, answers)])
    names = (
        {asks: "prompt", answers: "completion"}
        if given is None
        else {asks: "instruction", given: "input", answers: "output"}
    )
    if kind == "feedback":
        label = _first(plain, _LABELS)
        return "" if label is None else _line("a labelled answer", {**names, label: "label"})
    return _line("a question and its answer", names)


def _first(plain: dict[str, str], names: Sequence[str]) -> str | None:
    return next((plain[name] for name in names if name in plain), None)


def _line(what: str, names: dict[str, str]) -> str:
    renamed = {theirs: ours for theirs, ours in names.items() if theirs != ours}
    if not renamed:
        return ""
    recipe = ", ".join(f"{theirs}: {ours}" for theirs, ours in renamed.items())
    options = " ".join(f"--column {shlex.quote(f'{theirs}={ours}')}" for theirs, ours in renamed.items())
    return f"To read it as {what}: `columns: {{{recipe}}}` in a recipe, `{options}` for `handbook data`."
