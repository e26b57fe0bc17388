"""Sampling 16 answers of 64 tokens to prompts of about 200 tokens, against plain `generate`, on one model.

A random model of a few layers: what is measured is the work, not the answers. In the first figure no answer
ends before the limit; in the second their lengths are log-normal, as those of people and models are, and cut
at the limit. Both sides in turns, so that both meet the same disturbance; only tokens up to the end of an
answer count.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _record import record
from _shapes import generate, llama
from scipy import stats
from transformers import LlamaForCausalLM, PreTrainedModel

from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import sample_tokens
from handbook_utils.sampling.generation.rendering import TokenPrompt

PROMPTS, SAMPLES, NEW_TOKENS, ROUNDS = 8, 16, 64, 3
VOCABULARY, STOP, SHORTEST, LONGEST = 8000, 1, 180, 220
# half of the answers have at most 20 tokens, one in twenty would have more than the 64 that it may have
LENGTHS = stats.lognorm(0.7, scale=20)


def model() -> PreTrainedModel:
    """A random model whose tokens all have nearly equal chances."""
    config = llama(
        VOCABULARY,
        intermediate_size=768,
        num_hidden_layers=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def set_chance_to_stop(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Give the stop token its chance in answers of such lengths, behind as many tokens as there are.

    A forward hook: both sides pad on the left to the longest prompt, so the mask's width tells that number.
    """
    drawn = kwargs["attention_mask"].shape[1] - LONGEST
    chance = 1 - LENGTHS.sf(drawn + 1) / LENGTHS.sf(drawn)
    output.logits[..., STOP] = math.log(VOCABULARY) + math.log(chance / (1 - chance))


def prompts() -> list[TokenPrompt]:
    """Prompts of 180 to 220 random tokens; one has 220."""
    noise = np.random.default_rng(0)
    lengths = [LONGEST, *noise.integers(SHORTEST, LONGEST + 1, PROMPTS - 1)]
    return [
        TokenPrompt(f"p{row}", noise.integers(STOP + 1, VOCABULARY, length).tolist())
        for row, length in enumerate(lengths)
    ]


def ours(model: PreTrainedModel, asked: list[TokenPrompt], stops: list[int]) -> int:
    """Sample by the package; return the tokens sampled."""
    settings = SamplingSettings(SAMPLES, NEW_TOKENS, rows_per_batch=PROMPTS * SAMPLES)
    rows = sample_tokens(model, asked, settings=settings, stop_ids=frozenset(stops))
    return sum(len(row.token_ids) for row in rows)


def plain(model: PreTrainedModel, asked: list[TokenPrompt], stops: list[int]) -> int:
    """Sample by `model.generate` from the same distribution; return the tokens up to the ends of answers."""
    new = generate(model, asked, samples=SAMPLES, new_tokens=NEW_TOKENS, stops=stops)
    ended = torch.isin(new, torch.tensor(stops, dtype=torch.long))
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
    return int(lengths.sum())


def tokens_per_s(work: Callable[[], int]) -> float:
    """Tokens per second of one call."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    built, asked = model(), prompts()
    for name, stops, goal in (("fixed", [], 2.0), ("stopping", [STOP], 3.0)):
        if stops:
            built.register_forward_hook(set_chance_to_stop, with_kwargs=True)
        sides = np.array(
            [
                (
                    tokens_per_s(lambda stops=stops: ours(built, asked, stops)),
                    tokens_per_s(lambda stops=stops: plain(built, asked, stops)),
                )
                for _ in range(ROUNDS)
            ]
        )
        ratios = sides[:, 0] / sides[:, 1]
        record(
            name=f"sampling_long_prompts_{name}_speedup",
            value=float(np.median(ratios)),
            spread=float(np.ptp(ratios)) / 2,
            unit="x",
            goal=goal,
            better="higher",
            peer={"name": f"transformers generate, {SAMPLES} samples per prompt, one batch", "value": 1.0},
        )
        print(f"{name}: ratios {np.sort(ratios).round(2).tolist()}, tokens/s {sides.round().tolist()}")


if __name__ == "__main__":
    main()
