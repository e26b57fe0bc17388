"""Bring the demo's figures into the book and the README.

    python book/tools/refresh_figures.py runs/demo   read a finished demo into book/results/, then all below
    python book/tools/refresh_figures.py             write pictures and the README's tables from there

Pictures and tables are made from `book/results/*.json` alone, so they cannot differ from what the pages say.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handbook_utils.records import Estimate
from handbook_utils.reporting.results import COLUMNS, GAIN, WIN_RATE, write_pipeline_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
PICTURES = ROOT / "book" / "figures"
BEGIN = "<!-- figures:begin (written by `make figures` from book/results/demo.json) -->"
END = "<!-- figures:end -->"
BLUE, ORANGE, INK = "#2b7bba", "#d1600f", "#333333"
SHOWN = ("gold", "gain", "win_rate", "kl", "words")
LORA_RUNS = {
    "rank-1": (1, BLUE, "o", "LoRA"),
    "rank-4": (4, BLUE, "o", None),
    "rank-16": (16, BLUE, "o", None),
    "qlora": (19, ORANGE, "s", "QLoRA"),  # beside rank 16, so that both can be seen
}
ARMS = {"proxy": (BLUE, "o", "reward model"), "control": (ORANGE, "s", "unbiased control")}


def read_results(name: str) -> dict[str, Any]:
    """One results file."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return results


def estimate(record: Mapping[str, Any]) -> str:
    """A figure with its interval, as everywhere in the book."""
    return str(Estimate.from_json(record))


def readme_block(results: Mapping[str, Any]) -> str:
    """The README's measured part: models beside their controls, best-of-n, and what the demo costs."""
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
        "Best-of-n, the answer chosen by the reward model:",
        markdown_table(*best_of_n_rows(results)),
        cost,
    ]
    return "\n\n".join([BEGIN, *parts, END])


def with_gain(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's figures with `gain` and `win_rate` against its first baseline, as in the demo's own table."""
    first = {"gain": GAIN, "win_rate": WIN_RATE}
    found = {name: [key for key in model if key.startswith(prefix)] for name, prefix in first.items()}
    return {**model, **{name: model[keys[0]] for name, keys in found.items() if keys}}


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


def write_readme(results: Mapping[str, Any], path: Path = ROOT / "README.md") -> None:
    """Replace what stands between the README's marks."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + readme_block(results) + after, encoding="utf-8")


def draw_demo(results: Mapping[str, Any]) -> None:
    """Best-of-n by gold and by the proxy's own score, and every model's gold reward."""
    figure, (gold, score, models) = _panels(3, widths=(1, 1, 1.1))
    (curves,) = results["best_of_n"].values()
    for arm in ARMS:
        _curve(gold, curves, f"{arm}.gold@", arm)
    _curve(score, curves, "proxy.score@", "proxy")
    gold.set_title("true reward of the best of n")
    gold.set_ylim(
        bottom=gold.get_ylim()[0] - 0.3 * (gold.get_ylim()[1] - gold.get_ylim()[0])
    )  # for the legend
    gold.legend(frameon=False, fontsize=8, loc="lower left")
    score.set_title("the reward model's own score")
    bars = {record["label"]: record["gold"] for record in results["models"].values()}
    _bars(models, bars, "true reward of each model")
    _save(figure, "demo")


def draw_sft(results: Mapping[str, Any]) -> None:
    """Chapter 4: gold reward of three models, and truncation with and without a trained end."""
    figure, (gold, cut) = _panels(2, widths=(1, 1))
    names = {"evaluate-base": "base", "evaluate-shuffled": "shuffled control", "evaluate-sft": "SFT"}
    _bars(gold, {label: results["models"][run]["gold"] for run, label in names.items()}, "gold reward")
    ends = {"evaluate-with-end": "end trained", "evaluate-without-end": "end left out"}
    records = {label: results["models"][run]["truncated_rate"] for run, label in ends.items()}
    _bars(cut, records, "answers cut off at the limit")
    _save(figure, "sft")


def draw_lora(results: Mapping[str, Any]) -> None:
    """Chapter 5: held-out loss against the rank, beside full training; NF4's codes on the normal density."""
    figure, (loss, codes) = _panels(2, widths=(1, 1))
    found = {run: figures["eval_loss"] for run, figures in results["training"].items()}
    loss.axhline(found["full"]["value"], color=INK, linewidth=0.8, linestyle="--", label="all weights")
    loss.axhspan(found["full"]["low"], found["full"]["high"], color=INK, alpha=0.12, linewidth=0)
    for run, (at, colour, marker, label) in LORA_RUNS.items():
        low, value, high = (found[run][end] for end in ("low", "value", "high"))
        loss.errorbar(at, value, [[value - low], [high - value]], fmt=marker, color=colour, label=label)
    loss.set_xscale("log", base=2)
    loss.set_xticks([1, 4, 16], ["1", "4", "16"])
    loss.set_xlabel("rank")
    loss.set_title("loss on held-out answers")
    loss.legend(frameon=False, fontsize=8)
    _codebooks(codes)
    _save(figure, "lora")


def _codebooks(axes: Any) -> None:
    """The sixteen codes of NF4 as the library has them, and sixteen evenly spaced ones, on normal weights."""
    import numpy as np
    from bitsandbytes.functional import get_4bit_type
    from scipy.stats import norm

    reach = norm.ppf(0.9677083)  # the quantile that NF4 scales to 1
    x = np.linspace(-1.2, 1.2, 241)
    axes.fill_between(x, norm.pdf(reach * x), color=INK, alpha=0.12, linewidth=0)
    rows = {"NF4": (-0.06, BLUE, get_4bit_type("nf4", device="cpu").numpy())}
    rows["evenly spaced"] = (-0.14, ORANGE, np.linspace(-1, 1, 16))
    for label, (height, colour, values) in rows.items():
        axes.plot(values, np.full(16, height), "|", color=colour, markersize=11, label=label)
    axes.set_yticks([])
    axes.set_xlabel("weight, as a share of its block's largest")
    axes.set_title("sixteen values under a normal density")
    axes.set_ylim(-0.2, 0.56)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)


def draw_dpo(results: Mapping[str, Any]) -> None:
    """Chapter 9: gold reward of three models, implicit rewards over steps; gold against KL for each beta."""
    figure, (gold, curves) = _panels(2, widths=(1, 1))
    models = results["models"]
    names = {"evaluate-sft": "SFT", "evaluate-chosen-only": "SFT on the chosen", "evaluate-dpo": "DPO"}
    _bars(gold, {label: models[run]["gold"] for run, label in names.items()}, "gold reward")
    logged = results["curves"]["dpo"]
    for side, colour, style in (("chosen", BLUE, "-"), ("rejected", ORANGE, "--"), ("margins", INK, ":")):
        curves.plot(logged["step"], logged[f"rewards/{side}"], style, color=colour, label=side)
    curves.set_title("implicit reward, training pairs")
    curves.set_xlabel("optimiser step")
    curves.legend(frameon=False, fontsize=8)
    _save(figure, "dpo")
    figure, axes = _panels(1, widths=(1,))
    _beta_scan(axes, models)
    _save(figure, "dpo-beta")


def _beta_scan(axes: Any, models: Mapping[str, Any]) -> None:
    """One cross a run: KL to the SFT model and gold reward, both with their intervals."""
    names = {"evaluate-dpo": "gentle run", "evaluate-hot": "0.3"}
    names |= {run: beta[1] for run in models if (beta := re.fullmatch(r"evaluate-beta-([\d.]+)", run))}
    for run, name in names.items():
        kl, gold = models[run]["kl"], models[run]["gold"]
        axes.plot([kl["low"], kl["high"]], [gold["value"]] * 2, color=BLUE, alpha=0.5)
        _dot(axes, kl["value"], gold)
        axes.annotate(name, (kl["value"], gold["value"]), xytext=(4, 4), textcoords="offset points")
    start = models["evaluate-sft"]["gold"]["value"]
    axes.axhline(start, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_xlabel("KL to SFT, nats an answer")
    axes.set_ylabel("gold reward")


def draw_overoptimisation(results: Mapping[str, Any]) -> None:
    """Chapter 11: gold of the best of n for three ways to choose; parts of gold under the biased one."""
    figure, (gold, parts) = _panels(2, widths=(1, 1))
    found = {int(name[2:]): each for name, each in results["measured"].items() if name.startswith("n-")}
    ns = sorted(found)
    names = {"biased": (BLUE, "o", "biased reward model"), "fair": (ORANGE, "s", "fair reward model")}
    for arm, (colour, marker, label) in {**names, "noise": (INK, "^", "gold with noise")}.items():
        low, value, high = ([found[n][arm][end] for n in ns] for end in ("low", "value", "high"))
        gold.fill_between(ns, low, high, color=colour, alpha=0.15, linewidth=0)
        gold.plot(ns, value, color=colour, marker=marker, markersize=4, label=label)
    gold.set_title("gold reward of the best of n")
    styles = {"helpful": (BLUE, "-"), "polite": (INK, ":"), "concise": (ORANGE, "--")}
    for part, (colour, style) in styles.items():
        values = [found[n][part]["value"] - found[1][part]["value"] for n in ns]
        parts.plot(ns, values, style, color=colour, label=part)
    parts.axhline(0, color=INK, linewidth=0.8)
    parts.set_title("parts of gold, biased: change since n = 1")
    for axes in (gold, parts):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ns, [str(n) for n in ns])
        axes.set_xlabel("n")
        axes.legend(frameon=False, fontsize=8)
    _save(figure, "overoptimisation")


def draw_speculative(results: Mapping[str, Any]) -> None:
    """Chapter 11: score of the chosen answer against tokens, speculative rejection beside plain best-of-m."""
    figure, both = _panels(2, widths=(1, 1))
    found = results["measured"]
    titles = {
        "biased": "score of the chosen answer, in spreads",
        "gold": "gold stops and chooses: gold reward",
    }
    for axes, (judge, title) in zip(both, titles.items(), strict=True):
        figure_name = "gold" if judge == "gold" else "proxy"
        plain = [found[f"plain-{judge}-{m}"] for m in (1, 2, 4, 8, 16, 32)]
        axes.plot(
            *([each[key]["value"] for each in plain] for key in ("tokens", figure_name)),
            "o-",
            color=INK,
            markersize=3,
            label="plain best of m",
        )
        for name, each in found.items():
            if re.fullmatch(rf"{judge}-[\d-]+-0\.\d+", name):
                axes.plot(each["tokens"]["value"], each[figure_name]["value"], "x", color=ORANGE)
        axes.plot([], [], "x", color=ORANGE, label="speculative rejection")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("generated tokens a prompt")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    _save(figure, "speculative")


def draw_reward_models(results: Mapping[str, Any]) -> None:
    """Chapter 6: accuracy on the gold order against the number of pairs; sureness against the share right."""
    figure, (pairs, sure) = _panels(2, widths=(1, 1))
    found = results["measured"]
    sizes = sorted(int(name.removeprefix("pairs-")) for name in found if name.startswith("pairs-"))
    for size in sizes:
        _dot(pairs, size, found[f"pairs-{size}"]["gold"])
    for name, side in (("likelier", "top"), ("longer", "bottom")):
        share = found["naive"][name]["value"]
        pairs.axhline(share, color=INK, linewidth=0.9, linestyle="--")
        pairs.text(sizes[0], share, f" naive: the {name} answer ", fontsize=8, verticalalignment=side)
    pairs.set_xscale("log")
    pairs.set_xticks(sizes, [f"{size:,}" for size in sizes])
    pairs.minorticks_off()
    pairs.set_xlabel("pairs trained on")
    pairs.set_title("finds the better answer")
    _reliability(sure, [found[name] for name in sorted(found) if name.startswith("bin-")])
    _save(figure, "reward_models")


def _reliability(axes: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    """Groups of pairs: how sure the model says it is, how often labels agreed, and the true probability."""
    axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle="--")
    for group in bins:
        _dot(axes, group["said"]["value"], group["agreed"])
        axes.plot(group["said"]["value"], group["true"]["value"], "x", color=ORANGE, markersize=6)
    axes.plot([], [], "o", color=BLUE, markersize=4, label="labels agreed")
    axes.plot([], [], "x", color=ORANGE, label="true probability")
    axes.set_xlabel("how sure the model says it is")
    axes.set_title("share of its verdicts")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_rejection(results: Mapping[str, Any]) -> None:
    """Chapter 8: gold of the best of n by either judge; gold against KL by round, fair and biased."""
    figure, (best, rounds) = _panels(2, widths=(1, 1))
    found, ns = results["measured"], (1, 2, 4, 8, 16)
    for judge, (colour, marker, run) in {
        "fair": (BLUE, "o", "rejection"),
        "biased": (ORANGE, "s", "biased"),
    }.items():
        golds = [found[f"{judge}-{n}"]["gold"] for n in ns]
        low, value, high = ([gold[end] for gold in golds] for end in ("low", "value", "high"))
        best.fill_between(ns, low, high, color=colour, alpha=0.15, linewidth=0)
        best.plot(ns, value, color=colour, marker=marker, markersize=4, label=f"{judge} judge")
        models = [found[f"{run}-{model}"] for model in ("start", "round-1", "round-2", "round-3")]
        at = [model["kl"]["value"] if "kl" in model else 0.0 for model in models]
        for place, model in zip(at, models, strict=True):
            rounds.plot([place] * 2, [model["gold"][end] for end in ("low", "high")], color=colour, alpha=0.5)
        golds = [model["gold"]["value"] for model in models]
        rounds.plot(at, golds, color=colour, marker=marker, markersize=4, label=f"{judge} judge")
    best.set_xscale("log", base=2)
    best.set_xticks(ns, [str(n) for n in ns])
    best.set_xlabel("n")
    best.set_title("gold reward of the best of n")
    rounds.set_xlabel("KL to SFT, nats an answer")
    rounds.set_title("gold reward after each round")
    best.legend(frameon=False, fontsize=8)
    _save(figure, "rejection_sampling")


def _dot(axes: Any, at: float, found: Mapping[str, Any]) -> None:
    """A figure with its interval, upright at one place."""
    axes.plot([at, at], [found["low"], found["high"]], color=BLUE, alpha=0.5)
    axes.plot(at, found["value"], "o", color=BLUE, markersize=4)


def _panels(count: int, *, widths: Sequence[float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left"})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "handbook"})
    size = {"figsize": (max(4.2, 3.3 * count), 2.7), "layout": "constrained"}
    return pyplot.subplots(1, count, gridspec_kw={"width_ratios": widths}, **size)


def _curve(axes: Any, figures: Mapping[str, Any], prefix: str, arm: str) -> None:
    colour, marker, label = ARMS[arm]
    records = {int(key.removeprefix(prefix)): f for key, f in figures.items() if key.startswith(prefix)}
    ns = sorted(records)
    low, value, high = ([records[n][end] for n in ns] for end in ("low", "value", "high"))
    axes.fill_between(ns, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(ns, value, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set_xlabel("n")


def _bars(axes: Any, records: Mapping[str, Mapping[str, Any]], title: str) -> None:
    labels = list(records)[::-1]
    for row, label in enumerate(labels):
        found = records[label]
        axes.barh(row, found["value"], color=BLUE, alpha=0.45, height=0.6)
        axes.plot([found["low"], found["high"]], [row, row], color=INK, linewidth=2)
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, 26) for label in labels])
    axes.set_xlim(left=0)
    axes.set_title(title)


def _save(figure: Any, name: str) -> None:
    # no date inside: the same figures give the same file
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def write_all() -> None:
    """Write everything that is made from `book/results/`."""
    draw_sft(read_results("sft"))
    draw_lora(read_results("lora"))
    draw_reward_models(read_results("reward_models"))
    draw_rejection(read_results("rejection_sampling"))
    draw_dpo(read_results("dpo"))
    draw_overoptimisation(read_results("overoptimisation"))
    draw_speculative(read_results("speculative"))
    demo = read_results("demo")
    draw_demo(demo)
    write_readme(demo)


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
