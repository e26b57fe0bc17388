"""Run notebooks as on Colab: their first cell installs the package, without pins, and what follows must end.

python tests/compatible/first_cells.py FOLDER [NAME ...]

FOLDER gets an environment with Jupyter's kernel and nothing of ours, and a wheel of this checkout that stands
in for the repository's address. Each notebook runs in an empty folder, after the package was uninstalled:
nothing of the checkout is at hand, and each first cell has to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
KERNEL = ["ipykernel", "nbclient", "nbformat"]
RUN = """
import sys, nbclient, nbformat
path, wheel = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
first = next(cell for cell in notebook.cells if cell.cell_type == "code")
lines = first.source.splitlines()
address = [number for number, line in enumerate(lines) if 'source = "handbook-utils' in line]
assert len(address) == 1, first.source
lines[address[0]] = lines[address[0]].partition(" @ ")[0] + f' @ {wheel}"'
first.source = "\\n".join(lines)
nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
print("".join(output.get("text", "") for output in first.outputs), end="")
"""


def main() -> None:
    """Run the notebooks that are named, or all; exit with 1 where one fails."""
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    failed = failing(folder, names or all_names())
    if failed:
        sys.exit(f"failed after their own first cell: {', '.join(failed)}")


def all_names() -> list[str]:
    """Names of all notebooks of the book."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def failing(folder: Path, names: list[str]) -> list[str]:
    """Run notebooks in a new environment; returns the names of those that failed, having printed why."""
    python = str(folder / "venv" / "bin" / "python")
    uv("venv", "--seed", "--python", sys.executable, str(folder / "venv"))
    uv("pip", "install", "--python", python, *KERNEL)
    forget_build()
    uv("build", "--wheel", "--out-dir", str(folder / "wheel"), str(ROOT))
    (wheel,) = (folder / "wheel").glob("*.whl")
    return [name for name in names if not _ends(name, python, wheel, folder / name)]


def _ends(name: str, python: str, wheel: Path, folder: Path) -> bool:
    start = time.monotonic()
    uv("pip", "uninstall", "--python", python, "handbook-utils")
    folder.mkdir(parents=True)
    # no PYTHONPATH of the checkout, and no threads to fight over two cores with what runs beside
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, "-c", RUN, str(NOTEBOOKS / f"{name}.ipynb"), wheel.as_uri()],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True, "check": False},
    )
    print(f"  {name:<22} {time.monotonic() - start:5.0f} s  {'ends' if not done.returncode else 'FAILS'}")
    # what the first cell said, its installer's warnings aside
    said = [line for line in done.stdout.splitlines() if line.strip() and "WARNING" not in line]
    print("    " + (done.stderr[-4000:] if done.returncode else "\n    ".join(said)))
    sys.stdout.flush()
    return not done.returncode


def forget_build() -> None:
    """Remove what an earlier build left: setuptools would pack it."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)


def uv(*arguments: str) -> None:
    """Call uv; raises where it fails."""
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    main()
