"""Batched log-probabilities and rewards equal a loop over single rows without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, TemplateError
from handbook_utils.models import logprobs
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.logprobs import (
    Conversation,
    render_ids,
    response_logprob_sums,
    response_logprobs,
    reward_scores,
    sequence_logprob_sums,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(str(tiny_model_folder))


@pytest.fixture(scope="module")
def policy(tiny_model_folder: Path) -> Any:
    return load_model(str(tiny_model_folder), device="cpu")


@pytest.fixture
def rows(conversations_file: Path) -> list[Conversation]:
    dataset = load_dataset(str(conversations_file), kind="conversation")
    return [(row["prompt"], row["completion"][0]["content"]) for row in dataset]


def naive_logprob(model: Any, tokenizer: Any, row: Conversation) -> float:
    """Sum of log p(token | all before it) over the answer and its end, one row, no padding."""
    prompt, response = row
    opening = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
    answer = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([opening + answer])).logits[0].double()
    logps = torch.log_softmax(logits, dim=-1)
    return sum(logps[len(opening) + index - 1, token].item() for index, token in enumerate(answer))


def test_response_logprobs_equal_a_loop_over_single_rows(
    policy: Any, tokenizer: Any, rows: list[Conversation]
) -> None:
    expected = [naive_logprob(policy, tokenizer, row) for row in rows]
    found = response_logprobs(policy, tokenizer, rows, batch_size=5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_long_rows_of_a_large_vocabulary_are_passed_fewer_at_once(
    policy: Any, tokenizer: Any, rows: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(render_ids(tokenizer, *row)[0]) for row in rows)
    monkeypatch.setattr(logprobs, "LOGITS_PER_PASS", 2 * longest * policy.config.vocab_size + 1)
    passes: list[int] = []
    hook = policy.register_forward_pre_hook(
        lambda _, __, arguments: passes.append(len(arguments["input_ids"])), with_kwargs=True
    )
    few = response_logprobs(policy, tokenizer, rows)
    hook.remove()
    assert max(passes) == 2
    assert sum(passes) == len(rows)
    monkeypatch.undo()
    np.testing.assert_allclose(few, response_logprobs(policy, tokenizer, rows), rtol=0, atol=1e-4)


def test_the_batch_size_does_not_change_logprobs(
    policy: Any, tokenizer: Any, rows: list[Conversation]
) -> None:
    one = response_logprobs(policy, tokenizer, rows, batch_size=1)
    many = response_logprobs(policy, tokenizer, rows, batch_size=100)
    np.testing.assert_allclose(one, many, rtol=1e-5)


def test_a_uniform_model_gives_minus_log_vocabulary_a_token(tiny_model_folder: Path, tokenizer: Any) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")
    torch.nn.init.zeros_(model.lm_head.weight)
    sums, counts = response_logprob_sums(
        model,
        tokenizer,
        [([{"role": "user", "content": "Hi"}], "Yes"), ([{"role": "user", "content": "H"}], "")],
    )
    # "Yes" is three bytes and the end of turn; the empty answer is the end of turn alone
    assert counts.tolist() == [4, 1]
    np.testing.assert_allclose(sums, [-4 * np.log(263), -1 * np.log(263)], rtol=1e-6)


def test_the_response_begins_after_the_generation_prompt_and_ends_with_the_end_of_turn(
    tokenizer: Any,
) -> None:
    ids, start = render_ids(tokenizer, [{"role": "user", "content": "Hi"}], "Yes")
    assert tokenizer.decode(ids[:start]) == "<|user|>Hi<|end|><|assistant|>"
    assert tokenizer.decode(ids[start:]) == "Yes<|end|>"


def test_a_template_that_changes_the_prompt_is_refused(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model_folder))
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(TemplateError, match="renders a prompt otherwise"):
        render_ids(tokenizer, [{"role": "user", "content": "Hi"}], "Yes")


def test_a_sequence_without_a_predicted_token_is_refused(policy: Any) -> None:
    with pytest.raises(DataError, match="row 2 has no token"):
        sequence_logprob_sums(policy, [([5, 6], 0), ([5], 0)], pad_token_id=0)


def test_reward_scores_equal_a_loop_over_single_rows(
    tiny_model_folder: Path, tokenizer: Any, rows: list[Conversation]
) -> None:
    torch.manual_seed(0)
    model = load_model(str(tiny_model_folder), head="reward", device="cpu")
    expected = []
    for prompt, response in rows:
        messages = [*prompt, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        with torch.no_grad():
            expected.append(model(torch.tensor([ids])).logits.item())
    assert np.std(expected) > 1e-3  # scores that are all alike would agree whatever the code does
    np.testing.assert_allclose(reward_scores(model, tokenizer, rows, batch_size=7), expected, atol=1e-5)


def test_a_row_is_filled_with_the_padding_that_the_reward_model_knows(
    tiny_model_folder: Path, tokenizer: Any, rows: list[Conversation]
) -> None:
    # transformers 5.24 finds the last token of a row by the configuration's padding token, not by the mask
    model = load_model(str(tiny_model_folder), head="reward", device="cpu")
    model.config.pad_token_id = tokenizer.convert_tokens_to_ids("!")
    assert model.config.pad_token_id != tokenizer.pad_token_id
    alone = [reward_scores(model, tokenizer, [row])[0] for row in rows[:6]]
    np.testing.assert_allclose(reward_scores(model, tokenizer, rows[:6]), alone, atol=1e-5)


def test_samples_of_one_prompt_are_scored_each_by_its_own_answer(
    tiny_model_folder: Path, tokenizer: Any
) -> None:
    torch.manual_seed(0)
    model = load_model(str(tiny_model_folder), head="reward", device="cpu")
    prompt = [{"role": "user", "content": "Hi"}]
    rows = [(prompt, text) for text in ("a", "something longer", "a")]
    scores = reward_scores(model, tokenizer, rows)  # type: ignore[arg-type]
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)
