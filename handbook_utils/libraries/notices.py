"""Lines that other libraries write to the terminal and that are not about the user's work, kept off it."""

from __future__ import annotations

import logging

# by logger: how each line begins. Everything else that these loggers say is shown
NOTICES = {
    # bitsandbytes looks for a faster kernel on CPUs with AVX512-BF16 and falls back to its own without it
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
    # without a writable home folder Matplotlib uses a temporary one, and fills it anew each time
    "matplotlib": ("mkdir -p failed for path", "Matplotlib created a temporary cache directory"),
    "matplotlib.font_manager": ("Matplotlib is building the font cache",),
}


class _Notices(logging.Filter):
    """Drops the records whose message begins in one of these ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def silence_notices() -> None:
    """Drop the lines in `NOTICES` from now on; to be called before the libraries are imported.

    The libraries are not imported here, and a second call changes nothing.
    """
    for name, beginnings in NOTICES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Notices) for known in logger.filters):
            logger.addFilter(_Notices(beginnings))
