"""Memory of a run of an online stage: its highest moment, in sampling, scoring, a look, or learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from handbook_utils.planning.changes import (
    SHORTEST,
    Changed,
    Run,
    Way,
    adapter,
    checkpoint,
    quantise,
    smaller,
)
from handbook_utils.planning.live_bytes import ACTIVATIONS
from handbook_utils.planning.memory import MemoryPlan, plan_memory, with_margin
from handbook_utils.planning.rollouts.layout import Asked, learned_together
from handbook_utils.planning.rollouts.passes import (
    KEYS,
    Moment,
    logprob_bytes,
    sampling_bytes,
    scoring_bytes,
)
from handbook_utils.planning.skeleton import Step
from handbook_utils.planning.step import HEAD, Batch, step_weights
from handbook_utils.shared_prefix.answers import Layout

# bytes of a rollout's token and of its mask, which stay until it is learned from
TOKEN_BYTES = 16


@dataclass(frozen=True)
class OnlineRun(Run):
    """A run of `grpo` or `rloo`; `rows` are its prompts, with as many answers as are sampled of each.

    Attributes:
        asked: the prompts of one step on one device, those of the step with the longest.
        looked_at: held-out prompts that are answered while training; None: none.
        scorers: how each reward model computes.
        layout: of the passes that learn; None: the cheaper one, as the stage chooses.
    """

    asked: Asked = field(kw_only=True)
    looked_at: Asked | None = None
    scorers: tuple[Step, ...] = ()
    layout: Layout | None = None

    @property
    def memory(self) -> MemoryPlan:
        """Memory at the highest of all moments."""
        return max(self.moments.values(), key=lambda plan: plan.total)

    @property
    def batch(self) -> Batch:
        """The pass that learns from the longest prompts of a step."""
        groups = max(1, self.per_device // self.asked.samples)
        learned = replace(self.asked, prompts=self.asked.prompts[:groups])
        return learned_together(self.setup.step, learned, shares=self.shares, layout=self.layout)

    @property
    def smallest(self) -> int:
        """Answers to one prompt, which stay together."""
        return self.group

    @property
    def group(self) -> int:
        """Answers to one prompt, which stay together."""
        return self.asked.samples

    @property
    def can_shard(self) -> bool:
        """No: answers are sampled with whole weights."""
        return False

    @property
    def ways(self) -> tuple[Way, ...]:
        """What can be changed, the cheapest first."""
        return (_fewer_at_once, checkpoint, smaller, adapter, quantise, _shorter)

    @cached_property
    def moments(self) -> Mapping[str, MemoryPlan]:
        """Memory at the highest point of each kind of moment."""
        setup = replace(self.setup, accumulates=self.accumulation > 1)
        kept = len(self.asked.prompts) * self.asked.samples * self.asked.width * TOKEN_BYTES
        learning = plan_memory(setup, self.batch)
        learning = replace(
            learning,
            activations=learning.activations + kept,
            scorers=sum(map(step_weights, self.scorers)),
        )
        found = {"sampling": self._sampling(self.asked), "scoring": self._scoring(self.asked)}
        if self.looked_at is not None:
            found["sampling held-out answers"] = self._sampling(self.looked_at)
            found["scoring held-out answers"] = self._scoring(self.looked_at)
            found["comparing with the start model"] = logprob_bytes(self.setup.step, self.looked_at)
        others = {name: _at(learning, name, moment) for name, moment in found.items() if moment}
        return {name: with_margin(plan, setup) for name, plan in {"learning": learning, **others}.items()}

    def _sampling(self, asked: Asked) -> Moment:
        return sampling_bytes(self.setup.step, asked)

    def _scoring(self, asked: Asked) -> Moment:
        """Reward models score one after the other."""
        each = [scoring_bytes(step, asked) for step in self.scorers]
        return max(each, key=lambda parts: sum(parts.values()), default={})


def _at(learning: MemoryPlan, name: str, moment: Moment) -> MemoryPlan:
    """The plan at another moment than learning: what is held stays, and there are no gradients."""
    return replace(
        learning,
        gradients=0,
        activations=moment.get(ACTIVATIONS, 0),
        loss_head=moment.get(HEAD, 0),
        keys_and_values=moment.get(KEYS, 0),
        moment=name,
    )


def _fewer_at_once(run: Run) -> Iterator[Changed]:
    """Sample and score fewer answers at once."""
    assert isinstance(run, OnlineRun)
    rows = min(run.asked.rows, len(run.asked.prompts) * run.asked.samples)
    while rows // 2 >= run.asked.samples:
        rows //= 2
        looked_at = None if run.looked_at is None else replace(run.looked_at, rows=rows)
        changed = replace(run, asked=replace(run.asked, rows=rows), looked_at=looked_at)
        yield changed, f"{rows} answers sampled at once", f"rows_per_batch={rows}", "some time"


def _shorter(run: Run) -> Iterator[Changed]:
    """Cut answers earlier."""
    assert isinstance(run, OnlineRun)
    length = run.asked.new_tokens
    while length // 2 >= SHORTEST:
        length //= 2
        looked_at = None if run.looked_at is None else replace(run.looked_at, new_tokens=length)
        changed = replace(run, asked=replace(run.asked, new_tokens=length), looked_at=looked_at)
        yield changed, f"answers of {length} tokens", f"max_new_tokens={length}", "longer answers are cut"
