"""The README's measured part, from `book/results/demo.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.records import Estimate
from handbook_utils.reporting.results import COLUMNS, GAIN, WIN_RATE

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- figures:begin (written by `make figures` from book/results) -->"
END = "<!-- figures:end -->"
SHOWN = ("gold", "gain", "win_rate", "kl", "words")


def estimate(record: Mapping[str, Any]) -> str:
    """A figure with its interval, as everywhere in the book."""
    return str(Estimate.from_json(record))


def readme_block(results: Mapping[str, Any]) -> str:
    """The README's measured part: each model beside its control, and what the demo costs."""
    models = [with_gain(model) for model in results["models"].values()]
    columns = [key for key in COLUMNS if key in SHOWN and any(key in model for model in models)]
    head = ["", *(COLUMNS[key] for key in columns)]
    rows = [[m["label"], *(estimate(m[key]) if key in m else "" for key in columns)] for m in models]
    total = results["total"]
    cost = (
        f"The whole demo took {total['runtime_s'] / 60:.1f} minutes and at most "
        f"{total['peak_memory_gib']:.1f} GiB on {results['device']}."
    )
    parts = [
        "## What the demo measured",
        "On prompts no stage was trained on, with 95 % intervals. Gains and win rates are paired by prompt: "
        "SFT against the base, the others against SFT.",
        markdown_table(head, rows),
        cost,
    ]
    return "\n\n".join([BEGIN, *parts, END])


def with_gain(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's figures with `gain` and `win_rate` against its first baseline, as in the demo's own table."""
    first = {"gain": GAIN, "win_rate": WIN_RATE}
    found = {name: [key for key in model if key.startswith(prefix)] for name, prefix in first.items()}
    return {**model, **{name: model[keys[0]] for name, keys in found.items() if keys}}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def write_readme(results: Mapping[str, Any], path: Path = README) -> None:
    """Replace what stands between the README's marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + readme_block(results) + after, encoding="utf-8")
