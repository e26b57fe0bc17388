"""The main job, shrunk to seconds: run by the Python of an environment that holds the package and no pins.

python tests/compatible/main_job.py FOLDER

It runs the commands that a user would, in FOLDER, and a notebook. They share one process, since importing
PyTorch takes longer than most of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "chat_templates.ipynb"
FEW_STEPS = {"training.max_steps": 4, "training.save_steps": 2, "training.logging_steps": 1}
QLORA = {"data.0.max_rows": 64, "eval_data.0.max_rows": 8}
SAMPLES = {"model.from": "qlora", "data.0.split": "train[:16]", "max_new_tokens": 16, "prompts_per_part": 8}
SCORES = """
stage: score
data: [{from: samples}]
scorers: {proxy: {name: pipeline/reward}, gold: {name: "pocket:gold"}}
"""
# said where a library is called by a name that will go: by Python, with our file, or by transformers
DEPRECATED = re.compile(
    r"^.*handbook_utils.*(?:Future|Deprecation)Warning.*$|^(?!.*site-packages).*(?:is|are) deprecated.*$",
    re.M,
)


def main() -> None:
    """Run all parts, each with its time; exit with 1 and what was said where one fails."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("scores.yaml").write_text(SCORES, encoding="utf-8")
    sys.path.append(str(ROOT))  # for the settings only; the package is the installed one
    from tests.recipes.tiny import TINY

    for command in ("run", "train", "score", "template"):
        say(command, "--help")
    say("info")
    handbook("run", "pocket/pipeline", out="pipeline", changes=TINY)
    handbook("train", "pocket/sft-qlora", out="qlora", changes=FEW_STEPS | QLORA)
    handbook("merge", "qlora", out="merged", changes={})
    handbook("generate", "pocket/samples", out="samples", changes=SAMPLES)
    handbook("score", "scores.yaml", out="scores", changes={})
    start = time.monotonic()
    run_notebook()
    report("notebook", start)


def handbook(command: str, recipe: str, *, out: str, changes: dict[str, object]) -> None:
    """One command with a recipe, into a folder; exits where it calls something by an old name, too."""
    start = time.monotonic()
    said = say(command, recipe, "--out", out, *(f"--set={key}={value}" for key, value in changes.items()))
    report(command, start)
    logs = [log.read_text(encoding="utf-8") for log in Path(out).rglob("log.txt")]
    if told := sorted(set(DEPRECATED.findall("\n".join([said, *logs])))):
        sys.exit(f"handbook {command} calls a library by names that will go:\n" + "\n".join(told))


def say(*arguments: str) -> str:
    """What one command of `handbook` says; exits with that where it fails."""
    from handbook_utils.cli import main as command_line

    sys.argv = ["handbook", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            command_line()
        code: object = 0
    except SystemExit as end:
        code = end.code
    if code:
        sys.exit(f"handbook {' '.join(arguments)} failed with exit code {code}:\n{said.getvalue()[-6000:]}")
    return said.getvalue()


def run_notebook() -> None:
    """Run the notebook from its first cell to its last; raises what a cell raises."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()


def report(part: str, start: float) -> None:
    """Print how long a part took."""
    print(f"  {part:<9} {time.monotonic() - start:5.0f} s", flush=True)


if __name__ == "__main__":
    main()
