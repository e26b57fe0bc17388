"""The README's measured part, from `book/results/demo.json` and `shared_decode.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS

ROOT = Path(__file__).resolve().parents[2]
README, DECODE = ROOT / "README.md", ROOT / "book" / "results" / "shared_decode.json"
BEGIN = "<!-- figures:begin (written by `make figures` from book/results) -->"
END = "<!-- figures:end -->"


def readme_block(results: Mapping[str, Any]) -> str:
    """The README's measured part: what the demo's claims are on fresh seeds, and what the demo costs."""
    total = results["total"]
    cost = (
        f"The whole demo took {total['runtime_s'] / 60:.1f} minutes and at most "
        f"{total['peak_memory_gib']:.1f} GiB on {results['device']}."
    )
    parts = [
        "## What the demo measured",
        "All figures are for prompts on which no stage was trained. Each row shows the mean of five fresh "
        "seeds (nothing was tuned on them) with its 95 % t interval over seeds. A row marked *Observation* "
        "fails on some of these seeds, or holds on all of them with a mean margin below four standard "
        "deviations over seeds: it need not hold on the next seed.",
        markdown_table(*fresh_rows()),
        cost,
        *decode_part(json.loads(DECODE.read_text(encoding="utf-8"))),
    ]
    return "\n\n".join([BEGIN, *parts, END])


def decode_part(results: Mapping[str, Any]) -> list[str]:
    """What holding a prompt once gives while its samples are decoded."""
    shapes = [found for name, found in results["measured"].items() if name != "pocket"]
    lines = [
        f"- prompts of {_shape(found)} tokens: {_ratio(found['decode'])} times as fast as with a copy "
        "per sample"
        + (f", {_ratio(found['generate'])} times as fast as `generate`" if found["generate"] else "")
        + (f", with {_share(found['held'])} of the memory" if found["held"] else "")
        for found in shapes
    ]
    intro = (
        "Sampling 16 answers of at most 64 tokens to each of 8 prompts. Each prompt's keys and values are "
        "stored once and shared by its samples. CPU time: median (lowest to highest), "
        f"on {results['device']}."
    )
    return [intro, "\n".join(lines)]


def _shape(found: Mapping[str, Any]) -> str:
    tokens = found["tokens"]
    size = (
        f"{tokens // 2:,} to {tokens * 3 // 2:,}, answers end at random" if found["ends"] else f"{tokens:,}"
    )
    return size + (f", {found['heads']} of 8 heads for keys" if found["heads"] < 8 else "")


def _ratio(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def _share(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.0%}"


def fresh_rows() -> tuple[list[str], list[list[str]]]:
    """Head and rows of what the pipeline's claims are on fresh seeds."""
    rows = [
        [
            ("" if each.wording == "claim" else "Observation: ") + each.says,
            f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]",
            f"{found['lowest']:.3f} to {found['highest']:.3f}",
            f"{found['held']} of {found['of']}",
        ]
        for each in PIPELINE_CLAIMS
        if (found := each.fresh)
    ]
    return ["", "mean of fresh seeds", "range", "holds on seeds"], rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def write_readme(results: Mapping[str, Any], path: Path = README) -> None:
    """Replace what stands between the README's marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + readme_block(results) + after, encoding="utf-8")
