"""The files for clusters that the chapter on scaling includes: each is parsed, and asks for what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "book" / "files"


def test_every_file_is_shown_in_a_chapter_and_tested_here() -> None:
    names = {path.name for path in FILES.iterdir()}
    chapter = (ROOT / "book" / "scaling.md").read_text(encoding="utf-8")
    assert names == {"ray-slurm.sh", "ray-kubernetes.yaml"}
    assert set(re.findall(r"\{literalinclude\} files/(\S+)", chapter)) == names


def test_slurm_example_is_a_batch_script_that_bash_can_read() -> None:
    script = FILES / "ray-slurm.sh"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = script.read_text(encoding="utf-8").splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("#SBATCH ")


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
    """The script as it is; programs in place of Slurm's, Ray's and ours record how they were called."""
    for name, body in CLUSTER_COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    command = ["bash", str(FILES / "ray-slurm.sh")]
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
    job = yaml.safe_load((FILES / "ray-kubernetes.yaml").read_text(encoding="utf-8"))
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
