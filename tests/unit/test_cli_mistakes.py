"""What users get wrong on the command line: one message that helps, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import build_tiny_tokenizer, tiny_model

Handbook = Callable[..., tuple[int, str, str]]

ASKED = {"role": "user", "content": "Name a tree."}
ANSWER = {"role": "assistant", "content": "An oak."}
RECIPE = """\
stage: sft
model: {name: model}
data: [{name: rows.jsonl}]
global_batch_size: 4
training: {use_cpu: true, max_steps: 1}
"""
WRONG_ROWS: dict[str, list[Any]] = {
    "broken": [{"messages": [ASKED, ANSWER]}, "{"],
    "mixed": [{"messages": [ASKED, ANSWER]}, {"prompt": "a", "completion": "b"}],
    "null": [{"messages": [ASKED, ANSWER]}, {"messages": None}],
    "silent": [{"messages": [{"role": "user", "content": None}, ANSWER]}],
    "order": [{"messages": [ANSWER, ASKED]}],
    "surrogate": [{"messages": [{"role": "user", "content": "a \ud83d"}, ANSWER]}],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder as a user might have it: a model, data good and bad, recipes; with nothing else in it."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_model_folder, folder / "model")
    for name, rows in {"rows": [{"messages": [ASKED, ANSWER]}] * 4, **WRONG_ROWS}.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "torn.yaml").write_text("stage: sft\n model: [", encoding="utf-8")
    (folder / "fsdp.yaml").write_text("compute_environment: LOCAL_MACHINE\n", encoding="utf-8")
    tiny_model("llama", folder / "short", vocab_size=len(build_tiny_tokenizer()) - 1)
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.tex").write_text("years of work", encoding="utf-8")
    return folder


MISTAKES = [
    # recipes
    ("train mime.yaml", "mime.yaml: no such file. Did you mean 'mine.yaml'?"),
    ("train torn.yaml", "torn.yaml, line 2: not valid YAML"),
    ("train mine.yaml --set training.lerning_rate=1", "Did you mean 'learning_rate'?"),
    ("train mine.yaml --set learning_rate=1", "It belongs under 'training': training.learning_rate"),
    ("train mine.yaml --set processes=2", "It belongs under 'launch': launch.processes"),
    ("generate pocket/samples --executor rey", "--executor: unknown value 'rey'. Did you mean 'ray'?"),
    ("generate pocket/samples --set workers=2", "It belongs under 'executor': executor.workers"),
    ("train mine.yaml --set training.learning_rate=fast", "takes float, got 'fast'"),
    ("train mine.yaml --set training.learning_rate=.nan", "'training.learning_rate': nan is no number"),
    ("train mine.yaml --set lora.alpha=.inf", "'lora.alpha': inf is no number"),
    ("train mine.yaml --set global_batch_size=99999999999999999999999", "'global_batch_size': larger than"),
    ("train mine.yaml --set global_batch_size=99999999999", "'global_batch_size': Input should be less"),
    ("train mine.yaml --set 'training={[a]: 1}'", "a key that is a list or mapping"),
    ("train mine.yaml --set description=2024-13-01", "a value that cannot be read"),
    (f"train mine.yaml --set description=hf_{'a1' * 17}", "'description' holds a key or token"),
    ("train mine.yaml --set model.from=sft", "give exactly one of `name` and `from`"),
    ("train mine.yaml --set model.quantization=nf4", "weights in nf4 cannot be trained themselves"),
    ("train pocket/samples --processes 2", "Use `handbook generate pocket/samples`"),
    # data
    ("train mine.yaml --set data.0.name=rowz.jsonl", "rowz.jsonl: no such file. Did you mean 'rows.jsonl'?"),
    ("train mine.yaml --set 'data.0.split=train[9:3]'", "begins with row 9 and ends before row 3"),
    ("train mine.yaml --set 'data.0.split=train[2:2]'", "'train[2:2]' holds no row"),
    ("train mine.yaml --set data.0.name=broken.jsonl", "broken.jsonl: line 2 is not JSON"),
    ("train mine.yaml --set data.0.name=mixed.jsonl", "mixed.jsonl: row 2 lacks the column 'messages'"),
    ("train mine.yaml --set data.0.name=null.jsonl", "null.jsonl: row 2, column 'messages'"),
    ("train mine.yaml --set data.0.name=silent.jsonl", "message 1: content is not text"),
    (
        "train mine.yaml --set data.0.name=order.jsonl",
        "message 1 has role 'assistant' but no user message precedes it",
    ),
    ("train mine.yaml --set data.0.name=surrogate.jsonl", "character 3 is half of a surrogate pair"),
    ("train mine.yaml --set data.0.name=notes", "notes: holds no data file"),
    (
        "train mine.yaml --set 'data.0={name: a/b, revision: v1}'",
        "a/b, revision 'v1': no such file",
    ),
    # models
    ("train mine.yaml --set model.name=notes", "notes: no config.json, so this is not a model folder"),
    ("train mine.yaml --set model.name=./modle", "./modle: no such folder. Did you mean 'model'?"),
    (
        "train mine.yaml --set 'model={name: a/b, revision: v1}'",
        "a/b, revision 'v1': cannot load the tokenizer",
    ),
    ("train mine.yaml --set model.adapter=stack --set 'lora={rank: 4}'", "is a whole model, no adapter"),
    (
        "train mine.yaml --set model.name=short",
        "so a text could hold tokens the model has no place for",
    ),
    (
        "train mine.yaml --set training.resume_from_checkpoint=notes",
        "an interrupted run resumes automatically",
    ),
    # processes
    ("train mine.yaml --processes 4096", "4096 processes on a machine with"),
    ("train mine.yaml --strategy fsdp9", "Did you mean 'fsdp2'?"),
    ("train mine.yaml --strategy zero3", "zero3 needs GPUs"),
    ("slurm mine.yaml", "4 cannot be split over 8 processes. Sizes that work: 8."),
    ("slurm mine.yaml --gpus-per-node 4 --time tomorrow", "--time 'tomorrow': write minutes"),
    ("slurm pocket/samples", "Use `handbook generate pocket/samples`"),
    # folders
    ("train mine.yaml --out rows.jsonl", "rows.jsonl: a file of this name is in the way"),
    ("train mine.yaml --out notes", "notes: not empty and not a run folder"),
    ("merge model --out merged", "model: a whole model, so there is nothing to merge"),
    ("merge nothing --out merged", "nothing: no adapter that could be merged: no such folder here"),
    ("merge notes --out merged", "notes: no config.json"),
    ("train mine.yaml --set training.max_length=2", "all 4 rows are longer than training.max_length = 2"),
    ("slurm mine.yaml --gpus-per-node 4 --file notes", "notes: a folder, where a file is to be written"),
    # the rest
    ("convert nope.yaml", "nope.yaml: no such file."),
    ("convert mime.yaml", "Did you mean 'mine.yaml'?"),
    ("convert fsdp.yaml", "an accelerate config, not a training recipe"),
    ("convert notes", "cannot be read (Is a directory)"),
    ("template nothing", "nothing: cannot load the tokenizer: no such folder here"),
    ("template model --data rows.jsonl --row 9", "asks for rows 8 to 9, but 'train' has 4"),
    ("recipes pocket/dpoo", "Did you mean 'pocket/dpo'?"),
    ("recipes mine.yaml", "mine.yaml: not a packaged recipe"),
    ("evaluate notes", "notes: a folder, not a recipe"),
    ("evaluate runs/sft", "`handbook recipes` lists them all"),
    ("report nope", "nope: no such folder"),
    ("run pocket/pipeline --set training.max_steps=3", ".training.max_steps, for instance"),
    ("power --win-rate 55", "--win-rate must be between 0 and 1"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_one_message_that_helps_and_leaves_nothing(
    typed: str, message: str, desk: Path, handbook: Handbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    before = sorted(desk.rglob("*"))
    code, out, err = handbook(*shlex.split(typed))
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(desk.rglob("*")) == before, "not even an empty runs/"


def test_a_taken_port_is_told_before_anything_is_started(
    desk: Path, handbook: Handbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = handbook("train", "mine.yaml", "--processes", 2, "--port", port)
    assert code == 2
    assert f"error: port {port} is taken by another process" in err
    assert not (desk / "runs").exists()
