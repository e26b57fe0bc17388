"""A million prompts, answered by an engine that costs nothing: memory, and how soon a killed run goes on.

What is measured is all but sampling itself: prompts read from a file and cut, answers written, checksummed,
recorded and proved. The run is killed half way; the time to go on is from the start of the second process to
the first shard that it writes, Python's start and the checks of all earlier shards included. bench_select
measures what comes after.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _record import record

PROMPTS, SIZE = int(os.environ.get("BENCH_PROMPTS", "1000000")), 2000

CHILD = """
import sys, time
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import Completion
from handbook_utils.sampling.execution import parts
from handbook_utils.sampling.generation.engines.interface import Answers

class NoEngine:
    def answer(self, prompts, settings, *, progress=None):
        return Answers([
            Completion(name, 0, messages, "word " * (1 + hash(name) % 40), 1 + hash(name) % 40, "stop", -1.0)
            for name, messages in prompts
        ])

parts.load_engine = lambda *_: NoEngine()
run_stage(sys.argv[1], sys.argv[2], progress=False)
"""


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory(prefix="bench-shards-") as scratch:
        folder = Path(scratch)
        recipe = write_inputs(folder)
        first = start(recipe, folder / "run")
        wait_for_shards(first, folder / "run", PROMPTS // SIZE // 2)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = count(folder / "run")
        began = time.perf_counter()
        second = start(recipe, folder / "run")
        wait_for_shards(second, folder / "run", before + 1)
        resumed_s = time.perf_counter() - began
        if second.wait() != 0:
            raise SystemExit("the resumed run failed")
        whole_s = time.perf_counter() - began
        proof = json.loads((folder / "run" / "shards.json").read_text(encoding="utf-8"))
        assert proof["prompts"] == proof["answers"] == PROMPTS
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    record(name="shards_peak_memory", value=peak_gib, unit="GiB", goal=1.0)
    record(name="shards_resumed_after", value=resumed_s, unit="s", goal=20.0)
    print(f"{PROMPTS:,} prompts: {peak_gib:.2f} GiB, went on after {resumed_s:.1f} s, ended {whole_s:.0f} s")


def write_inputs(folder: Path) -> Path:
    """A file of prompts, and a recipe that reads it."""
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(PROMPTS):
            text = f"Question {number}: what is there to do with {number % 977} apples, two pears and a plum?"
            stream.write(json.dumps({"prompt": text}) + "\n")
    recipe = {
        "stage": "generate",
        "model": {"name": "none"},
        "data": [{"name": str(folder / "prompts.jsonl")}],
        "prompts_per_part": SIZE,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return folder / "recipe.yaml"


def start(recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    """Begin or go on with the run in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(recipe), str(run)], env=environment)


def wait_for_shards(process: subprocess.Popen[bytes], run: Path, wanted: int) -> None:
    """Wait until so many shards are there."""
    while count(run) < wanted:
        if process.poll() is not None:
            raise SystemExit(f"the run ended early, with status {process.returncode}")
        time.sleep(0.02)


def count(run: Path) -> int:
    """Shards that are there."""
    return len(list(run.glob("samples/part-*.parquet")))


if __name__ == "__main__":
    main()
