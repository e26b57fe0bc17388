"""What says of a message or a row whether it is learned, as other tools write it.

OpenAI, Mistral and Together write `weight`, 0 or 1; axolotl `train` and `training`, ms-swift `loss` and
`loss_scale`, Tinker `trainable`, LLaMA-Factory `loss_weight`, slime `step_loss_mask`. torchtune's `masked`
says the opposite. Fireworks gives a whole row a `weight`, which may be any number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# true or 1: learned
_LEARN = (
    *("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_scale"),
    *("loss_mask", "step_loss_mask"),
)
# true or 1: not learned
_SKIP = ("masked",)
MESSAGE_MARKS = frozenset({*_LEARN, *_SKIP})
# of a whole row; with a list of values, one for each message
ROW_MARKS = frozenset(
    {
        "weight",
        "weights",
        "sample_weight",
        "example_weight",
        "loss_weight",
        "loss_weights",
        "loss_scale",
        "loss_mask",
        "loss_masks",
        "train",
        "trainable",
    }
)
# of a row or a message that is not to be used at all: one kind of name says so by true, the other by false
_OUT = frozenset(
    {
        *("exclude", "excluded", "is_excluded", "skip", "skipped", "ignore", "ignored", "drop", "dropped"),
        *("delete", "deleted", "is_deleted", "remove", "removed", "discard", "discarded", "is_discarded"),
    }
)
_IN = frozenset({"include", "included", "is_included", "keep", "kept", "valid", "is_valid"})
_ASIDE = _OUT | _IN | {"status", "answer"}
# Argilla's records and Prodigy's tasks say it in words; the latter by a column that may be anybody's
_STATUS = {"discarded", "deleted"}
_PRODIGY, _ANSWERED = ("_input_hash", "_task_hash"), ("accept", "reject", "ignore")
# of an answer that is only begun, for the model to go on: DeepSeek's and Mistral's name, Moonshot's
BEGUN = ("prefix", "partial")
# parts of a message that are learned: no answer is learned in part here
PARTIAL = frozenset({"train_detail", "training_detail", "mask"})
# what a name says that is about what is learned, known here or not
_ABOUT = re.compile(
    r"(?:^|[^a-z])(?:no|skip|is)?(?:loss|losses|train|trained|training|masks?|masked|learn|learned"
    r"|supervised?|backprop)(?:[^a-z]|$)"
)
_YES_OR_NO = {"true", "false", "0", "1", "0.0", "1.0"}
_WORDS = {"true": 1.0, "false": 0.0}


def mark_of(message: Mapping[str, Any], *, is_answer: bool) -> tuple[str, bool] | None:
    """The key by which a message says whether it is learned, and what it says; None where none does.

    Raises:
        ValueError: a mark that cannot be heeded, with the key's name: a share of the loss, a part of a
            message, two that contradict each other, a question or result that is to be learned, or a message
            that is not to be used or only begun.

    >>> mark_of({"role": "assistant", "content": "5", "weight": 0}, is_answer=True)
    ('weight', False)
    """
    if key := next((key for key, is_out in put_aside(message).items() if is_out), None):
        raise ValueError(f"'{key}' says that the message is not to be used. Take it out of the conversation.")
    if key := next((key for key in BEGUN if _yes_or_no(message.get(key))), None):
        raise ValueError(f"'{key}' says that the answer is only begun. Give it whole, or leave the row out.")
    for key in PARTIAL & message.keys():
        if message[key] not in (None, "", [], {}):
            raise ValueError(f"'{key}' cannot be heeded: an answer is learned as a whole. Take the key out.")
    if unknown := next((key for key in message if is_unknown_mark(key, message[key])), None):
        raise ValueError(
            f"'{unknown}' seems to say whether the message is learned, and that name is not known. Call it "
            "'weight' (1 or 0), or take it out."
        )
    said = dict(_said(message))
    if len(set(said.values())) > 1:
        raise ValueError(f"{' and '.join(map(repr, said))} contradict each other. Keep one.")
    # `weight: 1` on every message is a habit; the other keys ask for it
    asks = [key for key, learns in said.items() if learns and key != "weight"]
    if asks and not is_answer:
        raise ValueError(
            f"'{asks[0]}' says that the message is learned, and only answers of the assistant are. "
            "Take the key out, or set it to 0."
        )
    return next(iter(said.items()), None)


def put_aside(row: Mapping[str, Any]) -> dict[str, bool]:
    """The keys by which a row or a message says that it is not to be used (True) or is (False).

    >>> put_aside({"exclude": True, "is_valid": "true"}), put_aside({"valid": "2024-05-01", "skip": None})
    ({'exclude': True, 'is_valid': False}, {})
    """
    return {} if _ASIDE.isdisjoint(row) else dict(_aside(row))


def _aside(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    for key in filter(_ASIDE.__contains__, row):
        value = row[key]
        if (says := _yes_or_no(value)) is not None and key in _OUT | _IN:
            yield key, says == (key in _OUT)
        elif key == "status" and isinstance(value, str) and value.lower() in _STATUS:
            yield key, True
        elif key == "answer" and value in _ANSWERED and any(name in row for name in _PRODIGY):
            yield key, value != "accept"


def _yes_or_no(value: Any) -> bool | None:
    """A value that says yes or no, also as a number or a text; None for any other."""
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    return text in ("true", "1", "1.0") if text in _YES_OR_NO else None


def is_unknown_mark(key: str, value: Any) -> bool:
    """Whether a key of another name says yes or no to something about the loss.

    >>> is_unknown_mark("no_loss", True), is_unknown_mark("train_id", "a7"), is_unknown_mark("weight", 0)
    (True, False, False)
    """
    if key in MESSAGE_MARKS or key in PARTIAL or _yes_or_no(value) is None:
        return False
    return bool(_ABOUT.search(key.lower()))


def _said(message: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """(key, whether it says "learn") of each mark of a message."""
    for key in (*_LEARN, *_SKIP):
        if (value := message.get(key)) is not None:
            yield key, is_learned(key, value) != (key in _SKIP)


def is_learned(key: str, value: Any) -> bool:
    """A weight of 1 or 0, or true or false, also as text.

    Raises:
        ValueError: any other value.

    >>> is_learned("weight", "0.0")
    False
    """
    try:
        text = value.strip().lower() if isinstance(value, str) else value
        number = _WORDS[text] if text in _WORDS else float(text)
    except (TypeError, ValueError):
        raise ValueError(f"'{key}' is {value!r}, where 1 (learned) or 0 (not learned) is known.") from None
    if number not in (0, 1):
        raise ValueError(
            f"'{key}' is {value!r}: an answer is learned (1) or not (0), and no share of its loss can be "
            "heeded. Round it, or leave out what counts little."
        )
    return bool(number)
