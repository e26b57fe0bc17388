"""Break code on purpose and see which claims fail: one that survives what it rests on proves nothing.

    python -m handbook_utils.reporting.claims.sabotage RUNS               all claims
    python -m handbook_utils.reporting.claims.sabotage --only dpo sft     those of some notebooks
    python -m handbook_utils.reporting.claims.sabotage RUNS --only pipeline

A break runs once and judges every claim that it can reach; what came of it is stored at once, and is not run
again until the break or what it breaks has changed. Of the pipeline only what stands between the break and
its claims is run again, in a scratch folder beside links to the rest; of a notebook, what stands behind the
broken cell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from handbook_utils.errors import DataError, HandbookError, RunFolderError, suggest
from handbook_utils.reporting.claims.breaks import Break
from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.claims.line_breaks import break_package, broken_environment
from handbook_utils.reporting.claims.matrix import (
    FAILED,
    HELD,
    PIPELINE,
    Tried,
    break_record,
    drop_unknown,
    matrix_table,
    read_matrix,
    store_break,
    surviving,
)
from handbook_utils.reporting.claims.notebook_breaks import (
    NotebookBreak,
    break_key,
    read_notebook_breaks,
    try_break,
)
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS, Claim, Sabotage
from handbook_utils.reporting.claims.sound_runs import SoundRuns
from handbook_utils.reporting.runs import RunView, ancestors, descendants, get_run, read_pipeline
from handbook_utils.runs.atomic import sha256_of, write_json
from handbook_utils.runs.folder import MANIFEST, RECIPE

_RUN = """
import sys
from handbook_utils.pipeline.stages import run_stage
run_stage(sys.argv[1], sys.argv[2], progress=False)
"""


def grouped(claims: Sequence[Claim]) -> list[tuple[Sabotage, list[Claim]]]:
    """Each sabotage once, with all claims that name it: they share its rerun."""
    groups: dict[str, tuple[Sabotage, list[Claim]]] = {}
    for each in claims:
        for sabotage in each.sabotages:
            groups.setdefault(sabotage.name, (sabotage, []))[1].append(each)
    return list(groups.values())


def stages_to_rerun(views: Mapping[str, RunView], sabotage: Sabotage, claim: Claim) -> list[str]:
    """What stands between the break and the claim, in order.

    A stage with broken tables keeps them; a stage with a broken recipe or code is the first to run again.
    """
    get_run(views, sabotage.stage), get_run(views, claim.run)
    between = descendants(views, sabotage.stage) & (ancestors(views, claim.run) | {claim.run})
    again = between | (set() if sabotage.table else {sabotage.stage})
    return [name for name in views if name in again]


def try_sabotage(
    views: Mapping[str, RunView],
    sabotage: Sabotage,
    failing: Sequence[Claim],
    claims: Sequence[Claim] = PIPELINE_CLAIMS,
) -> Tried:
    """Apply one sabotage to finished runs and see what every claim does that it reaches.

    Args:
        views: the finished pipeline; it is read, never written.
        sabotage: what to break.
        failing: claims that have to fail; what stands between the break and these is run again.
        claims: all claims; one is judged where nothing between the break and it was left out.
    """
    began = time.monotonic()
    needed = {name for each in failing for name in stages_to_rerun(views, sabotage, each)}
    again = [name for name in views if name in needed]
    reached = descendants(views, sabotage.stage) | {sabotage.stage}
    judged = [
        each
        for each in claims
        if each.run in reached and set(stages_to_rerun(views, sabotage, each)) <= needed
    ]
    with tempfile.TemporaryDirectory(prefix="handbook-sabotage-") as made:
        scratch, code = Path(made) / "runs", Path(made) / "code"
        scratch.mkdir()
        try:
            lay_out(views, scratch, sabotage, again)
            for name in again:
                _run_again(views[name], scratch, sabotage, code)
            broken = read_pipeline(scratch)
            holds = {each.id: each.record(broken).holds for each in judged}
        except HandbookError as error:
            return Tried(dict.fromkeys(c.id for c in judged), [str(error)[:200]], _since(began))
    return Tried({name: HELD if held else FAILED for name, held in holds.items()}, [], _since(began))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def lay_out(views: Mapping[str, RunView], scratch: Path, sabotage: Sabotage, again: Sequence[str]) -> None:
    """Fill a scratch pipeline: links to finished stages, a broken copy of one, nothing of those to rerun."""
    for name, view in views.items():
        if name in again or view.status != "finished":
            continue
        if name == sabotage.stage and sabotage.table is not None:
            shutil.copytree(view.path, scratch / name)
            break_tables(scratch / name, sabotage.table)
        else:
            # a link is enough: a finished stage is only read
            (scratch / name).symlink_to(view.path.resolve(), target_is_directory=True)


def break_tables(run: Path, change: Break) -> None:
    """Change every parquet table of a run folder, and its manifest's checksums with them.

    Raises:
        RunFolderError: there is no table.
    """
    tables = sorted(run.rglob("*.parquet"))
    if not tables:
        raise RunFolderError(f"{run}: has no table to break.")
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    for file in tables:
        pq.write_table(change(pq.read_table(file)), file)
        manifest.setdefault("outputs", {})[str(file.relative_to(run))] = sha256_of(file)
    write_json(run / MANIFEST, manifest)


def _run_again(view: RunView, scratch: Path, sabotage: Sabotage, code: Path) -> None:
    from handbook_utils.pipeline.stages import run_stage

    is_broken = view.name == sabotage.stage
    if is_broken and sabotage.code is not None:
        called = break_package(*sabotage.code, code)
        command = [sys.executable, "-c", _RUN, str(view.path / RECIPE), str(scratch / view.name)]
        environment = os.environ | broken_environment(code)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunFolderError(f"{view.name}: {done.stderr.strip()[-200:]}")
        if not called.exists():
            raise DataError(f"{view.name}: nothing called {sabotage.code[0]}.")
        return
    changes = sabotage.changes if is_broken else {}
    run_stage(view.path / RECIPE, scratch / view.name, overrides=changes, progress=False)


def pipeline_key(views: Mapping[str, RunView], sabotage: Sabotage) -> str:
    """Changes with the break and with the runs it is applied to."""
    made = [str(view.manifest.get("started")) for view in views.values()]
    parts = [sabotage.name, sabotage.line, *made]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def run_pipeline_breaks(runs: Path, results: Path) -> None:
    """Try every break of the pipeline that has no stored result, and store what came of it.

    Raises:
        RunFolderError: a stage that is needed is missing or unfinished.
    """
    views = read_pipeline(runs)
    for sabotage, failing in grouped(PIPELINE_CLAIMS):
        key = pipeline_key(views, sabotage)
        words: dict[str, Any] = {
            "mechanism": sabotage.mechanism,
            "says": sabotage.says,
            "line": sabotage.line,
            "fails": [each.id for each in failing],
        }
        if not _is_stored(results, PIPELINE, sabotage.name, key, words):
            record = break_record(try_sabotage(views, sabotage, failing), **words, key=key)
            store_break(results, PIPELINE, sabotage.name, record)


def _is_stored(results: Path, place: str, name: str, key: str, words: dict[str, Any]) -> bool:
    """Whether what came of a break is stored; where its words were written anew, they are stored too."""
    known = read_matrix(results).get(place, {}).get(name, {})
    if known.get("key") != key:
        return False
    if known != known | words:
        store_break(results, place, name, known | words)
    return True


def run_notebook_breaks(breaks: Sequence[NotebookBreak], folder: Path, results: Path) -> None:
    """Run the notebook of every break that has no stored result, and store what came of it.

    Raises:
        DataError: a break fits neither notebook nor package as they are now.
        MissingDependencyError: nbclient is not installed.
    """
    pending: dict[str, list[tuple[NotebookBreak, str]]] = {}
    for each in breaks:
        key = break_key(each, folder)
        if not _is_stored(results, Path(each.notebook).stem, each.name, key, _in_words(each)):
            pending.setdefault(each.notebook, []).append((each, key))
    for notebook, waiting in pending.items():
        with tempfile.TemporaryDirectory(prefix="handbook-sabotage-") as made:
            sound = SoundRuns(folder / notebook, [each for each, _ in waiting], Path(made))
            for each, key in waiting:
                tried = try_break(each, folder, sound.lay_out(each))
                record = break_record(tried, **_in_words(each), key=key)
                store_break(results, Path(notebook).stem, each.name, record)


def _in_words(each: NotebookBreak) -> dict[str, Any]:
    return {
        "mechanism": each.mechanism,
        "says": each.says,
        "line": f"{each.function or each.notebook}: {each.old} -> {each.new}",
        "fails": list(each.fails),
    }


def known_breaks(breaks: Sequence[NotebookBreak]) -> dict[str, list[str]]:
    """Names of all breaks by place."""
    found = {PIPELINE: [sabotage.name for sabotage, _ in grouped(PIPELINE_CLAIMS)]}
    for each in breaks:
        found.setdefault(Path(each.notebook).stem, []).append(each.name)
    return found


def _asked_places(asked: Any, known: Mapping[str, Sequence[str]]) -> list[str]:
    for name in asked.only or ():
        if name not in known:
            raise DataError(f"--only {name}: nothing of that name is broken. {suggest(name, known)}")
    places = list(known) if asked.only is None else asked.only
    if PIPELINE in places and asked.runs is None:
        raise DataError("the pipeline's claims need the folder of a finished pipeline: name it first.")
    return list(places)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status is 1 where a claim survived a break it rests on, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m handbook_utils.reporting.claims.sabotage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of a finished pipeline")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="these notebooks, or `pipeline`")
    parser.add_argument("--results", type=Path, help="what to write; book/results/sabotage.json by default")
    asked = parser.parse_args(arguments)
    notebooks = project_root() / "notebooks"
    results = asked.results or project_root() / "book" / "results" / "sabotage.json"
    try:
        breaks = read_notebook_breaks(notebooks)
        known = known_breaks(breaks)
        places = _asked_places(asked, known)
        drop_unknown(results, known)
        if PIPELINE in places:
            run_pipeline_breaks(asked.runs, results)
        run_notebook_breaks([b for b in breaks if Path(b.notebook).stem in places], notebooks, results)
    except HandbookError as error:
        print(error, file=sys.stderr)
        return 2
    found = {place: each for place, each in read_matrix(results).items() if place in places}
    # a log has no width of its own, and 80 columns would cut the claims' names
    console = Console(width=None if sys.stdout.isatty() else 180)
    for place, each in found.items():
        console.print(matrix_table(place, each))
    survived = [record for each in found.values() for record in each.values() if surviving(record)]
    return 1 if survived or not found else 0


if __name__ == "__main__":
    sys.exit(main())
