"""Verifiable instructions as a scorer: whether an answer follows all of its prompt's, or how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from handbook_utils.data.load import Locator
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.instructions.accuracy import COUNT, INSTRUCTION, PROMPT
from handbook_utils.sampling.scoring.instructions.asked import Asked, asked_of, read_asked
from handbook_utils.sampling.scoring.instructions.following import followed
from handbook_utils.sampling.scoring.score import NoScore
from handbook_utils.schema.sampling import InstructionsSection

Level = Literal["strict", "loose"]
MISSING = NoScore("DataError: no instructions are on record for this prompt")


@dataclass(frozen=True)
class InstructionsScorer:
    """Checks answers against the instructions of their prompts.

    Attributes:
        name: of the column; its parts are `name.prompt_strict` and so on.
        asked: the instructions by prompt id, as `read_asked` gives them.
        reward: what the column is: 1 where all of them are followed ("all"), or the share that is ("share").
        level: which verdicts the column goes by.
    """

    name: str
    asked: Mapping[str, Sequence[Asked]]
    reward: Literal["all", "share"] = "all"
    level: Level = "strict"

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float | NoScore | None]]:
        """Check every answer; one to a prompt without instructions on record has no score."""
        rows = [self._scores(row) for row in completions]
        parts = [*PROMPT.values(), *INSTRUCTION.values(), COUNT]
        columns: dict[str, list[float | NoScore | None]] = {
            self.name: [MISSING if row is None else row[self._rewarded] for row in rows]
        }
        # the reason is told once, by the column that is the score
        return columns | {
            f"{self.name}.{part}": [None if row is None else row[part] for row in rows] for part in parts
        }

    @property
    def _rewarded(self) -> str:
        return (PROMPT if self.reward == "all" else INSTRUCTION)[self.level]

    def _scores(self, row: Completion) -> dict[str, float] | None:
        asked = asked_of(row, self.asked)
        if asked is None:
            return None
        found = followed(row.completion, asked)
        verdicts = {"strict": found.strict, "loose": found.loose}
        return {
            **{PROMPT[level]: float(all(one)) for level, one in verdicts.items()},
            **{INSTRUCTION[level]: sum(one) / len(one) for level, one in verdicts.items()},
            COUNT: float(len(asked)),
        }


def instructions_on_record(name: str, section: InstructionsSection, run: Locator) -> InstructionsScorer:
    """The scorer `instructions`; all that it will check is read and known to be checkable.

    Raises:
        DataError: as `read_asked`.
    """
    return InstructionsScorer(
        name, read_asked(section.prompts, run), section.reward, "loose" if section.loose else "strict"
    )
