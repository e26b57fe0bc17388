"""Workers on a Ray cluster and what each is asked: results as they come, and nothing lost with a worker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Mapping
from typing import Any

from handbook_utils.errors import HandbookError, LaunchError

RESTARTS = 3  # of one worker, by Ray, wherever there is room
TRIES = 3  # of one item: it may be the item that kills its workers


class RayPool:
    """Workers, and what each of them is asked; one item at a time each, so none waits behind a slow one."""

    def __init__(self, ray: Any, workers: list[Any]) -> None:
        self._ray = ray
        self._workers = workers
        self._idle: list[Any] = []
        self._death: Exception | None = None
        # by the answer that is to come: the worker, and the number of its item, None while it gets prepared
        self._asked: dict[Any, tuple[Any, int | None]] = {}
        for worker in workers:
            self._ask_to_prepare(worker)

    def results(self, items: Mapping[int, Any]) -> Generator[tuple[int, Any]]:
        """Number and result of each item, as they come.

        Raises:
            HandbookError: what a worker raised.
            LaunchError: all workers died, or several over the same item.
        """
        waiting, deaths = deque(items), Counter[int]()
        while waiting or any(number is not None for _, number in self._asked.values()):
            while waiting and self._idle:
                self._ask(waiting[0], items[waiting.popleft()])
            if not self._asked:
                raise LaunchError(_all_died(len(self._workers), self._death)) from self._death
            worker, number, is_alive, result = self._next()
            if is_alive:
                self._idle.append(worker)
                if number is not None:
                    yield number, result
            elif number is not None:
                waiting.appendleft(number)
                deaths[number] += 1
                if deaths[number] == TRIES:
                    raise LaunchError(_kills(number, self._death)) from self._death
                self._ask_to_prepare(worker)

    def end(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            self._ray.kill(worker)

    def _ask(self, number: int, item: Any) -> None:
        worker = self._idle.pop()
        self._asked[worker.make.remote(item)] = worker, number

    def _ask_to_prepare(self, worker: Any) -> None:
        # Ray repeats this for as long as it starts the worker again; then it fails, and the worker is let go
        self._asked[worker.prepare.options(max_task_retries=-1).remote()] = worker, None

    def _next(self) -> tuple[Any, int | None, bool, Any]:
        """The next worker that is done or dead, the number it was asked for, and its result if it lives."""
        [answer], _ = self._ray.wait(list(self._asked), num_returns=1)
        worker, number = self._asked.pop(answer)
        errors = self._ray.exceptions
        try:
            return worker, number, True, self._ray.get(answer)
        except errors.RayTaskError as error:
            if isinstance(error.cause, HandbookError):
                raise error.cause from None
            raise
        except (errors.RayActorError, errors.ObjectLostError) as error:
            self._death = error
            return worker, number, False, None


def _kills(number: int, error: Exception | None) -> str:
    return (
        f"{TRIES} workers on the Ray cluster died while they made part {number}, often for lack of memory: "
        "lower rows_per_batch or prompts_per_part. What was finished is kept; run it again to go on. The "
        f"last one: {error}"
    )


def _all_died(count: int, error: Exception | None) -> str:
    return (
        f"all {count} workers on the Ray cluster died, each {RESTARTS + 1} times, often for lack of memory. "
        f"What was finished is kept; run it again to go on. The last one: {error}"
    )
