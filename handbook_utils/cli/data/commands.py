"""`handbook data`: show, curate, decontaminate; each command checks its input, then imports what it needs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbook_utils.cli.data.annotation import agreement, compare
from handbook_utils.cli.data.labelling import label
from handbook_utils.cli.data.options import (
    Against,
    AgainstColumns,
    AgainstSplit,
    Boilerplate,
    Drop,
    Explain,
    Flag,
    Languages,
    LeakNear,
    LeakShare,
    LeakWords,
    Model,
    Near,
    Off,
    Out,
    RepeatedWords,
    Repetition,
    Replace,
    Restore,
    Sources,
)
from handbook_utils.cli.data.sources import as_written, named_sources, opened_sources
from handbook_utils.cli.options import Columns, Format, Json, Split
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.curation.rows import SourceRows
    from handbook_utils.curation.rules.table import Settings
    from handbook_utils.schema.sections import DataSource

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    help="Look at data before training: its format, its bad rows, test prompts in the training data; and "
    "have people or a model label it.",
    epilog="Example: handbook data show tips.jsonl, then handbook data curate tips.jsonl --out clean",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def show(
    sources: Sources = None,
    model: Model = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a self-contained HTML page.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=100, help="Number of rows to show.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing the rows to show.")] = 0,
    format: Format = "auto",
    column: Columns = None,
    split: Split = "train",
    json: Json = False,
) -> None:
    """Show how data is read and why: format, counts, lengths, and some rows with their learned parts marked.

    With --model, lengths are counted in its tokens, and the rows show which tokens carry loss.

    Example: handbook data show tips.jsonl --model pocket:base
    """
    from handbook_utils.cli.data import tables
    from handbook_utils.cli.view import say_next
    from handbook_utils.curation.look import look_at
    from handbook_utils.curation.page import page_html
    from handbook_utils.runs.atomic import write_text

    opened = opened_sources(sources, format, column, split)
    tokenizer = _tokenizer(model)
    looks = [look_at(source, tokenizer=tokenizer, seed=seed, rows=rows) for source in opened]
    if html is not None:
        write_text(html, page_html(looks))
    if json:
        tables.print_json({"sources": [look.to_json() for look in looks], "page": html and str(html)})
        return
    for look in looks:
        tables.show_look(look)
    names = as_written(sources, format, column, split)
    say_next(
        f"open {shlex.quote(str(html))} in a browser"
        if html
        else f"find its bad rows: handbook data curate {names} --out clean"
    )


@app.command()
def curate(
    sources: Sources = None,
    out: Out = None,
    model: Model = None,
    against: Against = None,
    drop: Drop = None,
    flag: Flag = None,
    off: Off = None,
    near: Near = 0.8,
    repetition: Repetition = 0.5,
    boilerplate: Boilerplate = 0.01,
    repeated_words: RepeatedWords = 8,
    language: Languages = None,
    leak_words: LeakWords = 8,
    leak_share: LeakShare = 0.5,
    leak_near: LeakNear = 0.6,
    explain: Explain = None,
    restore: Restore = None,
    against_column: AgainstColumns = None,
    against_split: AgainstSplit = "train",
    format: Format = "auto",
    column: Columns = None,
    split: Split = "train",
    overwrite: Replace = False,
    json: Json = False,
) -> None:
    """Find bad rows by named rules: remove what never helps, flag what may be intended, give the reasons.

    Writes kept/ (train on it), removed.jsonl, flagged.jsonl and curation.json. Your files stay as they are.

    Examples: handbook data curate tips.jsonl --out clean --against test.jsonl;
    handbook data curate --out clean --explain tips:17; handbook data curate --out clean --restore tips:17
    """
    from handbook_utils.cli.data import tables

    folder = _named_out(out)
    if explain or restore:
        _refuse_sources(sources, "--explain" if explain else "--restore")
        tables.show_later(folder, explain, restore, json)
        return
    from handbook_utils.curation.rules.table import Settings, Thresholds, chosen_actions

    thresholds = Thresholds(
        near=near,
        repeated_words=repeated_words,
        boilerplate_share=boilerplate,
        repetition=repetition,
        leak_words=leak_words,
        leak_share=leak_share,
        leak_near=leak_near,
    )
    actions = chosen_actions(drop=drop or (), flag=flag or (), off=off or ())
    settings = Settings(actions, thresholds, _languages(language), tuple(against or ()), model)
    tested = named_sources(against, "auto", against_column, against_split) if against else []
    opened = opened_sources(sources, format, column, split)
    _curate(opened, folder, settings, tested, overwrite=overwrite, json=json)


@app.command()
def decontaminate(
    sources: Sources = None,
    against: Against = None,
    out: Out = None,
    leak_words: LeakWords = 8,
    leak_share: LeakShare = 0.5,
    leak_near: LeakNear = 0.6,
    against_column: AgainstColumns = None,
    against_split: AgainstSplit = "train",
    format: Format = "auto",
    column: Columns = None,
    split: Split = "train",
    overwrite: Replace = False,
    json: Json = False,
) -> None:
    """Find training rows that contain your test prompts, and show each in context.

    Compares runs of words after normalising, and whole prompts for near-duplicates. With --out, writes the
    data without such rows.

    Example: handbook data decontaminate tips.jsonl --against test.jsonl --out clean
    """
    from handbook_utils.cli.data import tables
    from handbook_utils.curation.rules.table import Settings, Thresholds, chosen_actions

    if not against:
        raise DataError("name what you test on: --against EVAL (a file, a folder, or a name on the hub).")
    thresholds = Thresholds(leak_words=leak_words, leak_share=leak_share, leak_near=leak_near)
    tested = named_sources(against, "auto", against_column, against_split)
    opened = opened_sources(sources, format, column, split)
    if out is not None:
        actions = chosen_actions(drop=["test_prompt"], off=["all"])
        settings = Settings(actions, thresholds, tested=tuple(against))
        _curate(opened, out, settings, tested, overwrite=overwrite, json=json)
        return
    from handbook_utils.curation.tested import find_leaks, read_tested

    index = read_tested(tested, opened, thresholds)
    with _progress(json) as watch:
        report = find_leaks(opened, index, watch=watch)
    given = as_written(sources, format, column, split)
    tests = as_written(against, "auto", against_column, against_split, option="--against")
    tables.show_leaks(report, given, tests, json)


def _curate(
    opened: Sequence[SourceRows],
    folder: Path,
    settings: Settings,
    tested: Sequence[DataSource],
    *,
    overwrite: bool,
    json: bool,
) -> None:
    from handbook_utils.cli.data import tables
    from handbook_utils.curation.curate import curate as curate_rows
    from handbook_utils.curation.tested import read_tested

    index = read_tested(tested, opened, settings.thresholds) if tested else None
    tokenizer = _tokenizer(settings.tokenizer)
    with _progress(json) as watch:
        done = curate_rows(
            opened, folder, settings, tested=index, tokenizer=tokenizer, overwrite=overwrite, watch=watch
        )
    tables.show_curation(done, json)


def _named_out(out: Path | None) -> Path:
    if out is None:
        raise DataError("name the folder to write with --out, such as --out clean.")
    return out


def _refuse_sources(sources: Sequence[str] | None, option: str) -> None:
    if sources:
        raise DataError(f"{option} reads the folder of --out alone. Leave out {sources[0]}.")


def _languages(named: Sequence[str] | None) -> tuple[str, ...]:
    from handbook_utils.curation.rules.languages import known_languages
    from handbook_utils.errors import suggest

    for code in named or ():
        if code not in known_languages():
            raise DataError(f"--language: '{code}' is not told apart. {suggest(code, known_languages())}")
    return tuple(named or ())


def _tokenizer(model: str | None) -> Any:
    if model is None:
        return None
    from handbook_utils.models.load import load_tokenizer

    return load_tokenizer(model, for_chat=False)


@contextmanager
def _progress(json: bool) -> Iterator[Callable[[int], None] | None]:
    """A line that counts the rows read, on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if json or not console.is_terminal:
        yield None
        return
    with console.status("reading rows") as status:
        yield lambda rows: status.update(f"{rows:,} rows read")


# after those above, for this is the order of `handbook data --help`
app.command()(compare)
app.command()(agreement)
app.command()(label)
