"""A log file per run: the package's messages and every library's warnings, while the run is open."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handbook_utils.runs.atomic import explained_os_errors

LOGGER = logging.getLogger("handbook_utils")


def warn_and_log(message: str, category: type[Warning], *, stacklevel: int = 3) -> None:
    """Warn, and write it into the run's log."""
    LOGGER.warning(message)
    warnings.warn(message, category, stacklevel=stacklevel)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send the package's messages and all libraries' warnings of this block to a file."""
    with explained_os_errors(path):
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = LOGGER.level
    logging.getLogger().addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        logging.getLogger().removeHandler(handler)
        handler.close()
