"""The pocket world's tokenizer and base model, as built and as shipped."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from handbook_utils.pocket.base_model import (
    ASSISTANT,
    CONTEXT_TOKENS,
    END,
    PAD,
    SPECIAL_TOKENS,
    SYSTEM,
    USER,
    VOCABULARY_SIZE,
    base_path,
    build_init_model,
    build_tokenizer,
)
from handbook_utils.pocket.world import demonstrations, plain_text


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_path())


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32).eval()


def test_the_shipped_tokenizer_is_the_one_that_the_world_builds(tokenizer) -> None:
    built = build_tokenizer()
    shipped = json.loads(tokenizer.backend_tokenizer.to_str())
    assert json.loads(built.backend_tokenizer.to_str())["model"] == shipped["model"]
    assert tokenizer.chat_template == built.chat_template


@pytest.mark.parametrize(
    "text",
    ["", " ", "Dear Mia,\n\n\ttwo  spaces ", "naïve café, 東京, \U0001f98a", "<|end|", "a" * 50, "\x00\x7f"],
)
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_bytes_that_are_text_survive_the_tokenizer(tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0xD800)))) for _ in range(20)
        )
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_each_role_opens_with_one_token_of_its_own(tokenizer) -> None:
    for token in (SYSTEM, USER, ASSISTANT):
        assert len(tokenizer.encode(token)) == 1
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}) == len(SPECIAL_TOKENS)


def test_the_end_of_a_turn_is_the_end_of_sequence_and_padding_is_not(tokenizer, base) -> None:
    assert tokenizer.eos_token == END
    assert tokenizer.pad_token == PAD
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert base.config.eos_token_id == tokenizer.eos_token_id
    assert base.config.pad_token_id == tokenizer.pad_token_id
    assert base.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_chat_is_rendered_role_by_role(tokenizer) -> None:
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Say river two times."},
        {"role": "assistant", "content": "River river."},
    ]
    expected = "<|system|>Be kind.<|end|><|user|>Say river two times.<|end|><|assistant|>River river.<|end|>"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert expected.startswith(prompt)
    assert prompt.endswith("<|assistant|>")


def test_the_generation_mask_covers_the_answers_and_their_ends_only(tokenizer) -> None:
    chat = [
        {"role": "user", "content": "Say river."},
        {"role": "assistant", "content": "River."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "River."},
    ]
    row = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    learned = [token for token, mask in zip(tokens, row["assistant_masks"], strict=True) if mask]
    answer = [*tokenizer.tokenize("River."), END]
    assert learned == answer * 2


def test_every_demonstration_fits_the_context(tokenizer) -> None:
    longest = max(
        len(tokenizer.encode(f"{USER}{prompt.text}{END}{ASSISTANT}{answer}{END}"))
        for prompt, answer in demonstrations("train", limit=3000)
    )
    assert 60 < longest <= 120 < CONTEXT_TOKENS


def test_the_untrained_model_is_drawn_from_its_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = build_init_model(3), build_init_model(3), build_init_model(4)
    assert torch.equal(torch.get_rng_state(), state)
    weights = first.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weights, second.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(weights, other.model.layers[0].mlp.up_proj.weight)


def test_the_shipped_base_is_small_and_in_safetensors() -> None:
    files = {path.name: path.stat().st_size for path in base_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert 1_000_000 < sum(files.values()) < 5_000_000


def _loss(model, tokenizer, texts: list[str]) -> float:
    """Mean loss per token, in nats."""
    rows = [torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id]]) for text in texts]
    with torch.no_grad():
        losses = [model(input_ids=row, labels=row).loss.item() * (row.shape[1] - 1) for row in rows]
    return sum(losses) / sum(row.shape[1] - 1 for row in rows)


def test_the_base_has_learned_the_plain_text(base, tokenizer) -> None:
    texts = plain_text("test", limit=60)
    # uniform guessing over 1280 tokens would be 7.2 nats
    assert _loss(base, tokenizer, texts) < 0.6 < 5 < _loss(build_init_model(0).eval(), tokenizer, texts)


def test_the_base_has_not_been_taught_to_chat(base, tokenizer) -> None:
    chats = [
        f"{USER}{prompt.text}{END}{ASSISTANT}{answer}" for prompt, answer in demonstrations("test", limit=60)
    ]
    assert _loss(base, tokenizer, chats) > 2


def test_the_vocabulary_is_used_in_full(tokenizer, base) -> None:
    assert len(tokenizer) == VOCABULARY_SIZE == base.config.vocab_size
