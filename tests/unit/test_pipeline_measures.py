"""What `compare` and `evaluate` say of runs whose answers are known: which is better, and how far apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from handbook_utils.models.load import load_pair
from handbook_utils.models.logprobs import render_ids
from handbook_utils.pipeline.compare import compare_runs
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_table
from handbook_utils.sampling.tables import SAMPLES
from handbook_utils.schema.recipe import check_recipe

pytestmark = [
    # a dozen prompts are too few for an interval to rely on, and the figures say so
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def scored_answers(folder: Path, name: str, words: list[int]) -> Path:
    """A `score` run of answers with so many words, one for each prompt; `long` is 1 from five words on."""
    rows = [
        {
            "prompt_id": f"p{number}",
            "sample_index": 0,
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "completion": " ".join(["word"] * count),
            "tokens": count,
            "finish_reason": "stop",
            "logprob": None,
        }
        for number, count in enumerate(words)
    ]
    file = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES), file)
    scorers = {"long": {"kind": "length", "at_least": 5}}
    recipe = check_recipe({"stage": "score", "data": [{"name": str(file)}], "scorers": scorers}, "test")
    run_stage(recipe, folder / name, progress=False)
    return folder / name


def test_the_run_with_higher_scores_is_the_better_one_whichever_is_named_first(
    tmp_path: Path, handbook: Callable[..., tuple[int, str, str]]
) -> None:
    # two words more for each prompt but one, which has three more: 25/12 words apart
    short = scored_answers(tmp_path, "short", [3, 4, 2] * 4)
    long = scored_answers(tmp_path, "long", [5, 6, 4] * 3 + [5, 6, 5])
    up, down = compare_runs(short, long, by="words"), compare_runs(long, short, by="words")
    assert up.verdict.startswith("B is better")
    assert down.verdict.startswith("A is better")
    assert up.metrics["difference"].value == pytest.approx(25 / 12)
    assert down.metrics["difference"].value == pytest.approx(-25 / 12)
    assert (up.metrics["win_rate"].value, down.metrics["win_rate"].value) == (1, 0)
    code, out, _ = handbook("compare", short, long, "--by", "long", "--json")
    # none of the short answers has five words, 9 of the 12 long ones have; the others tie
    shown = json.loads(out)["metrics"]
    assert code == 0
    assert (shown["difference"]["value"], shown["win_rate"]["value"]) == (0.75, 0.75 + 0.25 / 2)


def evaluation(model: Path, at_least: int, **changes: Any) -> Any:
    content = {
        "stage": "evaluate",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": "test[:8]"}],
        "samples": 2,
        "max_new_tokens": 3,
        "scorers": {"long": {"kind": "length", "unit": "characters", "at_least": at_least}},
    }
    return check_recipe({**content, **changes}, "test")


def test_an_evaluation_gains_on_a_baseline_by_what_it_scores_higher(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    # every answer has 0 characters or more and scores 1, none has a thousand
    run_stage(evaluation(tiny_model_folder, 1000), tmp_path / "low", progress=False)
    ours = evaluation(tiny_model_folder, 0, baselines=[{"from": "low"}])
    found = run_stage(ours, tmp_path / "high", progress=False).final_metrics
    assert (found["long_gain_vs_low"].value, found["win_rate_vs_low"].value) == (1, 1)
    back = evaluation(tiny_model_folder, 1000, baselines=[{"from": "high"}])
    found = run_stage(back, tmp_path / "back", progress=False).final_metrics
    assert (found["long_gain_vs_high"].value, found["win_rate_vs_high"].value) == (-1, 0)


def plain_logprob(model: Any, ids: list[int], start: int) -> float:
    """Log-probability of `ids[start:]`, one row by itself."""
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logps[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_the_kl_of_a_cut_answer_leaves_out_the_end_of_turn_that_was_never_drawn(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    model, tokenizer = load_pair(str(tiny_model_folder), device="cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    recipe = evaluation(tiny_model_folder, 0, reference={"name": str(other)}, samples=4)
    found = run_stage(recipe, tmp_path / "run", progress=False).final_metrics["kl"]
    rows = read_table(tmp_path / "run" / "scores").to_pylist()
    policy, reference = (load_pair(str(name), device="cpu")[0].eval() for name in (tiny_model_folder, other))
    ratios: dict[str, list[float]] = {}
    cut = 0
    for row in rows:
        ids, start = render_ids(tokenizer, row["prompt"], row["completion"])
        end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)  # the end-of-turn token included
        if row["finish_reason"] == "length" and end - 1 > start:
            cut, end = cut + 1, end - 1
        ids = ids[:end]
        ratios.setdefault(row["prompt_id"], []).append(
            plain_logprob(policy, ids, start) - plain_logprob(reference, ids, start)
        )
    assert cut > 8
    assert found.value == pytest.approx(np.mean([np.mean(each) for each in ratios.values()]), abs=1e-4)
