"""16 samples of each of 8 prompts with each prompt's keys and values held once, against a copy per sample.

The peers are the decode loop of eed40be (`_earlier_decode.py`) and `generate(num_return_sequences=16)`. All
sides sample from the same random Llama in one process, in turns, on one thread's CPU time. Against the
earlier loop the time of decoding counts, without the passes that read prompts; against `generate` the whole
call. Queries and keys have large weights, since with the usual ones attention hardly moves a logit, and an
error in it would not be seen. In the pocket world both loops sample with the built-in base model.

`bench_shared_decode.py NAME ...` measures some of the shapes again.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _earlier_decode import sample_tokens as earlier_loop
from _record import record
from _shapes import generate, keep_speedup, llama, measure_shapes, middle
from transformers import LlamaForCausalLM

from handbook_utils.libraries.transformers_internals import given_cache
from handbook_utils.models.load import load_pair
from handbook_utils.pocket.world import prompts as pocket_prompts
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import SampledTokens, sample_tokens
from handbook_utils.sampling.generation.generate import stop_token_ids
from handbook_utils.sampling.generation.rendering import TokenPrompt, tokenize_prompts
from handbook_utils.shared_prefix.prompt_cache import PromptCache

PROMPTS, SAMPLES, NEW_TOKENS, VOCABULARY, STOP = 8, 16, 64, 8000, 1
ROUNDS, LARGE_WEIGHTS = 3, 8.0
# so that answers of at most 64 tokens have 43 on average
CHANCE_TO_STOP = 0.0135
Loop = Callable[..., list[SampledTokens]]


@dataclass(frozen=True)
class Work:
    """One shape, and what it is to reach.

    Attributes:
        tokens: of a prompt; for `ends` between half and one and a half of it.
        heads: for keys and values, of 8.
        ends: answers end at random.
        goal: of the earlier loop's time over ours, decoding alone.
        goal_generate: of `generate`'s time over ours, the whole call; None where it is not measured.
    """

    tokens: int
    goal: float
    heads: int = 8
    ends: bool = False
    goal_generate: float | None = None

    @property
    def name(self) -> str:
        """Of figures and stored results."""
        return f"{self.tokens}" + ("_grouped" if self.heads < 8 else "") + ("_ends" if self.ends else "")


WORKS = [
    Work(200, 1.6, goal_generate=3.3),
    Work(1000, 3.6, goal_generate=6.0),
    Work(1000, 2.0, heads=2),
    Work(200, 1.5, ends=True),
    Work(1000, 2.8, ends=True),
]


class Meter:
    """Hooks on a model that tell the time of passes that read prompts, and the bytes of keys and values."""

    def __init__(self, model: Any, ends: bool) -> None:
        self.reading_s, self.held_bytes = 0.0, 0
        self._ends = ends
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        self._began = time.thread_time()

    def _after(self, _: Any, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            self.reading_s += time.thread_time() - self._began
        else:
            self.held_bytes = held_bytes(given_cache(kwargs))
        if self._ends:
            output.logits[..., STOP] = math.log(VOCABULARY * CHANCE_TO_STOP / (1 - CHANCE_TO_STOP))


def held_bytes(cache: Any) -> int:
    """Bytes of the buffers behind a cache's keys and values."""
    if isinstance(cache, PromptCache):
        return cache.held_bytes
    states = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.untyped_storage().nbytes() for part in states)


def model_of(work: Work) -> Any:
    """A random model that attends sharply."""
    config = llama(VOCABULARY, num_key_value_heads=work.heads, max_position_embeddings=2048)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight *= LARGE_WEIGHTS
    return model


def prompts_of(work: Work) -> list[TokenPrompt]:
    """Random tokens, as many as the work says."""
    noise = np.random.default_rng(0)
    lengths = np.linspace(0.5, 1.5, PROMPTS) * work.tokens if work.ends else [work.tokens] * PROMPTS
    return [
        TokenPrompt(f"p{row}", noise.integers(2, VOCABULARY, int(length)).tolist())
        for row, length in enumerate(lengths)
    ]


@dataclass
class Spent:
    """Of one call: CPU seconds in all and of decoding, and the bytes held at the last step."""

    whole_s: float
    decode_s: float
    held: int
    rows: list[SampledTokens]


def spent(meter: Meter, call: Callable[[], list[SampledTokens]]) -> Spent:
    """Time a call."""
    meter.reading_s = 0.0
    began = time.thread_time()
    rows = call()
    whole = time.thread_time() - began
    return Spent(whole, whole - meter.reading_s, meter.held_bytes, rows)


def plain(model: Any, asked: Sequence[TokenPrompt], stops: list[int]) -> list[SampledTokens]:
    """Sample by `model.generate`; nothing is read from its answers."""
    generate(model, asked, samples=SAMPLES, new_tokens=NEW_TOKENS, stops=stops)
    return []


def agreement(mine: Sequence[SampledTokens], theirs: Sequence[SampledTokens]) -> tuple[float, float]:
    """How far two sides agree: share of equal tokens up to the first difference, and log-probabilities.

    The second figure is the largest difference of an equal answer's log-probability over its tokens.
    """
    compared = different = 0
    apart = 0.0
    for one, other in zip(mine, theirs, strict=True):
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        first = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        compared += len(one.token_ids) if first is None else first + 1
        different += first is not None
        if first is None:
            apart = max(apart, abs(one.logprob - other.logprob) / len(one.token_ids))
    return 1 - different / compared, apart


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """All figures of one shape, the sides in turns; `generate` takes longest and has one round fewer."""
    model, asked, stops = model_of(work), prompts_of(work), [STOP] if work.ends else []
    meter = Meter(model, work.ends)
    settings = SamplingSettings(SAMPLES, NEW_TOKENS, rows_per_batch=PROMPTS * SAMPLES)
    sample_tokens(model, asked[:1], settings=SamplingSettings(1, 2), stop_ids=frozenset())  # warms up
    sides: dict[str, Callable[[], list[SampledTokens]]] = {
        name: lambda loop=loop: loop(model, asked, settings=settings, stop_ids=frozenset(stops))
        for name, loop in (("ours", sample_tokens), ("earlier", earlier_loop))
    }
    timed: dict[str, list[Spent]] = {name: [] for name in (*sides, "generate")}
    for number in range(rounds):
        for name, call in sides.items():
            timed[name].append(spent(meter, call))
        if work.goal_generate is not None and number < max(1, rounds - 1):
            timed["generate"].append(spent(meter, lambda: plain(model, asked, stops)))
    [mine, *_], [theirs, *_] = timed["ours"], timed["earlier"]
    same, apart = agreement(mine.rows, theirs.rows)
    found = {
        **asdict(work),
        "new_tokens": {"value": statistics.mean(len(row.token_ids) for row in mine.rows)},
        "decode": ratio(timed, "earlier", "decode_s"),
        "whole": ratio(timed, "earlier", "whole_s"),
        "generate": ratio(timed, "generate", "whole_s") if timed["generate"] else None,
        "held": {"value": mine.held / theirs.held},
        "equal_tokens": {"value": same},
        "logprob_apart": {"value": apart},
    }
    print(work.name, json.dumps(found), flush=True)
    return found


def ratio(timed: dict[str, list[Spent]], peer: str, seconds: str) -> dict[str, float]:
    """A peer's time over ours, round by round."""
    pairs = zip(timed[peer], timed["ours"], strict=False)
    return middle([getattr(theirs, seconds) / getattr(mine, seconds) for theirs, mine in pairs])


def measure_pocket(rounds: int) -> dict[str, Any]:
    """The built-in base model on 32 prompts of the pocket world, both loops."""
    model, tokenizer = load_pair("pocket:base")
    asked = tokenize_prompts(
        tokenizer,
        [
            (one.prompt_id, [{"role": "user", "content": one.text}])
            for one in pocket_prompts("test", limit=32)
        ],
    )
    stops, settings = stop_token_ids(model, tokenizer), SamplingSettings(SAMPLES, 96)
    meter = Meter(model, ends=False)

    def one(loop: Loop) -> Spent:
        return spent(meter, lambda: loop(model, asked, settings=settings, stop_ids=stops))

    pairs = [(one(sample_tokens), one(earlier_loop)) for _ in range(2 * rounds + 1)]
    same, apart = agreement(pairs[0][0].rows, pairs[0][1].rows)
    found = {
        "whole": middle([theirs.whole_s / mine.whole_s for mine, theirs in pairs[1:]]),
        "equal_tokens": {"value": same},
        "logprob_apart": {"value": apart},
    }
    print("pocket", json.dumps(found), flush=True)
    return found


def keep(name: str, figure: dict[str, float], goal: float, peer: str) -> None:
    """Record a ratio."""
    keep_speedup(f"shared_decode_{name}", figure, goal, peer)


def keep_all(measured: Mapping[str, Any]) -> None:
    """Record every figure beside its goal."""
    for name, found in measured.items():
        if name == "pocket":
            keep("pocket_speedup", found["whole"], 1.0, "sampling of eed40be")
            continue
        keep(f"{name}_speedup", found["decode"], found["goal"], "decode of eed40be")
        if found["generate"] is not None:
            over = f"transformers generate, {SAMPLES} samples per prompt"
            keep(f"{name}_over_generate", found["generate"], found["goal_generate"], over)
    if "1000" in measured:
        held = measured["1000"]["held"]["value"]
        record(name="shared_decode_held", value=held, unit="of eed40be's bytes", goal=1 / 6)
    equal = min(found["equal_tokens"]["value"] for found in measured.values())
    record(name="shared_decode_equal", value=equal, unit="of tokens", goal=0.999, better="higher")
    apart = max(found["logprob_apart"]["value"] for found in measured.values())
    record(name="shared_decode_logprobs", value=apart, unit="nats per token", goal=1e-4)


if __name__ == "__main__":
    works = {work.name: partial(measure, work) for work in WORKS}
    measure_shapes("shared_decode", {**works, "pocket": measure_pocket}, keep_all, rounds=ROUNDS)
