"""Tokenize many texts, each word once: what stands between two spaces has the same tokens wherever it is.

That holds for tokenizers whose pre-tokenizer never joins a letter and the space behind it, as those of
GPT-2, Llama 3 and Qwen. It is found out by trying, on all short neighbourhoods of a space; other tokenizers
are given the larger pieces of `segment_tokenizer.py`. Tokens stay arrays, without a Python object for each.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, chain, count, islice, pairwise, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handbook_utils.chat.render import Span
from handbook_utils.chat.segment_tokenizer import boundaries, cut, spans_in_tokens

Ids = NDArray[np.int32]
# kinds of characters that pre-tokenizers tell apart, tried on both sides of a space
_KINDS = (
    "a",
    "B",
    "s",
    "7",
    "'",
    ".",
    "_",
    "\n",
    "\r",
    "\t",
    " ",
    "é",
    "中",
    "\N{COMBINING ACUTE ACCENT}",
    "🙂",
)
# what may decide by more than the neighbours of a space: looking behind or ahead, but for the usual one
_LOOKS = re.compile(r"\(\?<[=!]|\(\?=|\(\?!(?!\\\\S\))|\\\\[bBGAzZ]")
# a space behind white space belongs to it; only a space behind anything else begins a word
_UNEVEN = re.compile(r"[^\S ] ")
_WORD = re.compile(r"\s*\S+(?:[^\S ]\s*\S*)*|\s+")
# white space that few texts hold; to look for one character is quick
_RARE = "\t\r\v\f\x1c\x1d\x1e\x1f"
# words that are kept; a corpus has more names and numbers than are worth it
MOST_WORDS = 1_000_000
# characters that are tokenized in the time it takes to find out about words
PATIENCE = 500_000


class WordTokenizer:
    """Token ids of texts under one tokenizer, which remembers the words it has met.

    Args:
        tokenizer: any; where words depend on their neighbours, whole pieces between special tokens are
            remembered, and within a call only.
        patience: characters that are tokenized by pieces before it is found out whether words will do.
    Attributes:
        splits: whether texts are cut at spaces; None where it is not known yet.
    """

    def __init__(self, tokenizer: Any, *, patience: int = PATIENCE) -> None:
        self._tokenizer, self._patience = tokenizer, patience
        self.splits: bool | None = None
        self._forget()

    def _forget(self) -> None:
        number = count().__next__
        # words that carry their own white space, and words behind one space, which is left out of the key
        self._own: defaultdict[str, int] = defaultdict(number)
        self._behind: defaultdict[str, int] = defaultdict(number)
        self._inside: dict[tuple[str, int], int | None] = {}
        self._ids, self._ends = np.zeros(0, np.int32), np.zeros(1, np.int32)

    def encode(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]] = ()
    ) -> tuple[list[Ids], list[list[Span]]]:
        """As `segment_tokenizer.encode_texts`, with each text's ids as an array."""
        self._patience -= sum(map(len, texts))
        if self.splits is None and self._patience < 0:
            self.splits = words_stand_alone(self._tokenizer)
        if not self.splits or len(self._ends) > MOST_WORDS:
            self._forget()
        pattern = boundaries(self._tokenizer, max(texts, key=len, default=""))
        parts = [cut(text, pattern) if pattern else [text] for text in texts]
        places = {piece: place for place, piece in enumerate(dict.fromkeys(chain.from_iterable(parts)))}
        pieces = self._pieces(list(places))
        ids, ends = gathered(pieces.ids, pieces.bounds, [places[p] for p in chain.from_iterable(parts)])
        bounds = ends[np.cumsum([0, *map(len, parts)])].tolist()
        made = [ids[begin:end] for begin, end in pairwise(bounds)]
        found = [
            self._spans(pieces, [places[p] for p in text], wanted)
            for text, wanted in zip(parts, spans, strict=False)
        ]
        return made, found

    def _pieces(self, texts: list[str]) -> _Pieces:
        """Tokens of pieces, each word of them tokenized at most once."""
        split = [self._split(text) for text in texts]
        counts = np.array([(len(own), len(behind)) for own, behind in split], np.int32).reshape(-1, 2)
        is_own = np.repeat(np.tile([True, False], len(split)), counts.ravel())
        codes = np.empty(len(is_own), np.int32)
        known, words = len(self._ends) - 1, (len(self._own), len(self._behind))
        for place, table, where in ((0, self._own, is_own), (1, self._behind, ~is_own)):
            found = map(table.__getitem__, chain.from_iterable(each[place] for each in split))
            codes[where] = np.fromiter(found, np.int32, int(counts[:, place].sum()))
        new = [*islice(self._own, words[0], None)], [*islice(self._behind, words[1], None)]
        encoded = self._learn(*new)
        ids, ends = gathered(self._ids, self._ends, codes)
        begins = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        return _Pieces(texts, split, codes, ends, begins.tolist(), ids, ends[begins], (known, encoded), {})

    def _split(self, text: str) -> tuple[list[str], list[str]]:
        """Words that carry their own white space, and words of which each stands behind one space."""
        if not self.splits:
            return [text], []
        first, *behind = text.split(" ")
        if first and "" not in behind and not _is_uneven(text):
            return [first], behind
        return _WORD.findall(text), []

    def _learn(self, own: Sequence[str], behind: Sequence[str]) -> Any:
        """Tokenize words that were not met before; they have the next numbers, these first."""
        if not own and not behind:
            return None
        encoded = self._tokenizer(
            [*own, *(f" {word}" for word in behind)],
            add_special_tokens=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids = encoded["input_ids"]
        lengths = np.fromiter(map(len, ids), np.int32)
        reached = self._ends[-1] + np.cumsum(lengths, dtype=np.int32)
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(ids), np.int32)])
        self._ends = np.concatenate([self._ends, reached])
        return encoded

    def _spans(self, pieces: _Pieces, places: Sequence[int], spans: Sequence[Span]) -> list[Span]:
        """Spans of one text, in its tokens."""
        chars = list(accumulate((len(pieces.texts[place]) for place in places), initial=0))
        tokens = list(accumulate(map(pieces.size, places), initial=0))

        def token_of(char: int) -> int | None:
            number = bisect_right(chars, char) - 1
            if number == len(places):
                return None
            key = (places[number], char - chars[number])
            if key not in pieces.known:
                pieces.known[key] = self._token_in(pieces, *key)
            inside = pieces.known[key]
            return None if inside is None else tokens[number] + inside

        return spans_in_tokens(token_of, spans, chars[-1], tokens[-1])

    def _token_in(self, pieces: _Pieces, place: int, char: int) -> int | None:
        """The token of a piece that a character of it is in; None where it is in none."""
        number, begin, word = pieces.word_at(place, char)
        at = pieces.begins[place] + number
        code, key = int(pieces.codes[at]), (word, char - begin)
        if key not in self._inside:
            known, encoded = pieces.encoded
            is_new = code >= known
            if not is_new:
                encoded = self._tokenizer([word], add_special_tokens=False)
            self._inside[key] = encoded.char_to_token(code - known if is_new else 0, char - begin)
        inside = self._inside[key]
        return None if inside is None else int(pieces.ends[at] - pieces.bounds[place]) + inside


class _Pieces(NamedTuple):
    """Pieces of texts as words.

    Attributes:
        texts: the pieces.
        words: of each, those that carry their own white space, and those that stand behind one space.
        codes: (words of all pieces,) the number of each word.
        ends: (words of all pieces + 1,) where the tokens of each begin in `ids`.
        begins: where each piece's words begin.
        ids: tokens of all pieces.
        bounds: (pieces + 1,) where each piece's tokens begin in `ids`.
        encoded: the number from which words are new, and those as the tokenizer gave them.
        known: tokens of a piece by its place and the character in them.
    """

    texts: list[str]
    words: list[tuple[list[str], list[str]]]
    codes: Ids
    ends: Ids
    begins: list[int]
    ids: Ids
    bounds: Ids
    encoded: tuple[int, Any]
    known: dict[tuple[int, int], int | None]

    def size(self, place: int) -> int:
        """Tokens of a piece."""
        return int(self.bounds[place + 1] - self.bounds[place])

    def word_at(self, place: int, char: int) -> tuple[int, int, str]:
        """The word that a character is in: its number in the piece, where it begins, and its text."""
        text, (own, behind) = self.texts[place], self.words[place]
        if behind:
            number = text.count(" ", 0, char + 1)
            begin = max(0, text.rfind(" ", 0, char + 1))
            return number, begin, " " + behind[number - 1] if number else own[0]
        begins = list(accumulate(map(len, own), initial=0))
        number = bisect_right(begins, char) - 1
        return number, begins[number], own[number]


def gathered(ids: Ids, bounds: Ids, wanted: Any) -> tuple[Ids, Ids]:
    """Parts of an array one after another.

    Args:
        ids: the array.
        bounds: (parts + 1,) where each part of it begins, and the last one ends.
        wanted: numbers of parts.
    Returns:
        The parts, and (wanted + 1,) where each begins and the last one ends.

    >>> gathered(np.array([5, 6, 7]), np.array([0, 1, 3]), [1, 0, 1])[0].tolist()
    [6, 7, 5, 6, 7]
    """
    parts = np.asarray(wanted, np.int32)
    begins = bounds[parts]
    lengths = bounds[parts + 1] - begins
    reached = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    return ids[np.arange(reached[-1]) + np.repeat(begins - reached[:-1], lengths)], reached


def _is_uneven(text: str) -> bool:
    """Whether white space other than a space stands before a space."""
    if text.isascii() and not any(map(text.__contains__, _RARE)):
        return "\n " in text
    return _UNEVEN.search(text) is not None


def words_stand_alone(tokenizer: Any) -> bool:
    """Whether a text cut in front of each space that follows no white space has the tokens of its words.

    A tokenizer's model sees what the pre-tokenizer has cut, so the latter is tried: on all texts of a space
    with up to two kinds of characters on each side.
    """
    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    if backend.pre_tokenizer is None or any(
        token.rstrip or re.search(r"\s", token.content) for token in added
    ):
        return False
    state = backend.pre_tokenizer.__getstate__().decode()
    if getattr(backend.model, "dropout", None) or _LOOKS.search(state) or not _is_by_character(backend):
        return False
    split = backend.pre_tokenizer.pre_tokenize_str

    def texts(text: str) -> list[str]:
        return [piece for piece, _ in split(text)]

    sides = ["".join(kinds) for size in (1, 2) for kinds in product(_KINDS, repeat=size)]
    left = {side: texts(side) for side in sides if not side[-1].isspace()}
    right = {f" {side}": texts(f" {side}") for side in ["", *sides]}
    return all(texts(a + b) == left[a] + right[b] for a in left for b in right)


def _is_by_character(backend: Any) -> bool:
    """Whether a normalizer, where there is one, joins nothing with a space."""
    if backend.normalizer is None:
        return True
    return bool(json.loads(backend.normalizer.__getstate__())["type"] == "NFC")
