"""A plan's memory is that of a real training step, counted tensor by tensor; and what it refuses."""

from __future__ import annotations

import io
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from online_peaks import OnlineCell, errors_of
from rich.console import Console
from training_peaks import FIXED, Cell, drawn, error_of
from transformers import LlamaConfig

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError, ModelError, RecipeError
from handbook_utils.planning.changes import Change, Run, changes_to_fit, processes_to_fit
from handbook_utils.planning.duration import estimate_duration
from handbook_utils.planning.gpus import read_gpu
from handbook_utils.planning.lengths import Lengths, batch_of, largest_batch
from handbook_utils.planning.live_bytes import ACTIVATIONS, GRADIENTS, LiveBytes
from handbook_utils.planning.memory import MARGIN_BYTES, Setup, plan_memory
from handbook_utils.planning.picture import parts_svg
from handbook_utils.planning.report import make_plan, plan_record, plan_view
from handbook_utils.planning.whole import plan_training_memory
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.sections import LoraSection

SMALL = replace(FIXED[0], rows=4, tokens=96, layers=4, vocabulary=1280)
GIB = 2**30


def config(layers: int = 3, hidden: int = 1024) -> Any:
    made = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=32_000,
    )
    made._attn_implementation = "sdpa"
    return made


def rows(count: int = 64, tokens: int = 512) -> Lengths:
    return Lengths(np.full(count, tokens // 2), np.full((count, 1), tokens // 2))


# each holds another mechanism: the loss head, attention's scores, autocast's casts, the reference, adapters
CELLS = [
    Cell(SMALL, "sft", "sdpa", "float32", checkpointing=True),
    Cell(SMALL, "reward", "eager", "float32"),
    Cell(SMALL, "dpo", "sdpa", "mixed"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.trainer}-{cell.attention}-{cell.dtype}")
def test_a_plan_is_within_a_tenth_of_the_counted_peak(cell: Cell) -> None:
    assert abs(error_of(cell)) < 0.10


def test_so_it_is_for_a_shape_that_nobody_chose() -> None:
    seed = time.time_ns() % 2**32
    shape = replace(drawn(seed, 1)[0], rows=3, tokens=80)
    draw = random.Random(seed)
    trainer, attention = draw.choice(("sft", "reward", "dpo")), draw.choice(("eager", "sdpa"))
    cell = Cell(shape, trainer, attention, "float32", draw.random() < 0.5)
    assert abs(error_of(cell)) < 0.10, f"seed {seed}: {cell}"


def test_sampling_scoring_and_learning_online_are_each_within_a_tenth_of_the_counted_peak() -> None:
    # mixed: sampling keeps no casts of the weights; a cache of prompts: one is copied for each answer
    small = replace(SMALL, rows=2, tokens=60)
    cell = OnlineCell(small, "grpo", dtype="mixed", layout="cache", new_tokens=20, groups=1)
    errors = errors_of(cell)
    assert errors.keys() == {"sampling", "scoring", "learning"}
    assert all(abs(error) < 0.10 for error in errors.values()), errors


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    with LiveBytes() as counter:
        numbers = torch.zeros(1000)
        view = numbers[:10]
        assert counter.live[ACTIVATIONS] == 4000
        del numbers
        assert counter.live[ACTIVATIONS] == 4000, "the view holds it"
        del view
        assert counter.live[ACTIVATIONS] == 0
        weight = torch.zeros(100, requires_grad=True)
        counter.watch_gradients([weight])
        (weight * weight).sum().backward()
    assert counter.live[GRADIENTS] == 400
    assert sum(counter.peak.values()) >= 4000


def test_deep_models_are_planned_from_three_layers_as_if_all_were_computed() -> None:
    # by hand: 12 bytes per trained weight in float32: itself, and two numbers of AdamW
    setup = Setup(config(layers=3, hidden=64), "sft", checkpointing=False, on_cpu=True)
    deep = replace(setup, config=config(layers=12, hidden=64))
    batch = batch_of(rows(4, 32))
    shallow, planned = plan_memory(setup, batch), plan_memory(deep, batch)
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 256 + 2 * 64
    assert planned.parameters - shallow.parameters == 9 * layer
    assert planned.weights > 4 * planned.parameters
    assert planned.optimiser == 8 * planned.parameters


def test_checkpointing_adapters_and_packed_weights_each_take_less() -> None:
    batch = batch_of(rows(8))
    plain = Setup(config(), "sft", half=torch.bfloat16, checkpointing=False)
    checked = replace(plain, checkpointing=True)
    adapter = replace(checked, lora=LoraSection(), held_in=torch.bfloat16)
    packed = replace(adapter, quantization="nf4")
    plans = [plan_memory(each, batch) for each in (plain, checked, adapter, packed)]
    totals = [each.total for each in plans]
    assert totals == sorted(totals, reverse=True)
    assert plans[2].optimiser < plans[1].optimiser / 20
    body = plans[3].weights - 2 * 2 * 32_000 * 1024  # the embeddings and the head stay whole
    assert body < (plans[2].weights - 2 * 2 * 32_000 * 1024) / 3
    assert all(each.margin > MARGIN_BYTES for each in plans)


def test_shards_divide_what_is_held_and_copies_do_not() -> None:
    batch = batch_of(rows(8))
    one = Setup(config(), "dpo", half=torch.bfloat16, reference="bfloat16 copy", second_pass=True)
    alone = plan_memory(one, batch)
    copies = plan_memory(replace(one, processes=8), batch)
    shards = plan_memory(replace(one, processes=8, strategy="fsdp2"), batch)
    assert copies.weights == alone.weights
    assert copies.communication == 4 * alone.trained
    assert shards.weights == alone.weights // 8
    assert shards.reference == alone.reference // 8
    assert alone.reference == alone.weights // 2, "in bfloat16"


def test_the_largest_batch_has_the_longest_row_and_is_padded_to_it() -> None:
    lengths = Lengths(np.array([10, 10, 10, 90]), np.array([[5], [6], [7], [10]]))
    batch = largest_batch(lengths, 2)
    assert (batch.rows, batch.width, batch.is_padded) == (2, 100, True)
    by_tokens = largest_batch(lengths, 4, max_tokens=250)
    assert by_tokens.rows == 2, "two rows of 100 are within 250"
    assert largest_batch(lengths.cut(12), 4).width == 12


def test_a_pair_s_prompt_is_counted_once_where_it_is_computed_once() -> None:
    pairs = Lengths(np.array([100]), np.array([[20, 30]]))
    assert batch_of(pairs, shares=True).shared == (1, 150)
    assert (batch_of(pairs).rows, batch_of(pairs).width) == (2, 130)


def test_changes_go_from_the_cheapest_on_and_end_when_it_fits() -> None:
    setup = Setup(config(hidden=4096), "sft", half=torch.bfloat16, checkpointing=False)
    run = Run(setup, rows(64, 1024), per_device=8, max_length=1024)
    room = run.memory.total // 3
    assert changes_to_fit(run, run.memory.total) == []
    found = changes_to_fit(run, room)
    assert [change.how.partition("=")[0] for change in found][:2] == [
        "training.gradient_checkpointing",
        "training.per_device_train_batch_size",
    ]
    assert found[-1].memory <= room < found[-2].memory
    nothing = changes_to_fit(run, GIB)
    assert nothing[-1].how == "training.max_length=256"
    assert "100.0%" in nothing[-1].costs, "the answers begin behind token 512"
    shared = processes_to_fit(run, room)
    assert shared is not None
    assert "fsdp2" in shared.how


def test_operations_are_six_per_weight_and_token() -> None:
    setup = Setup(config(layers=2), "sft", checkpointing=False)
    memory, lengths = plan_memory(setup, batch_of(rows(2))), rows(100)
    took = estimate_duration(setup, memory, lengths, passes=1, tflops=100, mfu=(0.5, 0.5))
    body = memory.parameters - 2 * 32_000 * 1024
    by_hand = 6 * body * 51_200 + 3 * 2 * 2 * 1024 * 100 * 512**2 + 6 * 32_000 * 1024 * 25_600
    assert took.flops == pytest.approx(by_hand)
    assert took.hours is not None
    assert took.hours[0] == pytest.approx(by_hand / 50e12 / 3600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h10", "'h100'"),
        ("a100", "'a100-40gb' or 'a100-80gb'"),
        ("NVIDIA A100", "'a100-40gb' or 'a100-80gb'"),
        ("24 bananas", "no size"),
        ("0", "no size"),
        ("-3", "no size"),
        ("9" * 9, "no size"),
    ],
)
def test_an_unknown_gpu_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_gpu(text)


def test_a_record_is_json_and_a_picture_has_every_part() -> None:
    run = Run(Setup(config(layers=2), "sft"), rows(8), per_device=2)
    duration = estimate_duration(run.setup, run.memory, run.rows, passes=1, tflops=None)
    plan = make_plan(run, read_gpu("1GiB"), duration, ["Assumed."])
    record = json.loads(json.dumps(plan_record(plan)))
    assert record["fits"] is False
    assert record["fits_on"]["h100"] is True
    assert sum(record["bytes"].values()) == record["total_bytes"]
    drawn_parts = parts_svg(plan.memory.parts, room=GIB)
    assert all(name in drawn_parts for name, size in plan.memory.parts.items() if size)


def recipe(folder: Path, **changes: Any) -> Any:
    data = folder / "rows.jsonl"
    if not data.exists():
        said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
        data.write_text(json.dumps({"messages": said}) + "\n")
    content = {
        "stage": "sft",
        "model": {"name": "pocket:base"},
        "data": [{"name": str(data)}],
        "global_batch_size": 1,
        "training": {"max_length": 128},
    }
    return check_recipe(content | changes, "test")


def test_a_folder_with_a_configuration_and_rows_elsewhere_is_enough(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path / "model")
    plan = plan_training_memory(
        recipe(tmp_path, model={"name": str(tmp_path / "model")}), ResolvedInputs(), gpu=read_gpu("24")
    )
    assert "128 tokens" in plan.assumed[0]
    assert plan.memory.weights > GIB / 4
    assert plan.run.setup.half is torch.bfloat16, "on a GPU"


def test_a_model_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_training_memory(recipe(tmp_path, model={"name": str(tmp_path / "model")}), ResolvedInputs())
    (tmp_path / "model" / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(ModelError, match="no configuration"):
        plan_training_memory(recipe(tmp_path, model={"name": str(tmp_path / "model")}), ResolvedInputs())


def test_an_empty_file_is_refused_and_a_row_of_100_000_tokens_is_planned(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "word " * 100_000}, {"role": "assistant", "content": "No."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": long}) + "\n")
    uncut = recipe(tmp_path, training={"max_length": None})
    plan = plan_training_memory(uncut, ResolvedInputs())
    assert plan.run.batch.width > 90_000
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError):
        plan_training_memory(recipe(tmp_path), ResolvedInputs())


def test_what_is_to_be_typed_is_shown_whole_and_the_size_once() -> None:
    run = Run(Setup(config(layers=2), "sft"), rows(16), per_device=8, accumulation=2)
    duration = estimate_duration(run.setup, run.memory, run.rows, passes=1, tflops=None)
    fits = make_plan(run, read_gpu("24GiB"), duration, [])
    how = "training.per_device_train_batch_size=16"
    too_large = replace(fits, gpu=read_gpu("100MiB"), changes=(Change("16 rows", how, "time " * 20, GIB),))
    for width in (50, 80, 140):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(plan_view(too_large))
        console.print(plan_view(fits))
        shown = console.export_text()
        assert how in shown
        assert shown.count("time ") + shown.count("time\n") >= 20, "costs are not cut"
        assert "It does not fit 100 MiB." in shown
        assert "It fits 24 GiB." in shown


def test_a_gpu_that_overrides_use_cpu_is_said(tmp_path: Path) -> None:
    on_cpu = recipe(tmp_path, training={"max_length": 128, "use_cpu": True}, global_batch_size=16)
    assert plan_training_memory(on_cpu, ResolvedInputs()).run.per_device == 16
    plan = plan_training_memory(on_cpu, ResolvedInputs(), gpu=read_gpu("24GiB"))
    assert (plan.run.per_device, plan.run.accumulation) == (8, 2)
    assert any("--gpu overrides" in sentence for sentence in plan.assumed)
