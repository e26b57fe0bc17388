"""Shards: prompts cut once, a checksummed file of answers for each cut, and a record of which are whole.

    plan.parquet, plan.json   the prompts as they were cut, and the address of each shard; gone at the end
    samples/part-00000.parquet, ...   a shard: written under a temporary name, then renamed
    shards.jsonl              a line for each shard that was written; gone at the end
    shards.json               the proof that every prompt is there once

A shard's address is a checksum of its prompts and of all that decides their answers. A worker makes it from
the plan alone, so its bytes do not depend on the worker, nor on how often the run was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.data.prompts import LeftOut
from handbook_utils.errors import DataError, ModelError
from handbook_utils.records import REJECTED
from handbook_utils.runs.atomic import (
    atomic_file,
    explained_os_errors,
    sha256_of,
    write_json,
    write_table,
    write_text,
)
from handbook_utils.sampling.generation.engines.interface import Answers, Prompt
from handbook_utils.sampling.tables import samples_table

PLAN, PLAN_PROMPTS, JOURNAL = "plan.json", "plan.parquet", "shards.jsonl"
PROOF, LOCKS = "shards.json", ".claims"
_PROMPTS = pa.schema([("prompt_id", pa.string()), ("messages", pa.string())])


def part_name(table: str, number: int) -> str:
    """The file of a part.

    >>> part_name("samples", 3)
    'samples/part-00003.parquet'
    """
    return f"{table}/part-{number:05d}.parquet"


@dataclass(frozen=True)
class Shard:
    """One cut of the prompts: its number, its address, and how many prompts it has."""

    number: int
    address: str
    prompts: int

    @property
    def file(self) -> str:
        """Where its answers are, in the run folder."""
        return part_name("samples", self.number)


@dataclass(frozen=True)
class ShardRecord:
    """What was written for a shard.

    Attributes:
        number: which shard.
        address: its address when it was made.
        sha256: checksum of its file.
        prompts: how many it has, answered or not.
        answers: rows of its file.
        tokens: sampled tokens.
        truncated: answers cut at the limit.
        shortened: ids of prompts that were cut to fit.
        skipped: why a prompt has no answers, by id.
        rejected: answers that speculative rejection stopped.
        scored_tokens: tokens of beginnings that it scored.
    """

    number: int
    address: str
    sha256: str
    prompts: int
    answers: int
    tokens: int
    truncated: int
    shortened: list[str]
    skipped: dict[str, str]
    rejected: int = 0
    scored_tokens: int = 0


def cut_shards(
    folder: Path, prompts: Iterable[Prompt], *, size: int, decides: Mapping[str, Any], left_out: LeftOut
) -> list[Shard]:
    """Store prompts, `size` a shard, holding no more than one shard in memory.

    Args:
        folder: the run folder.
        prompts: (prompt id, messages) with distinct ids; gone through once.
        size: prompts per shard.
        decides: what answers depend on besides their prompts.
        left_out: filled while `prompts` is gone through: rows that are no prompts, or repeat one.
    """
    context = json.dumps(decides, sort_keys=True)
    shards: list[Shard] = []
    rest = iter(prompts)
    with (
        atomic_file(folder / PLAN_PROMPTS) as temporary,
        pq.ParquetWriter(temporary, _PROMPTS) as writer,
    ):
        while cut := list(islice(rest, size)):
            messages = [json.dumps(each, ensure_ascii=False) for _, each in cut]
            ids = [name for name, _ in cut]
            address = hashlib.sha256(json.dumps([context, ids, messages]).encode()).hexdigest()
            shards.append(Shard(len(shards), address, len(cut)))
            writer.write_table(pa.table([ids, messages], schema=_PROMPTS), row_group_size=size)
    plan = {
        "sha256": sha256_of(folder / PLAN_PROMPTS),
        "left_out": left_out.bad,
        "repeated": left_out.repeated,
        "shards": [[shard.address, shard.prompts] for shard in shards],
    }
    write_json(folder / PLAN, {**plan, "check": _check_of(plan)})
    return shards


def read_plan(folder: Path) -> list[Shard] | None:
    """The shards an earlier session cut; None where there is no plan, or a damaged one."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan.pop("check") != _check_of(plan) or sha256_of(folder / PLAN_PROMPTS) != plan["sha256"]:
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return [Shard(number, *shard) for number, shard in enumerate(plan["shards"])]


def prompts_of(folder: Path, shards: Iterable[Shard]) -> Iterator[list[Prompt]]:
    """The prompts of each of these shards."""
    with pq.ParquetFile(folder / PLAN_PROMPTS) as file:
        for shard in shards:
            rows = file.read_row_group(shard.number).to_pylist()
            yield [(row["prompt_id"], json.loads(row["messages"])) for row in rows]


def write_shard(
    folder: Path, shard: Shard, prompts: Sequence[Prompt], answers: Answers, *, samples: int
) -> ShardRecord:
    """Write the answers to a shard's prompts; it counts once it is recorded too (`record_shard`).

    Raises:
        ModelError: the engine left out, repeated or invented answers.
        RunFolderError: the disk is full.
    """
    _check_answers(prompts, answers, samples)
    file = folder / shard.file
    write_table(file, samples_table(answers.completions))
    rows = answers.completions
    return ShardRecord(
        number=shard.number,
        address=shard.address,
        sha256=sha256_of(file),
        prompts=shard.prompts,
        answers=len(rows),
        tokens=sum(row.tokens for row in rows),
        truncated=sum(row.finish_reason == "length" for row in rows),
        shortened=list(answers.shortened),
        skipped=dict(answers.skipped),
        rejected=sum(row.finish_reason == REJECTED for row in rows),
        scored_tokens=answers.scored_tokens,
    )


def record_shard(folder: Path, record: ShardRecord) -> None:
    """Add a shard that was written to the journal.

    Raises:
        RunFolderError: the disk is full.
    """
    with explained_os_errors(folder / JOURNAL), (folder / JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write(_line(record))


def read_records(folder: Path) -> dict[int, ShardRecord]:
    """What was recorded by shard number, in the finished proof or in the journal; half lines do not count."""
    records = {}
    for number, fields in enumerate(_proof(folder).get("shards", [])):
        records[number] = ShardRecord(number=number, **fields)
    journal = folder / JOURNAL
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            record = ShardRecord(**json.loads(line))
        except (ValueError, TypeError):  # what a kill or a full disk cut short
            continue
        records[record.number] = record
    return records


def keep_whole(folder: Path, shards: Sequence[Shard]) -> dict[int, ShardRecord]:
    """Records of the shards that are there, whole; a file that is damaged or not recorded is deleted.

    Raises:
        DataError: shards were made of other prompts than the plan's.
    """
    records, whole = read_records(folder), {}
    for shard in shards:
        record, file = records.get(shard.number), folder / shard.file
        if record is not None and record.address != shard.address:
            raise DataError(
                f"{folder}: the prompts of shard {shard.number} are not those that this run began with, so "
                "its data have changed since. Put the old data back, choose another --out, or --overwrite."
            )
        if record is not None and file.exists() and sha256_of(file) == record.sha256:
            whole[shard.number] = record
        else:
            file.unlink(missing_ok=True)
    lines = "".join(_line(record) for record in whole.values())
    write_text(folder / JOURNAL, lines)
    return whole


def write_proof(folder: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """Prove that every prompt is there once, answered or skipped, and drop the plan.

    Raises:
        DataError: a shard is not recorded, or no prompt has an answer.
    """
    records = read_records(folder)
    missing = [shard.file for shard in shards if shard.number not in records]
    if missing:
        raise DataError(f"{folder}: {missing[0]} is missing ({len(missing)} in all). Run it again to go on.")
    made = [records[shard.number] for shard in shards]
    skipped = {name: reason for record in made for name, reason in record.skipped.items()}
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    proof = {
        "prompts": sum(shard.prompts for shard in shards),
        "answers": sum(record.answers for record in made),
        "skipped": skipped,
        "shortened": [name for record in made for name in record.shortened],
        "left_out": plan["left_out"],
        "repeated": plan.get("repeated", 0),  # plans of 0.1 did not count them
        "shards": [{key: value for key, value in asdict(each).items() if key != "number"} for each in made],
    }
    if not proof["answers"]:
        name, reason = next(iter(skipped.items()))
        raise DataError(
            f"none of {proof['prompts']} prompts could be answered. The first, '{name}': {reason}."
        )
    write_json(folder / PROOF, proof)
    drop_plan(folder)
    return proof


def drop_plan(folder: Path) -> None:
    """Delete what only a resume needs."""
    for name in (PLAN, PLAN_PROMPTS, JOURNAL, LOCKS):
        (folder / name).unlink(missing_ok=True)


def _check_answers(prompts: Sequence[Prompt], answers: Answers, samples: int) -> None:
    names = [name for name, _ in prompts if name not in answers.skipped]
    expected = [(name, index) for name in names for index in range(samples)]
    given = [(row.prompt_id, row.sample_index) for row in answers.completions]
    if given != expected:
        wrong = min(set(given) ^ set(expected), default="their order")
        raise ModelError(
            f"the engine gave {len(given)} answers where {len(expected)} were due, in order of prompts and "
            f"samples; the first that is wrong: {wrong}. Nothing of this shard was kept."
        )


def _check_of(plan: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def _proof(folder: Path) -> dict[str, Any]:
    try:
        proof: dict[str, Any] = json.loads((folder / PROOF).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return proof


def _line(record: ShardRecord) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"


class ShardLock:
    """Which process is making which shard: byte k of one file is locked by whoever makes shard k.

    The kernel gives and drops such locks, so no two processes hold one, and none outlives its holder.
    """

    def __init__(self, folder: Path) -> None:
        with explained_os_errors(folder / LOCKS):
            self._file = (folder / LOCKS).open("ab")

    def close(self) -> None:
        """Drop all locks of this process."""
        self._file.close()

    @contextmanager
    def held(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Hold a shard while the block runs; False where another process has it and `wait` is not set."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number, os.SEEK_SET)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number, os.SEEK_SET)
