"""What makes a run fit, the cheapest change first: each step says what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from handbook_utils.planning.lengths import Lengths, largest_batch
from handbook_utils.planning.memory import MemoryPlan, Setup, plan_memory
from handbook_utils.planning.step import Batch
from handbook_utils.schema.sections import LoraSection

SHORTEST = 256
MOST_PROCESSES = 64


# a run with one change, what it is, what to write, and what it costs
Changed = tuple["Run", str, str, str]
Way = Callable[["Run"], Iterator[Changed]]


@dataclass(frozen=True)
class Run:
    """A run whose memory is asked for.

    Attributes:
        setup: how it is trained.
        rows: of the data, uncut.
        per_device: rows of a pass on each device.
        accumulation: passes per step of the optimiser.
        max_length: as the recipe cuts rows; None: not at all.
        by_length, max_tokens: as the recipe batches rows.
        shares: whether a pair's prompt is computed once.
        seed: of the order of the rows.
        packs: rows are filled up to `max_length`.
    """

    setup: Setup
    rows: Lengths
    per_device: int
    accumulation: int = 1
    max_length: int | None = None
    by_length: bool = False
    max_tokens: int | None = None
    shares: bool = False
    seed: int = 0
    packs: bool = False

    @property
    def memory(self) -> MemoryPlan:
        """Memory in the step with the largest batch."""
        setup = replace(self.setup, accumulates=self.accumulation > 1)
        return plan_memory(setup, self.batch)

    @property
    def batch(self) -> Batch:
        """The batch that takes most memory."""
        if self.packs and self.max_length:
            share = int(self.rows.answers.sum()) / max(1, self.rows.tokens)
            tokens = self.per_device * self.max_length
            return Batch(self.per_device, self.max_length, int(share * tokens))
        return largest_batch(
            self.rows.cut(self.max_length),
            self.per_device,
            by_length=self.by_length,
            max_tokens=self.max_tokens,
            seed=self.seed,
            shares=self.shares,
            has_loss_head=self.setup.trainer != "reward",
        )

    @property
    def smallest(self) -> int:
        """Rows that a pass has at least."""
        return 2 if self.setup.trainer == "kto" else 1

    @property
    def group(self) -> int:
        """Rows that stay together: a pass has a multiple of them."""
        return 1

    @property
    def can_shard(self) -> bool:
        """Whether its processes may split the weights between them."""
        return True

    @property
    def ways(self) -> tuple[Way, ...]:
        """What can be changed, the cheapest first."""
        return (precompute, checkpoint, smaller, shard, adapter, quantise, _shorten)


@dataclass(frozen=True)
class Change:
    """One change, and the memory with it and all before it.

    Attributes:
        what: in words.
        how: what to write in the recipe, or on the command line.
        costs: what it costs.
        memory: bytes on each device afterwards.
    """

    what: str
    how: str
    costs: str
    memory: int


def changes_to_fit(run: Run, room: int) -> list[Change]:
    """Changes that make a run fit into so many bytes on each device, one on top of the other.

    Returns:
        Up to the first with which it fits; all of them where none does. Empty: it fits as it is.
    """
    found: list[Change] = []
    memory = run.memory.total
    for way in run.ways:
        for changed, what, how, costs in way(run):
            if memory <= room:
                return found
            after = changed.memory.total
            if after < memory:
                run, memory = changed, after
                found.append(Change(what, how, costs, after))
    return found


def processes_to_fit(run: Run, room: int) -> Change | None:
    """The fewest processes among which the recipe as it is fits, its weights split between them."""
    if not run.can_shard:
        return None
    count = 2
    examples = run.per_device * run.accumulation * run.setup.processes
    while count <= MOST_PROCESSES:
        if count > run.setup.processes or run.setup.strategy in ("ddp", "none"):
            each = max(1, min(run.per_device, examples // count))
            setup = replace(run.setup, strategy="fsdp2", processes=count)
            accumulation = max(1, examples // (count * each))
            after = replace(run, setup=setup, per_device=each, accumulation=accumulation).memory.total
            if after <= room:
                how = f"--processes {count} --strategy fsdp2"
                return Change(f"{count} GPUs that share the weights", how, "the GPUs", after)
        count *= 2
    return None


def precompute(run: Run) -> Iterator[Changed]:
    """Compute DPO's reference before training."""
    if run.setup.trainer == "dpo" and run.setup.second_pass:
        setup = replace(run.setup, reference="none", second_pass=False)
        how = "training.precompute_ref_log_probs=true"
        yield replace(run, setup=setup), "reference computed in advance", how, "nothing: it saves time"


def checkpoint(run: Run) -> Iterator[Changed]:
    """Compute activations again instead of keeping them."""
    if not run.setup.checkpointing:
        setup = replace(run.setup, checkpointing=True)
        how = "training.gradient_checkpointing=true"
        yield replace(run, setup=setup), "activations computed again", how, "about a third more time"


def smaller(run: Run) -> Iterator[Changed]:
    """Fewer rows per pass, and more passes."""
    size, total = run.per_device, run.per_device * run.accumulation
    while size > run.smallest and run.max_tokens is None:
        fits = (each for each in range(run.smallest, size) if total % each == 0 and each % run.group == 0)
        size = max(fits, default=0)
        if not size:
            return
        changed = replace(run, per_device=size, accumulation=total // size)
        how = f"training.per_device_train_batch_size={size}"
        rows = "1 row" if size == 1 else f"{size} rows"
        yield changed, f"{rows} per pass, {total // size} passes", how, "little time"


def shard(run: Run) -> Iterator[Changed]:
    """Split the weights between the GPUs there are."""
    if run.can_shard and run.setup.processes > 1 and run.setup.strategy in ("ddp", "zero2"):
        setup = replace(run.setup, strategy="fsdp2")
        yield replace(run, setup=setup), "weights split between the GPUs", "--strategy fsdp2", "traffic"


def adapter(run: Run) -> Iterator[Changed]:
    """Train a low-rank adapter."""
    if run.setup.lora is None:
        held = run.setup.half or run.setup.held_in
        setup = replace(run.setup, lora=LoraSection(), held_in=held, reference="none")
        yield replace(run, setup=setup), "LoRA", "lora.rank=16", "may learn less: chapter LoRA and QLoRA"


def quantise(run: Run) -> Iterator[Changed]:
    """Pack the weights that are not trained."""
    if run.setup.quantization == "none" and run.setup.strategy != "zero3":
        setup = replace(run.setup, quantization="nf4")
        yield replace(run, setup=setup), "QLoRA", "model.quantization=nf4", "rounded weights, some time"


def _shorten(run: Run) -> Iterator[Changed]:
    length = run.max_length or int(run.rows.sequences.max())
    while length // 2 >= SHORTEST:
        length //= 2
        lost = run.rows.lost(length)
        costs = f"{lost:.1%} of the tokens that carry loss"
        yield (
            replace(run, max_length=length),
            f"rows of {length} tokens",
            f"training.max_length={length}",
            costs,
        )
