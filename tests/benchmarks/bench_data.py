"""Time from a file of 100,000 conversations to tokens with their loss mask, on two cores; memory of a stream.

A conversation is two exchanges of random words, about 200 tokens of a byte-pair tokenizer that is trained
here. Loading and recognising run in one process, rendering and masking in two. The stream goes once through a
JSONL file of 2 GB (texts of about 4 kB), in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from _record import record
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from handbook_utils.data.load import ResolvedInputs, load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.stream import stream_sources
from handbook_utils.recipe_sections import DataSource

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
    """Write the conversations, one a line."""
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
        vocab_size=3000, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    plain.train_from_iterator([" ".join(words(random.Random(0)))] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def render(tokenizer: Any, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Tokens of whole conversations, and which of them the assistant says."""
    talks = [[*prompt, *answer] for prompt, answer in zip(batch["prompt"], batch["completion"], strict=True)]
    made = tokenizer.apply_chat_template(talks, return_assistant_tokens_mask=True, return_dict=True)
    return {"input_ids": made["input_ids"], "mask": made["assistant_masks"]}


def measure_preparation(folder: Path) -> None:
    """Seconds from the file to masked tokens."""
    path = folder / "conversations.jsonl"
    write_conversations(path)
    tokenizer = train_tokenizer()
    began = time.perf_counter()
    examples: Dataset = load_dataset(str(path), kind="conversation")
    loaded = time.perf_counter()
    whole = examples.select(range(1, len(examples), 2))  # the second answer's row holds the first one too
    with quiet_libraries():
        rows = whole.map(
            partial(render, tokenizer),
            batched=True,
            num_proc=CORES,
            remove_columns=whole.column_names,
        )
    seconds = time.perf_counter() - began
    tokens = sum(map(len, rows[:1000]["input_ids"])) / 1000
    counted = sum(map(sum, rows[:1000]["mask"])) / 1000
    record(name="data_preparation_seconds", value=seconds, unit="s", goal=60.0)
    print(
        f"{len(rows)} conversations of {tokens:.0f} tokens, {counted:.0f} with loss: "
        f"loaded in {loaded - began:.1f} s, {seconds:.1f} s in all"
    )


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
    rows, _ = stream_sources([DataSource(name=path)], ResolvedInputs(), kind="text", seed=0)
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
