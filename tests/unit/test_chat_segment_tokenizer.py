"""Texts cut into pieces have the tokens of whole texts, and rows the loss of the plain definition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from handbook_utils.chat.loss_masks import Turn, has_marks, split_turns, tokenize_turns
from handbook_utils.chat.segment_tokenizer import boundaries, encode_texts
from tests.chat_templates import FORGETFUL, TWO, UNMARKED, build_tokenizer, tokenizer_of, trl_tokenizer
from tests.tiny_models import CHAT_TEMPLATE

MERGES = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("a", "a"), ("Ġ", "a"), ("ĊĊ", "a")]


def merging(tokenizer: Any) -> Any:
    """The tokenizer with merges, so that what stands left and right of a place matters to its tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["pre_tokenizer"]["use_regex"] = False
    for left, right in MERGES:
        state["model"]["vocab"][left + right] = max(state["model"]["vocab"].values()) + 1
    # the added tokens keep their ids
    state["model"]["merges"] = [list(pair) for pair in MERGES]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


TOKENIZERS = {
    "marked": merging(tokenizer_of(CHAT_TEMPLATE)),
    "unmarked": merging(tokenizer_of(UNMARKED)),
    "forgetful": merging(tokenizer_of(FORGETFUL)),
    "no special token": merging(build_tokenizer(UNMARKED, eos="<|pad|>")),
    **{
        name: merging(trl_tokenizer(name))
        for name in ("qwen3", "qwen3_training", "llama3_training", "gemma_training", "phi3_5", "gptoss")
    },
}
# letters that merge, white space at the ends, forged special tokens, marks of thinking
TEXTS = st.lists(
    st.sampled_from(
        ["a", "é", "\n", " ", "<", "|", "<|im_end|>", "<|end|>", "<|end", "<think>", "</think>", "ß🙂"]
    ),
    min_size=1,
    max_size=6,
).map("".join)
EXCHANGES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


def plainly(tokenizer: Any, turn: Turn) -> tuple[list[int], list[bool], int, int]:
    """The definition, as the tokenizer itself renders: (ids, loss, start, prompt tokens)."""
    whole = [*turn.prompt, *turn.answer]
    marked = has_marks(tokenizer)
    found = tokenizer.apply_chat_template(whole, return_dict=True, return_assistant_tokens_mask=marked)
    prompt = tokenizer.apply_chat_template(list(turn.prompt), add_generation_prompt=True)["input_ids"]
    ids = found["input_ids"]
    start = 0
    while start < min(len(prompt), len(ids)) and prompt[start] == ids[start]:
        start += 1
    inside = found["assistant_masks"] if marked else [1] * len(ids)
    return ids, [place >= start and bool(mark) for place, mark in enumerate(inside)], start, len(prompt)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(talks=st.lists(EXCHANGES, min_size=1, max_size=3))
def test_rows_are_those_of_the_plain_definition(
    name: str, talks: Sequence[Sequence[tuple[str, str]]]
) -> None:
    tokenizer = TOKENIZERS[name]
    turns = [
        turn
        for talk in talks
        for turn in split_turns(
            [
                {"role": role, "content": text}
                for exchange in talk
                for role, text in zip(("user", "assistant"), exchange, strict=True)
            ]
        )
    ]
    rows = tokenize_turns(tokenizer, turns)
    assert [(row.ids, row.loss, row.start, row.prompt_tokens) for row in rows] == [
        plainly(tokenizer, turn) for turn in turns
    ]


def prefixing_tokenizer(*added: AddedToken) -> Any:
    """Puts a mark and a space in front of a text, lowers it, and knows a few letters."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz<>|_.\n ", "▁a", "ab", "aa"]
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[("▁", "a"), ("a", "b"), ("a", "a")])
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


ADDED = {
    "plain": AddedToken("<a>", normalized=False),
    "takes the space before it": AddedToken("<a>", lstrip=True, normalized=False),
    "takes the space behind it": AddedToken("<a>", rstrip=True, normalized=False),
    "a word of its own": AddedToken("<a>", single_word=True, normalized=False),
    "normalised": AddedToken("<A>", normalized=True),
    "letters": AddedToken("ab", normalized=False),
}
OTHERS = {
    "nothing": [],
    "a longer one": [AddedToken("<a>b", lstrip=True, normalized=False)],
    "one that ends in it": [AddedToken("b<", normalized=False)],
    "one beside it": [AddedToken("<b>", lstrip=True, rstrip=True, normalized=False)],
    "a word": [AddedToken("zz", single_word=True, normalized=False)],
}
ROUGH = st.lists(
    st.sampled_from(["<a>", "<A>", "<b>", "a", "b", "ab", "zz", " ", " <a>b", "\n", "<", ">", "_"]),
    max_size=10,
)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ADDED)
@settings(max_examples=40)
@given(texts=st.lists(ROUGH.map("".join), max_size=4))
def test_pieces_give_the_tokens_of_the_whole_text(kind: str, other: str, texts: list[str]) -> None:
    tokenizer = prefixing_tokenizer(ADDED[kind], *OTHERS[other])
    ids, _ = encode_texts(tokenizer, texts)
    assert ids == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_each_piece_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(UNMARKED)
    seen: list[str] = []
    encode = PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(
        PreTrainedTokenizerFast,
        "__call__",
        lambda self, text, **options: seen.extend(text) or encode(self, text, **options),
    )
    tokenize_turns(tokenizer, split_turns(TWO))
    assert sorted(seen) == sorted(
        [*("<|user|>Hi", "<|user|>Bye", "<|end|>", "<|assistant|>", "<|assistant|>Yo", "<|assistant|>So")]
    )


def test_special_tokens_that_the_tokenizer_is_told_to_split_are_noboundaries() -> None:
    tokenizer = tokenizer_of(UNMARKED)
    text = "<|user|>Hi<|end|>"
    assert boundaries(tokenizer, text) is not None
    tokenizer.split_special_tokens = True
    assert boundaries(tokenizer, text) is None
    assert encode_texts(tokenizer, [text])[0] == [tokenizer(text)["input_ids"]]
