"""Does the package work with the newest libraries it allows, and with the oldest? A table says with which.

python tests/compatible/run.py [newest] [lowest] [lm-eval] [notebooks] [--store]

For each, a fresh environment is made with the package as a wheel, without pins (newest) or with those of
`constraints-lowest.txt` (lowest). The shrunk main job and the contract tests run in it, side by side.
`lm-eval` is the environment of that extra, which wants older libraries than the others, with its contract.
`notebooks` runs every notebook as on Colab, in an environment that its own first cell fills: only when asked,
since it takes as long as the notebooks do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from first_cells import all_names, failing, forget_build, uv  # noqa: E402

WORK = ROOT / "_build" / "compatible"
TESTED = ROOT / "handbook_utils" / "libraries" / "tested.json"
LOWEST_FILE = ROOT / "constraints-lowest.txt"
# what the contract tests need beside the package; what belongs to other extras is left out
TOOLS = ["pytest>=8", "pytest-xdist>=3.6"]
CONTRACTS = [
    *["-q", "-p", "no:cacheprovider", "tests/contract"],
    *["--ignore=tests/contract/test_ray.py", "--ignore=tests/contract/test_wheel.py"],
    "--ignore=tests/contract/test_lm_eval.py",
    # the oldest typer re-exports what the newest click is about to drop
    *["-W", "ignore::DeprecationWarning:typer"],
]


def main() -> None:
    """Run what is asked for; exit with 1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", choices=list(TRIED), help="Default: the first three.")
    parser.add_argument("--store", action="store_true", help="Note the newest releases as tested.")
    asked = parser.parse_args()
    which = asked.which or ["newest", "lowest", "lm-eval"]
    failed = [name for name in which if not TRIED[name]()]
    found = {name: _versions(name) for name in which}
    print("\n" + _table(found))
    if failed:
        sys.exit(f"failed with: {', '.join(failed)}")
    if asked.store and "newest" in which:
        _store(found["newest"])


def _holds(which: str) -> bool:
    start = time.monotonic()
    folder = WORK / which
    shutil.rmtree(folder, ignore_errors=True)
    python = _environment(folder / "venv", ["--constraints", str(LOWEST_FILE)] if which == "lowest" else [])
    print(f"{which}: environment {time.monotonic() - start:.0f} s", flush=True)
    # one thread each: two processes with two threads each are several times slower on two cores
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "default::FutureWarning,default::DeprecationWarning",
    }
    log = folder / "contracts.txt"
    with log.open("w", encoding="utf-8") as stream:
        contracts = subprocess.Popen(
            [python, "-m", "pytest", *CONTRACTS],
            **{"cwd": ROOT, "env": environment, "stdout": stream, "stderr": subprocess.STDOUT},
        )
        job = subprocess.run(
            [python, str(ROOT / "tests/compatible/main_job.py"), str(folder / "runs")],
            env=environment,
            check=False,
        )
        contracts.wait()
    lines = log.read_text(encoding="utf-8").splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR")) or line == lines[-1]))
    print(f"{which}: {time.monotonic() - start:.0f} s in all", flush=True)
    return job.returncode == 0 and contracts.returncode == 0


def _harness_holds() -> bool:
    """Run the contract with the lm-evaluation-harness, which is then no reason to skip anything."""
    start = time.monotonic()
    folder = WORK / "lm-eval"
    shutil.rmtree(folder, ignore_errors=True)
    python = _environment(folder / "venv", [], extra="lm-eval")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HANDBOOK_LM_EVAL": "1"}
    contract = ["-q", "-p", "no:cacheprovider", "tests/contract/test_lm_eval.py"]
    done = subprocess.run([python, "-m", "pytest", *contract], cwd=ROOT, env=environment, check=False)
    print(f"lm-eval: {time.monotonic() - start:.0f} s in all", flush=True)
    return done.returncode == 0


def _first_cells_hold() -> bool:
    """Run every notebook in an environment that its own first cell fills."""
    start = time.monotonic()
    shutil.rmtree(WORK / "notebooks", ignore_errors=True)
    failed = failing(WORK / "notebooks", all_names())
    print(f"notebooks: {time.monotonic() - start:.0f} s in all; failed: {', '.join(failed) or 'none'}")
    return not failed


def _environment(folder: Path, constraints: list[str], *, extra: str = "notebook") -> str:
    """A fresh environment with the package as a wheel; returns its Python."""
    python = str(folder / "bin" / "python")
    uv("venv", "--python", sys.executable, str(folder))
    forget_build()
    uv("pip", "install", "--python", python, *constraints, f"{ROOT}[{extra}]", *TOOLS)
    return python


def _versions(which: str) -> dict[str, str]:
    """Installed version of each direct dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = str(WORK / which / "venv" / "bin" / "python")
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "list", "--quiet", "--python", python, "--format", "json"],
        **{"capture_output": True, "text": True, "check": True},
    )
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    names = [line.partition(">")[0] for line in project["dependencies"]]
    return {name: installed[name.lower()] for name in names}


def _table(found: dict[str, dict[str, str]]) -> str:
    lines = [f"{'':<14}" + "".join(f"{which:<16}" for which in found)]
    for name in next(iter(found.values())):
        lines.append(f"{name:<14}" + "".join(f"{versions[name]:<16}" for versions in found.values()))
    return "\n".join(lines)


def _store(newest: dict[str, str]) -> None:
    """Note which releases were tested, from the lowest that are pinned to the newest that just passed."""
    lines = LOWEST_FILE.read_text(encoding="utf-8").splitlines()
    lowest = {name.lower(): version for name, version in (line.split("==") for line in lines if "==" in line)}
    tested = {name: [lowest[name.lower()], version.partition("+")[0]] for name, version in newest.items()}
    TESTED.write_text(json.dumps(tested, indent=2) + "\n", encoding="utf-8")


TRIED = {
    "newest": lambda: _holds("newest"),
    "lowest": lambda: _holds("lowest"),
    "lm-eval": _harness_holds,
    "notebooks": _first_cells_hold,
}

if __name__ == "__main__":
    main()
