"""Work done on a Ray cluster: actors that hold a model each and make files of a run folder (extra `ray`).

Only numbers of files and records of them go through Ray; prompts, answers and scores are in the run folder,
which all machines share, so there are no rows for Ray Data to stream. Ray Core's actors also do what Ray Data
2.60 does not: workers that keep dying end the run with an error (Ray Data starts them again without end), and
what a lost machine had begun goes to another worker (Ray Data waits for the lost one's return).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.environment import versions
from handbook_utils.errors import RunFolderError
from handbook_utils.runs.atomic import temporary_name, write_text
from handbook_utils.sampling.execution.ray_cluster import need_of, ray_cluster, room_for
from handbook_utils.sampling.execution.ray_pool import RESTARTS, RayPool
from handbook_utils.schema.executor import RaySection

LOOK_EVERY_S = 0.5
SEEN_WITHIN_S = 90  # network file systems remember for up to a minute that a file was not there

Make = Callable[[Any], Any]


@dataclass(frozen=True)
class Work:
    """What is to be done for each item.

    Attributes:
        folder: the run folder.
        prepare: called once by each worker: loads the model, and gives the function that is called with each
            item. It is pickled, so it is a function of a module, or a `partial` of one.
        gpus: that a worker needs where the cluster has any.
    """

    folder: Path
    prepare: Callable[[], Make]
    gpus: int = 0


def run_on_ray(
    section: RaySection, work: Work, items: Mapping[int, Any]
) -> Generator[tuple[int, Any], None, None]:
    """Have workers deal with all items; yield each one's number and result as it is done, once.

    Raises:
        HandbookError: what a worker raised.
        LaunchError: no cluster, no room on it, or its workers died.
        RunFolderError: a worker does not see the run folder, or has other versions installed.
    """
    import torch

    if not items:
        return
    # the last digit of a sum depends on the number of threads, so each worker has as many as this process
    threads = torch.get_num_threads()
    wanted = len(items) if section.workers == "auto" else min(section.workers, len(items))
    least = threads if section.workers == "auto" else threads * wanted
    with ray_cluster(section, cpus=least) as ray, _probe(work.folder) as probe:
        need = need_of(ray.nodes(), section, gpus=work.gpus, threads=threads)
        room = room_for(ray.nodes(), need)
        count = min(wanted, room) if section.workers == "auto" else wanted
        actor = ray.remote(**need, max_restarts=RESTARTS, max_task_retries=0)(RayWorker)
        environment = WorkerEnvironment(Path.cwd(), probe, threads, versions())
        pool = RayPool(ray, [actor.remote(environment, work.prepare) for _ in range(count)])
        try:
            yield from pool.results(items)
        finally:
            pool.end()


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file that only those see who share the run folder with this process."""
    probe = temporary_name(folder.absolute() / "probe")
    write_text(probe, "seen by all workers\n")
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)


@dataclass(frozen=True)
class WorkerEnvironment:
    """Where and how a worker works, as the process that started the run does.

    Attributes:
        folder: current folder, from which relative paths of the recipe count.
        probe: a file in the run folder.
        threads: of torch.
        versions: of the libraries.
    """

    folder: Path
    probe: Path
    threads: int
    versions: Mapping[str, str]

    def apply(self) -> None:
        """Make this process work there and so.

        Raises:
            RunFolderError: the folders are not those of the process that started the run, or other versions.
        """
        host = socket.gethostname()
        for place, seen in ((self.folder, self.folder), (self.probe.parent, self.probe)):
            if not seen.exists():
                raise RunFolderError(
                    f"{place}: machine {host} of the Ray cluster does not see this folder as the machine "
                    "that started the run does. Start the command in a folder, and choose an --out, on a "
                    "file system that all machines share under one path."
                )
        own = versions()
        for name, version in self.versions.items():
            if own.get(name) != version:
                raise RunFolderError(
                    f"{name}: machine {host} of the Ray cluster has {own.get(name, 'none')}, and {version} "
                    "is where the run was started; that could change answers. Install the same on all of "
                    "them."
                )
        os.chdir(self.folder)
        import torch

        torch.set_num_threads(self.threads)


class RayWorker:
    """An actor: `prepare`, then `make` for one item after the other."""

    def __init__(self, environment: WorkerEnvironment, prepare: Callable[[], Make]) -> None:
        self._environment = environment
        self._prepare = prepare
        self._make: Make | None = None

    def prepare(self) -> None:
        """Check the place and load the model."""
        self._environment.apply()
        self._make = self._prepare()

    def make(self, item: Any) -> Any:
        """Deal with an item."""
        assert self._make is not None  # no one is asked before it is prepared
        return self._make(item)


def await_file(file: Path) -> None:
    """Wait until a file that a worker has written is seen here.

    Raises:
        RunFolderError: it is not.
    """
    until = time.monotonic() + SEEN_WITHIN_S
    while not file.exists():
        if time.monotonic() > until:
            raise RunFolderError(
                f"{file}: a worker of the Ray cluster has written it, and it is not seen here. Choose an "
                "--out on a file system that all machines share. What is seen is kept; run it again to go on."
            )
        time.sleep(LOOK_EVERY_S)
