"""CPU seconds and memory of a report on 100,000 pairs with the scores of two models and gold rewards."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _record import record

PAIRS, GOAL_S, GOAL_GIB = 100_000, 10, 1.0
WORDS = ["river", "moon", "says", "please", "twice", "never", "again", "thank", "you", "for", "the"]


def write_pairs(path: Path, count: int) -> None:
    """Pairs of answers of 3 to 60 words in four subsets, two pairs per prompt."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for row in range(count):
            words = rng.integers(3, 60, 2)
            quality, noise = rng.normal(0.5, 1), rng.normal(size=2)
            record = {
                "prompt": f"question {row // 2}",
                "subset": "abcd"[row % 4],
                "chosen": " ".join(rng.choice(WORDS, words[0])),
                "rejected": " ".join(rng.choice(WORDS, words[1])),
                "gold.chosen": quality,
                "gold.rejected": 0.0,
            }
            for number in (0, 1):
                record |= {f"m{number}.chosen": quality + noise[number], f"m{number}.rejected": 0.0}
            stream.write(json.dumps(record) + "\n")


def main() -> None:
    """Measure the whole command in a process of its own, start and page included, and record."""
    with tempfile.TemporaryDirectory(prefix="bench-reward-") as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(pairs, PAIRS)
        command = [sys.executable, "-m", "handbook_utils.cli", "reward-report", str(pairs)]
        subprocess.run(
            [*command, "--json", "--out", f"{folder}/report.html"], check=True, stdout=subprocess.DEVNULL
        )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s, peak_gib = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    record(name="reward_report_100k_cpu_s", value=cpu_s, unit="s", goal=GOAL_S)
    record(name="reward_report_100k_gib", value=peak_gib, unit="GiB", goal=GOAL_GIB)
    print(f"{PAIRS:,} pairs: {cpu_s:.1f} CPU s, {peak_gib:.2f} GiB")


if __name__ == "__main__":
    main()
