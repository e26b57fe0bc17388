"""Break the pipeline on purpose and require every claim to fail: a claim that survives proves nothing.

    python -m handbook_utils.reporting.claims.sabotage RUNS [--cheap] [--json]

Only what stands between the break and the claim is run again, in a scratch folder beside links to the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from handbook_utils.errors import ClaimError, HandbookError, RecipeError, RunFolderError, suggest
from handbook_utils.reporting.claims.breaks import Break
from handbook_utils.reporting.claims.claim import assert_claim, project_root
from handbook_utils.reporting.claims.notebook import read_notebook_sabotages, run_notebook_sabotages
from handbook_utils.reporting.claims.outcomes import Outcome, outcome_table
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS, Claim, Sabotage
from handbook_utils.reporting.runs import (
    RunView,
    ancestors,
    descendants,
    get_run,
    read_pipeline,
)
from handbook_utils.runs.atomic import sha256_of, write_json
from handbook_utils.runs.folder import MANIFEST, RECIPE

FEW_STEPS = 5  # a training stage cut to this many steps costs no more than loading its model


def run_sabotages(
    pipeline_out: Path | str,
    *,
    cheap_only: bool = False,
    ids: Collection[str] | None = None,
    claims: Sequence[Claim] = PIPELINE_CLAIMS,
) -> list[Outcome]:
    """Apply every sabotage of the pipeline's claims to finished runs and see what each claim does.

    Args:
        pipeline_out: folder of a finished pipeline; it is read, never written.
        cheap_only: leave out sabotages after which something has to be trained again.
        ids: only these claims.
        claims: the table to work through.

    Raises:
        RecipeError: `ids` names a claim that does not exist.
        RunFolderError: a stage that is needed is missing or unfinished.
    """
    views = read_pipeline(pipeline_out)
    wanted = _wanted(claims, ids)
    outcomes: list[Outcome] = []
    for sabotage, under_it in grouped(wanted):
        chosen = [each for each in under_it if not cheap_only or is_cheap(views, sabotage, each)]
        if chosen:
            outcomes += _apply(views, sabotage, chosen)
    return outcomes


def grouped(claims: Sequence[Claim]) -> list[tuple[Sabotage, list[Claim]]]:
    """Each sabotage once, with all claims that name it: they share its rerun."""
    groups: dict[tuple[str, str], tuple[Sabotage, list[Claim]]] = {}
    for each in claims:
        for sabotage in each.sabotages:
            groups.setdefault(sabotage.key, (sabotage, []))[1].append(each)
    return list(groups.values())


def stages_to_rerun(views: Mapping[str, RunView], sabotage: Sabotage, claim: Claim) -> list[str]:
    """What stands between the break and the claim, in order.

    A stage with broken tables keeps them; a stage with a broken recipe is the first to run again.
    """
    get_run(views, sabotage.stage), get_run(views, claim.run)
    between = descendants(views, sabotage.stage) & (ancestors(views, claim.run) | {claim.run})
    again = between | ({sabotage.stage} if sabotage.changes else set())
    return [name for name in views if name in again]


def is_cheap(views: Mapping[str, RunView], sabotage: Sabotage, claim: Claim) -> bool:
    """Whether no training is run again, bar a broken stage that is cut to a few steps."""
    trained = [n for n in stages_to_rerun(views, sabotage, claim) if views[n].curves is not None]
    if sabotage.changes.get("training.max_steps", FEW_STEPS + 1) <= FEW_STEPS:
        trained = [name for name in trained if name != sabotage.stage]
    return not trained


def _apply(views: Mapping[str, RunView], sabotage: Sabotage, claims: Sequence[Claim]) -> list[Outcome]:
    began = time.monotonic()
    held = {each.id: each.record(views).holds for each in claims}
    needed = {name for each in claims for name in stages_to_rerun(views, sabotage, each)}
    again = [name for name in views if name in needed]
    with tempfile.TemporaryDirectory(prefix="handbook-sabotage-") as scratch:
        folder = Path(scratch)
        try:
            lay_out(views, folder, sabotage, again)
            for name in again:
                _run_again(views[name], folder, sabotage)
        except HandbookError as error:
            seconds = time.monotonic() - began
            return [_outcome(each, sabotage, "error", str(error), held[each.id], seconds) for each in claims]
        broken = read_pipeline(folder)
        seconds = time.monotonic() - began
        return [_judge(each, sabotage, broken, held[each.id], seconds) for each in claims]


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


def _run_again(view: RunView, scratch: Path, sabotage: Sabotage) -> None:
    from handbook_utils.pipeline.stages import run_stage

    changes = sabotage.changes if view.name == sabotage.stage else {}
    run_stage(view.path / RECIPE, scratch / view.name, overrides=changes, progress=False)


def _judge(
    claim: Claim, sabotage: Sabotage, broken: Mapping[str, RunView], held: bool, seconds: float
) -> Outcome:
    record = claim.record(broken)
    try:
        assert_claim(record)
    except ClaimError:
        return _outcome(claim, sabotage, "failed", record.measured, held, seconds)
    return _outcome(claim, sabotage, "survived", record.measured, held, seconds)


def _outcome(
    claim: Claim, sabotage: Sabotage, result: str, detail: str, held: bool, seconds: float
) -> Outcome:
    return Outcome(claim.id, sabotage.stage, sabotage.says, result, detail, held, round(seconds, 1))


def _wanted(claims: Sequence[Claim], ids: Collection[str] | None) -> list[Claim]:
    known = [each.id for each in claims]
    for name in ids or ():
        if name not in known:
            raise RecipeError(f"no claim of the pipeline is called '{name}'. {suggest(name, known)}")
    return [each for each in claims if ids is None or each.id in ids]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status is 1 when a claim survived or nothing was shown, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m handbook_utils.reporting.claims.sabotage", description=__doc__
    )
    parser.add_argument("runs", type=Path, help="folder of a finished pipeline")
    parser.add_argument("--cheap", action="store_true", help="only what needs no training")
    parser.add_argument("--only", nargs="+", metavar="ID", help="only these claims of the pipeline")
    parser.add_argument("--no-notebooks", action="store_true", help="leave out the notebooks' claims")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    asked = parser.parse_args(arguments)
    try:
        outcomes = run_sabotages(asked.runs, cheap_only=asked.cheap, ids=asked.only)
        notebooks = project_root() / "notebooks"
        if not asked.no_notebooks and not asked.only and notebooks.is_dir():
            sabotages = [s for s in read_notebook_sabotages(notebooks) if s.cheap or not asked.cheap]
            outcomes += run_notebook_sabotages(sabotages, notebooks)
    except HandbookError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps([each.to_json() for each in outcomes], indent=2))
    else:
        # a log has no width of its own, and 80 columns would cut the claims' names
        Console(width=None if sys.stdout.isatty() else 180).print(outcome_table(outcomes))
    return 0 if outcomes and all(each.is_fine for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
