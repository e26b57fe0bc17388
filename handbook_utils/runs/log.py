"""A log file per run: the package's messages and every library's warnings, while the run is open."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handbook_utils.redaction import redacted
from handbook_utils.runs.atomic import explained_os_errors

LOGGER = logging.getLogger("handbook_utils")


def warn_and_log(message: str, category: type[Warning], *, stacklevel: int = 3) -> None:
    """Warn, and write it into the run's log, if one is open."""
    if LOGGER.hasHandlers():  # Python would print it as well, a second time
        LOGGER.warning(message)
    warnings.warn(message, category, stacklevel=stacklevel)


class _WithoutSecrets(logging.Formatter):
    """A line of the log, tracebacks included, without secrets: a library may log a request's headers."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _LogFile(logging.FileHandler):
    """A log whose disk is full says nothing of it: the run itself does."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send the package's messages and all libraries' warnings of this block to a file."""
    with explained_os_errors(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = LOGGER.level
    logging.getLogger().addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):  # of a full disk, which the run has told of
            handler.close()
