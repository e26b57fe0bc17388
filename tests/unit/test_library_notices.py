"""Lines of other libraries that are not about the user's work stay off the terminal; all others are shown."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handbook_utils.libraries.notices import NOTICES

# bitsandbytes' own line, as it is written on a CPU with AVX512-BF16 while the library is imported
BITSANDBYTES = """
import logging
logging.getLogger("bitsandbytes.backends.cpu.ops").warning(
    "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already "
    "`pip install kernels` and the kernels >= 0.11.1", "no module named kernels")
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("something that a user has to know")
"""


def run(code: str, **variables: str) -> str:
    """What a new interpreter writes on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return done.stderr


def test_the_command_line_drops_a_missing_kernel_of_bitsandbytes_and_nothing_else() -> None:
    start = "import sys; sys.argv = ['handbook', '--version']\nfrom handbook_utils.cli import main\n"
    said = run(start + "try: main()\nexcept SystemExit: pass" + BITSANDBYTES)
    assert "gemm_4bit_forward" not in said
    assert "kernels" not in said
    assert "something that a user has to know" in said


def test_loading_a_model_drops_it_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from handbook_utils import load_model

    monkeypatch.setattr(logging.getLogger("bitsandbytes.backends.cpu.ops"), "filters", [])
    load_model("pocket:init")
    exec(BITSANDBYTES, {})
    said = [record.getMessage() for record in caplog.records if record.name.startswith("bitsandbytes")]
    assert said == ["something that a user has to know"]


def test_the_line_still_stands_in_bitsandbytes() -> None:
    """Else the line it has become instead is to be looked up."""
    from importlib.util import find_spec

    for name, beginnings in NOTICES.items():
        spec = find_spec(name.partition(".")[0])
        assert spec is not None
        assert spec.origin is not None
        parts = name.split(".")[1:] or ["__init__"]
        source = Path(spec.origin).parent.joinpath(*parts).with_suffix(".py").read_text(encoding="utf-8")
        assert "logging.getLogger(__name__)" in source
        assert all(beginning in source for beginning in beginnings)


def test_nothing_is_said_of_a_home_folder_that_cannot_be_written(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("a folder cannot be made below a file", encoding="utf-8")
    code = "from handbook_utils.libraries.notices import silence_notices; silence_notices()\n"
    folders = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    home = {"HOME": str(nowhere), **dict.fromkeys(folders, "")}
    draw = "import matplotlib; matplotlib.get_cachedir()"
    assert "temporary cache directory" in run(draw, **home)
    assert run(code + draw, **home) == ""
