"""Answers of each step: sampled by our engine, scored, stored, and read back by a run that resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from handbook_utils.errors import TrainingError
from handbook_utils.online.rewards import Rewards
from handbook_utils.processes import rank, world_size
from handbook_utils.records import Completion, Message, ScoredCompletion
from handbook_utils.runs.folder import RunFolder
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import SampledTokens, sample_tokens
from handbook_utils.sampling.generation.generate import answers_of
from handbook_utils.sampling.generation.rendering import FittedPrompts, TokenPrompt
from handbook_utils.sampling.tables import completions_of, samples_table, scores_table
from handbook_utils.schema.training import OnlineRecipe

ROLLOUTS, REWARDS = "rollouts", "rewards"


@dataclass(frozen=True)
class Sampler:
    """Draws answers to prompts that are tokenised once.

    Attributes:
        tokenizer: turns tokens into text.
        prompts: messages by prompt id.
        tokens: token ids by prompt id, generation prompt included.
        stops: token ids that end an answer.
        settings: how to draw; `samples` and the seed among them.
    """

    tokenizer: Any
    prompts: Mapping[str, list[Message]]
    tokens: Mapping[str, list[int]]
    stops: frozenset[int]
    settings: SamplingSettings

    def draw(
        self, model: Any, ids: Sequence[str], *, name: str, begin: int = 0, samples: int | None = None
    ) -> tuple[list[SampledTokens], list[Completion]]:
        """Answers to some prompts, in their order, as tokens and as text.

        Args:
            model: the policy.
            ids: of prompts; one that comes twice gets other answers each time.
            name: of this draw; the noise of a token is named by it, the prompt's place, sample and token.
            begin: place of the first prompt.
            samples: answers per prompt, where not as in the settings.
        """
        places = [f"{name}.{place}" for place in range(begin, begin + len(ids))]
        given = [TokenPrompt(place, self.tokens[prompt]) for place, prompt in zip(places, ids, strict=True)]
        settings = self.settings if samples is None else replace(self.settings, samples=samples)
        sampled = sample_tokens(model, given, settings=settings, stop_ids=self.stops)
        asked = [(place, self.prompts[prompt]) for place, prompt in zip(places, ids, strict=True)]
        texts = answers_of(self.tokenizer, FittedPrompts(asked, given), sampled).completions
        named = dict(zip(places, ids, strict=True))
        return sampled, [replace(row, prompt_id=named[row.prompt_id]) for row in texts]


class Rollouts:
    """What TRL's trainer asks for answers and rewards; see `trl_bridge.Source`.

    Both are written before they are used, so a run that resumes pays for neither again.
    """

    def __init__(self, recipe: OnlineRecipe, run: RunFolder, sampler: Sampler, rewards: Rewards) -> None:
        self._recipe, self._run, self._sampler, self._rewards = recipe, run, sampler, rewards
        self._step = 0
        self._scored: list[ScoredCompletion] = []
        self._completions: Sequence[Completion] = []
        self._checked = False
        self.learns = True

    def prompt_tokens(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Token ids of each row's prompt."""
        return [self._sampler.tokens[row["prompt_id"]] for row in rows]

    def answers(self, rows: Sequence[Mapping[str, Any]], *, step: int, model: Any) -> list[list[int]]:
        """Token ids of an answer for each row; `samples` rows in a run have one prompt.

        Raises:
            TrainingError: a group of answers is split.
            ModelError: the policy gives logits that are not numbers.
        """
        samples = self._recipe.samples
        ids = [row["prompt_id"] for row in rows]
        firsts = ids[::samples]
        if ids != [prompt for prompt in firsts for _ in range(samples)]:
            raise TrainingError(
                "the trainer gave a prompt's rows apart: its groups would be compared wrongly."
            )
        self._step = step
        table = self._stored(ROLLOUTS, ids)
        if table is None:
            # places count over all processes: another number of them draws the same noise
            begin = rank() * len(firsts)
            sampled, completions = self._sampler.draw(model, firsts, name=f"rollout.{step}", begin=begin)
            table = _token_table(sampled, completions)
            self._run.write_table(self._file(ROLLOUTS), table)
        self._completions = completions_of(table, where=self._file(ROLLOUTS))
        self._run.count_tokens(sum(row.tokens for row in self._completions))
        found: list[list[int]] = table["token_ids"].to_pylist()
        return found

    def rewards(self) -> NDArray[np.float64]:
        """(rows, scorers) of the answers given last."""
        table = self._stored(REWARDS, [row.prompt_id for row in self._completions])
        if table is None:
            self._scored = self._rewards.of(self._completions, step=self._step)
            if not self._checked:
                self._rewards.check_repeats(self._scored)
            self._run.write_table(self._file(REWARDS), scores_table(self._scored))
        else:
            self._scored = completions_of(table, where=self._file(REWARDS))
        self._checked = True
        total = self._rewards.total(self._scored)
        self.learns = not self._rewards.tell_equal(total, self._recipe.samples, step=self._step)
        return self._rewards.table(self._scored)

    def logprobs(self) -> NDArray[np.float64] | None:
        """(rows,) log-probability of each answer given last, at temperature 1."""
        return np.array([row.logprob for row in self._completions], dtype=np.float64)

    def metrics(self) -> dict[str, float]:
        """Of the answers given last: parts of scores, spread inside groups, distinct answers, words."""
        samples = self._recipe.samples
        total = self._rewards.total(self._scored).reshape(-1, samples)
        texts = np.array([row.completion for row in self._scored]).reshape(-1, samples)
        parts = {
            name: float(np.nanmean([row.scores[name] for row in self._scored]))
            for name in self._scored[0].scores
            if name not in self._rewards.scorers
            and np.isfinite([row.scores[name] for row in self._scored]).any()
        }
        return {
            **{f"scores/{name}": value for name, value in parts.items() if name != "words"},
            "completions/words": parts.get("words", 0.0),
            "completions/distinct": float(np.mean([len(set(group)) / samples for group in texts])),
            "completions/empty": float(np.mean([not text.strip() for text in texts.flatten()])),
            "reward_group_std": float(np.mean(np.nanstd(total, axis=1))) if np.isfinite(total).any() else 0.0,
        }

    def _file(self, kind: str) -> str:
        return f"{kind}/step-{self._step + 1:06d}-{rank()}-of-{world_size()}.parquet"

    def _stored(self, kind: str, ids: Sequence[str]) -> pa.Table | None:
        """What an earlier session stored for this step and these prompts."""
        if not self._run.has(self._file(kind)):
            return None
        table: pa.Table = self._run.read_table(self._file(kind))
        return table if table["prompt_id"].to_pylist() == list(ids) else None


def _token_table(sampled: Sequence[SampledTokens], completions: Sequence[Completion]) -> pa.Table:
    ids = pa.array([row.token_ids for row in sampled], pa.list_(pa.int32()))
    return samples_table(completions).append_column("token_ids", ids)
