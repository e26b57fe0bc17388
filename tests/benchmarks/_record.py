"""Write one measured figure to _build/bench/<name>.json, for run.py to table."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from handbook_utils.environment import environment
from handbook_utils.reporting.results import device_name

BENCH = Path(__file__).parents[2] / "_build" / "bench"
_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "trl")


def record(
    *,
    name: str,
    value: float | None,
    unit: str,
    goal: float | None = None,
    better: str = "lower",
    spread: float | None = None,
    peer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a figure.

    Args:
        name: the figure's name, also its file's.
        value: what was measured; None where it was not.
        unit: unit of value, spread and goal.
        goal: the bound to keep; None where there is none.
        better: "higher" or "lower".
        spread: half the distance between lowest and highest repeat.
        peer: what else was measured on the same work: `name`, `value`, and in what it differs.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    figure = {
        "name": name,
        "value": value,
        "spread": spread,
        "unit": unit,
        "goal": goal,
        "better": better,
        "peer": dict(peer) if peer else None,
        "device": device_name(environment()["hardware"]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
    }
    BENCH.mkdir(parents=True, exist_ok=True)
    path = BENCH / f"{name}.json"
    path.write_text(json.dumps(figure, indent=2) + "\n", encoding="utf-8")
    return path


def meets_goal(figure: Mapping[str, Any]) -> bool | None:
    """Whether a measured figure keeps its goal; None where it was not measured or has none."""
    if figure["value"] is None or figure["goal"] is None:
        return None
    if figure["better"] == "higher":
        return bool(figure["value"] >= figure["goal"])
    return bool(figure["value"] <= figure["goal"])
