"""The pipeline as a picture: an SVG with a box per stage, its state and its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from handbook_utils.reporting.layout import Point, lay_out
from handbook_utils.reporting.runs import RunView, edges

BOX_W, BOX_H = 152, 48
COLUMN, ROW = 172, 86
MARGIN = 10
SIGNS = {"finished": "✔", "running": "…", "failed": "✘", "planned": "○"}


def pipeline_svg(views: Mapping[str, RunView]) -> str:
    """Draw stages and what feeds what; colours come from the page's style, so that it follows dark mode."""
    names = list(views)
    layout = lay_out(names, edges(views))
    width = round((layout.width - 1) * COLUMN + BOX_W + 2 * MARGIN)
    height = (layout.height - 1) * ROW + BOX_H + 2 * MARGIN
    done = sum(view.status == "finished" for view in views.values())
    arrows = [_arrow(points) for points in layout.paths.values()]
    boxes = [_box(views[name], layout.places[name]) for name in names]
    return (
        '<svg class="pipeline" role="img" aria-labelledby="pipeline-title pipeline-text" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="pipeline-title">The pipeline: {done} of {len(names)} stages finished</title>'
        f'<desc id="pipeline-text">{escape(_in_words(views))}</desc>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
        f"{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def duration(seconds: float) -> str:
    """Seconds in words short enough for a box.

    >>> duration(4.2), duration(83), duration(4000)
    ('4.2 s', '1 min 23 s', '1 h 06 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _box(view: RunView, place: Point) -> str:
    centre, top = _centre(place)[0], place[1] * ROW + MARGIN
    left = centre - BOX_W / 2
    cost = duration(view.result.runtime_s) if view.result else view.status
    return (
        f'<g class="box {escape(view.status)}">'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{BOX_W}" height="{BOX_H}" rx="7"/>'
        f'<text x="{centre:.1f}" y="{top + 20:.1f}" class="name">{escape(_short(view.name))}'
        f"<title>{escape(view.name)}</title></text>"
        f'<text x="{centre:.1f}" y="{top + 37:.1f}" class="cost">'
        f"{SIGNS.get(view.status, '?')} {escape(view.stage)}, {escape(cost)}</text></g>"
    )


def _arrow(points: Sequence[Point]) -> str:
    """A smooth line from box to box, straight down where it passes others."""
    at = [_centre(point) for point in points]
    x, y = at[0]
    path = [f"M{x:.1f} {y + BOX_H / 2:.1f}"]
    bottom = y + BOX_H / 2
    for index, (next_x, next_y) in enumerate(at[1:], start=1):
        top = next_y - BOX_H / 2
        middle = (bottom + top) / 2
        path.append(f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {top - 1:.1f}")
        x, bottom = next_x, next_y + BOX_H / 2
        if index < len(at) - 1:
            path.append(f"V{bottom:.1f}")
    return f'<path class="arrow" d="{" ".join(path)}" marker-end="url(#tip)"/>'


def _centre(place: Point) -> tuple[float, float]:
    return place[0] * COLUMN + BOX_W / 2 + MARGIN, place[1] * ROW + BOX_H / 2 + MARGIN


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:10]}…{name[-8:]}"


def _in_words(views: Mapping[str, RunView]) -> str:
    def words(view: RunView) -> str:
        sources = [name for name in view.inputs if name in views]
        return f"{view.name} ({view.status}{', reads ' + ', '.join(sources) if sources else ''})"

    return "; ".join(words(view) for view in views.values())
