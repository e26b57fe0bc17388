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
    for step in _STEPS:
        for changed, what, how, costs in step(run):
            if memory <= room:
                return found
            after = changed.memory.total
            if after < memory:
                run, memory = changed, after
                found.append(Change(what, how, costs, after))
    return found


def processes_to_fit(run: Run, room: int) -> Change | None:
    """The fewest processes among which the recipe as it is fits, its weights split between them."""
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


_Step = Callable[[Run], Iterator[tuple[Run, str, str, str]]]


def _precompute(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    if run.setup.trainer == "dpo" and run.setup.second_pass:
        setup = replace(run.setup, reference="none", second_pass=False)
        how = "training.precompute_ref_log_probs=true"
        yield replace(run, setup=setup), "reference computed in advance", how, "nothing: it saves time"


def _checkpoint(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    if not run.setup.checkpointing:
        setup = replace(run.setup, checkpointing=True)
        how = "training.gradient_checkpointing=true"
        yield replace(run, setup=setup), "activations computed again", how, "about a third more time"


def _smaller(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    least = 2 if run.setup.trainer == "kto" else 1
    size, total = run.per_device, run.per_device * run.accumulation
    while size > least and run.max_tokens is None:
        size = max(each for each in range(1, size) if total % each == 0)
        if size < least:
            return
        changed = replace(run, per_device=size, accumulation=total // size)
        how = f"training.per_device_train_batch_size={size}"
        rows = "1 row" if size == 1 else f"{size} rows"
        yield changed, f"{rows} per pass, {total // size} passes", how, "little time"


def _shard(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    if run.setup.processes > 1 and run.setup.strategy in ("ddp", "zero2"):
        setup = replace(run.setup, strategy="fsdp2")
        yield replace(run, setup=setup), "weights split between the GPUs", "--strategy fsdp2", "traffic"


def _adapter(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    if run.setup.lora is None:
        held = run.setup.half or run.setup.held_in
        setup = replace(run.setup, lora=LoraSection(), held_in=held, reference="none")
        yield replace(run, setup=setup), "LoRA", "lora.rank=16", "may learn less: chapter LoRA and QLoRA"


def _quantise(run: Run) -> Iterator[tuple[Run, str, str, str]]:
    if run.setup.quantization == "none" and run.setup.strategy != "zero3":
        setup = replace(run.setup, quantization="nf4")
        yield replace(run, setup=setup), "QLoRA", "model.quantization=nf4", "rounded weights, some time"


def _shorten(run: Run) -> Iterator[tuple[Run, str, str, str]]:
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


_STEPS: tuple[_Step, ...] = (_precompute, _checkpoint, _smaller, _shard, _adapter, _quantise, _shorten)
