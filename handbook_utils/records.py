"""Plain records that stages pass on. Standard library only, so importing them costs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from handbook_utils.errors import DataError


class ToolUse(TypedDict, total=False):
    """What a message holds where tools are used.

    An assistant's message has `tool_calls`; a "tool" message the `name` or `tool_call_id` of what it answers.
    """

    tool_calls: list[Mapping[str, object]]
    tool_call_id: str
    name: str


class Thinking(TypedDict, total=False):
    """The thinking of an answer beside its content, under one of the names that chat templates read."""

    reasoning_content: str
    thinking: str
    reasoning: str


class Message(ToolUse, Thinking):
    """One turn of a conversation; `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


def with_text_arguments(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls of tools have JSON text for arguments, as servers and some templates want them.

    >>> call = {"function": {"name": "add", "arguments": {"a": 2}}}
    >>> with_text_arguments([{"role": "assistant", "content": "", "tool_calls": [call]}])[0]["tool_calls"]
    [{'function': {'name': 'add', 'arguments': '{"a": 2}'}}]
    """
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _with_text(call: Any) -> Any:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    arguments = inner.get("arguments") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(arguments, Mapping):
        return call
    changed = {**inner, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {**call, "function": changed} if "function" in call else changed


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the preferred one first."""

    prompt_id: str
    prompt: list[Message]
    chosen: str
    rejected: str


# why an answer ended that speculative rejection stopped: it is a beginning, and is never selected
REJECTED = "rejected"


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    Attributes:
        prompt_id: the prompt's stable name; with `sample_index` it is unique in a run.
        sample_index: which of the prompt's samples this is, from 0.
        prompt: the conversation that was answered.
        completion: the answer's text without special tokens.
        tokens: sampled tokens, the end-of-turn token included.
        finish_reason: "stop" (the model ended its turn), "length" (cut at the limit), or "rejected" (stopped
            for the low score of its beginning).
        logprob: natural log-probability of the sampled tokens at temperature 1, summed; None where the
            engine does not tell it.
    """

    prompt_id: str
    sample_index: int
    prompt: list[Message]
    completion: str
    tokens: int
    finish_reason: str
    logprob: float | None


@dataclass(frozen=True)
class ScoredCompletion(Completion):
    """A completion with one number per scorer, parts of a score as `scorer.part`."""

    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: the point estimate.
        low: lower end of the interval, in `unit`.
        high: upper end of the interval, in `unit`.
        level: confidence level, 0.95 unless told.
        n: independent units the interval rests on (prompts, not rows).
        unit: unit of `value` ("gold reward", "nats", "words", "rate", ...).
        method: how the interval was made ("bootstrap-t", "wilson", ...).
        seed: seed of the resampling; None where nothing was drawn.

    >>> str(Estimate(0.8134, 0.79, 0.84, 0.95, 200, "gold reward", "bootstrap-t", 0))
    '0.813 [0.790, 0.840]'
    >>> str(Estimate(-0.0001, -0.0004, 0.01, 0.95, 200, "gold reward", "bootstrap-t", 0))
    '0.000 [0.000, 0.010]'
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    unit: str
    method: str
    seed: int | None = None

    def __post_init__(self) -> None:
        # NaN compares false, so a NaN interval is refused here too
        if not self.low <= self.high:
            raise DataError(f"an interval needs low <= high, got [{self.low}, {self.high}]")
        if math.isnan(self.value):
            raise DataError("an estimate cannot be NaN")

    def __str__(self) -> str:
        digits = 1 if abs(self.value) >= 10 else 3
        # z: what rounds to zero has no sign
        return f"{self.value:z.{digits}f} [{self.low:z.{digits}f}, {self.high:z.{digits}f}]"

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary; an end at infinity is None. `from_json` is its inverse."""
        record = asdict(self)
        return record | {end: None for end in ("low", "high") if math.isinf(record[end])}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Estimate:
        """Rebuild from `to_json`."""
        low = -math.inf if record["low"] is None else record["low"]
        high = math.inf if record["high"] is None else record["high"]
        return cls(**{**record, "low": low, "high": high})


@dataclass(frozen=True)
class RunResult:
    """What a finished stage found.

    Attributes:
        stage: the stage's name ("sft", "dpo", ...).
        path: the run folder.
        final_metrics: what was measured at the end, by name, each with its interval.
        runtime_s: wall-clock seconds, all sessions of a resumed run added up.
        peak_memory_gib: highest resident memory of the process (on a GPU, of the device).
        tokens_per_s: tokens trained on or sampled a second; None where no tokens were counted.
        cautions: what to know before relying on an interval, such as that its prompts are few.
        reused: whether an earlier call had finished this run, so that now it was only read.
    """

    stage: str
    path: Path
    final_metrics: Mapping[str, Estimate]
    runtime_s: float
    peak_memory_gib: float
    tokens_per_s: float | None = None
    cautions: tuple[str, ...] = ()
    reused: bool = field(default=False, compare=False)
