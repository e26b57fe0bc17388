"""`handbook merge`: an adapter into its base, with a check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    model: Annotated[str, typer.Argument(help="A run folder, or an adapter's folder or hub name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: as in the base.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")] = False,
) -> None:
    """Merge an adapter into its base, check weights, logits and greedy answers, and save the whole model.

    A plain LoRA on a base that is not quantised needs the memory of one model, others (such as DoRA) of two.

    Example: handbook merge runs/sft-qlora --out models/merged
    """
    from handbook_utils.cli import view
    from handbook_utils.models.merge import merge_adapter

    view.show_merge(merge_adapter(model, out, dtype=dtype), json)
