"""Rows that `max_length` leaves out or cuts are counted and warned of in every stage, and in a dry run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.errors import DataError, TemplateError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_manifest
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.dry_run import plan_training
from handbook_utils.training.rows.lengths import LengthWarning

SHORT, LONG = "It is a pear. ", "It is a pear of this year. " * 9
ANSWERS = [LONG, LONG, LONG, SHORT]


def rows_of(stage: str, answers: list[str], prompt: str = "Name a fruit.") -> list[dict[str, Any]]:
    prompts = [f"{prompt} {number}" for number in range(len(answers))]
    if stage == "pretrain":
        return [{"text": text} for text in answers]
    if stage == "kto":
        return [
            {"prompt": prompt, "completion": text, "label": bool(number % 2)}
            for number, (prompt, text) in enumerate(zip(prompts, answers, strict=True))
        ]
    if stage == "sft":
        return [{"prompt": p, "completion": text} for p, text in zip(prompts, answers, strict=True)]
    return [
        {"prompt": p, "chosen": text, "rejected": "A stone."}
        for p, text in zip(prompts, answers, strict=True)
    ]


def recipe(
    tmp_path: Path, stage: str, answers: list[str], *, held_out: list[str] | None = None, **options: Any
) -> Any:
    training = {"use_cpu": True, "max_steps": 1, "max_length": 64, "learning_rate": 1e-3, "logging_steps": 1}
    prompt = options.pop("prompt", "Name a fruit.")
    content: dict[str, Any] = {
        "stage": stage,
        "model": {"name": options.pop("model", "pocket:base")},
        "data": [{"name": written(tmp_path / "rows.jsonl", rows_of(stage, answers, prompt))}],
        "global_batch_size": 4,
        "launch": {"processes": 1},
    }
    for name in ("streaming",):
        if name in options:
            content[name] = options.pop(name)
    if held_out is not None:
        rows = rows_of(stage, held_out, "Name a tree.")
        content["eval_data"] = [{"name": written(tmp_path / "held_out.jsonl", rows)}]
    if stage == "sft":
        training["packing"] = False
    return check_recipe(content | {"training": training | options}, "test")


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def planned(recipe: Any) -> tuple[dict[str, Any], list[str]]:
    """The plan, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = plan_training(recipe, {})
    return plan, [str(one.message) for one in said if issubclass(one.category, LengthWarning)]


COUNTS = [
    ("pretrain", 0, 3),
    ("sft", 0, 3),
    ("reward", 3, 0),
    ("dpo", 0, 3),
    ("orpo", 0, 3),
    ("cpo", 0, 3),
    ("kto", 0, 3),
]


@pytest.mark.parametrize(("stage", "left_out", "cut"), COUNTS)
def test_a_dry_run_counts_and_says_what_is_left_out_or_cut(
    tmp_path: Path, stage: str, left_out: int, cut: int
) -> None:
    plan, said = planned(recipe(tmp_path, stage, ANSWERS))
    assert (plan["rows_left_out"], plan["rows_cut"]) == (left_out, cut)
    assert len(said) == 1
    assert said[0].startswith("3 of 4 rows ")
    assert "training.max_length = 64 tokens" in said[0]
    plan, said = planned(recipe(tmp_path, stage, [SHORT] * 4))
    assert (plan["rows_left_out"], plan["rows_cut"], said) == (0, 0, [])


@pytest.mark.parametrize("stage", ["orpo", "kto"])
def test_a_run_counts_and_says_the_same(tmp_path: Path, stage: str) -> None:
    with pytest.warns(LengthWarning, match="3 of 4 rows are longer than training.max_length = 64 tokens"):
        run_stage(recipe(tmp_path, stage, ANSWERS), tmp_path / "run", progress=False)
    notes = read_manifest(tmp_path / "run")["notes"]
    assert (notes["rows_left_out"], notes["rows_cut"]) == (0, 3)


def test_orpo_leaves_out_rows_without_an_answer_left_also_held_out_ones(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        "orpo",
        [SHORT] * 3,
        held_out=[SHORT, LONG],
        prompt="Name a fruit.",
        eval_strategy="steps",
        eval_steps=1,
    )
    rows = rows_of("orpo", [SHORT] * 3) + rows_of("orpo", [SHORT], "please " * 80)
    written(tmp_path / "rows.jsonl", rows)
    held_out = rows_of("orpo", [SHORT, LONG], "Name a tree.") + rows_of("orpo", [SHORT], "oh please " * 60)
    written(tmp_path / "held_out.jsonl", held_out)
    with pytest.warns(LengthWarning) as said:
        run_stage(made, tmp_path / "run", progress=False)
    assert [str(one.message).split(":")[0] for one in said] == [
        "1 of 4 rows do not fit into training.max_length = 64 tokens",
        "1 of 3 held-out rows do not fit into training.max_length = 64 tokens",
        "1 of 3 held-out rows are longer than training.max_length = 64 tokens",
    ]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert losses
    assert None not in losses
    assert read_manifest(tmp_path / "run")["notes"]["rows_left_out"] == 1


@pytest.mark.parametrize("stage", ["reward", "dpo", "orpo"])
def test_a_dry_run_refuses_rows_of_which_none_fits(tmp_path: Path, stage: str) -> None:
    with pytest.raises(DataError, match=r"all 2 rows are longer than training.max_length = 8 tokens"):
        planned(recipe(tmp_path, stage, [LONG] * 2, prompt="please " * 20, max_length=8))


def test_rows_cut_at_their_beginning_are_counted_too(tmp_path: Path) -> None:
    for stage in ("dpo", "sft"):
        plan, said = planned(recipe(tmp_path, stage, ANSWERS, truncation_mode="keep_end"))
        assert (plan["rows_left_out"], plan["rows_cut"]) == (0, 3), stage
        assert "their beginnings are cut off" in said[0]


def test_a_dry_run_refuses_a_template_that_the_run_refuses(tmp_path: Path) -> None:
    made = recipe(tmp_path, "sft", [SHORT] * 2)
    template = tmp_path / "broken.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8")
    made = made.model_copy(update={"model": made.model.model_copy(update={"chat_template": str(template)})})
    with pytest.raises(TemplateError):
        planned(made)


@pytest.mark.parametrize("stage", ["sft", "pretrain", "dpo"])
def test_of_a_stream_the_first_rows_are_measured(tmp_path: Path, stage: str) -> None:
    _, said = planned(recipe(tmp_path, stage, ANSWERS, streaming=True))
    assert said == [
        "3 of the first 4 rows of the stream are longer than training.max_length = 64 tokens. Such rows are "
        "cut, or left out where nothing to learn would remain."
    ]
    assert planned(recipe(tmp_path, stage, [SHORT] * 4, streaming=True))[1] == []
