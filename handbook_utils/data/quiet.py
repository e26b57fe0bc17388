"""Keep libraries' own progress bars and known messages off the terminal, only while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import huggingface_hub.utils as hub
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars and messages below "error" of datasets, transformers and the hub.

    The stages show one bar of their own; a dozen others, most of them over in milliseconds, bury it.
    What was shown before is shown again afterwards.
    """
    verbosity = transformers_logging.get_verbosity()
    had_bars = datasets.are_progress_bars_disabled(), not transformers_logging.is_progress_bar_enabled()
    hub_had_none = hub.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if not had_bars[0]:
            datasets.enable_progress_bars()
        if not had_bars[1]:
            transformers_logging.enable_progress_bar()
        # after the line above: transformers switches the hub's bars together with its own
        hub.disable_progress_bars() if hub_had_none else hub.enable_progress_bars()
