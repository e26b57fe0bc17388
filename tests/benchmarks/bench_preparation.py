"""Preparing 100,000 conversations for SFT on two cores, beside the package of before it was shared out.

What is timed is what `bench_data.py` times: a file of conversations of about 205 tokens is read, recognised,
rendered, tokenized and masked. The two packages take turns, each time in a process of its own, with the same
tokenizer and file; the rows have to be the same to the byte. CPU time and peak memory are those of the
process with all its workers. `--conversations N` measures fewer, and records nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import bench_data
from _before import BEFORE, ROOT, figures_of, package_before
from _record import record

ROUNDS = 3
SIDE = Path(__file__).with_name("_prepare.py")


def compare(conversations: int, rounds: int) -> None:
    """Measure both packages in turns, print the figures, and record them where nothing was shortened."""
    with tempfile.TemporaryDirectory(prefix="bench-preparation-") as folder:
        data, tokenizer = Path(folder, "conversations.jsonl"), Path(folder, "tokenizer")
        bench_data.CONVERSATIONS = conversations
        bench_data.write_conversations(data)
        bench_data.train_tokenizer().save_pretrained(tokenizer)
        paths = {"now": ROOT, BEFORE: package_before(Path(folder))}
        found: dict[str, list[list[float]]] = {name: [] for name in paths}
        load = os.getloadavg()[0]
        for _ in range(rounds):
            for name, path in paths.items():
                found[name].append(figures_of(SIDE, data, tokenizer, path=path))
        print(f"load of the machine before: {load:.2f}, after: {os.getloadavg()[0]:.2f}")
    if len({row[4] for rows in found.values() for row in rows}) > 1:
        sys.exit("the rows are not the same")
    report(found, is_whole=conversations == 100_000 and rounds == ROUNDS)


def report(found: dict[str, list[list[float]]], *, is_whole: bool) -> None:
    """Print medians and what became of them; record them where the whole was measured."""
    median = {
        name: [statistics.median(figure) for figure in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    for name, (seconds, used, peak, rows, _) in median.items():
        print(f"{name}: {rows:.0f} conversations, {seconds:.1f} s, {used:.1f} s of CPU time, {peak:.2f} GiB")
    ratios = [before[0] / now[0] for now, before in zip(found["now"], found[BEFORE], strict=True)]
    speed, (now, before) = statistics.median(ratios), (median["now"], median[BEFORE])
    print(f"{speed:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast")
    if is_whole:
        spread = (max(ratios) - min(ratios)) / 2
        record(name="preparation_speed", value=speed, unit="x", goal=2.5, better="higher", spread=spread)
        record(
            name="preparation_memory",
            value=now[2] / before[2],
            unit="of before",
            goal=1.0,
            peer={"name": f"commit {BEFORE}", "value": 1.0},
        )


def main() -> None:
    """Compare both packages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    compare(options.conversations, options.rounds)


if __name__ == "__main__":
    main()
