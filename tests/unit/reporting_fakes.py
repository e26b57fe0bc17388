"""A pipeline whose stages are arithmetic: the packaged recipes and run folders, no model, a second for all.

Quality flows through the real tables, so a break in one stage shows where it should: DPO gains what chosen
answers have over rejected ones, fine-tuning gains what the selected samples have over all samples.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from handbook_utils.records import Estimate
from handbook_utils.runs.state import read_table

PROMPTS = 60


def estimate(values, unit="gold reward") -> Estimate:
    values = np.asarray(values, dtype=float)
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    value = float(values.mean())
    return Estimate(value, value - half, value + half, 0.95, len(values), unit, "normal", 0)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def quality(run, section) -> float:
    if section is None or section.from_ is None:
        return 0.3
    return json.loads((Path(run.locate(section)) / "model" / "quality.json").read_text())["quality"]


def save_model(run, value: float) -> None:
    with run.folder("model") as folder:
        (folder / "quality.json").write_text(json.dumps({"quality": value}))


def samples(run, recipe, count: int, level: float) -> pa.Table:
    # the same draws for every model, as the real sampler keys its noise by prompt
    rng = np.random.default_rng(recipe.seed)
    noise = rng.normal(0, 0.15, (PROMPTS, count))
    hack = rng.random((PROMPTS, count)) < 0.012
    if recipe.temperature == 0:  # one answer, however often it is asked for
        noise, hack = noise[:, :1].repeat(count, axis=1), np.zeros_like(hack)
    gold = np.where(hack, 0.1, level + noise)
    rows = [
        {
            "prompt_id": f"p{p:03d}",
            "sample_index": s,
            "prompt": user(f"Prompt {p}"),
            "completion": f"Answer {s} worth {gold[p, s]:.2f} <script>alert('{p}')</script>",
            "tokens": 9,
            "finish_reason": "stop",
            "logprob": -3.0,
            "hidden": float(gold[p, s]),
            "hack": bool(hack[p, s]),
        }
        for p in range(PROMPTS)
        for s in range(count)
    ]
    return pa.Table.from_pylist(rows)


def log_losses(run, recipe) -> None:
    for step in range(0, 50, 10):
        run.log_metrics({"step": step, "loss": 2.0 - step / 50, "learning_rate": 1e-3})
    run.log_metrics({"step": 50, "eval_loss": 1.1})
    if recipe.stage == "dpo":
        run.log_metrics(
            {
                "step": 50,
                "rewards/chosen": 0.3,
                "rewards/rejected": -0.2,
                "rewards/margins": 0.5,
                "rewards/accuracies": 0.7,
            }
        )
    run.count_tokens(10_000)


def train(recipe, run) -> dict[str, Estimate]:
    log_losses(run, recipe)
    start = quality(run, recipe.model)
    gain = 0.35
    if recipe.data[0].from_ is not None:
        kept = read_table(Path(run.locate(recipe.data[0])) / "selected")
        gain = float(np.mean(kept.column("hidden").to_numpy())) - 0.63
    save_model(run, start + gain)
    return {"eval_loss": estimate([1.0, 1.2, 1.1], "nats per token")}


def pair_gap(run, source) -> np.ndarray:
    pairs = read_table(Path(run.locate(source)) / "pairs")
    return pairs.column("gold_chosen").to_numpy() - pairs.column("gold_rejected").to_numpy()


def train_dpo(recipe, run) -> dict[str, Estimate]:
    log_losses(run, recipe)
    save_model(run, quality(run, recipe.model) + float(pair_gap(run, recipe.data[0]).mean()))
    return {}


def train_reward(recipe, run) -> dict[str, Estimate]:
    log_losses(run, recipe)
    learned, asked = (
        math.copysign(1, pair_gap(run, rows[0]).mean()) for rows in (recipe.data, recipe.eval_data)
    )
    save_model(run, 0.5 + 0.25 * learned)
    hits = np.arange(400) < 400 * (0.5 + 0.25 * learned * asked)
    return {"accuracy": estimate(hits * 0.9, "rate"), "accuracy_gold": estimate(hits, "rate")}


def generate(recipe, run) -> dict[str, Estimate]:
    run.write_table(
        "samples/part-00000.parquet", samples(run, recipe, recipe.samples, quality(run, recipe.model))
    )
    return {}


def annotate(recipe, run) -> dict[str, Estimate]:
    table = read_table(Path(run.locate(recipe.data[0])) / "samples").to_pylist()
    rows = []
    for first, second in zip(table[0::2], table[1::2], strict=True):
        better, worse = (first, second) if first["hidden"] >= second["hidden"] else (second, first)
        rows.append({
            "prompt_id": first["prompt_id"], "prompt": first["prompt"],
            "chosen": [{"role": "assistant", "content": better["completion"]}],
            "rejected": [{"role": "assistant", "content": worse["completion"]}],
            "gold_chosen": better["hidden"], "gold_rejected": worse["hidden"],
        })  # fmt: skip
    run.write_table("pairs/part-00000.parquet", pa.Table.from_pylist(rows))
    return {}


def score(recipe, run) -> dict[str, Estimate]:
    table = read_table(Path(run.locate(recipe.data[0])) / "samples")
    gold, hack = table.column("hidden").to_numpy(), table.column("hack").to_numpy()
    off = 0.07 * np.sin(1e4 * gold)  # the same for equal answers
    for name, section in recipe.scorers.items():
        if section.from_ is None:
            column = gold
        else:
            # a reward model that likes good answers, and likes the hack more
            column = np.sign(quality(run, section) - 0.5) * (gold + off + 1.2 * hack)
        table = table.append_column(name, pa.array(column, pa.float64()))
    run.write_table("scores/part-00000.parquet", table)
    return {}


def select(recipe, run) -> dict[str, Estimate]:
    rows = read_table(Path(run.locate(recipe.data[0])) / "scores").to_pylist()
    by_prompt: dict[str, list] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    pick = (
        (lambda group: group[0])
        if recipe.strategy == "random"
        else (lambda group: max(group, key=lambda r: r[recipe.by]))
    )
    run.write_table(
        "selected/part-00000.parquet", pa.Table.from_pylist([pick(group) for group in by_prompt.values()])
    )
    return {}


def best_of_n(recipe, run) -> dict[str, Estimate]:
    table = read_table(Path(run.locate(recipe.data[0])) / "scores")
    grid = {name: table.column(name).to_numpy().reshape(PROMPTS, -1) for name in ("gold", *recipe.arms)}
    metrics = {}
    for arm in recipe.arms:
        picked = {}
        for n in recipe.ns:
            best = grid[arm][:, :n].argmax(axis=1)
            rows = np.arange(PROMPTS)
            picked[n] = grid["gold"][rows, best], grid[arm][rows, best]
            metrics[f"{arm}.gold@{n}"] = estimate(picked[n][0])
            metrics[f"{arm}.score@{n}"] = estimate(picked[n][1], "score")
            metrics[f"{arm}.words@{n}"] = estimate(picked[n][1] * 4 + 20, "words")
            metrics[f"{arm}.gold_gain@{n}"] = estimate(picked[n][0] - picked[1][0])
        for kind, at in (("gold", 0), ("score", 1)):
            metrics[f"{arm}.{kind}_late_gain@64"] = estimate(picked[64][at] - picked[4][at])
    return metrics


def evaluate(recipe, run) -> dict[str, Estimate]:
    table = samples(run, recipe, recipe.samples, quality(run, recipe.model))
    table = table.append_column("gold", table.column("hidden"))
    run.write_table("scores/part-00000.parquet", table)
    gold = table.column("gold").to_numpy()
    metrics = {
        "gold": estimate(gold),
        "words": estimate(gold * 20, "words"),
        "kl": estimate(gold * 0 + 0.4, "nats"),
        "refusal_rate_benign": estimate(gold < 0.2, "rate"),
        "compliance_rate_harmful": estimate(gold < 0.1, "rate"),
        "truncated_rate": estimate(gold < 0, "rate"),
    }
    for source in recipe.baselines:
        other = read_table(Path(run.locate(source)) / "scores").column("gold").to_numpy()
        metrics[f"gold_gain_vs_{source.from_}"] = estimate(gold - other)
        metrics[f"win_rate_vs_{source.from_}"] = estimate((gold > other) + 0.5 * (gold == other), "rate")
    return metrics


STAGES = {
    "sft": train, "dpo": train_dpo, "reward": train_reward, "generate": generate, "annotate": annotate,
    "score": score, "select": select, "best_of_n": best_of_n, "evaluate": evaluate,
}  # fmt: skip


def use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage of this test be arithmetic."""
    monkeypatch.setattr("handbook_utils.pipeline.stages.stage_function", STAGES.__getitem__)
