"""The memory of a run as a picture: one bar, a colour for each part, and the edge of the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from handbook_utils.planning.gpus import GIB

WIDTH, BAR_HEIGHT, LEFT, LINE = 720, 44, 16, 22
# readable on light and dark pages, and told apart by who does not see red and green apart
FILLS = {
    "weights": "#0072b2",
    "adapters": "#56b4e9",
    "reference": "#cc79a7",
    "scorers": "#f0a3c8",
    "gradients": "#d55e00",
    "optimiser": "#e69f00",
    "activations": "#009e73",
    "loss head": "#7fc97f",
    "keys and values": "#2f4b7c",
    "communication": "#8e6bbf",
    "margin, not measured": "#999999",
}


def parts_svg(parts: Mapping[str, int], *, room: int | None = None) -> str:
    """A stacked bar of bytes by part, as an SVG.

    Args:
        parts: bytes of each part; parts of 0 are left out.
        room: bytes of the GPU, drawn as a line; None: none.
    """
    shown = {name: size for name, size in parts.items() if size > 0}
    total = sum(shown.values())
    scale = (WIDTH - 2 * LEFT) / max(total, room or 0, 1)
    height = 40 + BAR_HEIGHT + LINE * (len(shown) + 1)
    words = f"{total / GIB:.2f} GiB on each device"
    words += "" if room is None else f", of {room / GIB:.1f} GiB"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="14"><title>{escape(words)}</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="#111111">{escape(words)}</text>',
    ]
    place, top = float(LEFT), 32
    for row, (name, size) in enumerate(shown.items()):
        fill, wide = FILLS.get(name, "#666666"), size * scale
        lines.append(
            f'<rect x="{place:.1f}" y="{top}" width="{wide:.1f}" height="{BAR_HEIGHT}" fill="{fill}"/>'
        )
        place += wide
        y = top + BAR_HEIGHT + LINE * (row + 1)
        lines.append(f'<rect x="{LEFT}" y="{y - 11}" width="12" height="12" fill="{fill}"/>')
        said = f"{escape(name)}: {size / GIB:.2f} GiB"
        lines.append(f'<text x="{LEFT + 20}" y="{y}" fill="#111111">{said}</text>')
    if room is not None:
        edge = LEFT + room * scale
        lines.append(
            f'<line x1="{edge:.1f}" x2="{edge:.1f}" y1="{top - 6}" y2="{top + BAR_HEIGHT + 6}" '
            'stroke="#111111" stroke-width="2"/>'
        )
    return "\n".join([*lines, "</svg>\n"])
