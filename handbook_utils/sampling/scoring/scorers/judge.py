"""A language model as judge: how often an answer is preferred to another one to the same prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from handbook_utils.records import Completion
from handbook_utils.sampling.endpoint_client import RefusedError
from handbook_utils.sampling.judging import Ask, compare
from handbook_utils.sampling.scoring.score import NoScore


@dataclass(frozen=True)
class JudgeScorer:
    """How often an answer is preferred to another one to the same prompt: 1 won, 0.5 tied, 0 lost.

    Both orders are asked for and averaged, so a judge that always takes the first answer gives 0.5.
    `name.agrees` is 1 where both orders say the same; `name.first` is how often the answer shown first won,
    ties half: its distance from 0.5 is the judge's position bias.

    Attributes:
        name: of the column.
        ask: sends messages to the judge.
        criterion: what makes an answer better, as told to the judge.
        opponents: the answer to compare with, by prompt id; None: the prompt's first sample.
        parallel: comparisons asked for at once.
    """

    name: str
    ask: Ask
    criterion: str
    opponents: Mapping[str, str] | None = None
    parallel: int = 8

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float | NoScore]]:
        """Judge every answer; a reply without a verdict leaves the row without a score."""
        opponents = first_samples(completions) if self.opponents is None else self.opponents
        with ThreadPoolExecutor(self.parallel) as pool:
            judged = list(pool.map(lambda row: self._judged(row, opponents.get(row.prompt_id)), completions))
        return {
            self.name: [value for value, *_ in judged],
            f"{self.name}.agrees": [agrees for _, agrees, _ in judged],
            f"{self.name}.first": [first for *_, first in judged],
        }

    def _judged(self, row: Completion, opponent: str | None) -> tuple[float | NoScore, float, float]:
        if opponent is None:
            return NoScore("there is no answer to this prompt to compare with"), 0.0, 0.5
        if opponent == row.completion:
            return 0.5, 1.0, 0.5
        try:
            compared = compare(self.ask, row.prompt, row.completion, opponent, criterion=self.criterion)
        except RefusedError as error:
            return NoScore(str(error)), 0.0, 0.5
        return 1 - compared.preference, float(compared.agrees), compared.first


def first_samples(completions: Iterable[Completion]) -> dict[str, str]:
    """The text of each prompt's sample with the lowest index."""
    first: dict[str, Completion] = {}
    for row in completions:
        if row.prompt_id not in first or row.sample_index < first[row.prompt_id].sample_index:
            first[row.prompt_id] = row
    return {name: row.completion for name, row in first.items()}
