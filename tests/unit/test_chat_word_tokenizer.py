"""Texts cut into words have the tokens of whole texts; where words do not stand alone, none is cut."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from handbook_utils.chat import word_tokenizer
from handbook_utils.chat.segment_tokenizer import encode_texts
from handbook_utils.chat.word_tokenizer import WordTokenizer, words_stand_alone

# how families of models cut a text before it is tokenized
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = AddedToken("<|end|>", normalized=False, special=True)


def split_by(pattern: str, *before: Any) -> Any:
    return pre_tokenizers.Sequence(
        [
            *before,
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


CUTS = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": lambda: split_by(LLAMA3),
    "qwen2": lambda: split_by(LLAMA3.replace("{1,3}", "")),
    "o200k": lambda: split_by(O200K),
    "digits": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
SAMPLE = ["the  cat's 1234 mat.\n\n  - it  is\tso  \n é ー 中文 'll go\r\n"] * 4


@lru_cache
def tokenizer_of(cut: str, *, normalizer: Any = None, added: tuple[AddedToken, ...] = (END,)) -> Any:
    """A byte-pair tokenizer that has merged whatever its pre-tokenizer let it merge."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = {**CUTS, **ALONE_NOT}[cut]()
    made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(SAMPLE, trainer)
    made.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=made)


# a pre-tokenizer that joins words, one that looks back over the space, one that looks ahead
ALONE_NOT = {
    "whole texts": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "looks behind": lambda: split_by(r"(?<=the )\p{L}|\s|\S"),
    "looks ahead": lambda: split_by(r"the(?= cat)|\s|\S"),
    "words and spaces": lambda: split_by(r"\w+ |\s|\S"),
}
PARTS = [
    *("the", "cat", "'s", "'LL", " ", " ", "  ", "\n", "\t", "\r\n", "\x1c", "1234", ".", "-", "é", "中文"),
    *("🙂", "e\N{COMBINING ACUTE ACCENT}", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "<|end|>", "<|"),
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@pytest.mark.parametrize("normalizer", [None, "NFC"])
@pytest.mark.parametrize("cut", CUTS)
@settings(max_examples=60)
@given(texts=st.lists(TEXTS, max_size=4), places=st.lists(st.integers(0, 40), max_size=6))
def test_words_give_the_tokens_and_spans_of_the_whole_text(
    cut: str, normalizer: str | None, texts: list[str], places: list[int]
) -> None:
    tokenizer = tokenizer_of(cut, normalizer=NORMALIZERS[normalizer])
    words = words_of(cut, normalizer)
    spans = [[(a, b) for a, b in pairwise(places) if a < b <= len(text)] for text in texts]
    for _ in range(2):  # the second time all words are known
        ids, found = words.encode(texts, spans)
        assert [each.tolist() for each in ids] == [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        ]
        assert found == encode_texts(tokenizer, texts, spans)[1]
    assert words.splits


NORMALIZERS = {None: None, "NFC": normalizers.NFC()}


@lru_cache
def words_of(cut: str, normalizer: str | None) -> WordTokenizer:
    words = WordTokenizer(tokenizer_of(cut, normalizer=NORMALIZERS[normalizer]), patience=-1)
    words.encode([SAMPLE[0]])
    return words


@pytest.mark.parametrize("cut", ALONE_NOT)
def test_a_tokenizer_that_joins_words_is_given_whole_pieces(cut: str) -> None:
    tokenizer = tokenizer_of(cut)
    words = WordTokenizer(tokenizer, patience=-1)
    text = "the cat's mat.<|end|>the cat the cat"
    assert words.encode([text])[0][0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert words.splits is False


def test_words_of_a_tokenizer_that_joins_them_would_have_other_tokens() -> None:
    words = WordTokenizer(tokenizer := tokenizer_of("whole texts"), patience=-1)
    words.encode(["a"])
    words.splits = True
    assert words.encode(SAMPLE[:1])[0][0].tolist() != tokenizer(SAMPLE[0])["input_ids"]


@pytest.mark.parametrize(
    "added",
    [AddedToken("<|x|>", rstrip=True, normalized=False), AddedToken("the cat", normalized=False)],
    ids=["takes the space behind it", "holds a space"],
)
def test_an_added_token_that_reaches_over_a_space_keeps_words_together(added: AddedToken) -> None:
    assert words_stand_alone(tokenizer_of("gpt2"))
    assert not words_stand_alone(tokenizer_of("gpt2", added=(END, added)))


def test_a_tokenizer_that_changes_text_or_draws_merges_keeps_words_together() -> None:
    assert not words_stand_alone(tokenizer_of("gpt2", normalizer=NORMALIZERS_OTHER))
    drawn = tokenizer_of.__wrapped__("gpt2")
    drawn.backend_tokenizer.model.dropout = 0.1
    assert not words_stand_alone(drawn)


NORMALIZERS_OTHER = normalizers.Replace(" ", "_")


def test_each_word_is_tokenized_once_and_forgotten_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, seen = tokenizer_of("gpt2"), []
    encode = PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(
        PreTrainedTokenizerFast,
        "__call__",
        lambda self, text, **options: seen.extend(text) or encode(self, text, **options),
    )
    words = WordTokenizer(tokenizer, patience=-1)
    words.encode(["the cat the cat<|end|>", "cat the"])
    words.encode(["the cat"])
    assert sorted(seen) == [" cat", " the", "<|end|>", "cat", "the"]
    monkeypatch.setattr(word_tokenizer, "MOST_WORDS", 3)
    ids, _ = words.encode(["the mat"])
    assert seen[-2:] == ["the", " mat"]
    assert ids[0].dtype == np.int32


def test_few_texts_are_not_worth_finding_out() -> None:
    words = WordTokenizer(tokenizer_of("gpt2"), patience=10)
    words.encode(["the cat"])
    assert words.splits is None
    words.encode(["the cat"])
    assert words.splits is True
