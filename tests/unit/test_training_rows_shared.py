"""Rows tokenized by several processes: the same bytes and errors, and a clear word where one is killed."""

from __future__ import annotations

import logging
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from handbook_utils.data.load import to_dataset
from handbook_utils.errors import TemplateError, TrainingError
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.rows import labelled, sharing
from handbook_utils.training.rows.labelled import training_rows
from handbook_utils.training.rows.sharing import _Helper, _Work, json_columns, useful_processes
from tests.chat_templates import UNMARKED, tokenizer_of
from tests.tiny_models import CHAT_TEMPLATE, build_tiny_tokenizer

STRICT = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}" + UNMARKED


def recipe_of(processes: int) -> Any:
    content = {"stage": "sft", "model": {"name": "x"}, "data": [{"name": "x"}], "global_batch_size": 4}
    return check_recipe({**content, "training": {"use_cpu": True, "dataset_num_proc": processes}}, "test")


def talk(question: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": f"{question} it is"}]}


def rows_of(*questions: str) -> Dataset:
    """Rows of which one has options for its template, so that a column of JSON travels."""
    return to_dataset([talk("a") | {"chat_template_kwargs": {"x": 1e-12}}, *map(talk, questions)])


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches of two rows; this process begins when a worker has handed one in. Those batches' numbers."""
    given: list[int] = []
    has_given = threading.Event()
    monkeypatch.setattr(labelled, "BATCH", 2)
    give, say_alone, fail, results = _Work.give, _Work.say_alone, _Work.fail, _Work.results

    def note(self: _Work, number: int, made: Any) -> None:
        give(self, number, made)
        if threading.current_thread() is not threading.main_thread():
            given.append(number)
            has_given.set()

    def wait(self: _Work, tokenize: Callable[..., Any]) -> Any:
        assert has_given.wait(60)
        return results(self, tokenize)

    def said(self: _Work, why: str) -> None:
        say_alone(self, why)
        has_given.set()

    def failed(self: _Work, error: Exception) -> None:
        fail(self, error)
        has_given.set()

    monkeypatch.setattr(_Work, "fail", failed)
    monkeypatch.setattr(_Work, "give", note)
    monkeypatch.setattr(_Work, "results", wait)
    monkeypatch.setattr(_Work, "say_alone", said)
    return given


def test_rows_are_the_same_for_any_number_of_processes(
    shared: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    rows, tokenizer = rows_of(*"bcdefghijklm"), tokenizer_of(CHAT_TEMPLATE)
    alone, *others = (training_rows(recipe_of(number), tokenizer, rows) for number in (1, 2, 3))
    assert shared
    for made in others:
        assert made.data.table.equals(alone.data.table)
        assert made._fingerprint == alone._fingerprint  # of the bytes, as they lie in memory
        assert made.features == alone.features
    assert capfd.readouterr() == ("", "")


def test_the_first_row_that_is_refused_is_named_whoever_has_met_one(shared: list[int]) -> None:
    rows, tokenizer = rows_of("b", "c", "d", "no", "e", "f", "no"), tokenizer_of(STRICT)
    told = [""] * 2
    for place, number in enumerate((1, 3)):
        with pytest.raises(TemplateError) as error:
            training_rows(recipe_of(number), tokenizer, rows)
        told[place] = str(error.value)
    assert told[0] == told[1]
    assert told[0].startswith("training rows 5 to 6: the chat template refuses conversation 1")
    assert shared


def test_a_worker_that_is_killed_gives_one_clear_error(
    shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = _Helper._answer

    def killed(self: _Helper) -> Any:
        self._process.kill()
        return answer(self)

    monkeypatch.setattr(_Helper, "_answer", killed)
    with pytest.raises(TrainingError, match=r"ended by SIGKILL.*memory.*`training\.dataset_num_proc: 1`"):
        training_rows(recipe_of(2), tokenizer_of(CHAT_TEMPLATE), rows_of(*"bcdefg"))


class Unsent:
    """A tokenizer that is known to this process alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self.inner(*given, **options)


@pytest.mark.parametrize(
    ("is_known", "why"), [(False, "PicklingError"), (True, "ModuleNotFoundError.*made_up")]
)
def test_a_tokenizer_that_cannot_be_sent_is_used_by_one_process_and_the_log_says_so_once(
    is_known: bool,
    why: str,
    shared: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind = type("Local", (Unsent,), {"__module__": "made_up"})
    if is_known:  # as a module is that only a notebook has
        monkeypatch.setitem(sys.modules, "made_up", types.SimpleNamespace(Local=kind))
    rows, tokenizer = rows_of(*"bcdefg"), build_tiny_tokenizer()
    with caplog.at_level(logging.INFO, "handbook_utils"):
        made = training_rows(recipe_of(3), kind(tokenizer), rows)
    assert made._fingerprint == training_rows(recipe_of(1), tokenizer, rows)._fingerprint
    (line,) = caplog.messages
    assert line.startswith("rows are tokenized by one process")
    assert re.search(why, line)


def test_no_worker_outlives_the_rows(shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    helpers: list[_Helper] = []
    start = _Helper.__init__
    monkeypatch.setattr(_Helper, "__init__", lambda self, *given: helpers.append(self) or start(self, *given))
    with pytest.raises(TemplateError):
        training_rows(recipe_of(2), tokenizer_of(STRICT), rows_of("no", *"bcdef"))
    (helper,) = helpers
    assert helper._process.poll() is not None
    assert not helper._thread.is_alive()


def test_processes_are_those_that_the_recipe_asks_for_or_that_have_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "usable_cores", lambda: 8)
    assert [useful_processes(batches) for batches in (1, 19, 20, 60, 1000)] == [1, 1, 2, 4, 8]
    assert [useful_processes(batches, 3) for batches in (1, 2, 1000)] == [1, 2, 3]
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert useful_processes(1000) == 2  # each of the four processes here has two cores


def test_columns_that_arrow_alone_cannot_read_are_left_to_one_process() -> None:
    assert json_columns(rows_of("b")) == ["chat_template_kwargs"]
    nested = Dataset(pa.table({"prompt": [["x"]]}))
    assert json_columns(nested) == []
    assert json_columns(nested.cast_column("prompt", nested.features["prompt"])) == []
