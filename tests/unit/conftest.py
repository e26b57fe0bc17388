"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged pipeline with arithmetic stages, finished; tests read it and leave it alone."""
    from reporting_fakes import use_fakes

    from handbook_utils.pipeline.run import run_pipeline

    out = tmp_path_factory.mktemp("pipelines") / "demo"
    with pytest.MonkeyPatch.context() as patches:
        use_fakes(patches)
        run_pipeline("pocket/pipeline", out)
    return out
