"""What telling a model folder of 8 GB from another costs: CPU seconds of all processes, one and two ranks.

Before, each process of a run read every byte: the one that starts it where there are several, and each rank.
The peer measures that on a part of the folder, as the time per byte does not depend on how many there are.
Files are sparse, so no disk is measured.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from _record import record

from handbook_utils.runs.atomic import sha256_of
from handbook_utils.runs.checksums import input_fingerprint

SHARDS, SHARD_BYTES, PART_BYTES = 4, 2 << 30, 1 << 30
TENSORS = 70
# that read every byte before: alone, or the launcher and two ranks
READERS = {1: 1, 2: 3}


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory(prefix="bench-inputs-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}", encoding="utf-8")
        for number in range(SHARDS):
            write_shard(folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors")
        began = time.process_time()
        input_fingerprint(folder)
        now_s = time.process_time() - began
        part = Path(scratch) / "part"
        part.touch()
        os.truncate(part, PART_BYTES)
        began = time.process_time()
        sha256_of(part)
        whole_s = (time.process_time() - began) * SHARDS * SHARD_BYTES / PART_BYTES
    for ranks, readers in READERS.items():
        peer = {"name": f"every byte, in {readers} processes", "value": whole_s * readers}
        name = f"inputs of a run fingerprinted, 8 GB, {ranks} rank{'s' * (ranks > 1)}"
        record(name=name, value=now_s, unit="s", goal=whole_s * readers / 10, peer=peer)


def write_shard(file: Path) -> None:
    """A sparse safetensors file of equal tensors."""
    size = SHARD_BYTES // TENSORS
    places = {f"layer.{n}": [n * size, (n + 1) * size] for n in range(TENSORS)}
    header = {name: {"dtype": "U8", "shape": [size], "data_offsets": ends} for name, ends in places.items()}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + TENSORS * size)


if __name__ == "__main__":
    main()
