"""Which process is making which shard."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handbook_utils.runs.atomic import explained_os_errors

CLAIMS = ".claims"


class Claims:
    """Which process is making which shard: byte k of one file is locked by whoever makes shard k.

    The kernel gives and drops such locks, so no two processes hold one, and none outlives its holder.
    """

    def __init__(self, folder: Path) -> None:
        with explained_os_errors(folder / CLAIMS):
            self._file = (folder / CLAIMS).open("ab")

    def close(self) -> None:
        """Drop all claims of this process."""
        self._file.close()

    @contextmanager
    def claimed(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Hold a shard while the block runs; False where another process has it and `wait` is not set."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number, os.SEEK_SET)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number, os.SEEK_SET)
