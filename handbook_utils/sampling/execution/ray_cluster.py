"""A Ray cluster to work on: one that is there, or one of this run's own, which ends with it (extra `ray`)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from handbook_utils.errors import LaunchError, MissingDependencyError
from handbook_utils.schema.executor import RaySection, checked_ray_address

CONNECT_S = 10
# only numbers of shards and records of them go through it; Ray takes no less than 75 MiB
OBJECT_STORE_BYTES = 80 * 2**20
# Ray reads these when it is imported or started. What its own processes print would get among our output;
# it stays in Ray's log files.
QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": "."}
# Ray's own switch for machines that are no cluster: every port is opened on the loopback address only. And
# its workers are what this machine is to do: they do not stand back behind everything else.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}


@contextmanager
def ray_cluster(section: RaySection, *, cpus: int) -> Iterator[Any]:
    """Give the module `ray`, connected; what this started is shut down when the block ends.

    A process that is connected already stays so: its cluster is used.

    Args:
        section: where the cluster is.
        cpus: how many a cluster of this run's own needs at least.
    Raises:
        MissingDependencyError: Ray is not installed.
        LaunchError: no cluster at the address, or one that this process cannot be part of.
    """
    address = _address(section)
    usage = {"RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}
    with _environment({**QUIET, **usage, **(ALONE if address == "local" else {})}):
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        with _sigterm_kept(), _started(ray, cpus) if address == "local" else _connected(ray, address):
            yield ray


def _address(section: RaySection) -> str:
    try:
        found = checked_ray_address(os.environ.get("RAY_ADDRESS") or None)
    except ValueError as error:
        raise LaunchError(f"RAY_ADDRESS: {error}") from None
    return section.address or found or "local"


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "`executor.kind: ray` needs Ray, which is not installed: pip install 'handbook-utils[ray]'. On "
            "one machine `executor: {kind: processes}` samples by several processes without it."
        ) from error
    return ray


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables; afterwards all of Ray's are as they were, those too that Ray sets itself."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Afterwards a SIGTERM is handled as before: Ray's own handler would stay when its cluster is gone."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # only the main thread may set a handler, and only it lets Ray do so
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _started(ray: Any, cpus: int) -> Iterator[None]:
    """A cluster of this machine alone, gone with its files when the block ends."""
    # not under TMPDIR, which may be long: Ray's sockets are there, and their names have 107 bytes at most
    place = os.environ.get("RAY_TMPDIR", "/tmp")
    with TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True) as folder:
        try:
            with _loopback_alone():
                ray.init(
                    address="local",
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Have Ray open no port to the network, though the caller imported it, and it read its switch, before."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    if address != "auto":
        _check_open(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LaunchError(_no_cluster(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_open(address: str) -> None:
    """Find out at once that nothing is there: Ray itself would end this process after a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise LaunchError(_no_cluster(address, error)) from error


def _no_cluster(address: str, error: Exception) -> str:
    return (
        f"no Ray cluster to work on at '{address}': {error}. Start one (`ray start --head` here, on further "
        "machines `ray start --address=HOST:PORT`), or leave `executor.address` and RAY_ADDRESS out to use "
        "this machine alone. Where the cluster asks for a token, set RAY_AUTH_MODE=token."
    )


def need_of(
    nodes: Sequence[Mapping[str, Any]], section: RaySection, *, gpus: int, threads: int
) -> dict[str, int]:
    """What a worker takes of its machine, as Ray's options.

    Args:
        nodes: as `ray.nodes()` gives them.
        section: may name the GPUs.
        gpus: GPUs of a worker where the cluster has any and the section says nothing.
        threads: of a worker that computes on the CPU.
    """
    has_gpus = any(node["Resources"].get("GPU") for node in nodes if node["Alive"])
    if section.gpus_per_worker != "auto":
        gpus = section.gpus_per_worker
    elif not has_gpus:
        gpus = 0
    return {"num_cpus": 1 if gpus else threads, "num_gpus": gpus}


def room_for(nodes: Sequence[Mapping[str, Any]], need: Mapping[str, int]) -> int:
    """How many workers the machines of a cluster have room for.

    Raises:
        LaunchError: none.

    >>> machine = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 3.0}}
    >>> room_for([machine, machine], {"num_cpus": 1, "num_gpus": 2})
    2
    >>> room_for([machine], {"num_cpus": 3, "num_gpus": 0})
    2
    """
    cpus, gpus = need["num_cpus"], need["num_gpus"]
    sizes = [
        (node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]
    ]
    room = sum(
        min(int(has // takes) for has, takes in zip(size, (cpus, gpus), strict=True) if takes)
        for size in sizes
    )
    if not room:
        shown = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for cpu, gpu in sizes[:4])
        raise LaunchError(
            f"a worker takes {cpus} CPUs and {gpus} GPUs, and no machine of the Ray cluster has as many "
            f"({shown or 'there is none'}). Add machines, set executor.gpus_per_worker, or, on CPUs, set "
            "OMP_NUM_THREADS to fewer threads."
        )
    return room
