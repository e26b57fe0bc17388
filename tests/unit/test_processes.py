"""Threads wait without spinning, from the command's first line on; a user's own setting is kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
sys.argv = ["handbook", "--version"]
from handbook_utils.cli import main
try:
    main()
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_command_says_how_threads_wait_before_torch_is_loaded(given, found):
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=plain | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == [found, "False"]
