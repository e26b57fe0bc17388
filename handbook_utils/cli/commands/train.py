"""`handbook train` and `handbook slurm`: one training stage, in one process, in several, or as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handbook_utils.cli.options import AllowCode, Changes, DryRun, Json, Out, Overwrite, RecipeName, Seed

LAUNCH = "Several processes"
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of training processes, on all machines together.", rich_help_panel=LAUNCH
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="How processes share the model: ddp (a full copy each), fsdp2, zero2 or zero3 (sharded), "
        "or none (one process).",
        rich_help_panel=LAUNCH,
    ),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Number of machines.", rich_help_panel=LAUNCH)]
NodeRank = Annotated[
    int | None,
    typer.Option(min=0, help="Rank of this machine, from 0. Default: SLURM_NODEID.", rich_help_panel=LAUNCH),
]
MainAddress = Annotated[
    str | None, typer.Option(help="Host name or address of machine 0.", rich_help_panel=LAUNCH)
]
Port = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Port of machine 0 where the processes meet. Default: a free one.",
        rich_help_panel=LAUNCH,
    ),
]


def train(
    recipe: RecipeName,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    allow_code: AllowCode = False,
    processes: Processes = None,
    strategy: Strategy = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    main_address: MainAddress = None,
    port: Port = None,
) -> None:
    """Train a model by the method that the recipe names: pretrain, sft, reward, dpo, orpo, cpo, kto, grpo,
    rloo.

    grpo and rloo sample answers while they train, score them, and store both in the run folder.

    Examples: handbook train pocket/sft; handbook train my.yaml --processes 8 --strategy fsdp2
    """
    from handbook_utils.cli import launch, view

    changes = [*(changes or []), *launch.launch_changes(processes, strategy, nodes)]
    loaded = view.load_training(recipe, changes, seed)
    folder, flags = out or view.default_out(recipe), {"overwrite": overwrite, "json": json}
    flags["allow-code"] = allow_code
    program = launch.train_program(recipe, folder, changes, seed, flags)
    rendezvous = launch.rendezvous_of(node_rank, main_address, port)
    if dry_run:
        view.check_out_folder(loaded, folder, overwrite=overwrite)
        launch.show_plan(loaded, folder, program, rendezvous, json)
    else:
        launch.train(loaded, folder, program, rendezvous, flags)


def slurm(
    recipe: RecipeName,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs per machine; one process per GPU.")] = 8,
    time: Annotated[
        str, typer.Option(help="Time limit per submission; the job requeues itself and resumes.")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm partition to submit to.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account to charge.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How processes share the model: ddp (a full copy each), fsdp2, zero2 or zero3 (sharded)."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File to write. Default: <run folder>.sbatch.")
    ] = None,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Write an sbatch file for training on a Slurm cluster; the job requeues itself and resumes.

    Example: handbook slurm my.yaml --nodes 2 --strategy fsdp2 --partition gpu
    """
    from handbook_utils.cli import launch, view
    from handbook_utils.launch.slurm import Job

    wanted = launch.launch_changes(nodes * gpus_per_node, strategy, nodes)
    changes = [*(changes or []), *wanted]
    loaded = view.load_training(recipe, changes, seed)
    launch.check_batch(loaded)
    folder = out or view.default_out(recipe)
    program = launch.train_program(recipe, folder, changes, seed, {})
    job = Job(folder.name, nodes, gpus_per_node, time, partition, account, str(folder.parent))
    launch.write_job(job, program, file or folder.with_name(f"{folder.name}.sbatch"), json)
