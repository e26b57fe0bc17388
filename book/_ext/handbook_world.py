"""The pocket world's examples, rates and constants, made from the package: no page can differ from it.

{world}`rate.rude`            one of `facts()`
```{world-example} story      a request of the family and an answer without a flaw
```{world-flaws}              each flaw: how often, what it costs, and an answer that has it
```{world-annotators}         what each annotator likes
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Final, get_args

from docutils import nodes
from handbook_outputs import printed_block
from handbook_results import render_figure, table
from safetensors import safe_open
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.pocket.annotator import ANNOTATORS, Annotator
from handbook_utils.pocket.families.base import Flaws
from handbook_utils.pocket.fingerprint import FOLDER
from handbook_utils.pocket.vocabulary import FILLERS
from handbook_utils.pocket.world import (
    FAMILIES,
    FLAW_RATES,
    PLAIN_TEXTS,
    RUDE_PENALTY,
    WORDINESS_PENALTY,
    WORDS_TO_LOSE_CONCISION,
    Gold,
    PocketPrompt,
    Split,
    demonstrate,
    demonstrations,
    gold_reward,
    prompts,
)
from handbook_utils.schema.recipe import load_recipe

REFUSAL: Final = "refusal"  # the example of a harmful request
# one flaw at a time; (what it is, the example that shows it)
FLAWS: Final[Mapping[str, tuple[str, str]]] = {
    "missed": ("missed: something asked for is left out or miscounted", "list"),
    "wrong": ("wrong: something is taken from elsewhere", "list"),
    "rude": ("rude: a rude sentence closes the answer", "list"),
    "fillers": ("fillers: one or two sentences that say nothing", "list"),
    "complies": ("complies: a harmful request is granted", REFUSAL),
}
NAMES: Final = {"annotator": "biased", "unbiased-annotator": "fair"}


@dataclass(frozen=True)
class Example:
    """A request, an answer to it and the answer's gold reward."""

    request: str
    answer: str
    gold: Gold


def example(kind: str, flaw: str | None = None) -> Example:
    """A request of a family, or a harmful one for "refusal", with an answer that has one flaw or none.

    >>> example("repeat").gold.value
    1.0
    >>> example("refusal", "complies").gold.value
    0.0
    """
    family = "howto" if kind == REFUSAL else kind
    request = next(p.text for p in _dev() if p.family == family and p.harmful == (kind == REFUSAL))
    answer = demonstrate(request, rng=random.Random(0), flaws=Flaws(**{flaw: True} if flaw else {}))
    return Example(request, answer, gold_reward(request, answer))


@cache
def _dev() -> list[PocketPrompt]:
    return prompts("dev")


@cache
def facts() -> dict[str, str]:
    """Every constant and figure that a page may name, ready to be read."""
    biased, config = ANNOTATORS["annotator"], json.loads((FOLDER / "base/config.json").read_text("utf-8"))
    answers = [gold_reward(prompt.text, answer).value for prompt, answer in demonstrations("dev")]
    flawless = sum(value == 1 for value in answers) / len(answers)
    splits = {f"prompts.{split}": f"{len(prompts(split)):,}" for split in get_args(Split)}
    return {
        **{f"rate.{flaw}": _percent(rate) for flaw, rate in FLAW_RATES.items()},
        **splits,
        "families": str(len(FAMILIES)),
        "rude_penalty": f"{RUDE_PENALTY:g}",
        "wordiness_penalty": f"{WORDINESS_PENALTY:g}",
        "words_to_lose_concision": str(WORDS_TO_LOSE_CONCISION),
        "demonstrations.n": f"{len(answers):,}",
        "demonstrations.gold": render_figure(mean_estimate(answers).to_json()),
        "demonstrations.flawless": _percent(flawless),
        "temperature": f"{biased.temperature:g}",
        "length_bias": f"{biased.length_bias:g}",
        "one_temperature": _percent(_sure(biased, biased.temperature)),
        "parameters": f"{parameters():,}",
        "layers": str(config["num_hidden_layers"]),
        "hidden": str(config["hidden_size"]),
        "vocabulary": f"{config['vocab_size']:,}",
        "context": str(config["max_position_embeddings"]),
        "passages": f"{PLAIN_TEXTS:,}",
        "passes": f"{load_recipe('pocket/base').training['num_train_epochs']:g}",
    }


def parameters() -> int:
    """Number of weights in the shipped base model; no model is loaded."""
    with safe_open(FOLDER / "base/model.safetensors", framework="numpy") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _sure(annotator: Annotator, gap: float) -> float:
    """How often the better of two answers is preferred whose utilities are so far apart."""
    from scipy.special import expit

    return float(expit(gap / annotator.temperature))


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


class Fact(SphinxRole):
    """A constant in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Replace the name by the constant, or warn and leave a mark."""
        if self.text in facts():
            return [nodes.inline(self.text, facts()[self.text], classes=["result"])], []
        near = ", ".join(difflib.get_close_matches(self.text, facts(), cutoff=0.3))
        message = self.inliner.reporter.warning(f"{{world}}: no fact '{self.text}'. Nearest: {near}.")
        return [nodes.problematic(self.text, f"[{self.text}]")], [message]


class ExampleBlock(SphinxDirective):
    """One request and an answer without a flaw."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Build the block."""
        found = example(self.arguments[0])
        return [printed_block(f"USER  {found.request}\nMODEL {found.answer}")]


class FlawsTable(SphinxDirective):
    """Each flaw alone, with its rate, an answer that has it and the gold reward of that answer."""

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        rows = [
            [says, _percent(FLAW_RATES[flaw]), f"{found.gold.value:.3f}", found.answer]
            for flaw, (says, kind) in FLAWS.items()
            if (found := example(kind, flaw))
        ]
        return [table(["flaw", "drawn at", "gold reward", "an answer that has it"], rows)]


class AnnotatorsTable(SphinxDirective):
    """What each annotator adds and takes off, and what it makes of an empty sentence."""

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        perfect = example("list")
        longer = f"{perfect.answer} {FILLERS[0]}"
        rows = [
            [
                f"{NAMES[name]} (`{name}`)".replace("`", ""),
                f"{each.length_bias:g}",
                f"{each.concision_weight:g}",
                _percent(each.preference_probability(perfect.request, longer, perfect.answer)),
            ]
            for name, each in ANNOTATORS.items()
        ]
        head = ["annotator", "utility of a word", "weight of concision", "prefers an added empty sentence"]
        return [table(head, rows)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the directives."""
    app.add_role("world", Fact())
    for name, kind in {"example": ExampleBlock, "flaws": FlawsTable, "annotators": AnnotatorsTable}.items():
        app.add_directive(f"world-{name}", kind)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
