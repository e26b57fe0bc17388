"""Lines of names and numbers, as trainers print them that print no dicts: `Step 10 | loss:1.2 lr:2e-5`.

So write torchtune, torchtitan, Megatron, NeMo, nanoGPT, LitGPT, MLX, and progress bars that show a loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from handbook_utils.diagnosis.keys import known_as
from handbook_utils.diagnosis.table import Table, to_number

# colours of a terminal, and numbers as numpy shows them
COLOURS = re.compile(r"\x1b\[[\d;]*m")
NUMPY = re.compile(r"np\.float\d+\(([^()]*)\)")
_PAIR = re.compile(
    r"(?<![\w/.@-])(?P<name>[A-Za-z][\w/.@-]*+(?: [A-Za-z(][\w/.()-]*+){0,5}?)(?:\s*[:=]\s*|\s++)"
    r"(?P<value>[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)\b)"
    r"(?=[\s,|;:/%)\]}A-Za-z]|$)",
    re.IGNORECASE,
)
# words before a name that say nothing more: "lm loss", "Training epoch", "reduced_train_loss"
_BEFORE = re.compile(r"^(?:training|lm|reduced|average|avg|mean|current|running|global)_(?=.)")
# the part of a run that stands behind the name: "loss train"
_BEHIND = re.compile(r"^(loss)_(train|val|valid|validation|eval)$")
# torchtune's progress bar: epoch, step, loss
_BAR = re.compile(r"^\s*\d+\|(\d+)\|")
# how far a progress bar is
_PROGRESS = re.compile(r"\|\s*(\d+)/(\d+)\s*\[")
# what a line has to say to be a record
_COUNTS, _SAYS = {"step", "epoch"}, {"loss", "eval_loss", "reward", "chosen", "accuracy"}


def read_pairs(table: Table, lines: Iterable[str]) -> None:
    """Add the lines that count a step or an epoch and say a loss or a reward there."""
    for line in lines:
        if not any(sign in line for sign in ("oss", "OSS", "eward")):
            continue
        record = pairs_of(line)
        known = _known(tuple(record))
        if known & _COUNTS and known & _SAYS:
            table.add(record)


@lru_cache(maxsize=1024)
def _known(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(known_as(names))


def pairs_of(line: str) -> dict[str, float]:
    """The numbers of a line by name.

    >>> pairs_of("step 200: train loss 1.25, val loss nan, time 102.3ms")
    {'step': 200.0, 'train_loss': 1.25, 'val_loss': nan, 'time': 102.3}
    """
    line = NUMPY.sub(r"\1", COLOURS.sub("", line))
    found: dict[str, float] = {}
    if bar := _BAR.match(line):
        found["step"] = float(bar[1])
        line = line[bar.end() :]
    for pair in _PAIR.finditer(line):
        number = to_number(pair["value"])
        if number is not None:
            found.setdefault(_name(pair["name"]), number)
    if "step" not in _known(tuple(found)) and (done := _PROGRESS.search(line)):
        # within its epoch, where there is one
        found["step"] = float(done[1]) + found.get("epoch", 0.0) * float(done[2])
    return found


@lru_cache(maxsize=4096)
def _name(text: str) -> str:
    """A name in one word, without what says nothing more.

    >>> _name("Training epoch"), _name("loss train"), _name("Learning Rate")
    ('epoch', 'train_loss', 'learning_rate')
    """
    name = "_".join(text.lower().split())
    while not known_as([name]) and (shorter := _BEFORE.sub("", name)) != name:
        name = shorter
    return _BEHIND.sub(r"\2_\1", name)
