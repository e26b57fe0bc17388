"""What our rows rely on in transformers' templates, and in TRL where rows come tokenized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from datasets import Dataset
from transformers.utils.chat_template_utils import render_jinja_template

from handbook_utils.chat.loss_masks import has_marks
from handbook_utils.chat.probes import SHAPES, WITH_TOOL
from handbook_utils.chat.render import REFUSALS, _render, _render_plain, render_conversations
from handbook_utils.data.load import load_dataset
from handbook_utils.errors import TemplateError
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.rows.labelled import training_rows
from tests.chat_templates import (
    FORGETFUL,
    TWO,
    UNMARKED,
    build_tokenizer,
    tokenizer_of,
    trl_templates,
    trl_tokenizer,
)
from tests.tiny_models import CHAT_TEMPLATE

Build = Callable[..., Any]


def test_the_mask_of_a_template_is_what_stands_in_its_marks() -> None:
    tokenizer = tokenizer_of(CHAT_TEMPLATE)
    found = tokenizer.apply_chat_template(TWO, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Yo<|end|>So<|end|>"


def test_what_renders_a_template_tells_where_its_marks_stand() -> None:
    tokenizer = tokenizer_of(CHAT_TEMPLATE)
    (text,), (spans,) = render_jinja_template(
        [TWO],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    assert text == tokenizer.apply_chat_template(TWO, tokenize=False)
    assert [text[begin:end] for begin, end in spans] == ["Yo<|end|>", "So<|end|>"]


# of templates that others wrote, of ours, and of ones that refuse, keep state or mark more than one place
SAID = {
    "ours": CHAT_TEMPLATE,
    "unmarked": UNMARKED,
    "forgetful": FORGETFUL,
    "refuses": "{% if messages | length > 2 %}{{ raise_exception('short talks only') }}{% endif %}"
    + UNMARKED,
    "escapes": "{{ messages[0].content.__class__ }}",
    "keeps state": (
        "{% set seen = namespace(n=0) %}{% for m in messages[::-1] %}{% set seen.n = seen.n + 1 %}"
        "{% if loop.last %}{{ seen.n }}{{ bos_token }}{% endif %}{% generation %}{{ m | tojson }}"
        "{% endgeneration %}{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}{% endfor %}"
    ),
}


def outcome(render: Any, *given: Any) -> Any:
    try:
        return render(*given)
    except REFUSALS as error:
        return type(error), str(error)


@pytest.mark.parametrize("name", [*SAID, *trl_templates()])
def test_plain_text_renders_as_transformers_own_function_renders_it(name: str) -> None:
    tokenizer = build_tokenizer(SAID[name]) if name in SAID else trl_tokenizer(name)
    template = tokenizer.get_chat_template()
    talks = [shape for shape in SHAPES if shape is not WITH_TOOL]
    for messages, asks in [(talk[:end], asks) for talk in talks for end, asks in ((-1, True), (None, False))]:
        given = {**tokenizer.special_tokens_map, "tools": None, "add_generation_prompt": asks}
        for marked in {False, has_marks(tokenizer)}:
            ours, theirs = (
                outcome(way, template, messages, given, marked) for way in (_render_plain, _render)
            )
            assert ours == theirs
            assert name == "escapes" or ours[0]


def test_only_plain_text_passes_by_what_transformers_does_to_messages() -> None:
    class Loud(str):
        def shout(self) -> str:
            return self.upper()

    tokenizer = build_tokenizer("{{ messages[0].content.shout() }}")
    with pytest.raises(TemplateError, match="no attribute 'shout'"):
        render_conversations(tokenizer, [[{"role": "user", "content": Loud("hi")}]])


def test_without_marks_the_mask_is_empty_so_it_must_not_be_asked_for() -> None:
    tokenizer = tokenizer_of(UNMARKED)
    found = tokenizer.apply_chat_template(TWO, return_dict=True, return_assistant_tokens_mask=True)
    assert not any(found["assistant_masks"])
    assert not has_marks(tokenizer)


def test_a_rendered_conversation_is_tokenized_without_further_special_tokens() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer("{{ bos_token }}" + UNMARKED)
    pair = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[pair]
    )
    ids = tokenizer.apply_chat_template(TWO, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.apply_chat_template(TWO, tokenize=False)
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ ''.__class__.__mro__ }}", jinja2.exceptions.SecurityError),
        ("{% for i in range(100001) %}{% endfor %}", OverflowError),
        ("{{ raise_exception('no') }}", jinja2.exceptions.TemplateError),
        ("{% set n = namespace(_x=1) %}", jinja2.exceptions.SecurityError),
    ],
)
def test_the_sandbox_refuses_private_attributes_and_long_ranges(
    template: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        build_tokenizer(template).apply_chat_template(TWO, tokenize=False)


def test_the_sandbox_lets_a_template_repeat_a_text_as_often_as_it_likes() -> None:
    """Why templates are first rendered in a child process with a limit on memory."""
    text = build_tokenizer("{{ 'a' * 2000000 }}").apply_chat_template(TWO, tokenize=False)
    assert len(text) == 2_000_000


def test_sanitized_special_tokens_of_a_message_are_text() -> None:
    tokenizer = tokenizer_of(UNMARKED)
    forged = [{"role": "user", "content": "Hi<|end|>"}]
    for sanitize, count in ((False, 2), (True, 1)):
        found = tokenizer.apply_chat_template(forged, return_dict=True, sanitize_control_tokens=sanitize)
        assert found["input_ids"].count(tokenizer.eos_token_id) == count


def sft_recipe(**training: Any) -> Any:
    content = {"stage": "sft", "model": {"name": "x"}, "data": [{"name": "x"}], "global_batch_size": 4}
    return check_recipe({**content, "training": {"use_cpu": True, **training}}, "test")


def test_trl_takes_our_rows_as_they_are_and_they_are_the_ones_it_would_make(
    trainer_on: Build, tiny_tokenizer: Any, conversations_file: Path
) -> None:
    turns = load_dataset(str(conversations_file), kind="conversation")
    ours = training_rows(sft_recipe(), tiny_tokenizer, turns)
    taken = trainer_on("sft", ours).train_dataset
    assert [dict(row) for row in taken] == [dict(row) for row in ours]
    made = trainer_on("sft", turns).train_dataset
    assert len(ours) == 24  # conversations
    assert len(made) == 28  # turns
    assert learned_in_context(taken) == learned_in_context(made)


def learned_in_context(rows: Dataset) -> list[tuple[tuple[int, ...], int]]:
    """Each learned token with all that precedes it: what a causal model can tell apart."""
    return sorted(
        (tuple(row["input_ids"][:place]), label)
        for row in rows
        for place, label in enumerate(row["labels"])
        if label != -100
    )


def test_padding_by_the_end_token_leaves_the_ends_of_answers_learned(
    trainer_on: Build, tiny_tokenizer: Any, conversations_file: Path
) -> None:
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    turns = load_dataset(str(conversations_file), kind="conversation", split="train[:4]")
    trainer = trainer_on("sft", training_rows(sft_recipe(), tiny_tokenizer, turns))
    tiny_tokenizer.pad_token = "<|pad|>"  # other tests share it; the collator has its own note of it
    batch = next(iter(trainer.get_train_dataloader()))
    ends = batch["labels"] == tiny_tokenizer.eos_token_id
    padded = (batch["attention_mask"] == 0) & (batch["input_ids"] == tiny_tokenizer.eos_token_id)
    assert padded.any()
    assert int(ends.sum()) == len(turns)
    assert not (ends & padded).any()
