"""Which releases were tested, and what is said where another one breaks."""

from __future__ import annotations

import json
import tomllib
import traceback
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import handbook_utils
from handbook_utils.errors import DataError
from handbook_utils.libraries import versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions of a pretended installation; the tested ones are 5.22.0 to 5.24.0 of one library."""
    found: dict[str, str | None] = {"transformers": "5.24.0"}
    monkeypatch.setattr(versions, "tested_versions", lambda: {"transformers": ("5.22.0", "5.24.0")})
    monkeypatch.setattr(versions, "installed_version", found.get)
    return found


@pytest.mark.parametrize("version", ["5.22.0", "5.23.1", "5.24.0", "5.24.3", "5.24.1.dev0", None])
def test_a_tested_release_and_its_bugfixes_call_for_no_word(installed, version):
    installed["transformers"] = version
    assert versions.untested_versions() == []


@pytest.mark.parametrize(
    ("version", "how", "wanted"),
    [
        ("5.25.0", "newer", "transformers<5.25"),
        ("6.0.0rc1+cpu", "newer", "transformers<5.25"),
        ("5.21.2", "older", "transformers>=5.22.0"),
    ],
)
def test_an_untested_release_is_named_with_what_to_install(installed, version, how, wanted):
    installed["transformers"] = version
    assert versions.untested_versions() == [
        f"transformers {version} is {how} than what this release was tested with (5.22.0 to 5.24.0): "
        f"pip install '{wanted}'"
    ]


def failing(error: BaseException):
    @versions.naming_untested_versions
    def call() -> None:
        raise error

    return call


def test_an_error_out_of_an_untested_library_ends_with_the_advice(installed):
    installed["transformers"] = "5.25.0"
    call = failing(AttributeError("'DynamicLayer' object has no attribute 'dtype'"))
    for _ in range(2):  # a caller may be wrapped as well: said once all the same
        with pytest.raises(AttributeError) as raised:
            call()
    assert raised.value.__notes__ == versions.untested_versions()


@pytest.mark.parametrize("error", [DataError("row 3"), ValueError("x"), KeyboardInterrupt()])
def test_errors_that_no_interface_causes_stay_as_they_are(installed, error):
    installed["transformers"] = "5.25.0"
    with pytest.raises(type(error)) as raised:
        failing(error)()
    assert not hasattr(raised.value, "__notes__")


def test_nothing_is_added_where_every_release_was_tested(installed):
    with pytest.raises(TypeError) as raised:
        failing(TypeError("unexpected keyword argument"))()
    assert not hasattr(raised.value, "__notes__")


def requirements() -> dict[str, SpecifierSet]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_tested_releases_begin_with_the_lowest_and_are_not_below_the_pinned():
    """`make compatible STORE=--store` writes them."""
    oldest, pinned = ({name.lower(): v for name, v in pins(file).items()} for file in LOCKS)
    tested = json.loads((ROOT / "handbook_utils/libraries/tested.json").read_text(encoding="utf-8"))
    assert tested.keys() == requirements().keys()
    for name, (first, last) in tested.items():
        assert first == oldest[name.lower()]
        assert Version(last).release >= Version(pinned[name.lower()]).release, name


LOCKS = ("constraints-lowest.txt", "constraints.txt")


def test_the_lower_bounds_are_the_lowest_tested_releases():
    oldest = {name.lower(): version for name, version in pins(LOCKS[0]).items()}
    for name, bounds in requirements().items():
        lowest = [bound.version for bound in bounds if bound.operator == ">="]
        assert len(lowest) == 1, f"{name} has no lower bound"
        release = Version(lowest[0]).release
        assert Version(oldest[name.lower()]).release[: len(release)] == release, name


def test_a_commands_traceback_ends_with_the_advice(installed, monkeypatch):
    command_line = import_module("handbook_utils.cli.app")

    def breaks(**_: object) -> None:
        raise TypeError("SFTConfig.__init__() got an unexpected keyword argument")

    installed["transformers"] = "5.25.0"
    monkeypatch.setattr(command_line, "app", breaks)
    with pytest.raises(TypeError) as raised:
        command_line.main()
    assert traceback.format_exception(raised.value)[-1].strip() == versions.untested_versions()[0]


@pytest.mark.parametrize(
    "name",
    ["run_stage", "load_model", "load_tokenizer", "load_dataset", "generate", "score", "merge_adapter"],
)
def test_functions_that_call_other_libraries_name_an_untested_one(installed, name):
    function = getattr(handbook_utils, name)
    installed["transformers"] = "5.25.0"
    with pytest.raises(TypeError) as raised:
        function(no_such_argument=1)
    assert raised.value.__notes__ == versions.untested_versions()
