"""Rows that begin alike as one row: the layout, and that no model's numbers change by it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from handbook_utils.models.logprobs import reward_scores, sequence_logprob_sums
from handbook_utils.shared_prefix.decoder import (
    decoder_of,
    pass_overhead,
    shared_prefixes,
    why_not_shared,
    why_padded,
    without_padding,
)
from handbook_utils.shared_prefix.layout import (
    PADDING,
    attention,
    rows_together,
    runs_of_like_width,
    share_rows,
)
from tests.tiny_models import ARCHITECTURES, build_tiny_tokenizer, tiny_config

Batch = tuple[np.ndarray, np.ndarray, list[int]]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Padded rows over a small alphabet, so that rows of a group often begin alike, with their groups."""
    rows = draw(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=7), min_size=1, max_size=6))
    groups = draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max() + draw(st.integers(0, 2))), dtype=np.int64)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = row
    return ids, lengths, groups


@given(batches())
def test_every_token_finds_its_way_there_and_back(batch: Batch) -> None:
    ids, lengths, groups = batch
    rows = share_rows(ids, lengths, groups)
    is_token = np.arange(ids.shape[1]) < lengths[:, None]
    assert ((rows.places != PADDING) == is_token).all()
    shared_ids = np.where(rows.sources == PADDING, 0, ids.flatten()[rows.sources])
    assert (shared_ids.flatten()[rows.places[is_token]] == ids[is_token]).all()
    column = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    assert (rows.positions.flatten()[rows.places[is_token]] == column[is_token]).all()
    assert set(rows.places[is_token]) == set(np.flatnonzero(rows.parts != PADDING)), (
        "a token nobody asked for"
    )


@given(batches())
def test_every_token_attends_to_what_comes_before_it_in_its_own_row_and_to_nothing_else(batch: Batch) -> None:
    ids, lengths, groups = batch
    rows = share_rows(ids, lengths, groups)
    allowed = attention(rows.parts)
    width = rows.parts.shape[1]
    assert allowed.any(axis=-1).all(), "a softmax over nothing"
    for row, length in enumerate(lengths):
        places = rows.places[row, :length]
        for position, place in enumerate(places):
            keys = place // width * width + np.flatnonzero(allowed[place // width, place % width])
            assert keys.tolist() == sorted(places[: position + 1])


@given(batches())
def test_what_a_group_has_in_common_stands_once(batch: Batch) -> None:
    ids, lengths, groups = batch
    expected = 0
    for group in set(groups):
        members = [ids[row, : lengths[row]].tolist() for row, own in enumerate(groups) if own == group]
        common = 0
        while all(len(row) > common and row[common] == members[0][common] for row in members):
            common += 1
        expected += common + sum(len(row) - common for row in members)
    assert share_rows(ids, lengths, groups).tokens == expected


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 50))
def test_runs_of_like_width_hold_every_row_once_and_cost_least(widths: list[int], overhead: int) -> None:
    def cost(ends: list[int]) -> int:
        falling = sorted(widths, reverse=True)
        begins = [0, *ends[:-1]]
        return sum((end - begin) * falling[begin] + overhead for begin, end in zip(begins, ends, strict=True))

    runs = runs_of_like_width(np.array(widths), overhead)
    assert sorted(np.concatenate(runs).tolist()) == list(range(len(widths)))
    cuts = itertools.product([False, True], repeat=len(widths) - 1)
    every_way = ([end for end, cut in enumerate(way, 1) if cut] + [len(widths)] for way in cuts)
    assert cost(np.cumsum([len(run) for run in runs]).tolist()) == min(map(cost, every_way))


def test_as_many_rows_stand_together_as_is_cheapest() -> None:
    def cost(together: int, prefix: int, own: int, size: int) -> float:
        return prefix / together + (prefix + together * own) ** 2 / (6 * size * together)

    for case in ((200, 64, 256), (15, 20, 128), (400, 200, 256), (2000, 64, 4096)):
        cheapest = min(range(1, 500), key=lambda together, case=case: cost(together, *case))
        assert rows_together(*case) == cheapest


def pair_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four pairs as TRL lays them out, with no common prefix, equal rows and one-token answers among them."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(7, 260, (count,), generator=draw).tolist()

    prompts = [[], tokens(9), tokens(14), tokens(5)]
    same = tokens(6)
    chosen = [tokens(12), same, tokens(1), tokens(20)]
    rejected = [tokens(3), same, tokens(1), tokens(11)]
    rows = [
        prompt + answer
        for answers in (chosen, rejected)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    ids = torch.zeros((len(rows), max(map(len, rows)) + 2), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
        mask[line, : len(row)] = 1
    return ids, mask


def build(architecture: str, head: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = {"num_labels": 1} if head is AutoModelForSequenceClassification else {}
        return head.from_config(tiny_config(architecture, build_tiny_tokenizer(), **labels, **changes))


def loss_and_gradients(
    model: Any, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """DPO's and a reward model's loss without their constants, and every parameter's gradient."""
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if out.dim() == 3:
        logps = out[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        score = (logps * mask[:, 1:]).sum(dim=1)
    else:
        score = out.squeeze(-1)
    chosen, rejected = score.chunk(2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).sum()
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.detach(), gradients


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """How many tokens, padding among them, each pass sends through the first layer."""
    counts: list[int] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    yield counts
    handle.remove()


def compare(model: Any) -> None:
    """Loss to 1e-5 and gradients to 1e-4 relative, with sharing and without; it has to have happened."""
    ids, mask = pair_batch()
    plain, expected = loss_and_gradients(model, ids, mask)
    with shared_prefixes(model), counted_tokens(model) as counts:
        shared, found = loss_and_gradients(model, ids, mask)
    assert counts[0] < ids.numel()
    assert "forward" not in vars(decoder_of(model))
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    assert any(gradient.norm() > 1e-3 for gradient in found.values())
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        # a key's bias moves no softmax: its gradient is rounding, and has nothing to be relative to
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("head", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_separate_rows(architecture: str, head: Any) -> None:
    compare(build(architecture, head))


@pytest.mark.parametrize("changes", [{"attn_implementation": "eager"}, {"num_key_value_heads": 2}])
def test_eager_attention_and_a_head_each_for_keys_agree_too(changes: dict[str, Any]) -> None:
    compare(build("llama", **changes))


# it says that it is not compiled, which is on purpose
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flexible_attention_agrees_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone, and not compiled: PyTorch has no backward pass of it on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as integration

    monkeypatch.setattr(integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    ids, mask = pair_batch()
    expected = build("llama").eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits
    model = build("llama", attn_implementation="flex_attention").eval()
    with shared_prefixes(model), counted_tokens(model) as counts, torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert counts[0] < ids.numel()
    kept = mask.bool()
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-5)


# checkpointing by the older of its two names, as the installed peft and trl ask for it
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning")
def test_an_adapter_and_gradient_checkpointing_agree_too() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    compare(model)


def unlike_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows, one of them far longer than the others: its padding is worth two passes."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([300, 6, 9, 7])
    mask = (torch.arange(300) < lengths[:, None]).long()
    return torch.randint(1, 20, mask.shape, generator=draw) * mask, mask


@pytest.mark.parametrize("head", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_padded_rows(architecture: str, head: Any) -> None:
    model = build(architecture, head)
    ids, mask = unlike_batch()
    plain, expected = loss_and_gradients(model, ids, mask)
    with without_padding(model), counted_tokens(model) as counts:
        found_loss, found = loss_and_gradients(model, ids, mask)
    assert counts == [300, 3 * 9], "the long row by itself, the short ones together"
    torch.testing.assert_close(found_loss, plain, rtol=1e-5, atol=1e-6)
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole, name


def test_pairs_of_unlike_length_share_their_prompts_and_skip_their_padding() -> None:
    model = build("llama")
    lengths = torch.tensor([[200, 12, 13, 11], [230, 14, 12, 15]])  # of the chosen rows and the rejected ones
    mask = (torch.arange(230) < lengths.flatten()[:, None]).long()
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(1, 20, (4, 230), generator=draw)
    ids = torch.cat([prompts, prompts])
    ids[4:, 10:] = torch.randint(1, 20, (4, 220), generator=draw)
    ids[:4, 10], ids[4:, 10] = 1, 2  # answers differ from their first token on
    ids *= mask
    plain, expected = loss_and_gradients(model, ids, mask)
    with shared_prefixes(model, skip_padding=True), counted_tokens(model) as counts:
        found_loss, found = loss_and_gradients(model, ids, mask)
    assert counts == [200 + 230 - 10, 3 * (12 + 14 - 10)], "the long pair by itself, the short ones together"
    torch.testing.assert_close(found_loss, plain, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_padding_is_computed_where_leaving_it_out_costs_more_or_changes_something() -> None:
    model = build("llama")
    ids, mask = unlike_batch()

    def passes(model: Any, **given: Any) -> list[int]:
        with without_padding(model), counted_tokens(model) as counts, torch.inference_mode():
            model(**given)
        return counts

    assert passes(model, input_ids=ids, attention_mask=mask, use_cache=False) == [300, 27]
    few = {"input_ids": ids[1:, :9], "attention_mask": mask[1:, :9]}
    assert passes(model, **few, use_cache=False) == [27], "a pass of its own costs more than three tokens"
    assert passes(model, input_ids=ids, attention_mask=mask.flip(1)) == [1200], "padded on the left"
    assert passes(model, input_ids=ids, attention_mask=mask, use_cache=True) == [1200]
    assert passes(model, input_ids=ids, attention_mask=mask, output_hidden_states=True) == [1200]
    assert passes(model, input_ids=ids) == [1200], "no mask: every token is one"
    nothing = mask.clone()
    nothing[1] = 0
    assert passes(model, input_ids=ids, attention_mask=nothing, use_cache=False) == [1200], "a row of nothing"
    balanced = build("mixtral", output_router_logits=True, router_aux_loss_coef=0.02)
    with pytest.raises(ValueError, match="router's logits"), without_padding(balanced):
        pass
    assert "router's logits" in str(why_padded(balanced))
    assert pass_overhead(64) > pass_overhead(512) > 30


def tokens_computed(model: Any, ids: torch.Tensor, **given: Any) -> int:
    with shared_prefixes(model), counted_tokens(model) as counts, torch.inference_mode():
        model(input_ids=ids, **given)
    return counts[0]


def test_only_what_is_exact_is_shared() -> None:
    ids, mask = pair_batch()
    model = build("llama")
    assert tokens_computed(model, ids, attention_mask=mask) < ids.numel()
    assert tokens_computed(model, ids, attention_mask=mask.flip(1)) == ids.numel(), "padded on the left"
    assert tokens_computed(model, ids, attention_mask=mask, use_cache=True) == ids.numel()
    narrow = build("mistral", sliding_window=8)
    assert tokens_computed(narrow, ids, attention_mask=mask) == ids.numel(), "rows are longer than the window"
    assert tokens_computed(build("mistral"), ids, attention_mask=mask) < ids.numel()


def test_a_model_that_cannot_share_says_why() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4))
    balanced = build("mixtral", output_router_logits=True, router_aux_loss_coef=0.02)
    flash = build("llama")
    flash.config._attn_implementation = "flash_attention_2"
    for model, reason in ((mamba, "keeps a state"), (balanced, "router_aux_loss_coef"), (flash, "sdpa does")):
        assert reason in str(why_not_shared(model))
        with pytest.raises(ValueError, match=reason), shared_prefixes(model):
            pass
    assert why_not_shared(build("mixtral", output_router_logits=True, router_aux_loss_coef=0.0)) is None


def test_scores_and_logprobs_of_many_answers_to_a_prompt_equal_those_of_one_row_at_a_time() -> None:
    tokenizer = build_tiny_tokenizer()
    prompts = [
        [{"role": "user", "content": text}] for text in ("What is the capital of Peru?", "Add 2 and 3.")
    ]
    rows = [(prompt, f"answer {'x' * number}") for number in range(11) for prompt in prompts]
    judge = build("qwen3", AutoModelForSequenceClassification).eval()
    alone = [reward_scores(judge, tokenizer, [row])[0] for row in rows]
    np.testing.assert_allclose(reward_scores(judge, tokenizer, rows, batch_size=5), alone, atol=1e-5)

    model = build("qwen3").eval()
    draw = np.random.default_rng(0)
    sequences = [([7, 8, 9, 10, *draw.integers(7, 260, size=size).tolist()], 4) for size in range(1, 13)]
    kwargs = {"pad_token_id": tokenizer.pad_token_id}
    together, _ = sequence_logprob_sums(model, sequences, **kwargs)
    alone = [sequence_logprob_sums(model, [each], **kwargs)[0][0] for each in sequences]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
