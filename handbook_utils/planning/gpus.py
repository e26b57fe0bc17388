"""Memory and speed of common GPUs, and how a size is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from handbook_utils.errors import RecipeError, suggest

GIB = 2**30
_UNITS = {"": GIB, "g": GIB, "gib": GIB, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6, "tib": 2**40}
_SIZE = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a size of memory.

    Attributes:
        name: as it is written on the command line.
        bytes: that a process can have of it.
        tflops: 10^12 operations per second in bfloat16 (float16 where it has none), dense, as its vendor
            says; None: unknown.
    """

    name: str
    bytes: int
    tflops: float | None = None


# GiB that the driver shows, and the dense rate of the vendors' data sheets
_KNOWN = {
    "t4": (14.6, 65),
    "v100-32gb": (31.7, 125),
    "l4": (22.0, 121),
    "a10g": (22.0, 70),
    "rtx3090": (23.6, 71),
    "rtx4090": (23.6, 165),
    "rtx5090": (31.4, 210),
    "a6000": (47.5, 155),
    "l40s": (44.4, 362),
    "a100-40gb": (39.4, 312),
    "a100-80gb": (79.1, 312),
    "h100": (79.1, 989),
    "h200": (139.8, 989),
    "b200": (178.3, 2250),
    "mi300x": (191.7, 1307),
}
GPUS = tuple(Gpu(name, int(size * GIB), tflops) for name, (size, tflops) in _KNOWN.items())


def read_gpu(text: str) -> Gpu:
    """A GPU by name (`a100-80gb`), or a size of memory (`24GiB`, `24`).

    Raises:
        RecipeError: neither; the nearest name is told.

    >>> read_gpu("24GiB").bytes // 2**30, read_gpu("A100 80GB").tflops
    (24, 312)
    """
    plain = re.sub(r"[\s_-]", "", text.lower()).removeprefix("nvidia")
    for gpu in GPUS:
        if plain == gpu.name.replace("-", ""):
            return gpu
    found = _SIZE.fullmatch(text)
    if found and found[2].lower() in _UNITS and float(found[1]) > 0:
        return Gpu(text.strip(), int(float(found[1]) * _UNITS[found[2].lower()]))
    raise RecipeError(f"--gpu: '{text:.60}' is no size such as 24GiB and no known GPU. {_nearest(plain)}")


def room_text(gpu: Gpu) -> str:
    """A GPU's name and memory; a size is said once.

    >>> room_text(read_gpu("100MiB")), room_text(read_gpu("24")), room_text(read_gpu("h100"))
    ('100 MiB', '24 GiB', 'h100 (79.1 GiB)')
    """
    amount = f"{gpu.bytes / GIB:.4g} GiB" if gpu.bytes >= GIB else f"{gpu.bytes / 2**20:.4g} MiB"
    is_same = gpu.name.lower().replace(" ", "") in (amount.lower().replace(" ", ""), amount.split()[0])
    return amount if is_same else f"{gpu.name} ({amount})"


def _nearest(plain: str) -> str:
    """The GPUs whose name begins so, or else the one whose name is most like it."""
    named = {gpu.name.replace("-", ""): gpu.name for gpu in GPUS}
    begun = [name for short, name in named.items() if plain and short.startswith(plain)]
    if begun:
        return f"Did you mean {' or '.join(map(repr, begun))}?"
    return suggest(plain, named.values())
