"""Near-duplicates, memory and decontamination of 100,000 conversations and of a file of 2 GB.

A conversation is a prompt of 32 random words and an answer of 134. In 1,500 of them, an earlier conversation
is repeated with words changed, 500 each so that the Jaccard similarity of the runs of three words is about
0.7, 0.8 and 0.9. Ours is timed end to end, from the file to the folder of curated rows; so is datasketch's
MinHashLSH, as its documentation uses it, from the same file to the list of near-duplicates. The bare time of
rensa is that of its own deduplicator on texts that are in memory, shingling included. The two libraries have
128 slots in 32 bands; ours and rensa drop what is below 0.65. Each side runs in a process of its own; times
are CPU seconds, and memory is the peak less what the imports took. Needs datasketch (pip install datasketch).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _record import record
from bench_data import words

from handbook_utils.curation.rules.pairs import wilson_interval

CONVERSATIONS, PLANTED, TESTED = 100_000, 500, 10_000
STREAM_BYTES = int(os.environ.get("CURATION_STREAM_BYTES", 2 * 10**9))
THRESHOLD, SLOTS, BANDS = 0.65, 128, 32
# words to change in a conversation of 162 runs: J = (162 - 3 k) / (162 + 3 k)
EDITS = {"0.7": 9, "0.8": 6, "0.9": 3}


def conversations(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Prompts and answers; in the last 1,500 the first ones come again with words changed."""
    rng = random.Random(seed)
    known = words(rng)
    first: list[tuple[str, str]] = []
    planted = [edits for edits in EDITS.values() for _ in range(PLANTED)]
    for number in range(count):
        place = number - (count - len(planted))
        if place < 0:
            pair = (" ".join(rng.choices(known, k=32)), " ".join(rng.choices(known, k=134)))
            if len(first) < len(planted):
                first.append(pair)
            yield pair
        else:
            yield changed(*first[place], planted[place], rng)


def changed(prompt: str, answer: str, edits: int, rng: random.Random) -> tuple[str, str]:
    """A conversation with words changed, far enough apart that each changes three runs."""
    said = [prompt.split(), answer.split()]
    # one place in each stretch of 15 words, never at its edge
    stretches = rng.sample([(0, 0), (0, 15), *((1, 15 * n) for n in range(8))], edits)
    for part, begin in stretches:
        said[part][begin + rng.randrange(3, 12)] = f"changed{rng.randrange(10**6)}"
    return " ".join(said[0]), " ".join(said[1])


def write(path: Path, rows: Iterator[tuple[str, str]], *, size: int | None = None) -> None:
    """Write conversations, one per line; up to `size` bytes where given."""
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        for asked, answered in rows:
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            written += stream.write(json.dumps({"messages": said}) + "\n")
            if size is not None and written >= size:
                return


def read(path: Path) -> list[str]:
    """The texts of a file, prompt and answer in one."""
    with path.open(encoding="utf-8") as lines:
        return [" ".join(said["content"] for said in json.loads(line)["messages"]) for line in lines]


def shingled(text: str) -> list[str]:
    """Runs of three words."""
    said = text.lower().split()
    return [" ".join(said[place : place + 3]) for place in range(len(said) - 2)]


def ours(path: Path) -> dict[str, Any]:
    """Curate by the rules about duplicates alone."""
    from handbook_utils.curation.curate import curate
    from handbook_utils.curation.rows import open_sources
    from handbook_utils.curation.rules.table import Settings, Thresholds, chosen_actions
    from handbook_utils.schema.sections import DataSource

    settings = Settings(
        chosen_actions(off=["all"], drop=["duplicate", "near_duplicate"]), Thresholds(near=THRESHOLD)
    )
    before, began = resident(), time.process_time()
    curate(open_sources([DataSource(name=str(path))]), path.parent / "clean", settings)
    seconds = time.process_time() - began
    removed = (path.parent / "clean/removed.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "seconds": seconds,
        "gib": peak() - before,
        "found": [json.loads(one)["row"] - 1 for one in removed],
    }


def datasketch(path: Path) -> dict[str, Any]:
    """The rows that MinHashLSH finds an earlier row for."""
    from datasketch import MinHash, MinHashLSH

    began = time.process_time()
    index, found = MinHashLSH(num_perm=SLOTS, params=(BANDS, SLOTS // BANDS)), []
    for place, text in enumerate(read(path)):
        sketch = MinHash(num_perm=SLOTS)
        sketch.update_batch([run.encode() for run in shingled(text)])
        if index.query(sketch):
            found.append(place)
        else:
            index.insert(str(place), sketch)
    return {"seconds": time.process_time() - began, "found": found}


def rensa(path: Path) -> dict[str, Any]:
    """The rows that rensa's own deduplicator does not keep, of texts in memory."""
    from rensa import RMinHashDeduplicator

    texts = read(path)
    began = time.process_time()
    dedup = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=SLOTS, use_lsh=True, num_bands=BANDS)
    kept = dedup.add_pairs((str(place), shingled(text)) for place, text in enumerate(texts))
    return {
        "seconds": time.process_time() - began,
        "found": [place for place, keeps in enumerate(kept) if not keeps],
    }


def stream(path: Path) -> dict[str, Any]:
    """Curate a large file by all rules that need no model and no test set."""
    from handbook_utils.curation.curate import curate
    from handbook_utils.curation.rows import open_sources
    from handbook_utils.schema.sections import DataSource

    before, began = resident(), time.process_time()
    done = curate(open_sources([DataSource(name=str(path))]), path.parent / "clean")
    return {"gib": peak() - before, "seconds": time.process_time() - began, "rows": done.report["rows"]}


def decontaminate(path: Path) -> dict[str, Any]:
    """Compare the file with what is tested on, which lies beside it."""
    from handbook_utils.curation.rows import open_sources
    from handbook_utils.curation.tested import find_leaks, read_tested
    from handbook_utils.schema.sections import DataSource

    before, began = resident(), time.process_time()
    sources = open_sources([DataSource(name=str(path))])
    tested = read_tested([DataSource(name=str(path.parent / "tested.jsonl"))], sources)
    report = find_leaks(sources, tested)
    return {
        "seconds": time.process_time() - began,
        "gib": peak() - before,
        "rows": report.rows,
        "found": len(report.leaks[sources[0].label]),
    }


SIDES = {side.__name__: side for side in (ours, datasketch, rensa, stream, decontaminate)}


def resident() -> float:
    """Memory of this process in GiB; its peak is counted from now on, and not from its parent's."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak() -> float:
    """Peak memory of this process in GiB since `resident` was called."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def measured(side: str, path: Path) -> Any:
    """What a side says of a file, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--side", side, str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def recalls(found: list[int], count: int) -> dict[str, tuple[int, int]]:
    """Planted pairs that were found, by their similarity, and how many of the other rows were."""
    first, known = count - PLANTED * len(EDITS), set(found)
    levels = {
        level: sum(first + place in known for place in range(n * PLANTED, (n + 1) * PLANTED))
        for n, level in enumerate(EDITS)
    }
    others = sum(place < first for place in known)
    return {level: (hits, PLANTED) for level, hits in levels.items()} | {"others": (others, first)}


def measure_near_duplicates(folder: Path) -> None:
    """Time and recall of the three sides on one file."""
    path = folder / "conversations.jsonl"
    write(path, conversations(CONVERSATIONS))
    sides = {side: measured(side, path) for side in ("ours", "rensa", "datasketch")}
    for side, said in sides.items():
        shown = []
        for level, (hits, of) in recalls(said["found"], CONVERSATIONS).items():
            low, high = wilson_interval(hits, of)
            shown.append(f"{level}: {hits / of:.4f} [{low:.4f}, {high:.4f}]")
            if level in EDITS:
                name = f"near_duplicates_recall_{side}_{level.replace('.', '')}"
                record(name=name, value=hits / of, unit="of planted pairs", spread=(high - low) / 2)
        print(f"{side}: {said['seconds']:.1f} CPU seconds; recall at {', '.join(shown)}")
    seconds = {side: said["seconds"] for side, said in sides.items()}
    record(
        name="near_duplicates_times_datasketch",
        value=seconds["datasketch"] / seconds["ours"],
        unit="times",
        goal=5.0,
        better="higher",
    )
    peer = {"name": "rensa alone, texts in memory", "value": 1.0}
    record(
        name="near_duplicates_times_rensa",
        value=seconds["ours"] / seconds["rensa"],
        unit="times",
        goal=1.5,
        peer=peer,
    )
    record(name="near_duplicates_seconds", value=seconds["ours"], unit="s")


def measure_decontamination(folder: Path) -> None:
    """Time and memory of 100,000 rows against 10,000 prompts, of which 1,000 are planted."""
    path = folder / "conversations.jsonl"
    asked = [prompt for prompt, _ in conversations(2000 + TESTED, seed=1)]
    rows = list(conversations(CONVERSATIONS))
    for place in range(0, 1000):
        rows[place * 50] = (asked[place], rows[place * 50][1])
    write(path, iter(rows))
    with (folder / "tested.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in asked[:TESTED])
    said = measured("decontaminate", path)
    print(f"decontaminated: {said['found']} of 1000 planted, {said['seconds']:.1f} s, {said['gib']:.2f} GiB")
    record(name="decontamination_seconds", value=said["seconds"], unit="s", goal=40.0)
    record(name="decontamination_memory", value=said["gib"], unit="GiB", goal=1.0)


def measure_stream(folder: Path) -> None:
    """Peak memory over imports of curating 2 GB."""
    path = folder / "large.jsonl"
    write(path, conversations(10**9), size=STREAM_BYTES)
    said = measured("stream", path)
    size = f"{said['rows']:,} rows, {STREAM_BYTES / 10**9:g} GB"
    print(f"{size}: {said['gib']:.2f} GiB over imports, {said['seconds']:.0f} CPU seconds")
    if STREAM_BYTES >= 2 * 10**9:  # a trial with less is not the figure
        record(name="curation_stream_memory", value=said["gib"], unit="GiB", goal=1.5)


def main(wanted: list[str]) -> None:
    """Measure and record."""
    for measure in (measure_decontamination, measure_near_duplicates, measure_stream):
        if not wanted or any(part in measure.__name__ for part in wanted):
            with tempfile.TemporaryDirectory(prefix="bench-curation-") as folder:
                measure(Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(SIDES[sys.argv[2]](Path(sys.argv[3]))))
    else:
        main(sys.argv[1:])
