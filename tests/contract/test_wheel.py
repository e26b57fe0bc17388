"""The built wheel alone is enough: recipes, base model and snapshot travel with it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "handbook_utils"], cwd=ROOT, capture_output=True, check=True
    )
    names = [name for name in tracked.stdout.decode().split("\0") if name and (ROOT / name).exists()]
    for name in [*names, "pyproject.toml", "README.md", "LICENSE"]:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_every_packaged_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "handbook_utils").rglob("*")
        if path.is_file() and path.suffix in {".yaml", ".json", ".safetensors", ".jinja", ".typed"}
    ]
    assert len(data) > 20
    assert set(data) <= inside


def test_the_wheel_holds_no_tests_and_is_small(wheel):
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(("tests/", "book/"))]
    assert wheel.stat().st_size < 6 << 20


def test_the_installed_wheel_runs_the_pipelines_first_stage_from_another_folder(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # the libraries it needs are lent from this environment (installing them again takes minutes),
    # with this checkout's own editable install left out
    ours = next(Path(folder) for folder in site.getsitepackages() if "site-packages" in folder)
    theirs = next((environment / "lib").glob("python*/site-packages"))
    (theirs / "lent.pth").write_text(str(ours), encoding="utf-8")
    work = tmp_path / "elsewhere"
    work.mkdir()
    command = [
        *(str(python), "-m", "handbook_utils.cli", "train", "pocket/sft", "--out", "runs/sft", "--json"),
        *("--set", "data.0.split=train[:16]", "--set", "eval_data.0.split=dev[:8]"),
    ]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=clean)
    assert ran.returncode == 0, ran.stderr
    assert "eval_loss" in json.loads(ran.stdout)["final_metrics"]
    where = "import handbook_utils; print(handbook_utils.__file__)"
    imported = subprocess.run(
        [str(python), "-c", where], cwd=work, capture_output=True, text=True, check=True, env=clean
    )
    assert str(environment) in imported.stdout
