"""Prompts held once while their samples are decoded: no model's numbers change, and what ends is freed."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from handbook_utils.libraries.transformers_internals import attention_of
from handbook_utils.sampling.generation.engines.batches import Batch, Waiting
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.rows import CopiedRows, SharedRows, first_rows
from handbook_utils.sampling.generation.engines.transformers import SampledTokens, sample_tokens
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.shared_prefix.decoder import decoder_of
from handbook_utils.shared_prefix.prompt_attention import why_not_once
from handbook_utils.shared_prefix.prompt_cache import PromptBlock
from tests.tiny_models import ARCHITECTURES, build_tiny_tokenizer, tiny_config

VOCABULARY = 263
STOPS = frozenset(range(7, 17))
NO_STOPS = frozenset({VOCABULARY})
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, build_tiny_tokenizer(), **changes))
    return model.eval()


def prompts(*lengths: int) -> list[TokenPrompt]:
    noise = np.random.default_rng(0)
    return [
        TokenPrompt(f"p{row}", noise.integers(17, VOCABULARY, length).tolist())
        for row, length in enumerate(lengths)
    ]


def rows_made(
    monkeypatch: pytest.MonkeyPatch,
    model: PreTrainedModel,
    asked: list[TokenPrompt],
    *,
    shared: bool,
    stops: frozenset[int] = STOPS,
    **settings: Any,
) -> list[SampledTokens]:
    """Sample with prompts held once, which has to happen, or with a copy of them per sample."""
    from handbook_utils.sampling.generation.engines import rows

    used: list[object] = []

    def first(*given: Any) -> Any:
        begun = first_rows(*given)
        used.append(type(begun[0]))
        return begun

    with monkeypatch.context() as patch:
        if not shared:
            patch.setattr(rows, "why_not_once", lambda *_: "the test wants copies")
        patch.setattr("handbook_utils.sampling.generation.engines.transformers.first_rows", first)
        made = sample_tokens(model, asked, settings=SamplingSettings(**settings), stop_ids=stops)
    assert used == [SharedRows if shared else CopiedRows]
    return made


def assert_same(mine: list[SampledTokens], theirs: list[SampledTokens]) -> None:
    """Equal tokens, and log-probabilities to 1e-4 per token."""
    assert [row.token_ids for row in mine] == [row.token_ids for row in theirs]
    assert [row.finish_reason for row in mine] == [row.finish_reason for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4 * len(one.token_ids))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_a_copied_prompt_for_every_architecture(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of unlike length, ends at random, places that the next prompt takes."""
    model, asked = build(architecture), prompts(40, 9, 23, 22, 1, 17)
    settings = {"samples": 6, "max_new_tokens": 14, "rows_per_batch": 18}
    mine, theirs = (
        rows_made(monkeypatch, model, asked, shared=shared, **settings) for shared in (True, False)
    )
    assert_same(mine, theirs)
    assert {row.finish_reason for row in mine} == {"stop", "length"}
    assert attention_of(decoder_of(model).config) == "sdpa", "the model's own attention is put back"


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [1.0, 30.0])
def test_heads_in_groups_and_sharp_attention_agree(
    heads: int, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights that make attention pick single tokens, a wrong key would change every logit."""
    model = build("llama", num_attention_heads=4, num_key_value_heads=heads, head_dim=16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name:
                weight *= bias
    asked = prompts(31, 30, 12)
    mine, theirs = (
        rows_made(monkeypatch, model, asked, shared=shared, samples=5, max_new_tokens=12)
        for shared in (True, False)
    )
    assert_same(mine, theirs)


# asked for by the older of its two names, as the installed peft does
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning")
def test_an_adapter_agrees_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    mine, theirs = (
        rows_made(monkeypatch, model, prompts(20, 7), shared=shared, samples=4, max_new_tokens=8)
        for shared in (True, False)
    )
    assert_same(mine, theirs)


@pytest.mark.parametrize("rows_per_batch", [1, 4, 7, 30, 500])
def test_no_size_of_batch_changes_an_answer(rows_per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build("llama"), prompts(12, 3, 25, 8, 8)
    settings = {"samples": 5, "max_new_tokens": 10}
    alone = [
        row for prompt in asked for row in rows_made(monkeypatch, model, [prompt], shared=True, **settings)
    ]
    assert_same(
        rows_made(monkeypatch, model, asked, shared=True, rows_per_batch=rows_per_batch, **settings), alone
    )


def test_log_probabilities_in_bfloat16_are_as_near_to_float32_as_those_of_copied_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both ways in bfloat16 against float32: 48 answers of two tokens, so that none has drifted."""
    exact, asked = build("llama"), prompts(60, 41, 23, 60, 35, 12)
    settings = {"samples": 8, "max_new_tokens": 2, "stops": NO_STOPS}
    expected = {
        (row.prompt_id, row.sample_index): row
        for row in rows_made(monkeypatch, exact, asked, shared=True, **settings)
    }
    coarse = build("llama").to(torch.bfloat16)
    errors = {}
    for shared in (True, False):
        made = rows_made(monkeypatch, coarse, asked, shared=shared, **settings)
        same = [
            (row.logprob, expected[row.prompt_id, row.sample_index].logprob)
            for row in made
            if row.token_ids == expected[row.prompt_id, row.sample_index].token_ids
        ]
        assert len(same) > 24  # of 48; how many depends on how a CPU rounds
        errors[shared] = float(np.mean([abs(one - other) for one, other in same]))
    assert 0 < errors[True] < 1.2 * errors[False]


def test_a_prompt_is_held_once_and_what_has_ended_is_freed() -> None:
    """2 prompts of 10 tokens, 3 samples each, 2 heads of 4 in float32: by hand."""
    token = 2 * 4 * 4 * 2  # heads, width, bytes, keys and values
    states = torch.randn(2, 2, 10, 4)
    block = PromptBlock([(states, states.clone())], None, samples=3)
    assert block.held_bytes == 2 * 10 * token
    for _ in range(3):
        block.append(0, torch.randn(6, 2, 1, 4), torch.randn(6, 2, 1, 4))
    assert block.held_bytes == 2 * 10 * token + 6 * (1 + 8) * token
    block.select(torch.tensor([0, 2, 3]))
    assert block.held_bytes == 2 * 10 * token + 3 * (1 + 8) * token, "rows that ended"
    block.select(torch.tensor([0, 1]))
    assert block.held_bytes == 10 * token + 2 * (1 + 8) * token, "a prompt that nobody answers any more"


def test_attention_of_rows_is_that_over_prompt_and_tail_written_out() -> None:
    """Three prompts, one padded, of which rows leave unevenly, against a plain softmax per row."""
    draw = torch.Generator().manual_seed(0)

    def states(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    keys, values = states(3, 2, 5, 4), states(3, 2, 5, 3)
    kept = torch.ones(3, 5, dtype=torch.bool)
    kept[1, :2] = False
    block = PromptBlock([(keys, values)], kept, samples=3)
    own_keys, own_values = states(9, 2, 1, 4), states(9, 2, 1, 3)
    block.append(0, own_keys, own_values)
    chosen = torch.tensor([0, 3, 4, 5, 7, 8])
    block.select(chosen)
    query = states(6, 6, 4)
    found = block.attend(0, query)
    for place, row in enumerate(chosen.tolist()):
        prompt = row // 3
        for head in range(6):
            together = torch.cat([keys[prompt, head // 3, kept[prompt]], own_keys[row, head // 3]])
            weights = (together @ query[place, head]).softmax(0)
            read = weights @ torch.cat([values[prompt, head // 3, kept[prompt]], own_values[row, head // 3]])
            torch.testing.assert_close(found[place, head], read, rtol=1e-6, atol=1e-6)


def unlike(kind: str) -> tuple[PreTrainedModel, str]:
    """A model that keeps the copied way, and what the log says of it."""
    common = {**SMALL, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "soft cap":
        return Gemma2ForCausalLM(
            Gemma2Config(**common, num_key_value_heads=1, head_dim=8, attn_implementation="eager")
        ), "attention 'eager' is not 'sdpa'"
    if kind == "window":
        return build("mistral", sliding_window=8), "longer than its sliding window of 8 tokens"
    if kind == "convolution":
        return build("lfm2", layer_types=["conv", "full_attention"]), "a layer of another kind"
    model = LlamaForCausalLM(LlamaConfig(**common))
    attention = model.model.layers[1].self_attn
    plain = attention.forward
    attention.forward = lambda *given, **more: plain(*given, **more | {"temperature_of_keys": 1.0})
    return model, "its attention takes temperature_of_keys"


@pytest.mark.parametrize("kind", ["soft cap", "window", "convolution", "setting"])
def test_a_model_for_which_it_is_not_exact_copies_and_the_log_says_why_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, reason = unlike(kind)
    asked = [TokenPrompt("p", [5, 6, 7, 8, 9]), TokenPrompt("q", [5, 6, 7])]
    settings = SamplingSettings(samples=3, max_new_tokens=6, temperature=0)
    with caplog.at_level(logging.INFO, logger="handbook_utils"):
        for _ in range(2):
            made = sample_tokens(model, asked, settings=settings, stop_ids=frozenset({999}))
    [said] = [record.message for record in caplog.records if "own copy of the prompt" in record.message]
    assert reason in said
    ids = torch.tensor([[5, 6, 7]])
    whole = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": 999}  # as above: nothing ends it early
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **whole)
    assert made[-1].token_ids == expected[0, 3:].tolist()


def test_a_state_along_the_row_is_never_held_once() -> None:
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4))
    assert why_not_once(model, tokens=1) == "mamba keeps a state along the row"


def test_a_window_that_no_answer_reaches_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(20, 11)
    mine, theirs = (
        rows_made(
            monkeypatch,
            build("mistral", sliding_window=28),
            asked,
            shared=shared,
            samples=3,
            max_new_tokens=8,
        )
        for shared in (True, False)
    )
    assert_same(mine, theirs)


def test_positions_learned_as_embeddings_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    ).eval()
    mine, theirs = (
        rows_made(monkeypatch, model, prompts(20, 7), shared=shared, samples=4, max_new_tokens=8)
        for shared in (True, False)
    )
    assert_same(mine, theirs)


def taken(waiting: Waiting, running: int, worth: float = np.inf) -> list[tuple[list[str], range]]:
    def names(batch: Batch) -> list[str]:
        return [prompt.prompt_id for prompt in batch.prompts]

    return [(names(batch), batch.samples) for batch in waiting.take(running, worth=worth)]


def test_the_next_prompts_begin_once_a_quarter_of_the_rows_is_free() -> None:
    waiting = Waiting(prompts(9, 8, 7, 6, 5), SamplingSettings(samples=4, rows_per_batch=16))
    assert taken(waiting, 0) == [(["p0", "p1", "p2", "p3"], range(4))]
    assert taken(waiting, 13) == []
    assert taken(waiting, 12) == [(["p4"], range(4))]
    assert taken(waiting, 0) == []


def test_a_prompt_with_more_samples_than_rows_comes_again_for_the_rest() -> None:
    waiting = Waiting(prompts(9, 8), SamplingSettings(samples=5, rows_per_batch=3))
    seen = [taken(waiting, 0) for _ in range(4)]
    assert seen == [[([name], samples)] for name in ("p0", "p1") for samples in (range(3), range(3, 5))]


def test_places_of_ended_answers_are_taken_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer passes than one batch after another would take, and never more rows than allowed."""
    model, asked = build("llama"), prompts(*[10] * 12)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for shared, seen in sizes.items():
        handle = model.get_input_embeddings().register_forward_hook(
            lambda _, given, __, seen=seen: seen.append(len(given[0]) if given[0].shape[1] == 1 else 0)
        )
        rows_made(monkeypatch, model, asked, shared=shared, samples=4, max_new_tokens=40, rows_per_batch=16)
        handle.remove()
    assert max(sizes[True]) <= 16
    decoding = {shared: sum(size > 0 for size in seen) for shared, seen in sizes.items()}
    assert decoding[True] < 0.8 * decoding[False]
