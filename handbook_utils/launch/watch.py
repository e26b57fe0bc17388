"""Run launched processes to their end: show what they say, pass signals on, leave none behind."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from handbook_utils.errors import LaunchError
from handbook_utils.launch.accelerate import agent_command
from handbook_utils.launch.lifeline import PARENT, REPORT

# torchrun gives its processes 30 s after a signal before it kills them
GRACE_S = 40


def watch(command: Sequence[str], *, processes: int, hide_output: bool = False) -> None:
    """Run a launch command until all its processes have ended.

    What they write to stderr is shown as it comes. An interrupt or a SIGTERM of this process reaches all of
    them, and when this process is killed, so are they (Linux).

    Args:
        command: from `launch_command`.
        processes: how many it starts, for the message.
        hide_output: do not show what they write to stdout.
    Raises:
        LaunchError: one of them failed; names it, how it ended and its last line.
        KeyboardInterrupt, SystemExit: this process was told to stop; the others have ended.
    """
    with tempfile.TemporaryDirectory(prefix="handbook-launch-") as folder:
        report = Path(folder) / "failure.json"
        agent = subprocess.Popen(
            agent_command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if hide_output else None,
            stderr=subprocess.PIPE,
            env=_environment(report),
            start_new_session=True,  # signals reach it through us alone, and once
        )
        assert agent.stderr is not None
        last_lines: deque[str] = deque(maxlen=20)
        reader = threading.Thread(target=_show, args=(agent.stderr, last_lines), daemon=True)
        reader.start()
        try:
            with _sigterm_raises():
                code = agent.wait()
        except KeyboardInterrupt:
            _end(agent, signal.SIGINT)
            raise
        finally:
            _end(agent, signal.SIGTERM)
            reader.join(timeout=5)
            agent.stderr.close()
        if code:
            raise LaunchError(_explained(report, code, processes, last_lines))


def _environment(report: Path) -> dict[str, str]:
    environment = {**os.environ, PARENT: str(os.getpid()), REPORT: str(report)}
    if sys.stderr.isatty():  # theirs is a pipe, but ends at our terminal
        environment |= {"FORCE_COLOR": "1", "COLUMNS": str(os.get_terminal_size(sys.stderr.fileno()).columns)}
    return environment


def _show(stream: IO[bytes], last_lines: deque[str]) -> None:
    """Pass on what comes at once, half lines too: a progress bar is one."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    line = ""
    while block := os.read(stream.fileno(), 1 << 16):
        text = decode(block)
        sys.stderr.write(text)
        sys.stderr.flush()
        *whole, line = (line + text).split("\n")
        last_lines.extend(filter(str.strip, whole))


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let a SIGTERM end this block as an interrupt does; only a main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(agent: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ask the launcher to stop its processes; after a while, make it."""
    if agent.poll() is not None:
        return
    agent.send_signal(number)
    try:
        agent.wait(GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        agent.kill()  # the processes it started die with it
        agent.wait()


def _explained(report: Path, code: int, processes: int, last_lines: Sequence[str]) -> str:
    if not report.exists():  # the launcher itself failed
        words = last_lines[-1] if last_lines else "it said nothing"
        return f"the launcher ended with exit code {code}: {words}"
    failure: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    who = f"process {failure['rank']} of {processes}"
    if failure["signal"]:
        hint = " (out of memory?)" if failure["signal"] == "SIGKILL" else ""
        return (
            f"{who} was killed by {failure['signal']}{hint}; the others were stopped. "
            "The same command again goes on from the last checkpoint."
        )
    words = failure["words"] or (last_lines[-1] if last_lines else "it said nothing")
    return f"{who} failed: {words}"
