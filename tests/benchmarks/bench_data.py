"""Time from a file of 100,000 conversations to the rows SFT trains on, on two cores; memory of a stream.

A conversation is two exchanges of random words, about 200 tokens of a byte-pair tokenizer that is trained
here. What is timed is what an SFT stage does before it loads a model: read and recognise the file, note its
counts and checksum, check the template, render, tokenize and mask. It is one process, as in training, whose
tokenizer uses both cores. The stream goes once through a JSONL file of 2 GB (texts of about 4 kB), in a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _record import record
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.stream import stream_sources
from handbook_utils.data.training_data import load_training_data
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import DataSource
from handbook_utils.training.rows.labelled import check_rows, training_rows

CONVERSATIONS, CORES, STREAM_BYTES = 100_000, 2, 2 * 10**9
SYLLABLES = [first + second for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "ur", "en")]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def words(rng: random.Random) -> list[str]:
    """Two thousand words of one to three syllables."""
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(2000)]


def write_conversations(path: Path) -> None:
    """Write the conversations, one per line."""
    rng = random.Random(0)
    known = words(rng)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(CONVERSATIONS):
            turns = [
                {"role": role, "content": " ".join(rng.choices(known, k=length))}
                for role, length in (("user", 16), ("assistant", 67)) * 2
            ]
            stream.write(json.dumps({"messages": turns}) + "\n")


def write_texts(path: Path, *, size: int) -> None:
    """Write passages of about 4 kB, the same thousand again and again, until the file has `size` bytes."""
    rng = random.Random(0)
    known = words(rng)
    lines = [json.dumps({"text": " ".join(rng.choices(known, k=800))}) + "\n" for _ in range(1000)]
    block = "".join(lines).encode()
    with path.open("wb") as stream:
        for _ in range(-(-size // len(block))):
            stream.write(block)


def train_tokenizer() -> Any:
    """A byte-pair tokenizer with a ChatML template that marks what the assistant says."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([" ".join(words(random.Random(0)))] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def prepare(path: Path, tokenizer: Any) -> Dataset:
    """The rows that an SFT stage hands to its trainer."""
    content = {
        "stage": "sft",
        "model": {"name": "none"},
        "data": [{"name": str(path)}],
        "global_batch_size": 8,
    }
    recipe: Any = check_recipe(content, "benchmark")
    data = load_training_data(recipe, ResolvedInputs())
    notes = data.notes()
    with quiet_libraries():
        check_rows(tokenizer, data.train)
        rows = training_rows(recipe, tokenizer, data.train)
    assert notes["train_rows"] == 2 * len(rows)  # both answers of a conversation, in one row
    return rows  # type: ignore[return-value]


def cpu_seconds() -> float:
    """Of this process and the children that have ended, on all cores."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure_preparation(folder: Path) -> None:
    """Seconds from the file to masked tokens."""
    path = folder / "conversations.jsonl"
    write_conversations(path)
    tokenizer = train_tokenizer()
    use_two_cores()
    began, used = time.perf_counter(), cpu_seconds()
    rows = prepare(path, tokenizer)
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    tokens = sum(map(len, rows[:1000]["input_ids"])) / 1000
    learned = sum(label != -100 for labels in rows[:1000]["labels"] for label in labels) / 1000
    record(name="data_preparation_seconds", value=seconds, unit="s", goal=60.0)
    print(
        f"{len(rows)} conversations of {tokens:.0f} tokens, {learned:.0f} with loss: "
        f"{seconds:.1f} s, {used:.1f} s of CPU time"
    )


def use_two_cores() -> None:
    """Keep this process to two cores where it has more; macOS cannot."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def measure_stream(folder: Path) -> None:
    """Peak memory of a process that goes once through a large file."""
    path = folder / "large.jsonl"
    write_texts(path, size=STREAM_BYTES)
    done = subprocess.run(
        [sys.executable, __file__, "--stream", str(path)], check=True, capture_output=True, text=True
    )
    examples, gib, seconds = done.stdout.split()
    size = path.stat().st_size / 10**9
    record(name="data_stream_memory", value=float(gib), unit="GiB", goal=1.0)
    print(f"{size:.2f} GB, {examples} examples streamed in {float(seconds):.0f} s, peak {float(gib):.2f} GiB")


def stream(path: str) -> None:
    """Go through a file and print: examples, peak GiB of this process, seconds."""
    began = time.perf_counter()
    rows = stream_sources([DataSource(name=path)], ResolvedInputs(), kind="text", seed=0).rows
    examples = sum(1 for _ in rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kibibytes on Linux, bytes on macOS
    print(examples, peak / (2**30 if sys.platform == "darwin" else 2**20), time.perf_counter() - began)


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        measure_stream(Path(folder))  # first: a new process counts its parent's size into its own peak
        measure_preparation(Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stream"]:
        stream(sys.argv[2])
    else:
        main()
