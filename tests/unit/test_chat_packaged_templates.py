"""The packaged chat templates: a training text is its prompt and the answer, and every turn ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handbook_utils.chat.templates import chat_template_text, template_names
from handbook_utils.errors import TemplateError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "More"},
]
ANSWER = {"role": "assistant", "content": "That is all."}


def render(name: str, messages: list[Any], *, is_prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        [messages],
        chat_template=chat_template_text(name),
        add_generation_prompt=is_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(text)


def test_the_packaged_templates_are_these() -> None:
    assert template_names() == ["chatml", "tulu", "zephyr"]


@pytest.mark.parametrize("start", range(len(TALK) - 1))
@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("zephyr", "</s>")])
def test_a_training_text_is_its_prompt_the_answer_and_one_end(name: str, end: str, start: int) -> None:
    prompt = render(name, TALK[start:], is_prompt=True)
    whole = render(name, [*TALK[start:], ANSWER], is_prompt=False)
    assert whole == prompt + ANSWER["content"] + end
    assert whole.count(end) == len(TALK) - start + 1


@pytest.mark.parametrize("start", range(len(TALK) - 1))
def test_in_tulu_only_the_assistants_turns_end_with_a_token(start: int) -> None:
    prompt = render("tulu", TALK[start:], is_prompt=True)
    whole = render("tulu", [*TALK[start:], ANSWER], is_prompt=False)
    assert whole == prompt + ANSWER["content"] + "</s>"
    assert whole.count("</s>") == 1 + sum(turn["role"] == "assistant" for turn in TALK[start:])
    assert render("tulu", TALK[1:3], is_prompt=False) == "<s><|user|>\nHi\n<|assistant|>\nHello.</s>"


def test_a_prompt_in_tulu_that_follows_an_answer_is_the_start_of_the_longer_talk() -> None:
    longer = render("tulu", [*TALK[:3], ANSWER], is_prompt=False)
    assert longer.startswith(render("tulu", TALK[:3], is_prompt=True))


def test_zephyr_starts_with_one_beginning_token_and_writes_a_turn_as_published() -> None:
    text = render("zephyr", TALK[1:3], is_prompt=False)
    assert text == "<s><|user|>\nHi</s>\n<|assistant|>\nHello.</s>"


def test_a_template_may_be_a_file_or_the_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    assert chat_template_text(str(file)) == chat_template_text("{{ messages }}") == "{{ messages }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [("zephir", "Did you mean 'zephyr'"), ("missing.jinja", "cannot be read")],
)
def test_a_template_that_is_not_there_is_refused(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        chat_template_text(template)
