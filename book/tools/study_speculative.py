"""Compare speculative rejection with plain best-of-m at equal tokens, on finished pipelines of several seeds.

    python book/tools/study_speculative.py runs/calibrate/seed-101 runs/calibrate/seed-102 ...

Each folder is one of `handbook pipeline pocket/pipeline`; its scored held-out answers are read, and its
reward models score the beginnings of the first 16 of each prompt. What a setting would have stopped follows
from these (`replay`), as the survivors of speculative rejection are the answers of plain sampling. Every
setting is stored, none is chosen. Writes `book/results/speculative.json`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handbook_utils import load_model, load_tokenizer, reward_scores
from handbook_utils.evaluation.best_of_n import best_of_n_values
from handbook_utils.evaluation.statistics import mean_estimate, mean_over_seeds
from handbook_utils.models.logprobs import Conversation, render_rows
from handbook_utils.pocket.world import gold_reward
from handbook_utils.records import Estimate
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.generation.speculative import replay

Array = NDArray[np.float64]
Judge = Callable[[Sequence[Conversation]], Iterable[float]]
# so many answers are started; plain best-of-m has more to draw on, for the tokens that scoring costs
PROMPTS, STARTED, SAMPLES = 100, 16, 32
AFTER = (6, 12, 20)
POINTS = {"6": (6,), "12": (12,), "20": (20,), "6-12-20": (6, 12, 20)}
ALPHAS = (0.25, 0.5, 0.75)
SEED_BY_SEED = ("proxy_gain", "gold_gain")
JUDGES = {"biased": ("proxy", "reward"), "fair": ("control", "reward-control"), "gold": ("gold", None)}


def heldout(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """Answers to the first prompts: rows of those that are started, and (prompts, samples) columns of all."""
    table = read_table(folder / "scores" / "scores")
    first = np.flatnonzero(table["sample_index"].to_numpy() < SAMPLES)[: PROMPTS * SAMPLES]
    table = table.take(first)
    names = {"tokens": "tokens", **{judge: column for judge, (column, _) in JUDGES.items()}}
    grid = {
        name: table[column].to_numpy().astype(np.float64).reshape(PROMPTS, SAMPLES)
        for name, column in names.items()
    }
    started = np.flatnonzero(table["sample_index"].to_numpy() < STARTED)
    return table.take(started).to_pylist(), grid


def beginnings(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> tuple[list[list[str]], Array]:
    """Texts of each answer after 6, 12, ... tokens, while it goes on beyond; and (prompts, started) tokens.

    Both follow from the text: what was sampled as an unusual sequence of tokens counts as the usual one.
    """
    found, lengths = [], []
    for row in rows:
        ids = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        lengths.append(len(ids) + (row["finish_reason"] == "stop"))
        cuts = [ids[:length] for length in AFTER if lengths[-1] > length]
        found.append([tokenizer.decode(cut, clean_up_tokenization_spaces=False) for cut in cuts])
    return found, np.array(lengths, dtype=np.float64).reshape(PROMPTS, STARTED)


def partial_scores(rows: Sequence[Mapping[str, Any]], texts: Sequence[Sequence[str]], judge: Judge) -> Array:
    """(prompts, samples, decisions) scores of the beginnings, NaN where an answer had ended."""
    flat = [(row["prompt"], text) for row, each in zip(rows, texts, strict=True) for text in each]
    scores = iter(judge(flat))
    table = np.full((len(rows), len(AFTER)), np.nan)
    for line, each in zip(table, texts, strict=True):
        line[: len(each)] = [next(scores) for _ in each]
    return table.reshape(PROMPTS, STARTED, len(AFTER))


def by_model(path: Path, tokenizer: Any) -> Judge:
    """The scores of a reward model."""
    model = load_model(str(path), head="reward")
    return lambda conversations: reward_scores(model, tokenizer, conversations, batch_size=256)


def by_gold(conversations: Sequence[Conversation]) -> list[float]:
    """The gold reward of each text as if the answer ended there."""
    return [gold_reward(prompt[-1]["content"], text).value for prompt, text in conversations]


def in_spreads(scores: Array) -> Array:
    """Scores without their prompt's mean, in standard deviations among its answers."""
    spread = scores.std(axis=1, keepdims=True)
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0))


def compare(
    partial: Array, grid: Mapping[str, Array], judge: str, *, points: Sequence[int], alpha: float
) -> dict[str, Array]:
    """One setting, prompt by prompt: tokens, the chosen answer, and the plain best of m of as many tokens.

    `m` counts generated tokens; `m_all` those that go through the scorer too, on either side, as much for a
    scored token as for a generated one.
    """
    places = [AFTER.index(point) for point in points]
    prompt, lengths, scores = grid["prompt_tokens"], grid["tokens"][:, :STARTED], grid[judge]
    found: dict[str, list[float]] = {}
    values = {"proxy": in_spreads(scores), "gold": grid["gold"]}
    for row in range(len(scores)):
        finished, generated, scored = replay(partial[row][:, places], lengths[row], after=points, alpha=alpha)
        chosen = int(np.where(finished, scores[row, :STARTED], -np.inf).argmax())
        own = generated.sum() + (scored * (prompt[row] + np.array(points))).sum()
        own += (finished * (prompt[row] + lengths[row])).sum()
        each = grid["tokens"][row].mean()
        line = {
            "tokens": generated.sum(),
            "m": generated.sum() / each,
            "m_all": own / (2 * each + prompt[row]),
        }
        line |= {name: value[row, chosen] for name, value in values.items()}
        for key, number in line.items():
            found.setdefault(key, []).append(float(number))
    columns = {key: np.array(numbers) for key, numbers in found.items()}
    for name, value in values.items():
        plain = best_of_n_values(scores, value)
        for suffix in ("", "_all"):
            m = np.clip(columns[f"m{suffix}"], 1, SAMPLES)
            counts = range(1, SAMPLES + 1)
            equal = np.array([np.interp(at, counts, line) for at, line in zip(m, plain, strict=True)])
            columns[f"{name}_gain{suffix}"] = columns[name] - equal
    return columns


def study(folder: Path) -> tuple[int, dict[str, dict[str, Array]]]:
    """All settings on one pipeline, and plain best-of-m: by setting and figure, prompt by prompt."""
    rows, grid = heldout(folder)
    tokenizer = load_tokenizer(str(folder / "sft"))
    openings = render_rows(tokenizer, [(row["prompt"], "") for row in rows[::STARTED]])
    grid["prompt_tokens"] = np.array([start for _, start in openings], dtype=np.float64)
    texts, lengths = beginnings(rows, tokenizer)
    unusual = (lengths != grid["tokens"][:, :STARTED]).mean()
    print(f"{folder}: {unusual:.2%} of the answers were sampled as an unusual sequence of tokens")
    grid["tokens"][:, :STARTED] = lengths
    found: dict[str, dict[str, Array]] = {}
    for judge, (_, run) in JUDGES.items():
        partial = partial_scores(rows, texts, by_gold if run is None else by_model(folder / run, tokenizer))
        for (name, points), alpha in itertools.product(POINTS.items(), ALPHAS):
            found[f"{judge}-{name}-{alpha}"] = compare(partial, grid, judge, points=points, alpha=alpha)
        for m in (1, 2, 4, 8, 16, 32):
            values = {"proxy": in_spreads(grid[judge]), "gold": grid["gold"]}
            best = {key: best_of_n_values(grid[judge], value, ns=[m])[:, 0] for key, value in values.items()}
            found[f"plain-{judge}-{m}"] = {"tokens": m * grid["tokens"].mean(axis=1), **best}
    is_long = grid["tokens"].mean(axis=1) >= np.median(grid["tokens"].mean(axis=1))
    for name in [name for name in found if not name.startswith("plain")]:
        found[f"long-{name}"] = {key: values[is_long] for key, values in found[name].items()}
    return read_manifest(folder / "sft")["seed"], found


def over_seeds(parts: Sequence[Mapping[str, Array]]) -> dict[str, Estimate]:
    """Mean over seeds, each seed one observation."""
    return {key: mean_over_seeds([part[key].mean() for part in parts], unit=key) for key in parts[0]}


def main() -> None:
    """Read the command line, study each folder, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    asked = parser.parse_args()
    by_seed = dict(study(folder) for folder in asked.folders)
    measured = {}
    for name in next(iter(by_seed.values())):
        found = over_seeds([metrics[name] for metrics in by_seed.values()])
        measured[name] = {figure: each.to_json() for figure, each in found.items()}
        if name.startswith(tuple(JUDGES)):
            for seed, metrics in by_seed.items():
                gains = {key: mean_estimate(metrics[name][key], unit=key) for key in SEED_BY_SEED}
                measured[f"seed-{seed}-{name}"] = {key: each.to_json() for key, each in gains.items()}
    print(write_result("speculative", {"measured": measured}, seeds=sorted(by_seed)))


if __name__ == "__main__":
    main()
