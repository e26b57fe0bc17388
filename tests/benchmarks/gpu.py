"""Training on a CUDA GPU: tokens/s, model-FLOPs utilisation, peak memory; SFT and DPO, rows of 2,048 tokens.

`make bench-gpu`. Models are randomly initialised from the shapes below (speed does not depend on the values),
so nothing is downloaded. Each case is a real stage in a process of its own; the first steps are warm-up.
Cases that run out of memory are kept as such. Without a GPU it says so and leaves stored figures alone, or
stores every case as not measured (null) where there are none yet. `--tiny` runs every case at toy size on
any machine, to test this script.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.results import write_result

sys.path.insert(0, str(Path(__file__).parents[1]))

TOKENS, STEPS, WARM_UP, ROWS_A_STEP = 2048, 14, 4, 8
# dense bfloat16 peak in TFLOP/s, from the makers' data sheets
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}
# hidden, layers, heads, key-value heads, inner size
SHAPES = {
    "llama-1b": ("llama", 2048, 16, 32, 8, 8192),
    "llama-3b": ("llama", 3072, 28, 24, 8, 8192),
    "llama-8b": ("llama", 4096, 32, 32, 8, 14336),
    "mistral-7b": ("mistral", 4096, 32, 32, 8, 14336),
}
TINY = {name: (shape[0], 64, 2, 4, 2, 128) for name, shape in SHAPES.items()}


@dataclass(frozen=True)
class Case:
    """One figure: a stage, a model and how it is trained ("full", "lora" or "qlora")."""

    stage: str
    model: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.model}-{self.method}"


CASES = [
    *(Case(stage, model, "full") for stage in ("sft", "dpo") for model in ("llama-1b", "llama-3b")),
    *(
        Case(stage, model, method)
        for stage in ("sft", "dpo")
        for model in ("llama-8b", "mistral-7b")
        for method in ("lora", "qlora")
    ),
]


def build_model(shape: tuple[Any, ...], folder: Path) -> int:
    """Save a random model and a byte tokenizer; return its parameters outside the embedding."""
    from tiny_models import build_tiny_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, hidden, layers, heads, kv_heads, inner = shape
    tokenizer = build_tiny_tokenizer()
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=32_000,
        max_position_embeddings=2 * TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)


def write_rows(stage: str, tokens: int, path: Path) -> None:
    """Rows that fill `tokens` with the byte tokenizer: one character, one token."""
    prompt, answer = "p" * (tokens // 2 - 4), "a" * (tokens // 2 - 4)
    row = {"prompt": prompt}
    row |= (
        {"completion": answer} if stage == "sft" else {"chosen": answer, "rejected": "b" * (tokens // 2 - 4)}
    )
    path.write_text((json.dumps(row) + "\n") * (STEPS * ROWS_A_STEP), encoding="utf-8")


def flops_per_token(case: Case, parameters: int, shape: tuple[Any, ...], tokens: int) -> float:
    """Model FLOPs of one trained token, without what recomputing activations adds.

    2 a parameter forward, 2 for the activations' gradient, 2 for the weights' own where they are trained
    (Kaplan et al. 2020, section 2.1); attention adds 4 * hidden * tokens / 2 a layer forward, and twice that
    backward. DPO runs a reference forward as well.
    """
    _, hidden, layers, *_ = shape
    forward = 2 * parameters + 2 * layers * hidden * tokens
    passes = (3 if case.method == "full" else 2) + (1 if case.stage == "dpo" else 0)
    return float(forward * passes)


def measure(case: Case, is_tiny: bool, reply: Any) -> None:
    """Run one case and send back its figures; called in a fresh process."""
    from handbook_utils.pipeline.stages import run_stage
    from handbook_utils.training.callbacks import RecordMetrics

    shape, tokens = (TINY if is_tiny else SHAPES)[case.model], 256 if is_tiny else TOKENS
    stamps: list[float] = []

    def stamp(*_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    RecordMetrics.on_step_end = stamp  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = build_model(shape, folder / "model")
        write_rows(case.stage, tokens, folder / "rows.jsonl")
        quantization = "nf4" if case.method == "qlora" else "none"
        recipe: dict[str, Any] = {
            "stage": case.stage,
            "model": {
                "name": str(folder / "model"),
                "quantization": quantization,
                "dtype": "float32" if is_tiny or case.method == "full" else "bfloat16",
            },
            "data": [{"name": str(folder / "rows.jsonl")}],
            "global_batch_size": ROWS_A_STEP,
            "training": {
                "max_steps": STEPS,
                "max_length": tokens,
                "per_device_train_batch_size": 1 if case.stage == "dpo" else 2,
                "save_strategy": "no",
            },
        }
        if case.method != "full":
            recipe["lora"] = {"rank": 16, "alpha": 32}
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        try:
            run_stage(folder / "recipe.yaml", folder / "run", progress=False)
        except torch.cuda.OutOfMemoryError:
            reply.send({"out_of_memory": True})
            return
    step_s = statistics.median(b - a for a, b in zip(stamps[WARM_UP:], stamps[WARM_UP + 1 :], strict=False))
    trained = ROWS_A_STEP * tokens * (2 if case.stage == "dpo" else 1)
    peak = next(
        (x for key, x in PEAK_TFLOPS.items() if torch.cuda.is_available() and key in device_name()), None
    )
    flops = flops_per_token(case, parameters, shape, tokens) * trained / step_s
    reply.send(
        {
            "tokens_per_s": trained / step_s,
            "mfu": None if peak is None else flops / (peak * 1e12),
            "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30
            if torch.cuda.is_available()
            else None,
            "parameters": parameters,
        }
    )


def device_name() -> str:
    """The GPU's name, or the CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def run_case(case: Case, is_tiny: bool) -> dict[str, Any]:
    """Measure in a process of its own, so that no case inherits another's memory."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(case, is_tiny, theirs))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv())
    except EOFError:
        return {"failed": True}
    finally:
        process.join()


def table(cases: dict[str, dict[str, Any]]) -> Table:
    """One row a case; what was not measured says so."""
    result = Table(title=f"Training on {device_name()}, rows of {TOKENS} tokens")
    for column in ("case", "tokens/s", "utilisation", "peak memory, GiB"):
        result.add_column(column, justify="left" if column == "case" else "right")
    for name, found in cases.items():
        if "tokens_per_s" not in found:
            result.add_row(name, *["out of memory" if found.get("out_of_memory") else "failed"] * 3)
            continue
        shown = [f"{found['tokens_per_s']:,.0f}"]
        shown += ["not measured" if found["mfu"] is None else f"{found['mfu']:.0%}"]
        memory = found["peak_memory_gib"]
        result.add_row(name, *shown, "not measured" if memory is None else f"{memory:.1f}")
    return result


def store(cases: dict[str, Any]) -> None:
    """Write book/results/gpu.json, which "Scaling out" shows."""
    print(write_result("gpu", {"tokens_a_row": TOKENS, "cases": cases}, seeds=[0]))


def main(arguments: list[str]) -> int:
    """Measure all cases; store them in book/results/gpu.json where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="toy sizes on any machine; nothing is stored")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    asked = parser.parse_args(arguments)
    stored = project_root() / "book" / "results" / "gpu.json"
    if not torch.cuda.is_available() and not asked.tiny:
        print("no CUDA GPU here: nothing was measured. Try --tiny to test the script itself.")
        if not stored.exists():
            store(dict.fromkeys(case.name for case in CASES))
        return 0
    chosen = [case for case in CASES if asked.only in case.name]
    cases = {}
    for case in chosen:
        print(f"== {case.name}", flush=True)
        cases[case.name] = run_case(case, asked.tiny)
    Console().print(table(cases))
    if not asked.tiny:
        earlier = json.loads(stored.read_text(encoding="utf-8"))["cases"] if stored.exists() else {}
        store(dict.fromkeys(case.name for case in CASES) | (earlier if asked.only else {}) | cases)
    return 1 if any(found.get("failed") for found in cases.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
