"""Continuous integration runs what the README tells people to run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".ci" / "run"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_ci_is_an_executable_script_that_runs_the_readmes_test_command() -> None:
    lines = RUN.read_text(encoding="utf-8").splitlines()
    assert os.access(RUN, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == [
        "make test",
        "make compatible WITH=lowest",
    ]
    assert "```bash\nmake test\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_makes_a_missing_browser_a_failure(tmp_path: Path) -> None:
    """The script is run with a `make` that only shows what it was given."""
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$@ $HANDBOOK_REQUIRE_BROWSER $HF_HUB_OFFLINE"\n', encoding="utf-8")
    fake.chmod(0o755)
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    browser.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([RUN], env=path, text=True, capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["test 1 1", "compatible WITH=lowest 1 1"]


def test_there_are_three_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["newest", "pages", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_valid_yaml_with_narrow_rights(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"]["contents"] == "read"
    assert all("timeout-minutes" in job or "environment" in job for job in workflow["jobs"].values())


def test_publishing_fills_in_the_repository_it_runs_in() -> None:
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    assert "github.repository" in text
    assert "set_address.py" in text


def test_newest_libraries_run_without_pins() -> None:
    assert "make test CONSTRAINTS=" in (ROOT / ".github" / "workflows" / "newest.yml").read_text(
        encoding="utf-8"
    )
    done = subprocess.run(
        ["make", "-n", "-W", "pyproject.toml", "test", "CONSTRAINTS="],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "pip install" in done.stdout
    assert "-c " not in done.stdout.split("pip install")[1].splitlines()[0]
