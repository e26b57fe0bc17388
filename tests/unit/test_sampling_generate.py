"""From conversations to completions: template, text, log-probabilities, and early errors."""

from __future__ import annotations

import pytest
import torch

from handbook_utils.errors import DataError, ModelError, TemplateError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.logprobs import response_logprobs
from handbook_utils.pocket.world import prompts
from handbook_utils.sampling.generation import generate as module
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import sample_tokens
from handbook_utils.sampling.generation.generate import TransformersEngine, generate, stop_token_ids
from handbook_utils.sampling.generation.rendering import tokenize_prompts

PROMPTS = [
    ("short", [{"role": "user", "content": "Say moon once."}]),
    (
        "long",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name two drinks, please."}],
    ),
    (
        "turns",
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "And now?"},
        ],
    ),
]


@pytest.fixture(scope="module")
def parts(tiny_model_folder):
    """A model that ends its turns now and then, and its tokenizer."""
    model, tokenizer = load_model(str(tiny_model_folder)), load_tokenizer(str(tiny_model_folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 3
    return model, tokenizer


def test_prompts_are_rendered_once_with_the_generation_prompt(parts):
    _, tokenizer = parts
    for (name, messages), prompt in zip(PROMPTS, tokenize_prompts(tokenizer, PROMPTS), strict=True):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert prompt.prompt_id == name
        assert tokenizer.decode(prompt.token_ids) == text
        assert text.endswith("<|assistant|>")


def test_completions_come_in_order_with_their_prompts(parts):
    rows = generate(*parts, PROMPTS, samples=3, max_new_tokens=6)
    assert [(row.prompt_id, row.sample_index) for row in rows] == [
        (name, index) for name, _ in PROMPTS for index in range(3)
    ]
    assert all(row.prompt == dict(PROMPTS)[row.prompt_id] for row in rows)


def test_text_holds_no_special_token_and_tokens_count_the_end_of_turn(parts):
    rows = generate(*parts, PROMPTS, samples=40, max_new_tokens=20)
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for row in rows:
        assert "<|" not in row.completion or "<|end|>" not in row.completion
        assert row.finish_reason == "stop" or row.tokens == 20
    empty = [row for row in rows if row.tokens == 1 and row.finish_reason == "stop"]
    assert all(row.completion == "" for row in empty)


def test_an_answer_that_was_cut_keeps_its_last_token(parts):
    model, tokenizer = parts
    rows = generate(model, tokenizer, PROMPTS, samples=40, max_new_tokens=3)
    # each token of this tokenizer is a byte; whole characters of one byte spell their tokens
    spelled = [row for row in rows if row.finish_reason == "length" and row.completion.isascii()]
    assert any(len(row.completion) == 3 for row in spelled if "<|" not in row.completion)


def test_logprobs_are_those_of_the_rendered_conversation(monkeypatch):
    model, tokenizer = load_model("pocket:base"), load_tokenizer("pocket:base")
    drawn = []
    monkeypatch.setattr(
        module, "sample_tokens", lambda *given, **named: drawn.extend(sample_tokens(*given, **named)) or drawn
    )
    asked = [(one.prompt_id, [{"role": "user", "content": one.text}]) for one in prompts("dev", limit=9)]
    rows = generate(model, tokenizer, asked, samples=8, temperature=0.8)
    # a text can be spelled with other tokens than were drawn; compare where it is not
    same = [
        row
        for row, tokens in zip(rows, drawn, strict=True)
        if tokens.token_ids == [*tokenizer(row.completion)["input_ids"], tokenizer.eos_token_id]
    ]
    assert len(same) > 20
    expected = response_logprobs(model, tokenizer, [(row.prompt, row.completion) for row in same])
    assert [row.logprob for row in same] == pytest.approx(expected.tolist(), abs=1e-4)


def test_generation_stops_at_the_tokenizers_and_the_configured_ends(parts):
    model, tokenizer = parts
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [7, 8]
        assert stop_token_ids(model, tokenizer) == {7, 8, tokenizer.eos_token_id}
        model.generation_config.eos_token_id = None
        assert stop_token_ids(model, tokenizer) == {tokenizer.eos_token_id}
    finally:
        model.generation_config.eos_token_id = before


def test_a_repeated_prompt_id_is_an_error(parts):
    with pytest.raises(DataError, match="1 prompt ids occur more than once, such as 'short'"):
        generate(*parts, [*PROMPTS, PROMPTS[0]])


def test_no_prompts_is_an_error(parts):
    with pytest.raises(DataError, match="there are no prompts"):
        generate(*parts, [])


def test_a_prompt_too_long_for_the_model_is_named(parts):
    long = ("very-long", [{"role": "user", "content": "moon " * 110}])
    with pytest.raises(DataError, match=r"prompt 'very-long' has 5\d\d tokens; .* the model's 512 positions"):
        generate(*parts, [*PROMPTS, long])


def test_no_new_tokens_is_an_error(parts):
    with pytest.raises(ModelError, match="max_new_tokens must be at least 1, got 0"):
        generate(*parts, PROMPTS, max_new_tokens=0)


def test_a_conversation_that_the_template_refuses_is_an_error_that_says_which(parts, monkeypatch):
    strict = (
        "{% for m in messages %}{{ raise_exception('no more') if loop.index > 1 else m.content }}{% endfor %}"
    )
    monkeypatch.setattr(parts[1], "chat_template", strict)
    user = {"role": "user", "content": "Hi"}
    with pytest.raises(TemplateError, match=r"refuses conversation 2 \(user, user\): .*no more"):
        generate(*parts, [("a", [user]), ("b", [user, user])])


def test_a_tokenizer_without_a_template_is_an_error(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "chat_template", None)
    with pytest.raises(TemplateError, match="the tokenizer has no chat template"):
        generate(*parts, PROMPTS)


def test_fewer_than_one_answer_is_an_error(parts):
    with pytest.raises(DataError, match="must be at least 1, got 0"):
        generate(*parts, PROMPTS, samples=0)


LONG = ("very-long", [{"role": "user", "content": "moon " * 110}])
FEW = SamplingSettings(samples=2, max_new_tokens=6)


def test_a_prompt_too_long_for_the_model_is_skipped_and_named_where_the_engine_may(parts):
    answers = TransformersEngine(*parts, long_prompts="skip").answer([PROMPTS[0], LONG, PROMPTS[2]], FEW)
    assert [row.prompt_id for row in answers.completions] == ["short", "short", "turns", "turns"]
    assert list(answers.skipped) == ["very-long"]
    assert "beyond the model's 512 positions" in answers.skipped["very-long"]
    assert answers.completions == generate(*parts, [PROMPTS[0], PROMPTS[2]], samples=2, max_new_tokens=6)


def test_a_prompt_too_long_for_the_model_is_cut_to_its_end_and_says_what_was_asked(parts):
    _, tokenizer = parts
    system = {"role": "system", "content": "Be brief."}
    answers = TransformersEngine(*parts, long_prompts="cut").answer(
        [("long", [system, {"role": "user", "content": "x" * 600 + " the end"}]), PROMPTS[0]], FEW
    )
    assert answers.shortened == ["long"]
    assert not answers.skipped
    asked = answers.completions[0].prompt
    assert asked[0] == system
    assert asked[1]["content"].endswith("x the end")
    # each byte is a token: all room but that of the answer is used
    assert len(tokenize_prompts(tokenizer, [("long", asked)])[0].token_ids) == 512 - 6


def test_cutting_leaves_out_the_oldest_turns_first(parts):
    turns = [
        {"role": "user", "content": "a" * 300},
        {"role": "assistant", "content": "b" * 100},
        {"role": "user", "content": "c" * 200},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e" * 100},
    ]
    answers = TransformersEngine(*parts, long_prompts="cut").answer([("turns", turns)], FEW)
    assert answers.completions[0].prompt == turns[2:]


def test_a_prompt_of_which_nothing_would_be_left_is_skipped(parts):
    messages = [{"role": "system", "content": "s" * 600}, {"role": "user", "content": "Hi"}]
    answers = TransformersEngine(*parts, long_prompts="cut").answer([("all-system", messages)], FEW)
    assert list(answers.skipped) == ["all-system"]
    assert answers.completions == []
