"""Recall and precision of each rule of curation on sets with planted faults, stored for the chapter on data.

    python book/tools/study_curation.py [--seeds 5]

Each seed makes one set: conversations of every shape, among them some that look like faults and are none, and
forty rows of each fault. Rates are over the rows of all seeds, with Wilson's 95 % intervals. The set is made
here, so the figures say how the rules do on such faults, and not how many faults your data has.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handbook_utils.curation.curate import curate
from handbook_utils.curation.rows import open_sources
from handbook_utils.curation.rules.pairs import wilson_interval
from handbook_utils.curation.rules.table import Settings
from handbook_utils.curation.tested import read_tested
from handbook_utils.environment import environment
from handbook_utils.models.load import load_tokenizer
from handbook_utils.reporting.results import device_name
from handbook_utils.runs.atomic import write_json
from handbook_utils.schema.sections import DataSource

STORE = Path(__file__).parents[1] / "results" / "curation.json"
CLEAN, PLANTED, TESTED, PAIRS, EQUAL_PAIRS, LONGER = 3000, 40, 60, 1000, 40, 0.7
MODEL = "pocket:base"


def listed(words: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(words.split())


NOUNS = listed(
    "garden river teacher engine letter window market doctor bridge island novel museum kitchen forest "
    "valley harbour painter lantern tunnel orchard castle factory library village compass blanket planet "
    "recipe theatre desert ladder violin bottle basket glacier meadow station captain pillow thunder"
)
VERBS = listed("builds paints finds repairs carries studies opens follows measures describes protects sells")
KINDS = listed(
    "old quiet narrow bright famous wooden distant gentle heavy modern broken golden silent curious"
)
WHEN = ("in spring", "after the war", "before noon", "on most days", "for many years", "at night")
FOREIGN = (
    (
        "Der {0} ist nicht so alt, wie es scheint, und die {1} kann man auch im Winter sehen.",
        "Wenn das Wetter gut ist, wird der {0} von {2} Menschen besucht, und sie sind mit der {1} zufrieden.",
        "Es ist wichtig, dass man die {1} nicht mit dem {0} verwechselt, denn das kostet {2} Euro.",
        "In der Stadt {1} gibt es seit {2} Jahren einen {0}, und er ist für alle offen.",
        "Ich habe den {0} bei der {1} gekauft, aber er war nach {2} Tagen kaputt.",
    ),
    (
        "Le {0} est plus ancien que vous pensez, et les {1} sont dans une autre ville.",
        "Pour visiter le {0}, il faut venir avec {2} guides qui sont sur place, mais pas avec les {1}.",
        "Il y a {2} ans, nous avons trouvé un {0} dans la {1}, et il est encore là.",
        "Cette {1} ne coûte pas plus de {2} euros, mais elle est moins belle que le {0}.",
    ),
    (
        "El {0} es una parte muy importante de la ciudad, y los {1} son más antiguos.",
        "Para visitar el {0} se puede llegar con {2} guías, pero también está abierta la {1}.",
        "Hace {2} años que el {0} está en la {1}, y los vecinos lo cuidan muy bien.",
        "La {1} no es para todos, porque cuesta {2} euros y el {0} está lejos.",
    ),
)
BOILERPLATE = "Certainly, I would be more than happy to assist you with that request today!"
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot provide instructions for the {0}.",
    "I apologize, but I am unable to answer questions about the {0}.",
    "As an AI language model, I don't have opinions about the {0}.",
    "Unfortunately, I can't assist with the {0} at this time.",
    "Sorry, I won't discuss the {0}.",
    "I must respectfully refuse to talk about the {0}.",
    "That is not something I am able to do for you, since the {0} is a sensitive subject.",
    "Es tut mir leid, aber dazu kann ich nichts sagen.",
)


class Maker:
    """Makes conversations from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def noun(self) -> str:
        """A noun."""
        return self.rng.choice(NOUNS)

    def sentence(self) -> str:
        """A sentence of ten to twenty words."""
        pick = self.rng.choice
        first = f"the {pick(KINDS)} {self.noun()} {pick(VERBS)} a {pick(KINDS)} {self.noun()} {pick(WHEN)}"
        more = (
            f", but the {self.noun()} of the {pick(KINDS)} {self.noun()} is {pick(KINDS)}",
            f" because a {self.noun()} {pick(VERBS)} the {self.noun()} of {self.rng.randrange(2, 90)}",
            "",
        )
        said = first + pick(more)
        return said[0].upper() + said[1:] + "."

    def prompt(self) -> str:
        """A question behind one or two sentences."""
        pick, age = self.rng.choice, self.rng.randrange(3, 90)
        lead = " ".join(self.sentence() for _ in range(self.rng.randrange(1, 3)))
        asks = (
            f"Why is the {pick(KINDS)} {self.noun()} near the {self.noun()} so {pick(KINDS)}?",
            f"How would you describe a {self.noun()} to a {self.noun()} of {age} years?",
            f"What is the difference between a {pick(KINDS)} {self.noun()} and a {self.noun()}?",
        )
        return f"{lead} {pick(asks)}"

    def answer(self) -> str:
        """An answer: prose, a list, code, a table, or a short one; some look like faults and are none."""
        prose = " ".join(self.sentence() for _ in range(self.rng.randrange(3, 9)))
        rng, nouns = self.rng, [self.noun() for _ in range(6)]
        shapes = [
            prose,
            prose,
            prose,
            prose[:-1] + rng.choice((" \U0001f642", "!", ".")),
            self.sentence() + "\n" + "\n".join(f"- a {rng.choice(KINDS)} {noun}" for noun in nouns),
            f"```python\ndef {nouns[0]}({nouns[1]}):\n    return {nouns[1]} * {rng.randrange(2, 999)}\n```",
            f"{self.sentence()}\n\n{nouns[0]} = {nouns[1]}({nouns[2]}, {rng.randrange(999)}) + {nouns[3]}",
            f"A {rng.choice(KINDS)} {nouns[0]}",
            str(rng.randrange(10**6)),
            f"| {nouns[0]} | {nouns[1]} |\n|---|---|\n| {rng.randrange(99)} | {rng.randrange(99)} |",
            f'The {nouns[0]} said: "I cannot help the {nouns[1]} if it {rng.choice(VERBS)} me." {prose}',
            f"{prose} See version {rng.randrange(9)}.{rng.randrange(99)}.4 of 2019-05-12.",
            f"In {rng.randrange(1500, 2020)} about {rng.randrange(10**9):,} of them were counted. {prose}",
        ]
        return rng.choice(shapes)

    def foreign(self) -> str:
        """An answer in German, French or Spanish."""
        said = self.rng.sample(self.rng.choice(FOREIGN), 2)
        return " ".join(one.format(self.noun(), self.noun(), self.rng.randrange(3, 999)) for one in said)

    def private(self) -> str:
        """Personal data, a key or an address; none of it is anyone's."""
        rng = self.rng
        digits = "".join(rng.choices("123456789", k=40))
        return rng.choice(
            (
                f"Write to {self.noun()}.{self.noun()}@example.org",
                f"Call me at +49 30 {digits[:4]} {digits[4:8]}",
                f"Call ({digits[:3]}) {digits[3:6]}-{digits[6:10]}",
                f"The key is sk-{digits[:24]}",
                f"It runs at 10.{digits[0]}.{digits[1]}.{digits[2]}",
                f"I live at {digits[:2]} {self.noun().title()} Street",
                f"My number is {digits[:3]}-{digits[3:5]}-{digits[5:9]}",
                f"Ask {self.noun().title()} {self.noun().title()}, my neighbour",  # a name alone has no form
            )
        )


def chat(asked: str, answered: str) -> dict[str, Any]:
    """One conversation."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def said(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of a conversation."""
    return row["messages"][0]["content"], row["messages"][1]["content"]


def edited(text: str, rng: random.Random, edits: int) -> str:
    """A text with some of its words changed."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), min(edits, len(words))):
        words[place] = rng.choice(NOUNS)
    return " ".join(words)


def faults(
    make: Maker, clean: list[dict[str, Any]], tested: list[str]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What makes a row of each fault."""
    rng = make.rng
    # each is copied once, so that no fault repeats another
    plain = [row for row in rng.sample(clean, len(clean)) if len(said(row)[1].split()) > 50]
    questions = rng.sample(tested, len(tested))

    def copy() -> dict[str, Any]:
        asked, answered = said(plain.pop())
        return chat(asked.upper() if rng.random() < 0.3 else asked + " ", answered)

    def near() -> dict[str, Any]:
        asked, answered = said(plain.pop())
        return chat(asked, edited(answered, rng, rng.choice((1, 2))))

    def cut() -> dict[str, Any]:
        answered = " ".join(make.sentence() for _ in range(6))
        return chat(make.prompt(), answered[: rng.randrange(len(answered) // 3, len(answered) - 1)])

    def order() -> dict[str, Any]:
        asked, answered = chat(make.prompt(), make.answer())["messages"]
        return {"messages": rng.choice(([answered, asked], [asked, answered, answered], [asked], [answered]))}

    def leak() -> dict[str, Any]:
        question = questions.pop()
        shapes = (question, f"{make.sentence()} {question}", edited(question, rng, 1))
        return chat(rng.choice(shapes), make.answer())

    def unreadable() -> dict[str, Any]:
        row: Any = chat(make.prompt(), make.answer())
        broken = ({"messages": "text"}, {"messages": [{"role": "wizard", "content": "Hm."}]}, {"other": row})
        return rng.choice(broken)

    def unlearned() -> dict[str, Any]:
        row = chat(make.prompt(), make.answer())
        row["messages"][1]["weight"] = 0
        return row

    loop = lambda: " ".join([make.sentence()] + [make.sentence()] * rng.randrange(5, 20))  # noqa: E731
    return {
        "unreadable": unreadable,
        "role_order": order,
        "empty": lambda: chat(make.prompt(), rng.choice(("", " ", "...", "\n"))),
        "nothing_learned": unlearned,
        "control_tokens": lambda: chat(make.prompt(), f"{make.sentence()} <|end|> {make.sentence()}"),
        "test_prompt": leak,
        "repetitive": lambda: chat(make.prompt(), loop()),
        "duplicate": copy,
        "near_duplicate": near,
        "repeated_prompt": lambda: chat(said(plain.pop())[0], make.answer()),
        "repeated_answer": lambda: chat(make.prompt(), said(plain.pop())[1]),
        "cut": cut,
        "refused": lambda: chat(make.prompt(), rng.choice(REFUSALS).format(make.noun())),
        "boilerplate": lambda: chat(make.prompt(), f"{BOILERPLATE} {make.sentence()}"),
        "wrong_language": lambda: chat(make.prompt(), make.foreign()),
        "private_data": lambda: chat(make.prompt(), f"{make.sentence()} {make.private()}."),
    }


def planted_set(seed: int) -> tuple[list[dict[str, Any]], dict[int, str], list[str]]:
    """Rows, the fault of each faulty one by its number, and the prompts that are tested on."""
    make = Maker(seed)
    clean = [chat(make.prompt(), make.answer()) for _ in range(CLEAN)]
    tested = [make.prompt() for _ in range(TESTED)]
    rows = list(clean)
    fault: list[str] = [""] * CLEAN
    made = [(name, plant()) for name, plant in faults(make, clean, tested).items() for _ in range(PLANTED)]
    make.rng.shuffle(made)
    # behind the clean rows, so that a copy is the later one
    rows += [row for _, row in made]
    fault += [name for name, _ in made]
    return rows, {number: name for number, name in enumerate(fault, start=1) if name}, tested


def measure(seed: int, folder: Path, tokenizer: Any) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By rule: planted rows that it found, rows that it found, rows that were planted."""
    rows, fault, tested = planted_set(seed)
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "tested.jsonl", [{"prompt": prompt} for prompt in tested])
    sources = open_sources([DataSource(name=str(folder / "rows.jsonl"))])
    index = read_tested([DataSource(name=str(folder / "tested.jsonl"))], sources)
    settings = Settings(tested=("tested.jsonl",), tokenizer=MODEL)
    curate(sources, folder / "clean", settings, tested=index, tokenizer=tokenizer)
    hits, found = Counter[str](), Counter[str]()
    for name in ("removed.jsonl", "flagged.jsonl"):
        for line in (folder / "clean" / name).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            for rule in {reason["rule"] for reason in record["rules"]}:
                found[rule] += 1
                hits[rule] += fault.get(record["row"]) == rule
    return hits, found, Counter(fault.values())


def measure_pairs(seed: int, folder: Path) -> dict[str, Any]:
    """What curation says of pairs of which seven in ten have the longer answer chosen."""
    make = Maker(seed)
    pairs = []
    for number in range(PAIRS):
        long, short = f"{make.sentence()} {make.sentence()} {make.sentence()}", make.sentence()
        chosen, rejected = (long, short) if make.rng.random() < LONGER else (short, long)
        equal = number < EQUAL_PAIRS
        pairs.append({"prompt": make.prompt(), "chosen": chosen, "rejected": chosen if equal else rejected})
    write_rows(folder / "pairs.jsonl", pairs)
    return curate(open_sources([DataSource(name=str(folder / "pairs.jsonl"))]), folder / "pairs").report


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row per line."""
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def rate(hits: int, of: int) -> dict[str, float] | None:
    """A rate with Wilson's interval."""
    low, high = wilson_interval(hits, of)
    return {"value": hits / of, "low": low, "high": high, "n": of} if of else None


def study(seeds: int) -> dict[str, Any]:
    """All figures, as the book reads them."""
    hits, found, planted = Counter[str](), Counter[str](), Counter[str]()
    tokenizer = load_tokenizer(MODEL, for_chat=False)
    pairs: list[dict[str, Any]] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="study-curation-") as folder:
            for total, counts in zip(
                (hits, found, planted), measure(seed, Path(folder), tokenizer), strict=True
            ):
                total.update(counts)
            pairs.append(measure_pairs(seed, Path(folder)))
    measured: dict[str, Any] = {
        rule: {"recall": rate(hits[rule], planted[rule]), "precision": rate(hits[rule], found[rule])}
        for rule in planted
    }
    equal = sum(one["rules"]["equal_pair"]["removed"] for one in pairs)
    measured["equal_pair"] = {"recall": rate(equal, EQUAL_PAIRS * seeds), "precision": rate(equal, equal)}
    measured["pairs"] = {**pairs[0]["length_bias"]}
    measured["set"] = {
        "rows": {"value": CLEAN + PLANTED * len(planted), "n": seeds},
        "planted": {"value": PLANTED, "n": seeds},
    }
    return {
        "device": device_name(environment()["hardware"]),
        "seeds": list(range(seeds)),
        "date": datetime.now(UTC).date().isoformat(),
        "planted_longer_chosen": LONGER,
        "measured": measured,
    }


def main() -> None:
    """Measure, store, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=STORE)
    given = parser.parse_args()
    results = study(given.seeds)
    write_json(given.out, results)
    for rule, figures in results["measured"].items():
        shown = [
            f"{name} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            for name, one in figures.items()
            if isinstance(one, dict) and "low" in one
        ]
        print(f"{rule:16} {'  '.join(shown)}")


if __name__ == "__main__":
    main()
