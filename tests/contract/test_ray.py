"""What we rely on in Ray: its switches for quiet and workers' priority, and what it changes of a process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("ray")

# a process as a user's is; what it prints beside the last line is Ray's
SESSION = """
import json, os, signal, sys, time
from handbook_utils.sampling.execution import ray_cluster
from handbook_utils.schema.executor import RaySection

if sys.argv[1] == "bare":
    ray_cluster.QUIET.clear()
    del ray_cluster.ALONE["RAY_worker_niceness"]
found = {"before": str(signal.getsignal(signal.SIGTERM)), "own": os.nice(0)}
with ray_cluster.ray_cluster(RaySection(kind="ray", address="local"), cpus=2) as ray:

    @ray.remote
    def nice():
        print("a worker speaks")
        return os.nice(0)

    @ray.remote(max_retries=0)
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    found["nice"] = ray.get(nice.remote())
    found["store"] = ray.cluster_resources()["object_store_memory"]
    found["within"] = str(signal.getsignal(signal.SIGTERM))
    try:
        ray.get(die.remote())
    except ray.exceptions.WorkerCrashedError:
        found["died"] = True
    time.sleep(2)  # what is printed of a death comes a moment later
found["after"] = str(signal.getsignal(signal.SIGTERM))
print(json.dumps(found))
"""


def session(kind: str) -> tuple[dict[str, Any], str]:
    """What was found, and what else was printed."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION, kind], capture_output=True, text=True, timeout=300, check=True
    )
    *others, found = done.stdout.splitlines()
    return json.loads(found), "\n".join([*others, done.stderr])


@pytest.fixture(scope="module")
def ours() -> tuple[dict[str, Any], str]:
    return session("ours")


@pytest.fixture(scope="module")
def bare() -> tuple[dict[str, Any], str]:
    """Without our switches: where Ray does by itself what they ask for, they can go."""
    return session("bare")


def test_workers_do_not_stand_back_behind_everything_else(ours: Any, bare: Any) -> None:
    assert ours[0]["nice"] == ours[0]["own"]
    assert bare[0]["nice"] > bare[0]["own"]


def test_nothing_of_workers_is_printed_among_our_output_not_even_their_deaths(ours: Any, bare: Any) -> None:
    assert ours[0]["died"]
    assert bare[0]["died"]
    assert ours[1].strip() == ""
    assert "A worker died" in bare[1]
    assert "a worker speaks" not in bare[1]  # log_to_driver, which both have


def test_a_termination_is_handled_afterwards_as_it_was_before(ours: Any) -> None:
    found = ours[0]
    assert "sigterm_handler" in found["within"], "Ray installs none any more: nothing to put back"
    assert found["after"] == found["before"]


def test_the_store_of_objects_is_as_small_as_we_ask(ours: Any) -> None:
    from handbook_utils.sampling.execution.ray_cluster import OBJECT_STORE_BYTES

    assert ours[0]["store"] == OBJECT_STORE_BYTES
