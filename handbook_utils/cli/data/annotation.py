"""`handbook data compare` and `agreement`: people compare two answers blind, and how far they agree."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.data.sources import opened_sources
from handbook_utils.cli.options import Columns, Format, Json, Split
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.sampling.annotation.server import CompareServer

WORK, WHERE = "How the work is shared", "Where the page is served"


Pairs = Annotated[
    list[str] | None,
    typer.Argument(
        help="A file of pairs; or one with several answers per prompt; or two files of answers to the "
        "same prompts. Any format that `handbook data show` reads.",
        show_default=False,
    ),
]
Judged = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The .jsonl file that judgements are appended to.", show_default=False),
]
Guideline = Annotated[
    Path | None,
    typer.Option("--guideline", help="Text or Markdown to show beside the answers.", show_default=False),
]
Overlap = Annotated[
    float,
    typer.Option(
        "--overlap",
        help="Share of the pairs that several people judge, so that agreement can be measured.",
        rich_help_panel=WORK,
    ),
]
People = Annotated[
    int, typer.Option("--people", help="How many people judge each of these pairs.", rich_help_panel=WORK)
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, help="Seed for the order of pairs, and for which answer is shown first.", rich_help_panel=WORK
    ),
]
Host = Annotated[
    str,
    typer.Option(
        "--host",
        help="Address to listen on. If other machines can reach it, the page needs the token that is "
        "printed, and is sent unencrypted.",
        rich_help_panel=WHERE,
    ),
]
Port = Annotated[
    int,
    typer.Option(
        "--port", min=0, max=65535, help="Port to listen on; 0: any free one.", rich_help_panel=WHERE
    ),
]


def compare(
    sources: Pairs = None,
    out: Judged = None,
    guideline: Guideline = None,
    overlap: Overlap = 0.2,
    people: People = 2,
    seed: Seed = 0,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    format: Format = "auto",
    column: Columns = None,
    split: Split = "train",
) -> None:
    """Serve a page on which people compare two answers without knowing whose they are.

    Several people can work at once, each under a name. Each judgement is written to disk before the next pair
    is shown. Stop with Ctrl-C; run the command again to resume. Keys: 1, 2, 3 or t (tie), s (skip), u
    (undo). The file is preference data: name it under `data:` of a recipe.

    Examples: handbook data compare pairs.jsonl --out judged.jsonl --guideline rules.md;
    handbook data compare sft.jsonl dpo.jsonl --out judged.jsonl
    """
    if out is None:
        raise DataError("name the file to write with --out, such as --out judged.jsonl.")
    from handbook_utils.sampling.annotation.guideline import read_guideline
    from handbook_utils.sampling.annotation.hand_out import HandOut
    from handbook_utils.sampling.annotation.judgements import JudgementFile
    from handbook_utils.sampling.annotation.pairs import read_pairs
    from handbook_utils.sampling.annotation.server import Access, CompareServer
    from handbook_utils.sampling.annotation.session import Session

    blocks = read_guideline(guideline) if guideline else []
    read = read_pairs(opened_sources(sources, format, column, split))
    hand_out = HandOut([pair.id for pair in read.pairs], overlap=overlap, people=people, seed=seed)
    for told in read.said():
        print(told, file=sys.stderr)
    with JudgementFile(out) as file:
        session = Session(read.pairs, file, hand_out, seed=seed)
        with CompareServer(session, Access.to(host), port, blocks) as server:
            print(f"{len(read.pairs):,} pairs to compare, {len(file.lines):,} judgements in {out} already")
            if server.access.token:
                print(
                    "whoever has this address can judge; it is sent unencrypted, so use a network you trust"
                )
            print(f"open {server.url} (Ctrl-C stops)", flush=True)
            _serve(server)
            session.close()
    _say_agreement(out)


def _serve(server: CompareServer) -> None:
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print()


def _say_agreement(out: Path) -> None:
    from handbook_utils.cli.view import say_next

    say_next(f"see whether people agree: handbook data agreement {shlex.quote(str(out))}")


def agreement(
    judgements: Annotated[Path, typer.Argument(help="A file that `handbook data compare` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write one row per pair (.jsonl or .parquet): what most people preferred.",
            show_default=False,
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier --out.")] = False,
    json: Json = False,
) -> None:
    """Say how far people agree: Krippendorff's alpha for all, Cohen's kappa for two, each with its interval.

    1 is perfect agreement, 0 is chance. Below that, each person: how much they judged, how long they took,
    and how often they preferred the answer shown first, which should be near one half.

    Examples: handbook data agreement judged.jsonl;
    handbook data agreement judged.jsonl --out agreed.jsonl, then handbook win-rate agreed.jsonl
    """
    from handbook_utils.cli.data.label_tables import show_agreement
    from handbook_utils.cli.data.tables import print_json
    from handbook_utils.sampling.annotation.judgements import read_judgement_file
    from handbook_utils.sampling.annotation.people import agreed_rows, summarise_people

    if not 0 < level < 1:
        raise DataError(f"--level must be between 0 and 1, got {level:g}")
    if out is not None:
        from handbook_utils.sampling.rows import check_writable

        check_writable(out, overwrite=overwrite)
    lines = read_judgement_file(judgements)
    report = summarise_people(lines, level=level)
    if out is not None:
        from handbook_utils.sampling.rows import write_rows

        rows = agreed_rows(lines)
        if not rows:
            raise DataError(f"{judgements}: holds no judgement that counts, so there is nothing to write.")
        write_rows(out, rows)
    if json:
        print_json({"file": str(judgements), "out": out and str(out), **report.to_json()})
        return
    show_agreement(report, judgements, out)
