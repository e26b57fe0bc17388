"""`handbook export`: a trained model as a folder that servers take."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json

if TYPE_CHECKING:
    from handbook_utils.export.folder import Export


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder that holds a model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist yet.")],
    dtype: Annotated[
        str, typer.Option(help="Weights: float32, bfloat16 or float16; auto: as they are stored.")
    ] = "auto",
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the model, such as apache-2.0. Default: unknown."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="A run of `handbook evaluate` with this model, for the card. Repeatable."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload the folder to the Hugging Face hub as OWNER/NAME; token from HF_TOKEN."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: a new repository is public. Default: private.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a trained model as a folder that vLLM and transformers serve as it is, with a model card.

    An adapter is merged into its base. The token that ends a trained answer becomes the end token of
    the tokenizer and the generation settings. The folder also holds an Ollama Modelfile, and a model card
    (README.md) written from the run's records: data, figures with intervals, licences, and what was not
    measured.

    Nothing is sent anywhere without --push. If interrupted, run the command again to resume.

    Examples:

    handbook export runs/dpo --out models/dpo --dtype bfloat16

    handbook export runs/dpo --out models/dpo --evaluation runs/evaluate-dpo --license apache-2.0
    """
    from handbook_utils.errors import RecipeError
    from handbook_utils.export.folder import export_run
    from handbook_utils.export.push import check_push, push_export

    if public and push is None:
        raise RecipeError("--public: says how --push uploads. Give --push OWNER/NAME too, or leave it out.")
    if push is not None:
        check_push(push)
    made = export_run(run, out, dtype=dtype, licence=licence, evaluations=evaluation or [])
    address = None if push is None else push_export(made.folder, push, public=public)
    if json:
        record = {**asdict(made), "folder": str(made.folder), "run": str(made.run), "pushed_to": address}
        print(json_module.dumps(record))
    else:
        _show(made, address)


def _show(made: Export, address: str | None) -> None:
    from rich.console import Console

    from handbook_utils.cli import view
    from handbook_utils.export.card import use_commands

    console = Console(highlight=False)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    say(f"{made.folder}: {'written' if made.made else 'there already, of the same run and options'}")
    say(f"  weights in {made.dtype}; an answer ends with {', '.join(made.ends)}")
    say(f"  tokens of {made.conversations} conversations are those of training, as read back")
    for name, reason in made.refused.items():
        say(f"  the chat template takes no conversation of the kind '{name}': {reason}", "dim")
    if not made.ollama_template:
        say("  the Modelfile has no TEMPLATE: Ollama's notation has no equal to this chat template", "yellow")
    say("Serve it with one of these:")
    for command in use_commands(str(made.folder), made.dtype).values():
        say(f"  {command}")
    if address is not None:
        say(f"uploaded: {address}")
    view.say_next(
        f"read {made.folder}/README.md, then compare a running server with the run: "
        f"handbook check-served {made.run} --url http://localhost:8000/v1"
    )
