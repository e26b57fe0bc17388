"""What the README tells a newcomer to type works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
MAKE = [line for line in COMMANDS if line.startswith("make ")]
HANDBOOK = [line for line in COMMANDS if line.startswith(".venv/bin/handbook ")]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False, timeout=300)


def test_every_command_of_the_readme_is_of_a_kind_tested_here() -> None:
    assert MAKE[:2] == ["make demo", "make test"]
    assert HANDBOOK
    assert set(COMMANDS) == {*MAKE, *HANDBOOK}


@pytest.mark.parametrize("command", MAKE)
def test_make_command_has_a_target_that_resolves(command: str) -> None:
    done = run(["make", "-n", *command.split()[1:]], ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_demo_runs_the_packaged_pipeline_and_test_runs_everything() -> None:
    demo, test = (run(["make", "-n", "-W", "pyproject.toml", t], ROOT).stdout for t in ("demo", "test"))
    assert "handbook run pocket/pipeline" in demo
    for part in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert part in test
    assert all("-c constraints.txt" in text for text in (demo, test))


@pytest.mark.parametrize("command", HANDBOOK)
def test_handbook_command_works(command: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("handbook")
    done = run([str(program), *command.split()[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not (tmp_path / "runs").exists()  # a dry run writes nothing


@pytest.mark.parametrize("code", blocks("python"))
def test_python_example_runs(code: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    loss, answer = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"held-out loss: [\d.]+ \[[\d., ]+\]", loss)
    assert answer.strip()


def test_files_the_readme_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_techniques_name_packaged_recipes_and_a_chapter_each() -> None:
    from handbook_utils.schema.recipe import recipe_names

    rows = re.findall(
        r"^\| [^|]+ \| ([^|]+) \| \[[^]]+\]\((book/\w+\.md)\) \| [^|]+ \|$", README, re.MULTILINE
    )
    named = [name for recipe, _ in rows for name in re.findall(r"`(\w+/[\w-]+)`", recipe)]
    assert len(rows) >= 8
    assert len(named) >= 8
    assert set(named) <= set(recipe_names())


def test_the_readme_can_be_read_in_one_sitting() -> None:
    """At most 140 lines, one table of techniques, one of results, one of places; ten lines of Python."""
    assert len(README.splitlines()) <= 140
    assert len(re.findall(r"^\|[ :|-]+\|$", README, re.MULTILINE)) == 3
    [code] = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_help_lists_every_target_of_the_contract() -> None:
    listed = run(["make", "help"], ROOT).stdout
    targets = (
        "demo",
        "test",
        "test-fast",
        "book",
        "notebooks",
        "bench",
        "sabotage",
        "calibrate",
        "lint",
        "clean",
    )
    assert [target for target in targets if not re.search(rf"make {target}\s", listed)] == []


@pytest.mark.parametrize("version", ["3.8", "none"])
def test_make_says_what_is_missing_when_python_is_too_old(version: str, tmp_path: Path) -> None:
    """A clone with no .venv, and a Python that is older than 3.11 or absent."""
    shutil.copy2(ROOT / "Makefile", tmp_path)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    named = "" if version == "none" else str(old)
    done = run(["make", "venv", f"PYTHON={named}"], tmp_path)
    assert done.returncode != 0
    assert "3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()
