"""Bring the demo's figures into the book and the README.

    python book/tools/refresh_figures.py runs/demo   read a finished demo into book/results/, then all below
    python book/tools/refresh_figures.py             write pictures and the README's table from there

Pictures and tables are made from `book/results/*.json` alone, those of the pocket world from the package,
so they cannot differ from what the pages say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import chapter_figures
from readme_figures import write_readme
from world_figures import draw_world

from handbook_utils.reporting.results import write_pipeline_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
# by the file of results that each is made from; the demo's shows fresh seeds too
PICTURES = {
    "demo": lambda demo: chapter_figures.draw_demo(demo, read_results("calibration")),
    "objective": chapter_figures.draw_objective,
    "sft": chapter_figures.draw_sft,
    "lora": chapter_figures.draw_lora,
    "reward_models": chapter_figures.draw_reward_models,
    "rejection_sampling": chapter_figures.draw_rejection,
    "dpo": chapter_figures.draw_dpo,
    "variants_seeds": chapter_figures.draw_variants,
    "overoptimisation": chapter_figures.draw_overoptimisation,
    "online_rl": chapter_figures.draw_online_rl,
    "speculative": chapter_figures.draw_speculative,
    "shared_prefix": chapter_figures.draw_shared_prefix,
}


def read_results(name: str) -> dict[str, Any]:
    """One results file."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return results


def write_all() -> None:
    """Write everything that is made from `book/results/` and the package."""
    for name, draw in PICTURES.items():
        if (RESULTS / f"{name}.json").is_file():
            draw(read_results(name))
        else:  # of a study outside CI that nobody has run to its end yet
            print(f"no picture of {name}: it has no results yet")
    draw_world()
    write_readme(read_results("demo"))


def main() -> int:
    """Read the command line."""
    if len(sys.argv) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    if len(sys.argv) == 2:
        print(f"wrote {write_pipeline_results(sys.argv[1]).relative_to(ROOT)}")
    write_all()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
