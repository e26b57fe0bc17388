"""Scoring 16 answers to each prompt: the prompt computed once, against a row for each answer.

A 6-layer Llama of 256 as reward model, prompts of 200 tokens, answers of 64, float32, one thread. Both sides
score the same rows in the same run, in turns; the peer is the plain loop over batches of as many rows, which
here has no padding at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _record import record
from _shapes import llama
from transformers import AutoModelForSequenceClassification

from handbook_utils.models.logprobs import sequence_rewards

PROMPTS, ANSWERS, PROMPT_TOKENS, ANSWER_TOKENS, VOCABULARY = 4, 16, 200, 64, 600
BATCH, ROUNDS, GOAL = 16, 6, 2.8


def judge() -> Any:
    """A random reward model."""
    config = llama(VOCABULARY, num_attention_heads=4, num_labels=1, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def sequences() -> list[tuple[list[int], int]]:
    """Token ids of each answer after its prompt, and where the answer begins."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(1, VOCABULARY, size=(PROMPTS, PROMPT_TOKENS)).tolist()
    answers = draw.integers(1, VOCABULARY, size=(PROMPTS, ANSWERS, ANSWER_TOKENS)).tolist()
    return [
        (prompt + own, PROMPT_TOKENS)
        for prompt, several in zip(prompts, answers, strict=True)
        for own in several
    ]


def plain(model: Any, rows: list[tuple[list[int], int]]) -> np.ndarray:
    """A row for each answer."""
    ids = torch.tensor([own for own, _ in rows])
    with torch.inference_mode():
        batches = [
            model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits for batch in ids.split(BATCH)
        ]
    return torch.cat(batches).squeeze(-1).double().numpy()


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """CPU seconds of this thread, and the scores."""
    began = time.thread_time()
    scores = work()
    return time.thread_time() - began, scores


def measure() -> None:
    """Time both sides in turns, check that they agree, record the ratio."""
    model, rows = judge(), sequences()
    ratios = []
    for round_number in range(ROUNDS + 1):
        theirs, expected = timed(lambda: plain(model, rows))
        mine, found = timed(lambda: sequence_rewards(model, rows, pad_token_id=0, batch_size=BATCH))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        if round_number:  # the first round warms up
            ratios.append(theirs / mine)
    value = statistics.median(ratios)
    print(f"scoring, {ANSWERS} answers per prompt: {value:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    ideal = ANSWERS * (PROMPT_TOKENS + ANSWER_TOKENS) / (PROMPT_TOKENS + ANSWERS * ANSWER_TOKENS)
    record(
        name="shared_prompt_scoring_speedup",
        value=value,
        spread=(max(ratios) - min(ratios)) / 2,
        unit="x",
        goal=GOAL,
        better="higher",
        peer={"name": "ratio of the tokens, all answers of a prompt in one row", "value": ideal},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure()
