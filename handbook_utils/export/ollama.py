"""An Ollama Modelfile: the chat template in Ollama's own notation, and only where that says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handbook_utils.chat.render import render_conversations
from handbook_utils.errors import TemplateError
from handbook_utils.export.talks import TALKS

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
# words that no template has in it, so that they are found again in what it renders
_SYSTEM, _USER, _ANSWER, _NEXT = "QsysQ", "QuserQ", "QanswerQ", "QnextQ"
# Ollama's names of what generation_config.json may hold
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class TurnMarks:
    """A chat template as what stands around each message.

    Attributes:
        start: before all else.
        system: before and after a system message.
        user: before and after a question.
        assistant: before and after an answer.
        opening: after the last question, so that an answer is written.
        default_system: the system message that the template adds where there is none; None: it adds none.
    """

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str
    default_system: str | None = None

    def text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as Ollama would render it, with the answer's turn opened.

        >>> marks = TurnMarks("", ("<s>", "."), ("<u>", "."), ("<a>", "."), "<a>")
        >>> marks.text([{"role": "user", "content": "Hi"}])
        '<u>Hi.<a>'
        """
        if self.default_system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        turns = (around[message["role"]] for message in messages)
        said = (
            before + message["content"] + after
            for message, (before, after) in zip(messages, turns, strict=True)
        )
        return self.start + "".join(said) + self.opening


def turn_marks(render: Render) -> TurnMarks | None:
    """Find what a template writes around messages; None where it does anything else with them.

    Args:
        render: of messages and whether to open an answer; the template's text.
    Returns:
        Marks that give the template's own text for each conversation that it takes, compared one by one.
    """
    try:
        marks = _found(render)
    except (TemplateError, ValueError):
        return None
    for messages in TALKS.values():
        try:
            text = render(messages, True)
        except TemplateError:
            continue
        if marks.text(messages) != text:
            return None
    return marks


def _found(render: Render) -> TurnMarks:
    """The marks, as what is left of texts with known words in them; ValueError where they are not there."""
    user, answer, following = (
        {"role": role, "content": text}
        for role, text in (("user", _USER), ("assistant", _ANSWER), ("user", _NEXT))
    )
    head, after_user = _around(render([user], False), _USER)
    talk = render([user, answer, following], False)
    _, rest = _around(talk, _USER)
    between, rest = _around(rest, _ANSWER)
    before_answer = _without_begin(between, after_user)
    after_answer = _around(render([user, answer], False), _ANSWER)[1]
    before_user = _without_begin(_around(rest, _NEXT)[0], after_answer)
    start = _without_end(head, before_user)
    opening = _without_begin(render([user], True), head + _USER + after_user)
    pieces: dict[str, Any] = {
        "user": (before_user, after_user),
        "assistant": (before_answer, after_answer),
        "opening": opening,
    }
    system = {"role": "system", "content": _SYSTEM}
    try:
        before, rest = _around(render([system, user], False), _SYSTEM)
    except TemplateError:  # takes no system message, and so is never given one
        return TurnMarks(start=start, system=("", ""), **pieces)
    after_system = _without_end(_around(rest, _USER)[0], before_user)
    if before.startswith(start) and not (start.startswith(before) and start != before):
        return TurnMarks(start=start, system=(before[len(start) :], after_system), **pieces)
    default = _without_end(_without_begin(start, before), after_system)
    return TurnMarks(start="", system=(before, after_system), default_system=default, **pieces)


def _around(text: str, word: str) -> tuple[str, str]:
    if text.count(word) != 1:
        raise ValueError(f"'{word}' is not there once")
    before, _, after = text.partition(word)
    return before, after


def _without_begin(text: str, begin: str) -> str:
    if not text.startswith(begin):
        raise ValueError("another beginning")
    return text[len(begin) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("another end")
    return text[: len(text) - len(end)]


def go_template(marks: TurnMarks, *, without: str = "") -> str | None:
    """The marks as a template of Go, which Ollama reads; None where they hold what ends one.

    Args:
        marks: of the chat template.
        without: a text that is left out at the beginning, for Ollama adds that token itself.
    """
    around = [("system", marks.system), ("user", marks.user), ("assistant", marks.assistant)]
    texts = [marks.start, marks.opening, *(text for _, pair in around for text in pair)]
    if any(mark in text for text in texts for mark in ("{{", "}}", '"""')):
        return None
    start, before_system = marks.start, marks.system[0]
    if start:
        start = start.removeprefix(without)
    else:
        before_system = before_system.removeprefix(without)
    around[0] = ("system", (before_system, marks.system[1]))
    branches = "".join(
        f'{{{{ {"if" if place == 0 else "else if"} eq .Role "{role}" }}}}{pair[0]}{{{{ .Content }}}}{pair[1]}'
        for place, (role, pair) in enumerate(around)
    )
    return f"{start}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{marks.opening}"


def modelfile(
    tokenizer: Any, settings: Mapping[str, Any], *, ends: Sequence[str], positions: int | None
) -> str:
    """An Ollama Modelfile for a folder of weights.

    Args:
        tokenizer: of the export.
        settings: what its `generation_config.json` holds.
        ends: texts of the tokens that end an answer.
        positions: most tokens of a conversation; None where the model does not say.
    """
    lines = ["FROM ."]
    marks = _marks_of(tokenizer)
    template = None if marks is None else go_template(marks, without=_added_start(tokenizer))
    if template is not None and marks is not None:
        lines.append(f'TEMPLATE """{template}"""')
        if marks.default_system:
            lines.append(f'SYSTEM """{marks.default_system}"""')
    else:
        lines[:0] = [
            "# This model's chat template does more than writing marks around messages, so it could not be",
            "# turned into Ollama's notation. Without a TEMPLATE Ollama asks the model in another form than",
            "# it was trained in. Write one and compare it with `handbook check-served`, or use",
            "# llama-server --jinja, which reads the template itself.",
        ]
    lines += [f'PARAMETER stop "{end}"' for end in ends if '"' not in end and end.strip()]
    lines += [
        f"PARAMETER {theirs} {settings[ours]}"
        for ours, theirs in PARAMETERS.items()
        if isinstance(settings.get(ours), int | float)
    ]
    if positions is not None and positions < 4096:
        lines.append(f"PARAMETER num_ctx {positions}")
    return "\n".join(lines) + "\n"


def _marks_of(tokenizer: Any) -> TurnMarks | None:
    if not tokenizer.chat_template:
        return None

    def render(messages: Sequence[Mapping[str, Any]], opened: bool) -> str:
        return render_conversations(tokenizer, [messages], add_generation_prompt=opened)[0][0]

    return turn_marks(render)


def _added_start(tokenizer: Any) -> str:
    """The token that the tokenizer puts before any text, which Ollama then adds as well; "" for none."""
    start = tokenizer.bos_token_id
    if start is None or tokenizer("a")["input_ids"][:1] != [start]:
        return ""
    return str(tokenizer.bos_token)
