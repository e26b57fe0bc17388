"""Rerun the pipeline on fresh seeds and store how safe each claim is.

    python -m handbook_utils.reporting.claims.calibrate --seeds 101 102 103 104 105 [--out runs/x] [--jobs 2]

A seed that is finished is not run again, and parts made in several sittings are merged. With `--only` the
claims of some notebooks are measured anew: those of earlier sittings are left out where they are merged.

    python -m handbook_utils.reporting.claims.calibrate --notebooks-only --only lora sft --merge FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbook_utils.errors import DataError, HandbookError, RunFolderError, suggest
from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.claims.margins import summarise
from handbook_utils.reporting.claims.notebook import execute_notebook, notebook_claim_ids
from handbook_utils.reporting.claims.pipeline import FRESH_SEEDS, PIPELINE_CLAIMS
from handbook_utils.reporting.expected import FILE as EXPECTED
from handbook_utils.reporting.expected import PIPELINE, expected_of
from handbook_utils.reporting.results import provenance
from handbook_utils.reporting.runs import read_pipeline
from handbook_utils.runs.atomic import write_json

Part = dict[str, Any]

_RUN = """
import sys
from handbook_utils.pipeline.run import run_pipeline
run_pipeline(sys.argv[1], sys.argv[2], seed=int(sys.argv[3]))
"""


def run_seeds(pipeline: str, seeds: Sequence[int], out: Path, *, jobs: int = 1) -> None:
    """Run the pipeline once per seed, each in a process of its own, `jobs` at a time.

    Args:
        pipeline: packaged name or path.
        seeds: seeds no setting was chosen on.
        out: gets `seed-<seed>/`, a pipeline folder, and `seed-<seed>.log`.
        jobs: processes at once; each uses its share of the cores.

    Raises:
        RunFolderError: a run failed; the message ends with its last words, the log has the rest.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for failure in pool.map(lambda seed: _run_seed(pipeline, seed, out, jobs), seeds):
            if failure:
                raise RunFolderError(failure)


def _run_seed(pipeline: str, seed: int, out: Path, jobs: int) -> str | None:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    log = out / f"seed-{seed}.log"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, pipeline, str(out / f"seed-{seed}"), str(seed)],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode == 0:
        return None
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"seed {seed} failed: {' '.join(last)} (all of it: {log}). Mend it and run the same command again."


def claims_to_calibrate(notebooks: Path, only: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Claims by notebook, in the order asked for.

    Args:
        notebooks: the folder.
        only: names of notebooks, such as `dpo`; None for all that make claims.

    Raises:
        DataError: a name is no notebook's that makes claims.
    """
    found = {Path(name).stem: ids for name, ids in notebook_claim_ids(notebooks).items()}
    for name in only or ():
        if name not in found:
            raise DataError(f"--only {name}: no notebook of that name makes claims. {suggest(name, found)}")
    return found if only is None else {name: found[name] for name in only}


def run_notebooks(seeds: Sequence[int], out: Path, notebooks: Path, claims: Mapping[str, list[str]]) -> None:
    """Run notebooks once per seed, which they read from HANDBOOK_SEED.

    Records go to `seed-<seed>-notebooks/<notebook>/claims`; a notebook that left all of them is not run
    again.

    Args:
        seeds: seeds no setting was chosen on.
        out: where records go.
        notebooks: the folder.
        claims: ids by notebook, as `claims_to_calibrate` gives them; the first notebook first, on all seeds.

    Raises:
        RunFolderError: a notebook broke before it made all its claims.
    """
    for name, ids in claims.items():
        for seed in seeds:
            # the notebook runs in this folder, where a relative path would lead elsewhere
            folder = out.resolve() / f"seed-{seed}-notebooks" / name
            if all((folder / "claims" / f"{each}.json").exists() for each in ids):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            content = json.loads((notebooks / f"{name}.ipynb").read_text(encoding="utf-8"))
            errors, records = execute_notebook(content, folder, settings={"HANDBOOK_SEED": str(seed)})
            missing = [each for each in ids if each not in records]
            if missing:
                raise RunFolderError(
                    f"{name}, seed {seed}: no record of {', '.join(missing)}; it raised {errors[:1]}."
                )


def gather(seeds: Sequence[int], out: Path, *, pipeline: bool = True) -> Part:
    """Every claim's record of each seed, with where they come from.

    Args:
        seeds: those that were run.
        out: where.
        pipeline: whether the pipeline was run; else the notebooks' claims are all there is.

    Raises:
        RunFolderError: a seed's pipeline is missing or unfinished.
    """
    records: dict[str, dict[str, Any]] = {}
    made: Mapping[str, Any] = {}
    for seed in seeds:
        views = read_pipeline(out / f"seed-{seed}") if pipeline else {}
        for claim in PIPELINE_CLAIMS if pipeline else ():
            made = next(iter(views.values())).manifest
            records.setdefault(claim.id, {})[str(seed)] = claim.record(views).to_json()
        for path in sorted((out / f"seed-{seed}-notebooks").glob("*/claims/*.json")):
            records.setdefault(path.stem, {})[str(seed)] = json.loads(path.read_text(encoding="utf-8"))
    return _part(records, [provenance(seeds=seeds, made=made)])


def without(part: Part, ids: Collection[str]) -> Part:
    """An earlier sitting without the claims that are measured anew."""
    return part | {"claims": {name: each for name, each in part["claims"].items() if name not in ids}}


def merge_parts(parts: Sequence[Part]) -> Part:
    """One calibration from several sittings.

    Raises:
        DataError: two sittings hold different records of the same claim and seed.
    """
    records: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, claim in part["claims"].items():
            for seed, record in claim["by_seed"].items():
                known = records.setdefault(name, {}).setdefault(seed, record)
                if known != record:
                    raise DataError(
                        f"claim '{name}', seed {seed}: two sittings measured different figures. "
                        "Calibrate all seeds on one commit, or drop the older part."
                    )
    return _part(records, [sitting for part in parts for sitting in part["sittings"]])


def _part(records: Mapping[str, Mapping[str, Any]], sittings: Sequence[Mapping[str, Any]]) -> Part:
    ordered = {name: dict(sorted(by.items(), key=lambda pair: int(pair[0]))) for name, by in records.items()}
    return {
        "note": "false_alarm_rate_extrapolated is a Student-t prediction from few seeds, not an observation",
        "seeds": sorted(
            {
                int(seed)
                for by_seed in records.values()
                for seed, record in by_seed.items()
                if "repeat" not in record
            }
        ),
        "claims": {name: summarise(by_seed) for name, by_seed in sorted(ordered.items())},
        "sittings": list(sittings),
    }


def of_the_pipeline(part: Part) -> Part:
    """What the package itself knows of its pipeline's claims on fresh seeds; the report shows it."""
    kept = (
        "value",
        "low",
        "high",
        "level",
        "n",
        "unit",
        "method",
        "lowest",
        "highest",
        "held",
        "of",
        "wording",
    )
    found = {each.id: part["claims"][each.id] for each in PIPELINE_CLAIMS if each.id in part["claims"]}
    return {name: {key: each[key] for key in kept if key in each} for name, each in found.items()}


def calibration_table(part: Part) -> Table:
    """A table for the terminal, one line per claim."""
    table = Table(title=f"Claims on {len(part['seeds'])} fresh seeds")
    for heading in (
        "claim",
        "mean",
        "held",
        "margin, sd over seeds",
        "false alarms, extrapolated",
        "wording",
    ):
        table.add_column(heading, justify="left" if heading in ("claim", "wording") else "right")
    for name, found in part["claims"].items():
        margin, rate = found["margin_sd"], found["false_alarm_rate_extrapolated"]
        table.add_row(
            Text(name),
            Text(
                f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if "value" in found else ""
            ),
            f"{found['held']} of {found['of']}",
            "" if margin is None else f"{margin:.1f}",
            "" if rate is None else f"{rate:.2g}",
            found["wording"],
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 on bad input or a failed run."""
    parser = argparse.ArgumentParser(
        prog="python -m handbook_utils.reporting.claims.calibrate", description=__doc__
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--out", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--pipeline", default=PIPELINE)
    parser.add_argument("--jobs", type=int, default=1)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--notebooks", action="store_true", help="the notebooks' claims on these seeds too")
    which.add_argument("--notebooks-only", action="store_true", help="theirs, and not the pipeline's")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="of the notebooks only these")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="files of earlier sittings")
    parser.add_argument(
        "--results", type=Path, help="what to write; book/results/calibration.json by default"
    )
    asked = parser.parse_args(arguments)
    root = project_root()
    try:
        claims = claims_to_calibrate(root / "notebooks", asked.only)
        if not asked.notebooks_only:
            run_seeds(asked.pipeline, asked.seeds, asked.out, jobs=asked.jobs)
        if asked.notebooks or asked.notebooks_only:
            run_notebooks(asked.seeds, asked.out, root / "notebooks", claims)
        anew = [each for ids in claims.values() for each in ids] if asked.only else []
        earlier = [without(json.loads(path.read_text(encoding="utf-8")), anew) for path in asked.merge]
        part = merge_parts([*earlier, gather(asked.seeds, asked.out, pipeline=not asked.notebooks_only)])
    except HandbookError as error:
        print(error, file=sys.stderr)
        return 2
    path = asked.results or root / "book" / "results" / "calibration.json"
    write_json(path, part)
    if asked.results is None:
        write_json(FRESH_SEEDS, of_the_pipeline(part))
        if asked.pipeline == PIPELINE and not asked.notebooks_only:
            write_json(EXPECTED, expected_of([read_pipeline(asked.out / f"seed-{n}") for n in asked.seeds]))
    Console().print(calibration_table(part))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
