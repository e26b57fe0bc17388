"""Sampling 16 answers of 64 tokens to prompts of about 200 tokens, against plain `generate`, on one model.

A random model of a few layers: what is measured is the work, not the answers. In the first figure no answer
ends before the limit; in the second they end when a model's do, at lengths spread out below it. Both sides in
turns, so that both meet the same disturbance; only tokens up to the end of an answer count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from _record import record
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from handbook_utils.sampling.engines.interface import SamplingSettings
from handbook_utils.sampling.engines.transformers import sample_tokens
from handbook_utils.sampling.rendering import TokenPrompt

PROMPTS, SAMPLES, NEW_TOKENS, ROUNDS = 8, 16, 64, 3
VOCABULARY = 8000
# of a vocabulary of equal chances so many tokens end an answer: its length is 64 / 3 on average
STOPS = {"fixed": 0, "stopping": 3 * VOCABULARY // NEW_TOKENS}


def model() -> PreTrainedModel:
    """A random model whose tokens all have nearly equal chances."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def prompts() -> list[TokenPrompt]:
    """Prompts of 180 to 220 random tokens."""
    noise = np.random.default_rng(0)
    lengths = noise.integers(180, 221, PROMPTS)
    first = max(STOPS.values())
    return [
        TokenPrompt(f"p{row}", noise.integers(first, VOCABULARY, length).tolist())
        for row, length in enumerate(lengths)
    ]


def ours(model: PreTrainedModel, asked: list[TokenPrompt], stops: range) -> int:
    """Sample by the package; return the tokens sampled."""
    settings = SamplingSettings(SAMPLES, NEW_TOKENS, rows_per_batch=PROMPTS * SAMPLES)
    rows = sample_tokens(model, asked, settings=settings, stop_ids=frozenset(stops))
    return sum(len(row.token_ids) for row in rows)


def plain(model: PreTrainedModel, asked: list[TokenPrompt], stops: range) -> int:
    """Sample by `model.generate` from the same distribution; return the tokens up to the ends of answers."""
    longest = max(len(prompt.token_ids) for prompt in asked)
    pads = [longest - len(prompt.token_ids) for prompt in asked]
    ids = torch.tensor([[0] * pad + prompt.token_ids for pad, prompt in zip(pads, asked, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    output = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
    )
    new = output[:, longest:]
    ended = torch.isin(new, torch.tensor(list(stops), dtype=torch.long))
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
    return int(lengths.sum())


def tokens_per_s(work: Callable[[], int]) -> float:
    """Tokens a second of one call."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    built, asked = model(), prompts()
    for name, goal in (("fixed", 2.0), ("stopping", 3.0)):
        stops = range(STOPS[name])
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
            peer={"name": f"transformers generate, {SAMPLES} samples a prompt, one batch", "value": 1.0},
        )
        print(f"{name}: ratios {np.sort(ratios).round(2).tolist()}, tokens/s {sides.round().tolist()}")


if __name__ == "__main__":
    main()
