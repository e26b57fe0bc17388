"""Fixtures of all tests: a tiny random model and tokenizer in a folder, small hand-written data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import tiny_model

# before any library reads it: no test may reach the network
os.environ["HF_HUB_OFFLINE"] = "1"

DATA = Path(__file__).parent / "data"
BOOK_TESTS = ("tests/notebooks/", "tests/browser/")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (about 25,000 parameters), its tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16}
    return tiny_model("llama", folder, tie_word_embeddings=True, **sizes)


@pytest.fixture(scope="session")
def tiny_architecture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function of an architecture's name; returns the folder of a tiny random model, made once."""
    root = tmp_path_factory.mktemp("architectures")

    def folder(architecture: str) -> Path:
        place = root / architecture
        return place if place.exists() else tiny_model(architecture, place)

    return folder


@pytest.fixture
def conversations_file() -> Path:
    """Hand-written conversations, as a user would bring them."""
    return DATA / "conversations.jsonl"


@pytest.fixture
def pairs_file() -> Path:
    """Hand-written preference pairs, as a user would bring them."""
    return DATA / "pairs.jsonl"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a test file to one worker as a whole, and all tests of the book to one, which builds it once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "the book" if nodeid.startswith(BOOK_TESTS) else nodeid.partition("::")[0]

    return ByFile(config, log)
