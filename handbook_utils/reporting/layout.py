"""Where the boxes of a pipeline's picture go: layers from top to bottom, few crossings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Edge = tuple[str, str]
Point = tuple[float, float]

SWEEPS = 12


@dataclass(frozen=True)
class Layout:
    """Positions in units of one box: x to the right, y down by layers.

    Attributes:
        places: centre of every box.
        paths: for each drawn arrow the points it goes through, both boxes' centres included.
        width: columns needed.
        height: number of layers.
    """

    places: Mapping[str, Point]
    paths: Mapping[Edge, Sequence[Point]]
    width: float
    height: int


def lay_out(names: Sequence[str], edges: Sequence[Edge]) -> Layout:
    """Place stages in layers below all they read.

    Arrows that follow from others are left out; long ones bend around boxes through empty places.

    Args:
        names: all stages, each after what it reads.
        edges: (earlier, later).
    """
    drawn = without_shortcuts(names, edges)
    layer = _layers(names, drawn)
    chains = {edge: _chain(edge, layer) for edge in drawn}
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for name in names:
        rows[layer[name]].append(name)
    for (source, target), chain in chains.items():
        for depth, joint in enumerate(chain[1:-1], start=layer[source] + 1):
            rows[depth].append(joint)
        assert layer[target] == layer[source] + len(chain) - 1
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    x = _columns(rows, links, set(names))
    y = {name: depth for depth, row in enumerate(rows) for name in row}
    paths = {edge: [(x[name], float(y[name])) for name in chain] for edge, chain in chains.items()}
    places = {name: (x[name], float(y[name])) for name in names}
    return Layout(places, paths, max(x.values(), default=0.0) + 1, len(rows))


def without_shortcuts(names: Sequence[str], edges: Sequence[Edge]) -> list[Edge]:
    """Drop every arrow whose ends are also joined by a longer way.

    >>> without_shortcuts(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])
    [('a', 'b'), ('b', 'c')]
    """
    children: dict[str, set[str]] = {name: set() for name in names}
    for source, target in edges:
        children[source].add(target)
    below: dict[str, set[str]] = {}
    for name in reversed(names):
        below[name] = children[name].union(*(below[child] for child in children[name]))
    return [
        (source, target)
        for source, target in edges
        if not any(target in below[child] for child in children[source])
    ]


def _layers(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    layer = dict.fromkeys(names, 0)
    for name in names:
        layer[name] = max((layer[source] + 1 for source, target in edges if target == name), default=0)
    for name in reversed(names):
        read_by = [layer[target] for source, target in edges if source == name]
        reads = any(target == name for _, target in edges)
        if read_by and not reads:
            layer[name] = min(read_by) - 1  # a stage without inputs stands close to its first reader
    return layer


def _chain(edge: Edge, layer: Mapping[str, int]) -> list[str]:
    """The boxes of an arrow and the joints between them, one per layer."""
    source, target = edge
    joints = [f"{source}>{target}@{depth}" for depth in range(layer[source] + 1, layer[target])]
    return [source, *joints, target]


def _columns(rows: list[list[str]], links: Sequence[Edge], boxes: set[str]) -> dict[str, float]:
    """x of every box and joint: each near the mean of its neighbours, none on another."""
    near: dict[str, list[str]] = {}
    for one, other in links:
        near.setdefault(one, []).append(other)
        near.setdefault(other, []).append(one)
    x = {name: float(index) for row in rows for index, name in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wish = {name: _mean([x[other] for other in near.get(name, [name])]) for name in row}
            row.sort(key=lambda name: wish[name])
            x |= _spread(row, wish, boxes)
    left = min(x.values(), default=0.0)
    return {name: place - left for name, place in x.items()}


def _spread(row: Sequence[str], wish: Mapping[str, float], boxes: set[str]) -> dict[str, float]:
    """Push neighbours apart to a box's width, keeping the row's centre where it was wished."""
    place: dict[str, float] = {}
    previous: str | None = None
    for name in row:
        least = wish[name]
        if previous is not None:
            # a joint is a line and needs less room than a box
            room = (0.5 if name in boxes else 0.08) + (0.5 if previous in boxes else 0.08)
            least = max(least, place[previous] + room)
        place[name] = least
        previous = name
    drift = _mean([place[name] - wish[name] for name in row]) if row else 0.0
    return {name: at - drift for name, at in place.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
