"""The processes of one training run: they meet, agree, wait for each other, and part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from handbook_utils.processes import is_launched, world_size
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.plan import setting, trains_on_cpu

Value = TypeVar("Value")


@contextmanager
def training_group(recipe: TrainingRecipe) -> Iterator[None]:
    """Meet the other processes of this run; a single process has none to meet.

    From here on each process has its own GPU. A process that fails ends without the others: its launcher ends
    them.
    """
    if not is_launched():
        yield
        return
    from accelerate import PartialState

    on_cpu = trains_on_cpu(recipe)
    # what transformers would say later, too late for what is read and loaded before its arguments exist
    PartialState(cpu=on_cpu, timeout=timedelta(seconds=setting(recipe, "ddp_timeout")))
    yield
    wait_for_all()
    PartialState().destroy_process_group()


def decided_by_main(decide: Callable[[], Value]) -> Value:
    """What process 0 decides, in every process; the others do not even look."""
    if world_size() == 1:
        return decide()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    decision = [decide() if PartialState().is_main_process else None]
    broadcast_object_list(decision)
    value: Value = decision[0]  # type: ignore[assignment]
    return value


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
