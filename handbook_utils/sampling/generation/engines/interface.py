"""What every engine takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from handbook_utils.errors import DataError
from handbook_utils.records import Completion, Message

Prompt = tuple[str, list[Message]]
# called with (new tokens, newly finished answers)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are drawn.

    Attributes:
        samples: answers per prompt.
        max_new_tokens: an answer that has not ended by then is cut.
        temperature: divides the logits; 0 is greedy.
        top_p: nucleus; 1 lets every token take part.
        seed: names the noise, together with prompt id, sample index and step.
        rows_per_batch: answers decoded at once; memory grows with it, samples change by rounding alone.
    Raises:
        DataError: fewer than one sample.
    """

    samples: int = 1
    max_new_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    rows_per_batch: int = 512

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"n, the answers per prompt, must be at least 1, got {self.samples}.")


@dataclass(frozen=True)
class Answers:
    """What an engine made of some prompts; each of them is answered n times, or skipped.

    Attributes:
        completions: in order of prompts, then sample index.
        skipped: why a prompt has no answers, by prompt id.
        shortened: ids of prompts that were cut to fit; their completions hold what was asked in the end.
        scored_tokens: tokens of beginnings that were scored to decide whether an answer goes on.
    """

    completions: list[Completion]
    skipped: Mapping[str, str] = field(default_factory=dict)
    shortened: Sequence[str] = ()
    scored_tokens: int = 0


class Engine(Protocol):
    """Turns conversations into answers.

    An engine applies the chat template once (itself, or the server it asks), draws by inverse temperature and
    nucleus only (no top-k), names its noise by (seed, prompt id, sample index) as far as it can, and reports
    for each answer whether the model ended it ("stop") or the limit did ("length").
    """

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, *, progress: Progress | None = None
    ) -> Answers:
        """Sample `settings.samples` answers to each prompt.

        Raises:
            DataError: a prompt that cannot be answered, where the engine was told not to skip it.
            ModelError: the engine cannot work at all; another prompt would fare no better.
        """
        ...
