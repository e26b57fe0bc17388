"""An sbatch file for a training run: one launcher per node; it requeues and resumes automatically."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from handbook_utils.errors import LaunchError

# seconds before the time limit at which Slurm warns the script, which then asks for another turn
WARNING_S = 120
# nothing else can be a word of an #SBATCH line, which no shell quotes
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:/@%+=-]*")
_FOLDER = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_.,:/@%+=-]*")
_TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")


@dataclass(frozen=True)
class Job:
    """What Slurm is asked for.

    Attributes:
        name: of the job and its log.
        nodes: machines.
        gpus_per_node: GPUs, and so processes, on each.
        time: longest duration of one turn, as Slurm writes it: "24:00:00", "2-00".
        partition: where to queue; None for the cluster's default.
        account: Slurm account to charge; None for the user's default.
        logs: folder of the log.
    """

    name: str
    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None
    account: str | None
    logs: str


def sbatch_script(job: Job, program: Sequence[str]) -> str:
    """The text of an sbatch file.

    Args:
        job: what Slurm is asked for.
        program: arguments of `handbook`, without the address and port the script finds out.
    Raises:
        LaunchError: a value that Slurm could not read.
    """
    options = {
        "job-name": _word("--out", job.name),
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus_per_node,
        "time": _time(job.time),
        "partition": job.partition and _word("--partition", job.partition),
        "account": job.account and _word("--account", job.account),
        "output": f"{_word('--out', job.logs, _FOLDER, 'a letter, a digit or one of _./')}/%x-%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    command = shlex.join(["handbook", *program])
    return _SCRIPT.format(
        options="\n".join([*lines, "#SBATCH --requeue"]), command=command, warning=WARNING_S
    )


def _word(option: str, value: str, shape: re.Pattern[str] = _WORD, first: str = "a letter or a digit") -> str:
    if not shape.fullmatch(value):
        raise LaunchError(
            f"{option} {value!r}: an #SBATCH line takes letters, digits and _.,:/@%+=- only, "
            f"the first {first}."
        )
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise LaunchError(
            f"--time {value!r}: write minutes, hours:minutes:seconds or days-hours, such as 24:00:00."
        )
    return value


_SCRIPT = """#!/usr/bin/env bash
{options}

# Slurm makes no folders for logs: make that of --output before the first submission.
# The run folder has to lie on a file system all nodes share.
set -euo pipefail

# {warning} s before the time limit, or when a node is taken back, ask for another turn. The same command then
# goes on from the last checkpoint; there is nothing else to hand over.
another_turn() {{
    echo "time is up: requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
}}
trap another_turn USR1

# all nodes meet at the first one, on a port of this job's own; the list is read whole, because with pipefail
# a `head` that leaves early would end the job
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main_node=${{nodes%%$'\n'*}}
port=$((20000 + SLURM_JOB_ID % 40000))

# one launcher per node (its number is SLURM_NODEID); in the background, so that the trap runs at once
# shellcheck disable=SC2016 # a dollar sign in a value stands for itself
srun --kill-on-bad-exit=1 {command} --main-address "$main_node" --port "$port" &
wait "$!"
"""
