"""The package as it was at a commit, to be measured beside the one of today in the same run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEFORE = "eed40be"


def package_before(scratch: Path) -> Path:
    """Write the package of that commit below a folder.

    Returns:
        A folder for PYTHONPATH.
    Raises:
        SystemExit: the commit is not in this checkout, as in a shallow clone.
    """
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "handbook_utils"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"commit {BEFORE} is not in this checkout: run `git fetch --unshallow` first")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(scratch / BEFORE, filter="data")
    return scratch / BEFORE


def figures_of(script: str | Path, *arguments: str | Path, path: Path = ROOT) -> list[float]:
    """The numbers that a script prints on its last line, run with the package below `path`, on one thread."""
    # -P: the folder of the script is no place to import the package from
    command = [sys.executable, "-P", str(script), *map(str, arguments)]
    settings = {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=os.environ | settings, cwd=path, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return [float(number) for number in done.stdout.strip().splitlines()[-1].split()]
