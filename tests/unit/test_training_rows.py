"""Before a model is loaded: templates that would spoil training are refused, lesser faults are told."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from handbook_utils.data.load import to_dataset
from handbook_utils.errors import TemplateError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training import fit
from handbook_utils.training.rows import labelled
from handbook_utils.training.rows.labelled import TemplateWarning, check_rows, training_rows
from tests.chat_templates import FORGETFUL, TWO, UNMARKED, build_tokenizer, tokenizer_of
from tests.tiny_models import CHAT_TEMPLATE, build_tiny_tokenizer, write_weights


def turn(question: str, answer: str, *, system: str = "") -> dict[str, Any]:
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": question})
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def recipe_of(stage: str = "sft", *, model: str = "x", data: str = "x", **training: Any) -> Any:
    content = {"stage": stage, "model": {"name": model}, "data": [{"name": data}], "global_batch_size": 4}
    return check_recipe({**content, "training": {"use_cpu": True, **training}}, "test")


TURNS = Dataset.from_list([turn("Hi", "Yo"), {"prompt": TWO[:3], "completion": TWO[3:]}])


def test_rows_hold_the_answers_as_labels_and_turns_share_a_row() -> None:
    tokenizer = build_tiny_tokenizer()
    rows = training_rows(recipe_of(), tokenizer, TURNS)
    (row,) = rows
    assert tokenizer.decode(row["input_ids"]) == (
        "<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>Bye<|end|><|assistant|>So<|end|>"
    )
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == "Yo<|end|>So<|end|>"


def test_a_template_that_rewrites_turns_trains_a_row_a_turn() -> None:
    thinking = [m | {"content": "x</think>y"} if m["role"] == "assistant" else m for m in TWO]
    turns = [
        {"prompt": thinking[:1], "completion": thinking[1:2]},
        {"prompt": thinking[:3], "completion": thinking[3:]},
    ]
    assert len(training_rows(recipe_of(), tokenizer_of(FORGETFUL), Dataset.from_list(turns))) == 2


def test_batches_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Dataset.from_list([turn(letter, letter * 2) for letter in "abcdefg"])
    monkeypatch.setattr(labelled, "BATCH", 2)
    made = training_rows(recipe_of(), tokenizer := build_tiny_tokenizer(), turns)
    texts = [tokenizer.decode(ids) for ids in made["input_ids"]]
    assert texts == [f"<|user|>{letter}<|end|><|assistant|>{letter * 2}<|end|>" for letter in "abcdefg"]
    assert made.features == Features(dict.fromkeys(("input_ids", "labels"), List(Value("int64"))))


def test_a_row_tells_its_template_and_no_other_rows() -> None:
    template = "{% if not think | default(true) %}{{ '<|system|>no' }}{% endif %}" + UNMARKED
    told = to_dataset([turn("Hi", "Yo") | {"chat_template_kwargs": {"think": False}}, turn("Hi", "Yo")])
    tokenizer = tokenizer_of(template)
    check_rows(tokenizer, told)
    rendered = [tokenizer.decode(row["input_ids"]) for row in training_rows(recipe_of(), tokenizer, told)]
    assert [text.startswith("<|system|>no") for text in rendered] == [True, False]


@pytest.mark.parametrize(
    "training", [{"completion_only_loss": False}, {"assistant_only_loss": True}, {"eos_token": "<|end|>"}]
)
def test_a_recipe_that_asks_for_other_tokens_leaves_the_rows_to_trl(training: dict[str, Any]) -> None:
    assert training_rows(recipe_of(**training), build_tiny_tokenizer(), TURNS) is TURNS


@pytest.mark.parametrize("stage", ["pretrain", "reward", "dpo", "kto"])
def test_other_stages_leave_their_rows_to_trl(stage: str) -> None:
    assert training_rows(recipe_of(stage), build_tiny_tokenizer(), TURNS) is TURNS


def test_a_stream_is_left_to_trl_and_its_first_rows_are_checked() -> None:
    stream = TURNS.to_iterable_dataset()
    assert training_rows(recipe_of(), build_tiny_tokenizer(), stream) is stream
    with pytest.warns(TemplateWarning, match="row 1 and 0 more of the first 1"):
        check_rows(build_tiny_tokenizer(), Dataset.from_list([turn("<|end|>", "Yo")]).to_iterable_dataset())


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (UNMARKED.replace("+ '<|end|>'", ""), r"\[end-trained\] No special token ends an answer.*eos_token"),
        (
            UNMARKED.replace("'<|assistant|>' }}{% endif", "'<|assistant|>A: ' }}{% endif"),
            r"\[inference-prompt\]",
        ),
        (None, "no chat template"),
    ],
    ids=["no end", "another prompt", "none"],
)
def test_a_template_that_would_spoil_training_is_refused(template: str | None, what: str) -> None:
    with pytest.raises(TemplateError, match=f"would go wrong.*{what}"):
        check_rows(build_tokenizer(template), TURNS)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_training_refuses_it_before_a_model_is_loaded(
    stage: str, tmp_path: Path, conversations_file: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tokenizer(UNMARKED.replace("+ '<|end|>'", "")).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    write_weights(tmp_path / "model")
    monkeypatch.setattr(fit, "start_model", lambda *_, **__: pytest.fail("a model was loaded"))
    data = conversations_file if stage == "sft" else pairs_file
    with pytest.raises(TemplateError, match="end-trained"):
        run_stage(
            recipe_of(stage, model=str(tmp_path / "model"), data=str(data)), tmp_path / "run", progress=False
        )


DROPS_SYSTEM = CHAT_TEMPLATE.replace(
    "{{ '<|' + m", "{% if message.role == 'system' %}{% continue %}{% endif %}{{ '<|' + m"
)


def test_a_dropped_system_turn_is_told_where_the_data_has_one() -> None:
    tokenizer = tokenizer_of(DROPS_SYSTEM)
    with pytest.warns(TemplateWarning, match="system-turn: A system message is dropped"):
        check_rows(tokenizer, Dataset.from_list([turn("Hi", "Yo", system="Be brief.")]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rows(tokenizer, TURNS)


def merging_tokenizer() -> Any:
    """Two line breaks in a row are one token, as in most real vocabularies."""
    from tokenizers import Tokenizer

    tokenizer = tokenizer_of(
        UNMARKED.replace("{{ '<|assistant|>' }}{% endif %}", "{{ '<|assistant|>\\n' }}{% endif %}").replace(
            "{{ '<|' + message['role'] + '|>' }}",
            "{{ '<|' + message['role'] + '|>' }}{% if message.role == 'assistant' %}{{ '\\n' }}{% endif %}",
        )
    )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["pre_tokenizer"]["use_regex"] = False  # it would keep the second line break apart
    state["model"]["vocab"]["ĊĊ"] = len(tokenizer)
    state["model"]["merges"] = [["Ċ", "Ċ"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def test_answers_that_merge_with_the_prompt_are_told_and_refused_when_they_are_most() -> None:
    tokenizer = merging_tokenizer()
    with pytest.warns(TemplateWarning, match=r"1 of the first 3 rows do not begin with the prompt"):
        check_rows(tokenizer, Dataset.from_list([turn("Hi", "Yo"), turn("Hi", "\nYo"), turn("Hi", "So")]))
    with pytest.raises(TemplateError, match=r"2 of the first 2 rows.*contexts it never meets"):
        check_rows(tokenizer, Dataset.from_list([turn("Hi", "\nYo"), turn("Hi", "\nSo")]))


def test_special_tokens_written_out_in_the_data_are_told() -> None:
    rows = Dataset.from_list(
        [turn("Hi", "Yo"), turn("Hi<|end|><|assistant|>Sure", "Yo"), turn("a <|end|>", "b")]
    )
    with pytest.warns(TemplateWarning, match=r"row 2 and 1 more of the first 3: a message holds '<\|end\|>'"):
        check_rows(build_tiny_tokenizer(), rows)


def test_a_row_that_the_template_refuses_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + UNMARKED
    told = Dataset.from_list([turn("Hi", "Yo"), turn("Hi", "Yo", system="Be brief.")])
    with pytest.raises(TemplateError, match=r"rows 1 to 2: .*conversation 2 \(system, user\).*user first"):
        training_rows(recipe_of(), tokenizer_of(strict), told)
    monkeypatch.setattr(labelled, "BATCH", 1)
    with pytest.raises(TemplateError, match=r"rows 2 to 2: .*conversation 1 \(system, user\).*user first"):
        training_rows(recipe_of(), tokenizer_of(strict), told)


def test_a_row_that_cannot_be_tokenized_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(UNMARKED)
    told = Dataset.from_list([turn("Hi", "Yo"), turn("Hi", "So"), turn("Hi", "No")])
    encode = type(tokenizer).__call__

    def refuse(self: Any, texts: list[str], **options: Any) -> Any:
        if any("So" in text for text in texts):
            raise ValueError("no such letter")
        return encode(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", refuse)
    monkeypatch.setattr(labelled, "BATCH", 1)
    with pytest.raises(TemplateError, match=r"rows 2 to 2: .*cannot be tokenized.*no such letter"):
        training_rows(recipe_of(), tokenizer, told)
