"""What the README tells a newcomer to type works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    assert "parameters" in done.stdout


def test_files_the_readme_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_techniques_name_packaged_recipes() -> None:
    from handbook_utils.schema.recipe import recipe_names

    named = re.findall(r"^\| [^|]+ \| `(\w+/[\w-]+)` \|", README, re.MULTILINE)
    assert len(named) >= 5
    assert set(named) <= set(recipe_names())


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


CLUSTER_COMMANDS = {
    "scontrol": 'printf "node-a\\nnode-b\\n"',
    # the first node's part waits to be ended with the job, as Ray's would
    "srun": 'shift; for id in 0 1; do SLURM_PROCID=$id "$@" & done; wait',
    "ray": 'echo "ray $*" >> "$LOG"\n'
    'case "$*" in *--head*) touch "$LOG.up";; health-check*) test -e "$LOG.up";; esac',
    "handbook": 'echo "handbook $*" >> "$LOG"',
    "sleep": "exec /bin/sleep 0.05",
}


def test_slurm_example_starts_ray_on_each_node_and_then_the_command(tmp_path: Path) -> None:
    """The script as it is; programs in Slurm's, Ray's and our place write down what they are asked."""
    [script] = [text for text in blocks("sh") if "#SBATCH" in text]
    for name, body in CLUSTER_COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    command = ["bash", "-c", script]
    done = subprocess.run(command, env={**given, **paths}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert "ray start --head --port=6379 --include-dashboard=false --block" in said
    assert "ray start --address=node-a:6379 --block" in said
    [ours] = [line for line in said if line.startswith("handbook")]
    assert ours == "handbook generate my.yaml --out runs/samples --executor ray --set executor.workers=16"


# fields by KubeRay's API reference (ray.io/v1), of the kinds that the example has
JOB = {
    *("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds"),
    *("backoffLimit", "rayClusterSpec", "clusterSelector", "submissionMode", "runtimeEnvYAML", "suspend"),
    *("jobId", "metadata", "submitterPodTemplate", "submitterConfig", "managedBy", "deletionStrategy"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"),
}
CLUSTER = {
    *("suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling"),
    *("gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs"),
}
HEAD = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKERS = {"suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def test_kubernetes_example_has_kuberays_fields_and_runs_our_command(
    handbook_options: set[str],
) -> None:
    [text] = [text for text in blocks("yaml") if "RayJob" in text]
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= CLUSTER
    pinned = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert [cluster["rayVersion"]] == pinned
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(head) <= HEAD
    assert set(workers) <= WORKERS
    for group, has_gpus in ((head, False), (workers, True)):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        [container] = group["template"]["spec"]["containers"]
        [volume] = group["template"]["spec"]["volumes"]
        [mount] = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == has_gpus
        assert job["spec"]["entrypoint"].startswith(f"cd {mount['mountPath']} && handbook generate ")
    assert set(re.findall(r"--[\w-]+", job["spec"]["entrypoint"])) <= handbook_options


@pytest.fixture
def handbook_options() -> set[str]:
    program = Path(sys.executable).with_name("handbook")
    shown = subprocess.run(
        [str(program), "generate", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return set(re.findall(r"--[\w-]+", shown.stdout))
