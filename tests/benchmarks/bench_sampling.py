"""Tokens per second of pocket sampling against plain `generate`: same model, prompts and samples per prompt.

Both sides sample 16 answers to each of 32 held-out prompts from an SFT model, tokenisation and decoding
included, in turns, so that both meet the same disturbance. Only tokens up to the end of turn count. The peer
runs in the batch size that is quickest for it, found before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import record

from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.pocket.world import prompts
from handbook_utils.sampling.generation.engines.interface import Prompt
from handbook_utils.sampling.generation.generate import generate, stop_token_ids

PROMPTS, SAMPLES, MAX_NEW_TOKENS, ROUNDS = 32, 16, 96, 5
PEER_BATCHES = (64, 128, 256, 512)
# enough that answers end by themselves and have the lengths of the demo's
SFT_STEPS = {"training.max_steps": 200, "training.logging_steps": 100, "eval_data": []}


def ours(model: Any, tokenizer: Any, asked: list[Prompt]) -> int:
    """Sample by the package; return the tokens sampled."""
    rows = generate(model, tokenizer, asked, samples=SAMPLES, max_new_tokens=MAX_NEW_TOKENS)
    return sum(row.tokens for row in rows)


def plain(model: Any, tokenizer: Any, asked: list[Prompt], *, rows_per_batch: int) -> int:
    """Sample by `model.generate` from the same distribution; return the tokens up to the end of turn."""
    stops = torch.tensor(sorted(stop_token_ids(model, tokenizer)))
    tokens, step = 0, max(1, rows_per_batch // SAMPLES)
    for start in range(0, len(asked), step):
        batch = tokenizer.apply_chat_template(
            [messages for _, messages in asked[start : start + step]],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=SAMPLES,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        ended = torch.isin(new, stops)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        tokens += int(lengths.sum())
        tokenizer.batch_decode(new, skip_special_tokens=True)
    return tokens


def tokens_per_s(work: Callable[[], int]) -> float:
    """Tokens per second of one call."""
    start = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - start)


def sft_model(folder: Path) -> tuple[Any, Any]:
    """A model that answers like the demo's, trained here."""
    run_stage("pocket/sft", folder / "sft", overrides=SFT_STEPS, progress=False)
    tokenizer = load_tokenizer(str(folder / "sft"))
    tokenizer.padding_side = "left"  # for the peer: it continues the last column of a batch
    return load_model(str(folder / "sft")), tokenizer


def main() -> None:
    """Measure and record."""
    folder = Path(tempfile.mkdtemp(prefix="bench-sampling-"))
    try:
        model, tokenizer = sft_model(folder)
    finally:
        shutil.rmtree(folder)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    asked = [
        (prompt.prompt_id, [{"role": "user", "content": prompt.text}])
        for prompt in prompts("test", limit=PROMPTS)
    ]
    batches = {
        rows: tokens_per_s(lambda rows=rows: plain(model, tokenizer, asked, rows_per_batch=rows))
        for rows in PEER_BATCHES
    }
    quickest = max(batches, key=lambda rows: batches[rows])
    ours(model, tokenizer, asked)
    sides = np.array(
        [
            (
                tokens_per_s(lambda: ours(model, tokenizer, asked)),
                tokens_per_s(lambda: plain(model, tokenizer, asked, rows_per_batch=quickest)),
            )
            for _ in range(ROUNDS)
        ]
    )
    report(sides, quickest)


def report(sides: np.ndarray, quickest: int) -> None:
    """Write both figures; sides is (rounds, 2) tokens per second, ours and the peer's."""
    ratios = sides[:, 0] / sides[:, 1]
    peer = f"transformers generate, {SAMPLES} samples per prompt, {quickest} rows per batch (its quickest)"
    record(
        name="pocket_sampling_speedup",
        value=float(np.median(ratios)),
        spread=float(np.ptp(ratios)) / 2,
        unit="x",
        goal=4.0,
        better="higher",
        peer={"name": peer, "value": 1.0},
    )
    record(
        name="pocket_sampling_tokens_per_s",
        value=float(np.median(sides[:, 0])),
        spread=float(np.ptp(sides[:, 0])) / 2,
        unit="tokens/s",
        better="higher",
        peer={"name": peer, "value": float(np.median(sides[:, 1]))},
    )
    print(f"ratios {np.sort(ratios).round(2).tolist()}, tokens/s {sides.round().tolist()}")


if __name__ == "__main__":
    main()
