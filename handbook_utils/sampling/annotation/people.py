"""What several people's judgements say together: do they agree, who judged how, and which answer won."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from handbook_utils.errors import DataError
from handbook_utils.evaluation.agreement import cohen_kappa, krippendorff_alpha, plain_agreement
from handbook_utils.evaluation.statistics import mean_estimate, with_cautions
from handbook_utils.records import Estimate
from handbook_utils.sampling.annotation.judgements import Judgement, Line, counted

# a tie lies between the two answers
VALUES = {"a": -1.0, "tie": 0.0, "b": 1.0}
# two people with fewer common pairs than this are not shown a kappa of their own
FEWEST_COMMON = 2


@dataclass(frozen=True)
class Person:
    """How one person judged.

    Attributes:
        judged: pairs.
        skipped: pairs.
        taken_back: judgements.
        seconds: median per judgement; None where not known.
        first: how often the answer shown first was preferred, ties left out; None without any preference.
    """

    judged: int
    skipped: int
    taken_back: int
    seconds: float | None
    first: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "first": self.first and self.first.to_json()}


@dataclass(frozen=True)
class AgreementReport:
    """What the judgements of several people say together.

    Attributes:
        judgements: that count.
        pairs: that were judged.
        shared: pairs that two people or more judged.
        people: by name.
        metrics: `alpha` (Krippendorff's, all people), `alpha_ordered` (the same with a tie halfway between
            the answers), `agreement` (share of equal judgements), as far as they have a value.
        kappas: Cohen's, by two people.
        cautions: why a figure is missing, and what to know before relying on one.
    """

    judgements: int
    pairs: int
    shared: int
    people: Mapping[str, Person]
    metrics: Mapping[str, Estimate]
    kappas: Mapping[tuple[str, str], Estimate]
    cautions: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "judgements": self.judgements,
            "pairs": self.pairs,
            "shared": self.shared,
            "people": {name: person.to_json() for name, person in self.people.items()},
            "metrics": {name: figure.to_json() for name, figure in self.metrics.items()},
            "kappas": [
                {"people": list(names), "kappa": kappa.to_json()} for names, kappa in self.kappas.items()
            ],
            "cautions": list(self.cautions),
        }


def summarise_people(lines: Sequence[Line], *, level: float = 0.95) -> AgreementReport:
    """Agreement among the people of a file of judgements.

    Args:
        lines: of the file.
        level: confidence level of the intervals.
    """
    said = [line.judgement for line in counted(lines)]
    names = sorted({line.judgement.person for line in lines})
    table = judgement_table(said, names)
    is_shared = (~np.isnan(table)).sum(axis=1) >= 2
    cautions: list[str] = []
    metrics = {}
    for name, measure in {
        "alpha": lambda: krippendorff_alpha(table, level=level),
        "alpha_ordered": lambda: krippendorff_alpha(table, distance="interval", level=level),
        "agreement": lambda: plain_agreement(table, level=level),
    }.items():
        try:
            metrics[name], told = with_cautions(measure)
        except DataError as error:
            told = (str(error),)
        cautions += told
    kappas = _kappas(table, names, level, cautions)
    return AgreementReport(
        judgements=len(said),
        pairs=len(table),
        shared=int(is_shared.sum()),
        people={name: _person(name, lines, level) for name in names},
        metrics=metrics,
        kappas=kappas,
        cautions=tuple(dict.fromkeys(cautions)),
    )


def judgement_table(said: Sequence[Judgement], names: Sequence[str]) -> np.ndarray:
    """(pairs, people) of -1 for the first answer, 0 for a tie, 1 for the second; NaN where nobody judged."""
    places = {pair: place for place, pair in enumerate(dict.fromkeys(each.pair for each in said))}
    columns = {name: place for place, name in enumerate(names)}
    table = np.full((len(places), len(columns)), np.nan)
    for each in said:
        table[places[each.pair], columns[each.person]] = VALUES[each.verdict]
    return table


def agreed_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row per pair in the format `judged`: what most people preferred, a tie where as many said either.

    Returns:
        Rows in the order of their first judgement; `judgement.votes` counts what was said.
    """
    pairs: dict[str, list[Line]] = {}
    for line in counted(lines):
        pairs.setdefault(line.judgement.pair, []).append(line)
    return [_agreed(of_one) for of_one in pairs.values()]


def _agreed(lines: Sequence[Line]) -> dict[str, Any]:
    votes = Counter(line.judgement.verdict for line in lines)
    row = dict(lines[0].row)
    said = {
        "pair": lines[0].judgement.pair,
        "votes": {verdict: votes[verdict] for verdict in VALUES},
        "by": [line.judgement.person for line in lines],
        "origins": row["judgement"].get("origins"),
    }
    lead = votes["a"] - votes["b"]
    row["preference"] = "a" if lead > 0 else "b" if lead < 0 else "tie"
    row["judgement"] = said
    return {name: value for name, value in row.items() if name != "weight"}


def _person(name: str, lines: Iterable[Line], level: float) -> Person:
    own = [line for line in lines if line.judgement.person == name]
    kept = counted(own)
    times = [line.judgement.seconds for line in kept if line.judgement.seconds is not None]
    decided = [line.judgement for line in kept if line.judgement.verdict != "tie"]
    firsts = [float(each.verdict == each.first) for each in decided]
    skipped = sum(line.judgement.verdict == "skip" and not line.is_undone for line in own)
    return Person(
        judged=len(kept),
        skipped=skipped,
        taken_back=sum(line.is_undone for line in own),
        seconds=median(times) if times else None,
        first=with_cautions(lambda: mean_estimate(firsts, unit="rate", level=level))[0] if firsts else None,
    )


def _kappas(
    table: np.ndarray, names: Sequence[str], level: float, cautions: list[str]
) -> dict[tuple[str, str], Estimate]:
    found = {}
    for (one, first), (other, second) in combinations(enumerate(names), 2):
        common = ~np.isnan(table[:, [one, other]]).any(axis=1)
        if common.sum() >= FEWEST_COMMON:
            try:
                found[first, second] = cohen_kappa(table[:, one], table[:, other], level=level)
            except DataError as error:
                cautions.append(f"{first} and {second}: {error}")
    return found
