"""What we rely on in `datasets`: scripts are refused, and offline a pinned revision is not looked at."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest


def test_a_dataset_script_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "talks.py").write_text("raise SystemExit('the script was run')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(folder))
