"""Two answers compared by a model in both orders: one that always takes the first answer decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handbook_utils.records import Message
from handbook_utils.sampling.annotation.feedback.asking import Asker
from handbook_utils.sampling.endpoint_client import RefusedError
from handbook_utils.sampling.scoring.scorers.judge import VALUES, judge_messages, read_verdict


@dataclass(frozen=True)
class Compared:
    """What a model says of two answers.

    Attributes:
        preference: from 0 for the first answer to 1 for the second, the mean of both orders.
        orders: its verdicts as it gave them, "A" being the answer that it saw first: the first answer shown
            first, and shown second.
    """

    preference: float
    orders: tuple[str, str]

    @property
    def verdict(self) -> str:
        """The better answer, "a" or "b", or "tie"."""
        return "a" if self.preference < 0.5 else "b" if self.preference > 0.5 else "tie"

    @property
    def agrees(self) -> bool:
        """Whether both orders gave the same verdict."""
        first, second = self.orders
        return VALUES[first] == 1 - VALUES[second]

    @property
    def first(self) -> float:
        """How often the answer that was shown first won, a tie counting half."""
        return sum(VALUES[verdict] for verdict in self.orders) / 2


def compare(ask: Asker, prompt: Sequence[Message], a: str, b: str, *, criterion: str) -> Compared:
    """Compare two answers in both orders.

    Raises:
        RefusedError: a reply holds no verdict, or there is none.
    """
    orders = []
    for shown in ((a, b), (b, a)):
        reply = ask(judge_messages(prompt, *shown, criterion=criterion))
        verdict = read_verdict(reply)
        if verdict is None:
            raise RefusedError(f"no verdict in the reply, which ends: {reply[-80:]!r}")
        orders.append(verdict)
    for_b = ((1 - VALUES[orders[0]]) + VALUES[orders[1]]) / 2
    return Compared(for_b, (orders[0], orders[1]))
