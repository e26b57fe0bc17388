"""Which prompts are read together, and when the next ones take the places of answers that have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.rendering import TokenPrompt

# The next prompts wait until this share of the rows is free: each start makes a block of its own, which costs
# some operations per layer and step, and rows in small numbers are computed less quickly.
REFILL_AT = 1 / 4


@dataclass(frozen=True)
class Batch:
    """Prompts read together and the sample indices each of them is continued with."""

    prompts: Sequence[TokenPrompt]
    samples: range

    @property
    def streams(self) -> list[tuple[str, int]]:
        """(rows,) prompt id and sample index."""
        return [(prompt.prompt_id, index) for prompt in self.prompts for index in self.samples]

    @property
    def rows(self) -> int:
        """Answers it makes."""
        return len(self.prompts) * len(self.samples)


class Waiting:
    """Prompts that wait for their answers to begin, longest first: too much for the memory fails at once."""

    def __init__(self, prompts: Sequence[TokenPrompt], settings: SamplingSettings) -> None:
        ordered = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
        self._most = settings.rows_per_batch
        samples_at_once = min(settings.samples, self._most)
        ranges = [
            range(first, min(first + samples_at_once, settings.samples))
            for first in range(0, settings.samples, samples_at_once)
        ]
        # a prompt with more samples than rows comes again for the next of them
        self._queue = [(prompt, samples) for prompt in ordered for samples in ranges]
        self._next = 0

    def take(self, running: int, *, worth: float) -> Iterator[Batch]:
        """The prompts that begin now, in batches of like length; none while too little is free.

        Args:
            running: rows that are being computed.
            worth: padded key times rows for which another batch is worth its operations; see `like_lengths`.
        """
        free = self._most - running
        if running and free < REFILL_AT * self._most:
            return
        first = self._next
        while self._next < len(self._queue) and len(self._queue[self._next][1]) <= free:
            free -= len(self._queue[self._next][1])
            self._next += 1
        yield from like_lengths(self._queue[first : self._next], worth)


def like_lengths(queue: Sequence[tuple[TokenPrompt, range]], worth: float) -> Iterator[Batch]:
    """Split prompts, longest first, into batches with the same sample indices and little padding.

    A batch ends before the prompt that would bring its padding, times the rows that attend to it, above
    `worth`.

    >>> prompts = [(TokenPrompt(str(size), [0] * size), range(2)) for size in (9, 8, 5, 5)]
    >>> [[prompt.prompt_id for prompt in batch.prompts] for batch in like_lengths(prompts, worth=4)]
    [['9', '8'], ['5', '5']]
    """
    start, padding = 0, 0.0
    for place, (prompt, samples) in enumerate(queue):
        longest = len(queue[start][0].token_ids)
        padding += (longest - len(prompt.token_ids)) * len(samples)
        if samples != queue[start][1] or padding > worth:
            yield _batch(queue[start:place])
            start, padding = place, 0.0
    if start < len(queue):
        yield _batch(queue[start:])


def _batch(queue: Sequence[tuple[TokenPrompt, range]]) -> Batch:
    return Batch([prompt for prompt, _ in queue], queue[0][1])
