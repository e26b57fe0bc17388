"""What a plan says: as plain values for programs, as tables and bars for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from handbook_utils.planning.changes import Change, Run, changes_to_fit, processes_to_fit
from handbook_utils.planning.duration import Duration
from handbook_utils.planning.gpus import GIB, GPUS, Gpu, room_text
from handbook_utils.planning.memory import MemoryPlan

COLOURS = {
    "weights": "blue",
    "adapters": "cyan",
    "reference": "magenta",
    "scorers": "bright_magenta",
    "gradients": "red",
    "optimiser": "yellow",
    "activations": "green",
    "loss head": "bright_green",
    "keys and values": "bright_cyan",
    "communication": "bright_blue",
    "margin, not measured": "bright_black",
}
BAR = 60


@dataclass(frozen=True)
class Plan:
    """A run's memory and time, and what makes it fit.

    Attributes:
        run: whose memory it is.
        memory: of each device, by part.
        gpu: that it is to fit; None: none was named.
        changes: one on top of the other, the cheapest first; empty: it fits, or no GPU was named.
        shared: the fewest GPUs on which the recipe fits unchanged; None: it fits, or not on 64.
        duration: of training.
        assumed: what is taken for granted, in sentences.
    """

    run: Run
    memory: MemoryPlan
    gpu: Gpu | None
    changes: tuple[Change, ...]
    shared: Change | None
    duration: Duration
    assumed: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether it fits the GPU; None: none was named."""
        return None if self.gpu is None else self.memory.total <= self.gpu.bytes

    @property
    def changes_fit(self) -> bool:
        """Whether it fits with all its changes."""
        return bool(self.changes) and self.gpu is not None and self.changes[-1].memory <= self.gpu.bytes


def make_plan(run: Run, gpu: Gpu | None, duration: Duration, assumed: Sequence[str]) -> Plan:
    """Plan a run; what makes it fit is looked for only where it does not."""
    memory = run.memory
    changes: tuple[Change, ...] = ()
    shared = None
    if gpu is not None and memory.total > gpu.bytes:
        changes = tuple(changes_to_fit(run, gpu.bytes))
        shared = processes_to_fit(run, gpu.bytes)
    return Plan(run, memory, gpu, changes, shared, duration, tuple(assumed))


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as plain values; sizes in bytes, on each device."""
    batch = plan.run.batch
    return {
        "bytes": plan.memory.parts,
        "total_bytes": plan.memory.total,
        "moment": plan.memory.moment,
        "measured_on_gpu": False,
        "trained_weights": plan.memory.trained,
        "parameters": plan.memory.parameters,
        "batch": asdict(batch) | {"per_device": plan.run.per_device, "accumulation": plan.run.accumulation},
        "processes": plan.run.setup.processes,
        "strategy": plan.run.setup.strategy,
        "gpu": None if plan.gpu is None else {"name": plan.gpu.name, "bytes": plan.gpu.bytes},
        "fits": plan.fits,
        "changes": [asdict(change) for change in plan.changes],
        "changes_fit": plan.changes_fit,
        "unchanged_on": None if plan.shared is None else asdict(plan.shared),
        "fits_on": {gpu.name: plan.memory.total <= gpu.bytes for gpu in GPUS},
        "flops": plan.duration.flops,
        "tokens": plan.duration.tokens,
        "hours": plan.duration.hours,
        "assumed": list(plan.assumed),
    }


def plan_view(plan: Plan) -> Group:
    """A plan for people: parts, what fits, what to change, what is assumed."""
    said: list[Any] = [bar(plan.memory.parts), _parts(plan), Text()]
    if plan.gpu is None:
        said.append(_gpus(plan.memory.total))
    else:
        said += _verdict(plan)
    said += [Text(), _time(plan)]
    said += [Text(sentence, style="dim") for sentence in plan.assumed]
    return Group(*said)


def bar(parts: dict[str, int]) -> Text:
    """A bar, a colour for each part."""
    total = max(1, sum(parts.values()))
    drawn, reached, seen = Text(), 0.0, 0
    for name, size in parts.items():
        reached += size * BAR / total
        drawn.append("█" * (round(reached) - seen), style=COLOURS.get(name, "white"))
        seen = round(reached)
    return drawn


def _parts(plan: Plan) -> Table:
    table = Table("part", "memory", "", box=None, header_style="bold")
    total = plan.memory.total
    for name, size in plan.memory.parts.items():
        if size:
            table.add_row(Text(name, style=COLOURS[name]), size_text(size), f"{size / total:.0%}")
    batch = plan.run.batch
    rows, width = batch.shared or (batch.rows, batch.width)
    where = f"largest pass: {rows} rows of {width:,} tokens"
    table.add_row(Text("each device", style="bold"), size_text(total), where)
    return table


def size_text(size: int) -> str:
    """Bytes in the unit that suits them.

    >>> size_text(3 * 2**29), size_text(2**19)
    ('1.50 GiB', '0.5 MiB')
    """
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _gpus(total: int) -> Table:
    table = Table("GPU", "GiB", "fits", box=None, header_style="bold")
    for gpu in GPUS:
        fits = total <= gpu.bytes
        verdict = Text("yes" if fits else "no", style="green" if fits else "red")
        table.add_row(gpu.name, f"{gpu.bytes / GIB:.0f}", verdict)
    return table


def _verdict(plan: Plan) -> list[Any]:
    assert plan.gpu is not None
    room = room_text(plan.gpu)
    if plan.fits:
        return [Text(f"It fits {room}.", style="green")]
    said: list[Any] = [Text(f"It does not fit {room}.", style="red")]
    if plan.changes:
        said.append(Text("Changes, each on top of those above it, and what to write:", style="bold"))
        for change in plan.changes:
            said.append(Text(f"  {change.what}: {size_text(change.memory)}, costs {change.costs}"))
            said.append(Text(f"    {change.how}"))  # a line of its own, so that it stays whole
    end = "With these it fits." if plan.changes_fit else "Even so it does not fit one such GPU."
    said.append(Text(end, style="green" if plan.changes_fit else "red"))
    if plan.shared is not None:
        memory = f"{size_text(plan.shared.memory)} on each"
        said.append(Text(f"Unchanged it fits {plan.shared.what}, {memory}: {plan.shared.how}"))
    return said


def _time(plan: Plan) -> Text:
    duration = plan.duration
    if not duration.tokens:
        return Text("Time: not known, because the rows could not be counted.")
    amount = f"{duration.tokens:,.0f} tokens, {duration.flops:.2g} operations"
    if duration.unknown:
        return Text(f"Time: {amount}; {duration.unknown}.")
    if duration.hours is None:
        return Text(f"Time: {amount}; name a GPU (--gpu a100-80gb) to see hours.")
    fastest, slowest = duration.hours
    return Text(f"Time: {amount}, very roughly {_hours(fastest)} to {_hours(slowest)}.")


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
