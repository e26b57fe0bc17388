"""The book's pictures, made from `book/results/` alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from drawing import ARMS, BLUE, INK, ORANGE, PALE, band, bars, curve, dot, panels, save

LORA_RUNS = {
    "rank-1": (1, BLUE, "o", "LoRA"),
    "rank-4": (4, BLUE, "o", None),
    "rank-16": (16, BLUE, "o", None),
    "qlora": (19, ORANGE, "s", "QLoRA"),  # beside rank 16, so that both can be seen
}


# gains of the demo that its picture shows, by claim
GAINS = {
    "sft-beats-base": "SFT over the base",
    "rft-beats-sft": "best samples over SFT",
    "rft-beats-random-control": "best over random samples",
    "dpo-beats-sft": "DPO over SFT",
}


def draw_demo(results: Mapping[str, Any], calibration: Mapping[str, Any]) -> None:
    """Best-of-n by gold and by the proxy's own score; and what fine-tuning gains on fresh seeds."""
    figure, (gold, score, gains) = panels(3, widths=(1, 1, 1.1))
    (curves,) = results["best_of_n"].values()
    for arm in ARMS:
        curve(gold, curves, f"{arm}.gold@", arm)
    curve(score, curves, "proxy.score@", "proxy")
    gold.set_title("true reward of the best of n")
    gold.set_ylim(
        bottom=gold.get_ylim()[0] - 0.3 * (gold.get_ylim()[1] - gold.get_ylim()[0])
    )  # for the legend
    gold.legend(frameon=False, fontsize=8, loc="lower left")
    score.set_title("the reward model's own score")
    fresh = {label: calibration["claims"][claim] for claim, label in GAINS.items()}
    bars(gains, fresh, "gain in true reward, five seeds")
    for row, found in enumerate(list(fresh.values())[::-1]):
        values = [seed["value"] for seed in found["by_seed"].values()]
        gains.plot(values, [row] * len(values), "o", color=ORANGE, markersize=2.5)
    save(figure, "demo")


def draw_sft(results: Mapping[str, Any]) -> None:
    """Gold reward of three models, and truncation with and without a trained end."""
    figure, (gold, cut) = panels(2, widths=(1, 1))
    names = {"evaluate-base": "base", "evaluate-shuffled": "shuffled control", "evaluate-sft": "SFT"}
    bars(gold, {label: results["models"][run]["gold"] for run, label in names.items()}, "gold reward")
    ends = {"evaluate-with-end": "end trained", "evaluate-without-end": "end left out"}
    records = {label: results["models"][run]["truncated_rate"] for run, label in ends.items()}
    bars(cut, records, "answers cut off at the limit")
    save(figure, "sft")


def draw_objective(results: Mapping[str, Any]) -> None:
    """Every method as a point of reward against KL; and a learned reward beside what its choices earn."""
    found = results["measured"]

    def points(names: Sequence[str], value: str = "earned") -> list[tuple[float, float]]:
        return sorted((found[name]["kl"]["value"], found[name][value]["value"]) for name in names)

    figure, (plane, guess) = panels(2, widths=(1, 1))
    frontier = [name for name in found if re.fullmatch(r"frontier-[\d.]+", name)]
    plane.plot(*zip(*points(frontier), strict=True), color=BLUE, label="best possible")
    best = [name for name in found if name.startswith("best-of-")]
    plane.plot(*zip(*points(best), strict=True), "o", color=ORANGE, markersize=4, label="best of 2 to 32")
    singles = {"dpo": ("s", "DPO"), "online": ("D", "online RL"), "writer": ("^", "SFT on a writer")}
    for name, (marker, label) in (singles | {"control": ("x", "random move")}).items():
        plane.plot(*points([name])[0], marker, color=INK, markersize=5, label=label)
    plane.set_title("reward over the reference")
    learned = [name for name in found if name.startswith("learned-")]
    promised, earned = points(learned, "promised"), points(learned)
    guess.plot(*zip(*promised, strict=True), "o--", color=ORANGE, markersize=4, label="promised")
    guess.plot(*zip(*earned, strict=True), "o-", color=BLUE, markersize=4, label="earned")
    guess.set_title("by a learned reward")
    for axes in (plane, guess):
        axes.set_xlabel("KL to the reference, nats")
        axes.legend(frameon=False, fontsize=8)
    save(figure, "objective")


def draw_lora(results: Mapping[str, Any]) -> None:
    """Held-out loss against the rank, beside full training; NF4's codes on the normal density."""
    figure, (loss, codes) = panels(2, widths=(1, 1))
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
    save(figure, "lora")


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
    """Gold reward of three models, implicit rewards over steps; gold against KL for each beta."""
    figure, (gold, curves) = panels(2, widths=(1, 1))
    models = results["models"]
    names = {"evaluate-sft": "SFT", "evaluate-chosen-only": "SFT on the chosen", "evaluate-dpo": "DPO"}
    bars(gold, {label: models[run]["gold"] for run, label in names.items()}, "gold reward")
    logged = results["curves"]["dpo"]
    for side, colour, style in (("chosen", BLUE, "-"), ("rejected", ORANGE, "--"), ("margins", INK, ":")):
        curves.plot(logged["step"], logged[f"rewards/{side}"], style, color=colour, label=side)
    curves.set_title("implicit reward, training pairs")
    curves.set_xlabel("optimiser step")
    curves.legend(frameon=False, fontsize=8)
    save(figure, "dpo")
    figure, axes = panels(1, widths=(1,))
    _beta_scan(axes, models)
    save(figure, "dpo-beta")


def _beta_scan(axes: Any, models: Mapping[str, Any]) -> None:
    """One cross per run: KL to the SFT model and gold reward, both with their intervals."""
    names = {"evaluate-dpo": "gentle run", "evaluate-hot": "0.3"}
    names |= {run: beta[1] for run in models if (beta := re.fullmatch(r"evaluate-beta-([\d.]+)", run))}
    for run, name in names.items():
        kl, gold = models[run]["kl"], models[run]["gold"]
        axes.plot([kl["low"], kl["high"]], [gold["value"]] * 2, color=BLUE, alpha=0.5)
        dot(axes, kl["value"], gold)
        axes.annotate(name, (kl["value"], gold["value"]), xytext=(4, 4), textcoords="offset points")
    start = models["evaluate-sft"]["gold"]["value"]
    axes.axhline(start, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_xlabel("KL to SFT, nats per answer")
    axes.set_ylabel("gold reward")


# losses in words, in the order of the study
LOSSES = {
    "dpo": "DPO",
    "ipo": "IPO",
    "kto": "KTO",
    "orpo": "ORPO",
    "apo-zero": "APO-zero",
    "simpo": "SimPO",
    "dpo-norm": "DPO by length",
    "dpo-nll": "DPO with likelihood",
    "chosen-only": "SFT on the chosen",
    "hinge": "hinge",
    "robust": "robust DPO",
    "sppo": "SPPO",
    "nca": "NCA",
    "bco": "BCO",
    "exo": "EXO",
    "discopop": "DiscoPOP",
    "apo-down": "APO-down",
    "aot": "AOT",
}


def draw_variants(results: Mapping[str, Any]) -> None:
    """Each loss's gold reward over DPO's at equal KL; and how each loss's gain grew with its KL."""
    figure, (over, plane) = panels(2, widths=(1, 1))
    found = {name: figures for name, figures in results["measured"].items() if "over-dpo" in figures}
    names = [name for name in LOSSES if name in found][::-1]
    for row, name in enumerate(names):
        gap = found[name]["over-dpo-at-equal-kl"]
        over.plot([gap["low"], gap["high"]], [row, row], color=BLUE, alpha=0.5)
        over.plot(gap["value"], row, "o", color=BLUE, markersize=4)
    over.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    over.set_yticks(range(len(names)), [LOSSES[name] for name in names])
    over.set_title("gold reward over DPO at equal KL")
    for name, course in results["courses"].items():
        style = {"color": ORANGE, "zorder": 3} if name == "dpo" else {"color": INK, "alpha": 0.35}
        label = {"dpo": "DPO", "ipo": "other losses"}.get(name)
        plane.plot(*zip(*course, strict=True), "o-", markersize=3, linewidth=1, label=label, **style)
    plane.set_xlabel("KL to the SFT model, nats")
    plane.set_title("gain in gold reward on the way")
    plane.legend(frameon=False, fontsize=8)
    save(figure, "variants")


def draw_overoptimisation(results: Mapping[str, Any]) -> None:
    """Gold of the best of n for three ways to choose; parts of gold under the biased one."""
    figure, (gold, parts) = panels(2, widths=(1, 1))
    found = {int(name[2:]): each for name, each in results["measured"].items() if name.startswith("n-")}
    ns = sorted(found)
    names = {"biased": (BLUE, "o", "biased reward model"), "fair": (ORANGE, "s", "fair reward model")}
    for arm, style in {**names, "noise": (INK, "^", "gold with noise")}.items():
        band(gold, {n: found[n][arm] for n in ns}, style)
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
    save(figure, "overoptimisation")


def draw_online_rl(results: Mapping[str, Any]) -> None:
    """The learned reward and gold along GRPO's steps, on the biased and on the fair reward model."""
    figure, (score, gold) = panels(2, widths=(1, 1))
    names = {
        "grpo-biased": (BLUE, "o", "on the biased judge"),
        "grpo-fair": (ORANGE, "s", "on the fair judge"),
    }
    for run, style in names.items():
        looks = {
            int(name.rpartition("-")[2]): each
            for name, each in results["measured"].items()
            if name.startswith(f"{run}-")
        }
        # the two judges' scores are on scales of their own
        for axes, column in ((score, "proxy"), (gold, "gold"))[run == "grpo-fair" :]:
            band(axes, {step: looks[step][column] for step in sorted(looks)}, style)
    score.set_title("the biased judge's own score")
    gold.set_title("gold reward of the same answers")
    for axes in (score, gold):
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
    save(figure, "online_rl")


def draw_speculative(results: Mapping[str, Any]) -> None:
    """Score of the chosen answer against tokens, speculative rejection beside plain best-of-m."""
    figure, both = panels(2, widths=(1, 1))
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
        axes.set_xlabel("generated tokens per prompt")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, "speculative")


def draw_reward_models(results: Mapping[str, Any]) -> None:
    """Accuracy on the gold order against the number of pairs; sureness against the share right."""
    figure, (pairs, sure) = panels(2, widths=(1, 1))
    found = results["measured"]
    sizes = sorted(int(name.removeprefix("pairs-")) for name in found if name.startswith("pairs-"))
    for size in sizes:
        dot(pairs, size, found[f"pairs-{size}"]["gold"])
    for name, side in (("likelier", "top"), ("longer", "bottom")):
        share = found["naive"][name]["value"]
        pairs.axhline(share, color=INK, linewidth=0.9, linestyle="--")
        place = {"xytext": (3, 4 if side == "bottom" else -4), "textcoords": "offset points"}
        label = f"naive: the {name} answer"
        pairs.annotate(label, (sizes[0], share), fontsize=8, verticalalignment=side, **place)
    pairs.set_xscale("log")
    pairs.set_xticks(sizes, [f"{size:,}" for size in sizes])
    pairs.minorticks_off()
    pairs.set_xlabel("pairs trained on")
    pairs.set_title("finds the better answer")
    _reliability(sure, [found[name] for name in sorted(found) if name.startswith("bin-")])
    save(figure, "reward_models")


def _reliability(axes: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    """Groups of pairs: how sure the model says it is, how often labels agreed, and the true probability."""
    axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle="--")
    for group in bins:
        dot(axes, group["said"]["value"], group["agreed"])
        axes.plot(group["said"]["value"], group["true"]["value"], "x", color=ORANGE, markersize=6)
    axes.plot([], [], "o", color=BLUE, markersize=4, label="labels agreed")
    axes.plot([], [], "x", color=ORANGE, label="true probability")
    axes.set_xlabel("how sure the model says it is")
    axes.set_title("share of its verdicts")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_rejection(results: Mapping[str, Any]) -> None:
    """Gold of the best of n by either judge; gold against KL by round, fair and biased."""
    figure, (best, rounds) = panels(2, widths=(1, 1))
    found, ns = results["measured"], (1, 2, 4, 8, 16)
    for judge, (colour, marker, run) in {
        "fair": (BLUE, "o", "rejection"),
        "biased": (ORANGE, "s", "biased"),
    }.items():
        band(best, {n: found[f"{judge}-{n}"]["gold"] for n in ns}, (colour, marker, f"{judge} judge"))
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
    rounds.set_xlabel("KL to SFT, nats per answer")
    rounds.set_title("gold reward after each round")
    best.legend(frameon=False, fontsize=8)
    save(figure, "rejection_sampling")


def draw_shared_prefix(results: Mapping[str, Any]) -> None:
    """Who attends to whom in a pair's one row, and how much less time training takes by it."""
    figure, (mask, gain) = panels(2, widths=(0.75, 1.5))
    _attention(mask)
    works = list(results["measured"].values())[::-1]
    for row, found in enumerate(works):
        speedup = found["speedup"]
        gain.barh(row, speedup["value"], color=BLUE, alpha=0.45, height=0.6)
        gain.plot([speedup["low"], speedup["high"]], [row, row], color=INK, linewidth=2)
        gain.plot([found["ideal"]] * 2, [row - 0.38, row + 0.38], color=ORANGE, linewidth=2)
    names = [f"{w['stage']} {w['prompt']}/{w['answer']}, {w['vocabulary']:,} words" for w in works]
    gain.set_yticks(range(len(works)), names, fontsize=7)
    gain.axvline(1, color=INK, linewidth=0.8, linestyle="--")
    gain.set_title("TRL's time over ours; orange: tokens")
    save(figure, "shared_prefix")


def _attention(axes: Any) -> None:
    """The mask of a prompt of 4 tokens with answers of 3 and 4, as the package makes it."""
    import numpy as np

    from handbook_utils.shared_prefix.layout import attention, share_rows

    rows = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 3, 3, 3, 3]])
    parts = share_rows(rows, np.array([7, 8]), [0, 0]).parts
    seen = np.where(attention(parts)[0], parts[0][None, :] + 1, 0)
    axes.pcolormesh(seen, cmap=_part_colours(), vmin=0, vmax=3)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks([2, 5.5, 9], ["prompt", "chosen", "rejected"], fontsize=7)
    axes.set_yticks([2, 5.5, 9], ["prompt", "chosen", "rejected"], fontsize=7)
    axes.tick_params(length=0)
    axes.set_title("who sees whom")


def _part_colours() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([PALE, INK, BLUE, ORANGE])
