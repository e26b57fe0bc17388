"""DPO's reference computed in advance: the same training, each answer once, and no store of another model."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from handbook_utils.errors import DataError, ModelError, RecipeError, TrainingError
from handbook_utils.models.logprobs import Floats, Sequenced
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training import fit
from handbook_utils.training.reference import logps
from handbook_utils.training.reference.logps import pair_logps
from handbook_utils.training.reference.models import Pairs
from handbook_utils.training.reference.store import Reference, ReferenceStore
from tests.conftest import DATA
from tests.ranks import run_ranks
from tests.tiny_models import tiny_model

LORA = {"rank": 4, "alpha": 8}
ROWS = 16
# as two processes against one: sums in another order, and Adam's epsilon above mere rounding. A loss of
# IPO is near 25, where float32 has steps of 2e-6: four of them are allowed on top
LOSS: dict[str, float] = {"rtol": 3.5e-7, "atol": 5e-6}
WEIGHT: dict[str, float] = {"rtol": 0, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(
    model: dict[str, Any], lora: dict[str, Any] | None = None, *, rows: str = f"[:{ROWS}]", **changes: Any
) -> Any:
    """Four steps of four hand-written pairs; `training` in `changes` is merged."""
    training = {
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "num_train_epochs": 1,
        "adam_epsilon": 1e-4,
        "use_cpu": True,
        **changes.pop("training", {}),
    }
    content = {
        "stage": "dpo",
        "model": model,
        "data": [{"name": str(DATA / "pairs.jsonl"), "split": f"train{rows}"}],
        "global_batch_size": 4,
        "training": training,
        **changes,
    }
    return check_recipe(content | ({"lora": lora} if lora else {}), "test")


def run(folder: Path, *arguments: Any, **changes: Any) -> Path:
    run_stage(recipe(*arguments, **changes), folder, progress=False)
    return folder


def train_in(processes: int, made: Any, folder: Path) -> list[int]:
    return run_ranks(lambda: run_stage(made, folder, progress=False), count=processes)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def weights(folder: Path) -> np.ndarray[Any, Any]:
    (file,) = (folder / "model").glob("*.safetensors")
    tensors = load_file(file)
    return torch.cat([tensors[name].float().flatten() for name in sorted(tensors)]).numpy()


def counts(folder: Path) -> dict[str, int]:
    found: dict[str, int] = read_manifest(folder)["notes"]["reference_logps"]
    return found


@contextmanager
def counted_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of every forward pass of a Llama that no gradient is taken of."""
    from transformers import LlamaModel

    passes: list[int] = []
    original = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        if not torch.is_grad_enabled():
            passes.append(len(input_ids))
        return original(self, input_ids=input_ids, **rest)

    with monkeypatch.context() as patches:
        patches.setattr(LlamaModel, "forward", forward)
        yield passes


@pytest.fixture
def llama(tiny_architecture: Callable[[str], Path]) -> dict[str, Any]:
    return {"name": str(tiny_architecture("llama"))}


@pytest.fixture(scope="module", params=["none", "nf4"])
def sft_run(
    request: pytest.FixtureRequest,
    tiny_architecture: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """An SFT run with an adapter far from its base; once on the base as it is, once on it in NF4."""
    content = {
        "stage": "sft",
        "model": {"name": str(tiny_architecture("llama")), "quantization": request.param},
        "lora": LORA,
        "data": [{"name": str(DATA / "conversations.jsonl"), "split": "train[:8]"}],
        "global_batch_size": 8,
        "training": {"max_steps": 8, "learning_rate": 3e-2, "use_cpu": True},
    }
    folder = tmp_path_factory.mktemp("runs") / "sft"
    run_stage(check_recipe(content, "test"), folder, progress=False)
    return request.param, folder


def assert_trains_alike(at: Path, *arguments: Any, training: dict[str, Any] | None = None) -> None:
    """A run with its reference computed in advance is one that asks its reference in every step."""
    training = training or {}
    asked = run(at / "asked", *arguments, training=training)
    given = run(at / "given", *arguments, training={**training, "precompute_ref_log_probs": True})
    assert len(losses(given)) == ROWS / 4
    np.testing.assert_allclose(losses(given), losses(asked), **LOSS)
    np.testing.assert_allclose(weights(given), weights(asked), **WEIGHT)
    # and that is no matter of course: the loss has moved far from where it began
    assert abs(losses(asked)[-1] - losses(asked)[0]) > 0.01
    assert counts(given)["computed"] >= counts(given)["answers"] == 2 * ROWS


SETTINGS = [
    {},
    {"max_length": 60},
    {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.1]},
    {"ld_alpha": 0.3},
    {"ld_alpha": 0.3, "max_length": 60},
]


@pytest.mark.parametrize("training", SETTINGS, ids=str)
# two of the settings cut answers, so that the reference is asked for what is left of them
@pytest.mark.filterwarnings("ignore::handbook_utils.training.rows.lengths.LengthWarning")
def test_training_is_the_same_with_a_reference_computed_in_advance(
    training: dict[str, Any], llama: dict[str, Any], tmp_path: Path
) -> None:
    assert_trains_alike(tmp_path, llama, training=training)
    if not training:
        assert losses(tmp_path / "given")[0] == pytest.approx(math.log(2), abs=2e-6)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_new_adapter_trains_the_same_with_a_reference_computed_in_advance(
    quantization: str, llama: dict[str, Any], tmp_path: Path
) -> None:
    assert_trains_alike(
        tmp_path,
        {**llama, "quantization": quantization},
        {**LORA, "dropout": 0.1},
        training={"activation_checkpointing": True},
    )
    assert losses(tmp_path / "given")[0] == pytest.approx(math.log(2), abs=2e-6)


@pytest.mark.parametrize("mode", ["continue", "stack", "merge"])
def test_after_an_earlier_adapter_too(mode: str, sft_run: tuple[str, Path]) -> None:
    quantization, sft = sft_run
    model = {"name": str(sft), "adapter": mode, "quantization": quantization}
    assert_trains_alike(sft.parent / mode, model, None if mode == "continue" else LORA)
    assert losses(sft.parent / mode / "given")[0] == pytest.approx(math.log(2), abs=2e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_no_reference_is_held_while_training(
    lora: Any, llama: dict[str, Any], sft_run: tuple[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    _, sft = sft_run
    trainers: list[Any] = []
    save = fit.save_model
    monkeypatch.setattr(
        fit, "save_model", lambda trainer, *rest: (trainers.append(trainer), save(trainer, *rest))
    )
    model = llama if lora is None else {"name": str(sft), "adapter": "continue"}
    run(tmp_path / "run", model, training={"precompute_ref_log_probs": True})
    assert trainers[0].ref_model is None
    assert "ref" not in getattr(trainers[0].model, "peft_config", {})


def test_a_second_run_reads_the_store_and_computes_nothing(
    llama: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    for name, computed in (("first", 2 * ROWS), ("second", 0)):
        with counted_passes(monkeypatch) as passes:
            run(tmp_path / name, llama, reference_logps=store)
        assert counts(tmp_path / name) == {"answers": 2 * ROWS, "computed": computed}
        assert sum(passes) == 0 if computed == 0 else 0 < sum(passes) <= 2 * ROWS
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    # an adapter on the same model has the same reference
    run(tmp_path / "lora", llama, LORA, reference_logps=store)
    assert counts(tmp_path / "lora")["computed"] == 0


def test_other_rows_in_another_order_reuse_what_is_there(llama: dict[str, Any], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = run(tmp_path / "first", llama, rows="[:16]", reference_logps=store)
    subset = run(tmp_path / "subset", llama, rows="[4:12]", reference_logps=store, seed=5)
    assert counts(subset) == {"answers": 16, "computed": 0}
    # each row drawn about twice, in the seed's order, and four rows that the store lacks
    twice = {"name": str(DATA / "pairs.jsonl"), "split": "train[:20]", "weight": 2}
    more = run(tmp_path / "more", llama, data=[twice], reference_logps=store, seed=6)
    assert counts(more) == {"answers": 80, "computed": 8}
    alone = run(tmp_path / "alone", llama, data=[twice], training={"precompute_ref_log_probs": True}, seed=6)
    np.testing.assert_allclose(losses(more), losses(alone), **LOSS)
    assert counts(first)["computed"] == 32


def test_held_out_rows_have_their_references_too(llama: dict[str, Any], tmp_path: Path) -> None:
    held_out = [{"name": str(DATA / "pairs.jsonl"), "split": "train[16:20]"}]
    training = {"eval_strategy": "steps", "eval_steps": 2}
    folders = [
        run(tmp_path / str(given), llama, eval_data=held_out, training={**training, **given})
        for given in ({}, {"precompute_ref_log_probs": True})
    ]
    asked, given = (
        [record["eval_loss"] for record in read_metrics(folder) if "eval_loss" in record]
        for folder in folders
    )
    assert len(asked) == 2
    np.testing.assert_allclose(given, asked, **LOSS)
    assert counts(folders[1])["answers"] == 2 * (ROWS + 4)


def test_the_store_of_another_model_is_refused_before_any_is_loaded(
    llama: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    run(tmp_path / "first", llama, reference_logps=store)
    other = tiny_model("llama", tmp_path / "other", seed=1)
    monkeypatch.setattr(fit, "start_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(
        ModelError,
        match=r"(?s)store: .*another reference.*weights: there .* \(of llama\), here .*\(of other\)",
    ):
        run(tmp_path / "second", {"name": str(other)}, reference_logps=store)
    assert not (tmp_path / "second").exists()
    with pytest.raises(ModelError, match=r"quantization: there none \(of llama\), here nf4"):
        run(tmp_path / "nf4", {**llama, "quantization": "nf4"}, LORA, reference_logps=store)
    with pytest.raises(ModelError, match=r"held_in: there float32 \(of llama\), here bfloat16"):
        run(tmp_path / "bf16", {**llama, "dtype": "bfloat16"}, LORA, reference_logps=store)
    with pytest.raises(ModelError, match=r"computed_in: there float32 \(of llama\), here bfloat16"):
        run(tmp_path / "mixed", llama, training={"bf16": True}, reference_logps=store)


def test_an_adapter_is_another_reference_than_its_base_or_than_itself_merged(
    llama: dict[str, Any], sft_run: tuple[str, Path], tmp_path: Path
) -> None:
    quantization, sft = sft_run
    earlier = {"name": str(sft), "quantization": quantization}
    store = str(tmp_path / "store")
    run(tmp_path / "first", {**earlier, "adapter": "continue"}, reference_logps=store)
    again = run(tmp_path / "again", {"name": str(sft), "adapter": "continue"}, reference_logps=store)
    assert counts(again)["computed"] == 0
    with pytest.raises(ModelError, match=r"adapter: there on its base \(of sft\), here merged \(of sft\)"):
        run(tmp_path / "merged", {**earlier, "adapter": "stack"}, LORA, reference_logps=store)
    with pytest.raises(ModelError, match=r"weights: there .*\(of sft\), here .* \(of llama\)"):
        run(tmp_path / "base", {**llama, "quantization": quantization}, LORA, reference_logps=store)


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost end"])
def test_a_damaged_file_is_found_by_its_checksum_before_a_model_is_loaded(
    damage: str, llama: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    run(tmp_path / "first", llama, reference_logps=str(store))
    (file,) = store.glob("*.parquet")
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
    else:
        del content[-20:]
    file.write_bytes(content)
    with monkeypatch.context() as patches:
        patches.setattr(fit, "start_model", lambda *_: pytest.fail("a model was loaded"))
        with pytest.raises(DataError, match=rf"{file.name}: damaged: .*Delete this file"):
            run(tmp_path / "second", llama, reference_logps=str(store))
    file.unlink()
    again = run(tmp_path / "third", llama, reference_logps=str(store))
    assert counts(again)["computed"] == 2 * ROWS


def test_a_folder_that_is_no_store_is_left_alone(llama: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(DataError, match="mine: not a folder of reference log-probabilities, and not empty"):
        run(tmp_path / "run", llama, reference_logps=str(tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


def test_a_store_that_another_process_is_about_to_make_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-store.json").touch()
    assert ReferenceStore(tmp_path, REFERENCE).open() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged, so whose log-probabilities these are is not known"),
        ('{"format": 1, "reference": {}}', "damaged, so whose"),
        ('{"format": 2, "reference": {}}', "its format is 2, and this version reads 1"),
    ],
)
def test_a_store_that_does_not_say_whose_it_is_is_refused(
    content: str, message: str, llama: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"store.json: {message}"):
        run(tmp_path / "run", llama, reference_logps=str(tmp_path / "store"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_while_it_computes_goes_on_with_what_was_stored(
    processes: int, llama: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.training import trl_bridge  # noqa: F401  # before the processes fork

    made = recipe(llama, training={"precompute_ref_log_probs": True})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_in(processes, made, whole) == [0] * processes
    monkeypatch.setattr(logps, "ROWS_PER_FILE", 3)
    write, written = Path.write_bytes, []

    def write_once(self: Path, content: bytes) -> int:
        written.append(write(self, content))
        if len(written) == 2:  # the file is there, under its temporary name
            os.kill(os.getpid(), signal.SIGKILL)
        return written[-1]

    with monkeypatch.context() as patches:
        patches.setattr(Path, "write_bytes", write_once)
        assert -signal.SIGKILL in train_in(processes, made, cut)
    stored = sum(len(pq.read_table(file)) for file in (cut / "reference_logps").glob("[!.]*.parquet"))
    assert 0 < stored <= 6 * processes  # three pairs per file
    assert train_in(processes, made, cut) == [0] * processes
    assert counts(cut) == {"answers": 2 * ROWS, "computed": 2 * ROWS - stored}
    assert not list(cut.rglob(".tmp-*"))
    np.testing.assert_allclose(losses(cut), losses(whole), **LOSS)


def test_two_processes_share_the_work_and_agree(llama: dict[str, Any], tmp_path: Path) -> None:
    from handbook_utils.training import trl_bridge  # noqa: F401  # before the processes fork

    store = tmp_path / "store"
    for processes in (1, 2):
        made = recipe(
            llama,
            training={"per_device_train_batch_size": 4 // processes},
            reference_logps=str(store if processes == 2 else tmp_path / "of one"),
        )
        folder = tmp_path / str(processes)
        assert train_in(processes, made, folder) == [0] * processes
        assert counts(folder) == {"answers": 2 * ROWS, "computed": 2 * ROWS}
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), **LOSS)
    np.testing.assert_allclose(weights(tmp_path / "2"), weights(tmp_path / "1"), **WEIGHT)
    # each computed half of the rows, and none twice
    tables = [pq.read_table(file) for file in store.glob("*.parquet")]
    assert [len(table) for table in tables] == [ROWS, ROWS]
    assert len({key for table in tables for key in table["key"].to_pylist()}) == 2 * ROWS


REFERENCE = Reference("sft", "0" * 64, None, "none", "float32", "float32")


def pairs_of(rows: list[tuple[list[int], list[int], list[int]]], **options: Any) -> Pairs:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Pairs(Dataset.from_dict(columns), **{"limit": None, "keeps_end": False, **options})


def minus_sum(sequences: Sequence[Sequenced]) -> Floats:
    """A model under which each token costs as many nats as its number says."""
    return np.array([-float(sum(ids[max(start, 1) :])) for ids, start in sequences])


def test_each_answer_is_computed_once_however_often_it_occurs(tmp_path: Path) -> None:
    asked: list[Sequenced] = []

    def measure(sequences: Sequence[Sequenced]) -> Floats:
        asked.extend(sequences)
        return minus_sum(sequences)

    rows = pairs_of([([9], [1, 2], [3]), ([9], [3], [1, 2]), ([9], [1, 2], [4]), ([8, 9], [3], [3])])
    store = ReferenceStore(tmp_path, REFERENCE)
    logps, computed = pair_logps(rows, store, measure)
    assert logps.tolist() == [[-3, -3], [-3, -3], [-3, -4], [-3, -3]]
    assert computed == len(asked) == 4  # 1 2, 3 and 4 after 9; 3 after 8 9
    assert pair_logps(rows.select([2, 0]), store, measure)[1] == 0
    assert len(asked) == 4


def test_an_answer_that_was_cut_off_whole_counts_nothing(tmp_path: Path) -> None:
    rows = pairs_of([([5, 6], [1, 2, 3], [])], limit=3)
    logps, computed = pair_logps(rows, ReferenceStore(tmp_path, REFERENCE), minus_sum)
    assert logps.tolist() == [[-1, 0]]
    assert computed == 1


def test_of_the_longer_answer_ld_alpha_weighs_what_it_has_more(tmp_path: Path) -> None:
    rows = pairs_of([([9], [1, 2, 4, 8], [3, 5])], ld_alpha=0.25)
    logps, _ = pair_logps(rows, ReferenceStore(tmp_path, REFERENCE), minus_sum)
    # 1 + 2 as in the shorter one, and a quarter of 4 + 8
    assert logps.tolist() == [[-(3 + 0.25 * 12), -8]]


def test_the_same_ids_that_begin_to_answer_elsewhere_are_another_answer(tmp_path: Path) -> None:
    rows = pairs_of([([9, 1], [2], [3]), ([9], [1, 2], [1, 3])])
    logps, computed = pair_logps(rows, ReferenceStore(tmp_path, REFERENCE), minus_sum)
    assert logps.tolist() == [[-2, -3], [-3, -4]]
    assert computed == 4


def test_a_file_copied_from_the_store_of_another_reference_is_refused(tmp_path: Path) -> None:
    rows = pairs_of([([9], [1], [2])])
    other = Reference(**{**REFERENCE.__dict__, "weights": "1" * 64})
    pair_logps(rows, ReferenceStore(tmp_path / "there", other), minus_sum)
    store = ReferenceStore(tmp_path / "here", REFERENCE)
    store.open()
    (file,) = (tmp_path / "there").glob("*.parquet")
    (tmp_path / "here" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=rf"{file.name}: log-probabilities of another reference than"):
        pair_logps(rows, store, minus_sum)


def test_stores_of_one_reference_are_joined_by_copying(tmp_path: Path) -> None:
    both = pairs_of([([9], [1], [2]), ([8], [3], [4])])
    for row in (0, 1):
        pair_logps(both.select([row]), ReferenceStore(tmp_path / str(row), REFERENCE), minus_sum)
    for file in (tmp_path / "1").glob("*.parquet"):
        (tmp_path / "0" / file.name).write_bytes(file.read_bytes())
    # whatever the reference is called there
    renamed = Reference(**{**REFERENCE.__dict__, "model": "a copy"})
    logps, computed = pair_logps(both, ReferenceStore(tmp_path / "0", renamed), minus_sum)
    assert (logps.tolist(), computed) == ([[-1, -2], [-3, -4]], 0)


def test_a_log_probability_that_is_no_number_is_not_stored(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, REFERENCE)
    with pytest.raises(TrainingError, match="a log-probability that is not a number"):
        pair_logps(pairs_of([([9], [1], [2])]), store, lambda sequences: np.full(len(sequences), np.nan))
    assert store.files() == []


def test_a_store_names_no_place(llama: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", llama, reference_logps=str(tmp_path / "store"))
    record = (tmp_path / "store" / "store.json").read_text(encoding="utf-8")
    assert json.loads(record)["reference"]["model"] == "llama"
    assert "/" not in record


BAD_RECIPES = [
    ({"reference_logps": "x", "training": {"sync_ref_model": True}}, "sync_ref_model` moves the reference"),
    (
        {"training": {"sync_ref_model": True, "precompute_ref_log_probs": True}},
        "sync_ref_model` moves the reference",
    ),
    ({"reference_logps": "x", "training": {"precompute_ref_log_probs": False}}, "is false: drop one"),
    ({"reference_logps": "x", "streaming": True, "training": {"max_steps": 1}}, "no `streaming`"),
    (
        {"reference_logps": "x", "launch": {"strategy": "zero3"}},
        "cannot be kept under `launch.strategy` zero3",
    ),
    ({"reference_logps": ""}, "'reference_logps'"),
    ({"reference_logp": "x"}, "Did you mean 'reference_logps'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_RECIPES)
def test_a_recipe_whose_reference_cannot_be_kept_is_refused_when_read(changes: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe({"name": "x"}, **changes)


def test_zero_3_may_compute_its_reference_in_advance_and_keep_nothing() -> None:
    made = recipe({"name": "x"}, launch={"strategy": "zero3"}, training={"precompute_ref_log_probs": True})
    assert made.precomputes_reference
