"""Where Chromium or Chrome is, and how it is started."""

from __future__ import annotations

import os
import shutil

import pytest

MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# a container has neither a GPU nor the rights Chromium's sandbox wants; the rest keeps it from calling home
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]


def find_browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", MAC)
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return found
    if os.environ.get("HANDBOOK_REQUIRE_BROWSER") == "1":
        pytest.fail("no Chromium or Chrome found, and HANDBOOK_REQUIRE_BROWSER=1 asks for one")
    pytest.skip("no Chromium or Chrome found: the pages were not opened in a browser")
