"""Fixtures of the unit tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import BaseServer
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

# on a busy machine an example may take any time, which says nothing of the code
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

Served = TypeVar("Served", bound=BaseServer)


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged pipeline with arithmetic stages, finished; tests read it and leave it alone."""
    from reporting_fakes import use_fakes

    from handbook_utils.pipeline.run import run_pipeline

    out = tmp_path_factory.mktemp("pipelines") / "demo"
    with pytest.MonkeyPatch.context() as patches:
        use_fakes(patches)
        run_pipeline("pocket/pipeline", out)
    return out


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: a process that has started OpenMP threads cannot be forked safely.

    The last digit of a sum depends on their number, too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def handbook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: (exit code, standard output, standard error)."""
    from handbook_utils import cli

    def run(*arguments: object, columns: int = 200) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["handbook", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def serving() -> Iterator[Callable[[Served], Served]]:
    """Have a server serve in a thread until the test ends."""
    served: list[tuple[BaseServer, threading.Thread]] = []

    def start(server: Served) -> Served:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        served.append((server, thread))
        return server

    yield start
    for server, thread in served:
        server.shutdown()
        thread.join()
        server.server_close()
