"""Conversations written as one text, in which the name of who speaks opens each turn."""

from __future__ import annotations

import re
from itertools import pairwise

_NAMES = {"System": "system", "Human": "user", "User": "user", "Assistant": "assistant"}
_NAMES |= {name.upper(): role for name, role in _NAMES.items()}  # Vicuna's
_OPENS = re.compile(r"\s*(?:#+[ \t]*)?(Human|User|System|HUMAN|USER|SYSTEM)[ \t]*:")
_ANSWERS = re.compile(r"(?:^|\n)[ \t]*(?:#+[ \t]*)?(?:Assistant|ASSISTANT)[ \t]*:")
_ASKS = re.compile(r"\n[ \t]*(?:Human|User|HUMAN|USER)[ \t]*:")
# Guanaco's, where nothing need stand between the turns
_HASHED = re.compile(r"\s*###[ \t]*(Human|User|Assistant|System)[ \t]*:")
# HelpSteer's, where the first turn is the user's and has no mark
_MARKED = re.compile(r"<extra_id_1>(User|Assistant)\n")


# how a text begins that some chat template has rendered
_RENDERED = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]\s*<sop>)?\s*"
    r"(\[INST\]|<<SYS>>|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>"
    r"|<\|(?:user|system|assistant|start|START_OF_TURN_TOKEN|prompter|im_user|im_system)\|>|<｜User｜>"
    r"|GPT4 Correct User:|\[\|Human\|\]|<human>:)"
)
# what opens the turn that is still to be spoken, and what stands before it in such a text
_OPEN_TURNS = (
    (re.compile(r"(ASSISTANT:)\s*$"), re.compile(r"\b(?:USER|HUMAN):")),
    (re.compile(r"(###\s*Response:)\s*$"), re.compile(r"###\s*Instruction:")),
    (
        re.compile(r"(?:^|\n)\s*((?:assistant|ai|bot|chatbot|gpt|model)\s*:)\s*$", re.IGNORECASE),
        re.compile(r"\A\s*(?:human|user)\s*:", re.IGNORECASE),
    ),
    (re.compile(r"\n\n(A:)\s*$"), re.compile(r"\A\s*H:")),
)
# how an answer ends that some chat template has rendered
_END = re.compile(
    r"(</s>|<eos>|<EOT>|<\|(?:im_end|endoftext|eot_id|end_of_text|eom_id|end_of_turn|end|return|EOT"
    r"|END_OF_TURN_TOKEN|endofturn|user|im_user)\|>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>)\s*\Z"
)


def rendered_by(text: str) -> str | None:
    """The mark of some chat template with which a text begins; None where it is plain text.

    >>> rendered_by("<s>[INST] Hi [/INST]"), rendered_by("What does [INST] mean?")
    ('[INST]', None)
    """
    found = _RENDERED.match(text)
    return found[1] if found else None


def open_turn(text: str) -> str | None:
    """What opens the answer at the end of a text of several turns that cannot be told apart; or None.

    >>> open_turn("A chat. USER: Hi ASSISTANT:"), open_turn("Human: Hi\\n\\nAssistant:")
    ('ASSISTANT:', None)
    """
    if text.rstrip()[-1:] != ":" or waits_for_answer(text):
        return None
    found = ((end.search(text), before.search(text)) for end, before in _OPEN_TURNS)
    return next((end[1] for end, before in found if end and before), None)


def written_end(text: str) -> str | None:
    """The mark with which some chat template ends an answer, where a text ends with it; else None.

    >>> written_end("Pear.</s>\\n"), written_end("Pear.")
    ('</s>', None)
    """
    found = _END.search(text) if text.rstrip()[-1:] == ">" else None
    return found[1] if found else None


def waits_for_answer(value: object) -> bool:
    """Whether a text is a transcript that ends where the assistant is to speak, which no message does."""
    is_open = isinstance(value, str) and value.rstrip().endswith(("Assistant:", "ASSISTANT:"))
    return is_open and is_transcript(value)


def is_transcript(value: object) -> bool:
    """Whether a value is one text of several turns, each opened by its speaker, as in HH-RLHF.

    >>> is_transcript("Human: Hi\\n\\nAssistant:"), is_transcript("Human: a noun.")
    (True, False)
    """
    if not isinstance(value, str) or not any(
        name in value for name in ("Assistant", "ASSISTANT", "<extra_id_1>")
    ):
        return False
    is_opened = _OPENS.match(value) and (_ANSWERS.search(value) or _is_hashed(value))
    # one that ends where the assistant is to speak is a transcript, whatever stands before it
    last = value[-40:].rstrip().rpartition("\n")[2].strip("# \t")
    is_waiting = last in ("Assistant:", "ASSISTANT:") and _ASKS.search(value)
    return bool(is_opened or is_waiting or _MARKED.search(value))


def transcript_turns(text: str) -> list[tuple[str, str]]:
    """(role, text) of each turn; an open turn of the assistant at the end has the text "".

    Turns are separated by empty lines, as in HH-RLHF. Where the user would then speak the assistant's lines,
    single line breaks separate them.

    Raises:
        ValueError: the text does not open with a speaker, or who speaks does not alternate.

    >>> transcript_turns("\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c")
    [('user', 'a'), ('assistant', 'b'), ('user', 'c')]
    """
    if _MARKED.search(text):
        first, *pieces = _MARKED.split(text)
        marked = zip(pieces[::2], pieces[1::2], strict=True)
        return [("user", first.strip()), *((_NAMES[name], said.strip()) for name, said in marked)]
    if _is_hashed(text):
        _, *pieces = _HASHED.split(text)
        hashed = zip(pieces[::2], pieces[1::2], strict=True)
        return [(_NAMES[name], said.strip()) for name, said in hashed]
    opened = _OPENS.match(text)
    # a text that opens with "Human:" may well speak of users
    names = tuple(_NAMES)
    if opened and opened[1].capitalize() == "Human":
        names = ("Human", "Assistant", "HUMAN", "ASSISTANT")
    turns = _split(text, names, breaks=r"\n\n")
    if any(role == "user" and _ANSWERS.search(said) for role, said in turns):
        turns = _split(text, names, breaks=r"\n+")
        if any(one == other for (one, _), (other, _) in pairwise(turns)):
            raise ValueError(
                "is a transcript whose turns cannot be told apart: put an empty line between them."
            )
    return turns


def _is_hashed(text: str) -> bool:
    """Whether three hash signs open each turn, so that turns can be told apart on one line."""
    return _HASHED.match(text) is not None and "### Assistant:" in text


def _split(text: str, names: tuple[str, ...], *, breaks: str) -> list[tuple[str, str]]:
    before, *pieces = re.split(rf"(?:^|{breaks})[ \t]*(?:#+[ \t]*)?({'|'.join(names)})[ \t]*:", text.lstrip())
    if before.strip() and pieces:
        raise ValueError(
            "is a transcript behind a text that nobody says. Put that text into a column `system`, or the "
            "whole into messages."
        )
    if not pieces:
        raise ValueError("expected turns opened by 'Human:' and 'Assistant:' on lines of their own.")
    return [(_NAMES[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True)]
