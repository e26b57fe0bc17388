"""What benchmarks of sampling and training share: a random Llama, `generate` as a peer, shapes one by one."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from _record import record
from transformers import LlamaConfig

from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.results import write_result
from handbook_utils.sampling.generation.rendering import TokenPrompt

Measured = dict[str, Any]


def llama(vocabulary: int, **changes: Any) -> LlamaConfig:
    """A Llama of six layers of 256; what is built of it next always has the same random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
    return LlamaConfig(vocab_size=vocabulary, **sizes | changes)


def generate(
    model: Any, asked: Sequence[TokenPrompt], *, samples: int, new_tokens: int, stops: Sequence[int]
) -> torch.Tensor:
    """New tokens of `model.generate`, from the distribution that the package samples from."""
    longest = max(len(prompt.token_ids) for prompt in asked)
    pads = [longest - len(prompt.token_ids) for prompt in asked]
    ids = torch.tensor([[0] * pad + one.token_ids for pad, one in zip(pads, asked, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    output: torch.Tensor = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=samples,
        max_new_tokens=new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
    )
    return output[:, longest:]


def middle(ratios: Sequence[float]) -> dict[str, float]:
    """The median over rounds, with the lowest and the highest."""
    return {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)}


def keep_speedup(name: str, figure: Mapping[str, float], goal: float, peer: str) -> None:
    """Record a peer's time over ours, as `middle` gives it."""
    record(
        name=name,
        value=figure["value"],
        spread=(figure["high"] - figure["low"]) / 2,
        unit="x",
        goal=goal,
        better="higher",
        peer={"name": peer, "value": 1.0},
    )


def measure_shapes(
    result: str,
    shapes: Mapping[str, Callable[[int], Measured]],
    keep_all: Callable[[Mapping[str, Measured]], None],
    *,
    rounds: int,
) -> None:
    """Measure the shapes that the command line names, or all, and store what was measured after each.

    Args:
        result: the name in book/results/; shapes that are not measured again keep what is there.
        shapes: what measures each, in so many rounds.
        keep_all: records the figures.
        rounds: where the command line names no other number.
    """
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", help="which to measure; all where none is named")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--show-only", action="store_true", help="store nothing")
    asked = parser.parse_args()
    stored = project_root() / "book" / "results" / f"{result}.json"
    measured: dict[str, Measured] = {}
    if asked.shapes and stored.exists():
        measured = json.loads(stored.read_text(encoding="utf-8"))["measured"]
    for name, measure in shapes.items():
        if asked.shapes and name not in asked.shapes:
            continue
        measured[name] = measure(asked.rounds)
        if not asked.show_only:
            keep_all(measured)
            in_order = {each: measured[each] for each in shapes if each in measured}
            write_result(result, {"measured": in_order}, seeds=range(asked.rounds))
