"""Best-of-n figures of a run, sorted into curves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from handbook_utils.records import Estimate

Curve = list[tuple[int, Estimate]]

_CURVE_KEY = re.compile(r"(?P<arm>[^.@]+)\.(?P<measure>[^@]+)@(?P<n>\d+)\Z")
_MEASURE_NAMES = {
    "gold": "gold reward",
    "score": "selecting score",
    "words": "words",
    "gold.helpful": "helpful",
    "gold.safe": "safe",
    "gold.polite": "polite",
    "gold.concise": "concise",
    "gold.refused": "refused",
}


def measure_name(measure: str) -> str:
    """A best-of-n measure in words."""
    return _MEASURE_NAMES.get(measure, measure)


def ordered_measures(curves: Iterable[tuple[str, str]]) -> list[str]:
    """The measures of some curves, best known first, others by name.

    >>> ordered_measures([("proxy", "words"), ("proxy", "mine"), ("control", "gold")])
    ['gold', 'words', 'mine']
    """
    found = {measure for _, measure in curves}
    return [name for name in _MEASURE_NAMES if name in found] + sorted(found - _MEASURE_NAMES.keys())


def best_of_n_curves(metrics: Mapping[str, Estimate]) -> dict[tuple[str, str], Curve]:
    """Sort figures named `arm.measure@n` into one curve an (arm, measure), ordered by n.

    >>> found = Estimate(0.7, 0.6, 0.8, 0.95, 10, "gold reward", "bootstrap-t", 0)
    >>> list(best_of_n_curves({"proxy.gold@4": found, "proxy.gold@1": found, "proxy.gold_gain@4": found}))
    [('proxy', 'gold')]
    """
    curves: dict[tuple[str, str], Curve] = {}
    for key, estimate in metrics.items():
        match = _CURVE_KEY.match(key)
        # a gain is the difference of two points of a curve, so no point of one
        if match and not match["measure"].endswith("_gain"):
            curves.setdefault((match["arm"], match["measure"]), []).append((int(match["n"]), estimate))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}
