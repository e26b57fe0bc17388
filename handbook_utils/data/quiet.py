"""Keep libraries' own progress bars and known messages off the terminal, only while a block runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars of datasets, transformers and the hub, and transformers' messages.

    The stages show one bar of their own; a dozen others, most of them over in milliseconds, bury it.
    While a run's log file is open, messages go there instead. Afterwards everything is as before.
    """
    verbosity = transformers_logging.get_verbosity()
    datasets_had_bars = not datasets.are_progress_bars_disabled()
    had_bars = transformers_logging.is_progress_bar_enabled()
    hub_had_bars = not are_progress_bars_disabled()
    has_log = bool(logging.getLogger().handlers)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if has_log:
        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()
    else:
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        if has_log:
            transformers_logging.disable_propagation()
            transformers_logging.enable_default_handler()
        transformers_logging.set_verbosity(verbosity)
        if datasets_had_bars:
            datasets.enable_progress_bars()
        if had_bars:
            transformers_logging.enable_progress_bar()
        # last: transformers switches the hub's bars together with its own
        enable_progress_bars() if hub_had_bars else disable_progress_bars()
