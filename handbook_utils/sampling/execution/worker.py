"""One of several processes that sample for one run: `python -m ...sampling.execution.worker RUN MODEL`.

It makes shards until none is missing. The run's own process started it and holds its standard input open:
when that ends, however it ends, so does the worker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from handbook_utils.errors import HandbookError
from handbook_utils.runs.folder import RECIPE
from handbook_utils.sampling.execution.parts import make_shards, settings_of
from handbook_utils.sampling.execution.shards import read_plan
from handbook_utils.sampling.execution.workers import EXPECTED
from handbook_utils.sampling.generation.engines.load import load_engine
from handbook_utils.schema.recipe import load_recipe
from handbook_utils.schema.stages import SamplingRecipe


def work(folder: Path, location: str) -> None:
    """Make missing shards of a run with the model at `location`."""
    recipe = load_recipe(folder / RECIPE)
    shards = read_plan(folder)
    assert isinstance(recipe, SamplingRecipe)
    assert shards is not None  # the run's own process cut them
    make_shards(folder, shards, load_engine(recipe, location), settings_of(recipe))


def end_with_parent() -> None:
    """Wait for the end of standard input, then end at once: what is half written is no shard."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    # what libraries print goes to the terminal; the pipe is for the error that ends this process
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        work(Path(sys.argv[1]), sys.argv[2])
    except HandbookError as error:
        told.write(json.dumps([type(error).__name__, str(error)]))
        told.close()
        sys.exit(EXPECTED)
