"""The gold reward of the pocket world as a scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handbook_utils.pocket.world import gold_reward
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.score import prompt_text

GOLD_PARTS = ("helpful", "safe", "polite", "concise", "refused", "benign", "advice")


@dataclass(frozen=True)
class GoldScorer:
    """The pocket world's gold reward, and its parts as `name.helpful` and so on."""

    name: str = "gold"

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float]]:
        """Score answers to prompts of the pocket world."""
        golds = [gold_reward(prompt_text(row.prompt), row.completion).as_dict() for row in completions]
        parts = {f"{self.name}.{part}": [gold[part] for gold in golds] for part in GOLD_PARTS}
        return {self.name: [gold["value"] for gold in golds], **parts}
