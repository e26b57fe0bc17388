"""`accelerate launch` itself; only its failure is told as data instead of as a traceback of its own.

python -m handbook_utils.launch.agent [options of `accelerate launch`]
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from handbook_utils.launch.lifeline import PARENT, REPORT, die_with_parent


def main() -> None:
    """Start the processes, wait for them, and write down which one failed first and how."""
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())
    with contextlib.suppress(KeyboardInterrupt):
        _launch()
        return
    sys.exit(128 + signal.SIGINT)


def _launch() -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # what it has to say about failures and signals is said in one line by the watching process
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        Path(os.environ[REPORT]).write_text(json.dumps(first_failure(error.failures)), encoding="utf-8")
        sys.exit(1)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


def first_failure(failures: dict[int, Any]) -> dict[str, Any]:
    """Which process failed first, how, and what it said.

    A process that the system killed comes before those that then lost their connection to it, and those that
    torchrun stopped because of it (SIGTERM) come last.
    """

    def order(item: tuple[int, Any]) -> tuple[int, int, int]:
        rank, failure = item
        kind = 2 if failure.exitcode == -signal.SIGTERM else int(failure.exitcode > 0)
        return kind, _time_ns(failure), rank

    rank, failure = min(failures.items(), key=order)
    message = failure.error_file_data["message"]
    words = message["message"] if isinstance(message, dict) else ""
    signal_name = failure.signal_name() if failure.exitcode < 0 else ""
    return {"rank": rank, "exitcode": failure.exitcode, "signal": signal_name, "words": words}


def _time_ns(failure: Any) -> int:
    message = failure.error_file_data["message"]
    if isinstance(message, dict):
        return int(message["extraInfo"].get("time_ns", failure.timestamp * 10**9))
    return int(failure.timestamp) * 10**9


if __name__ == "__main__":
    main()
