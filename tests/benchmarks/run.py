"""Run every bench_*.py beside this file, each in its own process, store the figures, and end with a table.

`python tests/benchmarks/run.py [part of a name ...]`. The figures replace those of the same name in
`book/results/benchmarks.json`, which the book shows. Exits with 1 where a benchmark fails or a measured
figure misses its goal.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _record import BENCH, meets_goal
from rich.console import Console
from rich.table import Table

from handbook_utils.runs.atomic import write_json

HERE = Path(__file__).parent
STORE = HERE.parents[1] / "book" / "results" / "benchmarks.json"


def run_all(scripts: list[Path]) -> list[str]:
    """Run the scripts one at a time, so that none disturbs another; return the names of those that failed."""
    failed = []
    for script in scripts:
        print(f"== {script.name}", flush=True)
        if subprocess.run([sys.executable, str(script)], check=False).returncode:
            failed.append(script.name)
    return failed


def table(figures: list[dict[str, Any]]) -> Table:
    """One row a figure."""
    result = Table(title="Benchmarks")
    for column in ("figure", "value", "spread", "goal", "peer", "kept"):
        result.add_column(column, justify="left" if column in ("figure", "peer") else "right")
    for figure in figures:
        kept = {True: "[green]yes[/]", False: "[red]no[/]", None: "-"}[meets_goal(figure)]
        value = "not measured" if figure["value"] is None else f"{figure['value']:.3g} {figure['unit']}"
        spread = "" if figure["spread"] is None else f"± {figure['spread']:.2g}"
        sign = "≥" if figure["better"] == "higher" else "≤"
        goal = "" if figure["goal"] is None else f"{sign} {figure['goal']:g}"
        peer = figure["peer"] or {}
        beside = f"{peer['value']:.3g} {figure['unit']}: {peer['name']}" if peer else ""
        result.add_row(figure["name"], value, spread, goal, beside, kept)
    return result


def store(figures: list[dict[str, Any]], path: Path = STORE) -> None:
    """Put figures among those of earlier runs; each says where and when it was measured."""
    known = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else {}
    known |= {figure["name"]: figure for figure in figures}
    write_json(path, {"figures": dict(sorted(known.items()))})


def main(wanted: list[str]) -> int:
    """Run, store, table, and return the exit status."""
    scripts = sorted(HERE.glob("bench_*.py"))
    scripts = [script for script in scripts if not wanted or any(part in script.name for part in wanted)]
    if not scripts:
        print(f"no benchmark matches {wanted}")
        return 1
    start = time.time()
    failed = run_all(scripts)
    fresh = [path for path in sorted(BENCH.glob("*.json")) if path.stat().st_mtime >= start - 1]
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in fresh]
    store(figures)
    Console().print(table(figures))
    missed = [figure["name"] for figure in figures if meets_goal(figure) is False]
    for name in failed:
        print(f"failed: {name}")
    for name in missed:
        print(f"goal missed: {name}")
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
