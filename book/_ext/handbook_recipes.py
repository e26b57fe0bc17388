"""The appendix of recipes, made from the package's own data: methods, lists and cards.

```{recipes-status}     the sentence that every card carries
```{recipes-methods}    stages and losses with their papers
```{recipes-cards}      every family: its recipes, each with a card to unfold
```{recipes-starting} zephyr-7b-beta/sft tulu3/sft
                        the numbers that one tries first, as these recipes have them, and where they are from
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from docutils import nodes
from handbook_pages import fold
from handbook_results import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from handbook_utils.cli.papers import methods
from handbook_utils.cli.recipes import card_sections
from handbook_utils.schema.cards import NOT_LOADED, hyperparameters, recipe_card
from handbook_utils.schema.recipe import load_recipe, recipe_names

# the page says these once, not on each of its cards
SAID_ONCE = {"About", "Not run here"}


class Status(SphinxDirective):
    """What the tests do with recipes, and what they do not."""

    def run(self) -> list[nodes.Node]:
        """Build the note."""
        return [nodes.important("", nodes.paragraph(NOT_LOADED, NOT_LOADED))]


class Methods(SphinxDirective):
    """Stages and losses."""

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        cells = []
        for method in methods():
            cited = f"{method.paper}, {method.year}" if method.paper else ""
            place = f"arXiv {method.arxiv}" if method.arxiv else ""
            name = f"{method.stage}: {method.name}" if method.stage else method.name
            does = f"{method.does}; needs {method.needs}" if method.needs else method.does
            cells.append([name, does, ". ".join(filter(None, (cited, place)))])
        return [table(["stage: loss_type or strategy", "what it does", "paper"], cells)]


class Cards(SphinxDirective):
    """Every family of recipes."""

    def run(self) -> list[nodes.Node]:
        """Build a section per family."""
        families = groupby(recipe_names(), lambda name: name.partition("/")[0])
        return [self._family(family, list(names)) for family, names in families]

    def _family(self, family: str, names: list[str]) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(f"family-{family}")], names=[f"family-{family}"])
        section += nodes.title(family, family)
        about = recipe_card(names[0]).about
        section += nodes.paragraph(about, about)
        for name in names:
            says = f" {load_recipe(name).description} ({recipe_card(name).status})"
            section += fold([nodes.strong(name, name), nodes.Text(says)], self._card(name))
        return section

    def _card(self, name: str) -> list[nodes.Node]:
        """Build one card: what differs from recipe to recipe, and every number with its source."""
        shown: list[nodes.Node] = []
        for title, lines in card_sections(recipe_card(name)):
            if title not in SAID_ONCE:
                text = (" " if title == "Remarks" else "; ").join(lines)
                shown.append(nodes.paragraph("", "", nodes.strong(title, title), nodes.Text(f": {text}")))
        values: dict[str, list[str]] = {}
        for key, value, source in hyperparameters(name):
            values.setdefault(source, []).append(f"{key}: {value}")
        if values:
            cells = [[", ".join(keys), source] for source, keys in values.items()]
            shown.append(table(["hyperparameters", "from"], cells))
        return shown


class Starting(SphinxDirective):
    """Numbers to start from, as the named recipes have them."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Build the table: a row per recipe, in the order they are named in."""
        rows = [_starting_row(name) for name in self.arguments[0].split()]
        # no column that is empty in every row
        shown = [head for head in rows[0] if any(row[head] for row in rows)]
        return [table(shown, [[row[head] for head in shown] for row in rows])]


def _starting_row(name: str) -> dict[str, str]:
    """What a recipe sets, and the source of its learning rate."""
    found = {key: (value, source) for key, value, source in hyperparameters(name)}
    values = {key: value for key, (value, _) in found.items()}
    besides = [f"{values['training.loss_type']} loss"] if "training.loss_type" in values else []
    if "training.beta" in values:
        besides.append(f"beta {values['training.beta']:g}")
    if "lora.rank" in values:
        bits = "4-bit base, " if "model.quantization" in values else ""
        besides.append(f"{bits}LoRA rank {values['lora.rank']}, alpha {values['lora.alpha']}")
    return {
        "recipe": name,
        "learning rate": _short(values["training.learning_rate"]),
        "epochs": f"{values['training.num_train_epochs']:g}",
        "batch \N{MULTIPLICATION SIGN} tokens": (
            f"{values['global_batch_size']} \N{MULTIPLICATION SIGN} {values['training.max_length']:,}"
        ),
        "besides": "; ".join(besides),
        "from": found["training.learning_rate"][1],
    }


def _short(rate: float) -> str:
    """A learning rate as recipes write it: 5e-6."""
    digits, _, exponent = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    for name, kind in {"status": Status, "methods": Methods, "cards": Cards, "starting": Starting}.items():
        app.add_directive(f"recipes-{name}", kind)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
