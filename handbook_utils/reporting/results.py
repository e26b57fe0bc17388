"""The one truth for figures: `book/results/<name>.json`, written by runs, read by book and README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handbook_utils.environment import environment
from handbook_utils.errors import DataError
from handbook_utils.records import Estimate
from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS
from handbook_utils.reporting.runs import RunView, read_pipeline
from handbook_utils.runs.atomic import write_json

LABELS = {
    "evaluate-base": "pre-trained base",
    "evaluate-sft": "SFT",
    "evaluate-rft-control": "tuned on random samples (control)",
    "evaluate-rft": "tuned on best samples (rejection sampling)",
    "evaluate-dpo": "DPO",
}
COLUMNS = {
    "gold": "gold reward",
    "gain": "gain, paired",
    "win_rate": "win rate",
    "kl": "KL to SFT, nats",
    "words": "words",
    "refusal_rate_benign": "benign refused",
    "compliance_rate_harmful": "harmful requests complied with",
    "truncated_rate": "cut short",
}
CURVES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "margin", "accuracy")
GAIN, WIN_RATE = "gold_gain_vs_", "win_rate_vs_"


@dataclass(frozen=True)
class ModelRow:
    """One evaluated model in the demo's table.

    Attributes:
        name: the evaluate stage.
        label: the model in words.
        metrics: by key of `COLUMNS`; gain and win rate are against the first baseline.
        baseline: label of the first baseline; "" without one.
        others: (label, metrics) of gain and win rate against further baselines.
    """

    name: str
    label: str
    metrics: Mapping[str, Estimate]
    baseline: str
    others: Sequence[tuple[str, Mapping[str, Estimate]]]


def model_rows(views: Mapping[str, RunView]) -> list[ModelRow]:
    """A row for each finished evaluation, in the order of `LABELS`, unknown ones after."""
    order = list(LABELS)
    found = [view for view in views.values() if view.stage == "evaluate" and view.result]
    found.sort(key=lambda view: order.index(view.name) if view.name in order else len(order))
    return [_model_row(view) for view in found]


def _model_row(view: RunView) -> ModelRow:
    metrics = view.final_metrics
    against = [
        (label_of(name), {"gain": metrics[GAIN + name], "win_rate": metrics[WIN_RATE + name]})
        for name in (
            Path(source["from"]).name for source in view.recipe.get("baselines", []) if "from" in source
        )
        if GAIN + name in metrics and WIN_RATE + name in metrics
    ]
    own = {key: metrics[key] for key in COLUMNS if key in metrics}
    baseline, first = against[0] if against else ("", {})
    return ModelRow(view.name, label_of(view.name), {**own, **first}, baseline, against[1:])


def label_of(name: str) -> str:
    """A stage's model in words; the name itself for stages of other pipelines."""
    return LABELS.get(name, name)


def provenance(*, seeds: Sequence[int], made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where figures come from: commit, versions, device, seeds, date.

    Args:
        seeds: all seeds behind the figures.
        made: a run's manifest to take commit, versions and hardware from; this process's without it.
    """
    found = made if made and "hardware" in made else environment()
    return {
        "commit": found.get("commit"),
        "versions": dict(found["versions"]),
        "device": device_name(found["hardware"]),
        "seeds": list(seeds),
        "date": datetime.now(UTC).date().isoformat(),
    }


def device_name(hardware: Mapping[str, Any]) -> str:
    """One line for a machine: its GPUs where it has any, else its CPU and cores.

    >>> device_name({"cpu": "Some CPU", "cores": 2})
    'Some CPU, 2 cores'
    """
    gpus = hardware.get("gpus") or []
    if gpus:
        return f"{len(gpus)} x {gpus[0]}"
    return f"{hardware.get('cpu') or 'unknown CPU'}, {hardware.get('cores')} cores"


def write_result(
    name: str, payload: Mapping[str, Any], *, seeds: Sequence[int], made: Mapping[str, Any] | None = None
) -> Path:
    """Write `book/results/<name>.json`: the payload beside where it comes from.

    Args:
        name: file name without its ending.
        payload: plain figures; `Estimate.to_json` gives such.
        seeds: seeds behind the figures.
        made: the manifest of the run that made them; without it this process is described.

    Raises:
        DataError: the payload uses a key of the provenance, which would hide it.
    """
    origin = provenance(seeds=seeds, made=made)
    clash = sorted(origin.keys() & payload.keys())
    if clash:
        raise DataError(
            f"result '{name}': {', '.join(clash)} is written automatically; give the figure another name."
        )
    path = project_root() / "book" / "results" / f"{name}.json"
    write_json(path, {**origin, **payload})
    return path


def pipeline_results(pipeline_out: Path | str | Mapping[str, RunView]) -> dict[str, Any]:
    """All figures of a pipeline as plain data: training, models, reward models, pairs, best-of-n, claims, ...

    Works for a pipeline that is still running: what is not there yet is left out.

    Raises:
        RunFolderError: the folder holds no run.
    """
    views = pipeline_out if isinstance(pipeline_out, Mapping) else read_pipeline(pipeline_out)
    finished = {name: view for name, view in views.items() if view.result}
    metrics = {
        name: {key: e.to_json() for key, e in view.final_metrics.items()} for name, view in finished.items()
    }
    kinds = {name: view.stage for name, view in finished.items()}
    claims = {
        each.id: each.record(views).to_json() | {"wording": each.wording}
        for each in PIPELINE_CLAIMS
        if each.figure in metrics.get(each.run, {})
    }
    return {
        "training": {
            n: metrics[n] for n in finished if finished[n].curves and kinds[n] != "reward" and metrics[n]
        },
        "models": {n: {"label": label_of(n), **metrics[n]} for n in finished if kinds[n] == "evaluate"},
        "reward_models": {n: metrics[n] for n in finished if kinds[n] == "reward"},
        "pairs": {n: metrics[n] for n in finished if kinds[n] == "annotate"},
        "best_of_n": {n: metrics[n] for n in finished if kinds[n] == "best_of_n"},
        "rounds": {n: metrics[n] for n in finished if kinds[n] == "rejection"},
        "claims": claims,
        "cost": {name: cost(view) for name, view in finished.items()},
        "total": total_cost(finished.values()),
    }


def training_curves(view: RunView) -> dict[str, list[float]]:
    """What preference training logged, one list a measure beside `step`; {} for a run that logged none."""
    rows = [row for row in view.metrics if any(name in row for name in CURVES)]
    found = [name for name in CURVES if rows and all(name in row for row in rows)]
    return {name: [row[name] for row in rows] for name in ("step", *found)} if found else {}


def cost(view: RunView) -> dict[str, float | None]:
    """Time and memory of one finished stage."""
    assert view.result is not None
    found = view.result
    return {
        "runtime_s": found.runtime_s,
        "peak_memory_gib": found.peak_memory_gib,
        "tokens_per_s": found.tokens_per_s,
    }


def total_cost(views: Iterable[RunView]) -> dict[str, float]:
    """Time of all stages together, memory of the largest; a run that others are inside of counts by these."""
    views = list(views)
    holders = {view.path.resolve().parent for view in views}
    results = [view.result for view in views if view.result and view.path.resolve() not in holders]
    return {
        "runtime_s": round(sum(result.runtime_s for result in results), 1),
        "peak_memory_gib": max((result.peak_memory_gib for result in results), default=0.0),
    }


def write_pipeline_results(pipeline_out: Path | str, name: str = "demo") -> Path:
    """Store a finished pipeline's figures for the book, with the provenance of its own manifests."""
    views = read_pipeline(pipeline_out)
    manifests = [view.manifest for view in views.values() if view.manifest]
    seeds = sorted({manifest["seed"] for manifest in manifests if "seed" in manifest})
    return write_result(name, pipeline_results(views), seeds=seeds, made=manifests[-1])
