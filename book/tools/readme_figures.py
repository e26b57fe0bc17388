"""The README's measured part, from `book/results/demo.json` and `shared_prefix.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.records import Estimate
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS
from handbook_utils.reporting.results import COLUMNS

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- figures:begin (written by `make figures` from book/results) -->"
END = "<!-- figures:end -->"
SHOWN = ("gold", "kl", "words")


def estimate(record: Mapping[str, Any]) -> str:
    """A figure with its interval, as everywhere in the book."""
    return str(Estimate.from_json(record))


def readme_block(demo: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """The README's measured part: what the demo gave and cost, and what computing a prompt once gives."""
    return "\n\n".join([BEGIN, *demo_parts(demo), *shared_parts(shared), END])


def demo_parts(results: Mapping[str, Any]) -> list[str]:
    """Models beside their controls, best-of-n, and what the demo costs."""
    models = list(results["models"].values())
    columns = [key for key in COLUMNS if key in SHOWN and any(key in model for model in models)]
    head = ["", *(COLUMNS[key] for key in columns)]
    rows = [[m["label"], *(estimate(m[key]) if key in m else "" for key in columns)] for m in models]
    total = results["total"]
    cost = (
        f"The whole demo took {total['runtime_s'] / 60:.1f} minutes and at most "
        f"{total['peak_memory_gib']:.1f} GiB on {results['device']}."
    )
    return [
        "## What the demo measured",
        "On prompts no stage was trained on: the mean of five fresh seeds, on which nothing was chosen, "
        "with its 95 % t interval over seeds. An observation need not hold on the next seed.",
        markdown_table(*fresh_rows()),
        "One run, on seed 0, on which settings were chosen, with 95 % intervals over prompts:",
        markdown_table(head, rows),
        "Best-of-n on seed 0, the answer chosen by the reward model:",
        markdown_table(*best_of_n_rows(results)),
        cost,
    ]


def shared_parts(results: Mapping[str, Any]) -> list[str]:
    """Training on pairs beside TRL's trainers."""
    head = [
        "training",
        "prompt / answers, median tokens",
        "vocabulary",
        "TRL's time over ours",
        "peak memory",
    ]
    rows = [
        [
            *(found["stage"], f"{found['prompt']} / {found['answer']}", f"{found['vocabulary']:,}"),
            f"{found['speedup']['value']:.1f}",
            f"{found['peak_gib']:.1f} GiB, TRL's {found['peak_gib_trl']:.1f}",
        ]
        for found in results["measured"].values()
    ]
    return [
        "## What computing a prompt once gives",
        "The two answers of a preference pair share its prompt. Here it is computed once, to the same loss "
        "and gradients (`shared_prefix: auto`, the default), and batches hold pairs of like length "
        "(`length_batching: true`). Beside TRL's trainers on the same pairs, a step each in turn, on one CPU "
        "core; on a GPU not measured. [Scaling out](book/scaling.md) says how it works and when not.",
        markdown_table(head, rows),
    ]


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
    return ["", "mean of fresh seeds", "range", "holds on"], rows


def best_of_n_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the best-of-n table: one line an n, gold for both arms, the proxy, words."""
    (figures,) = results["best_of_n"].values()
    names = {
        "proxy.gold": "gold reward",
        "control.gold": "gold reward, control",
        "proxy.score": "reward model's own score",
        "proxy.words": "words",
    }
    ns = sorted(int(key.rsplit("@", 1)[1]) for key in figures if key.startswith("proxy.gold@"))
    rows = [[str(n), *(estimate(figures[f"{name}@{n}"]) for name in names)] for n in ns]
    return ["n", *names.values()], rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def write_readme(demo: Mapping[str, Any], shared: Mapping[str, Any], path: Path = README) -> None:
    """Replace what stands between the README's marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + readme_block(demo, shared) + after, encoding="utf-8")
