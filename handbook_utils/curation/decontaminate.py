"""Rows that hold a prompt that is tested on: by runs of words they share, and by near-duplicate prompts.

A test prompt is found in a row that holds at least half of the prompt's runs of eight words. A prompt of five
to seven words is found where it stands in the row whole; a shorter one, where it is the row's whole prompt.
Runs that many test prompts share are no evidence: they are the words of the test's own template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handbook_utils.curation.near.duplicates import RUN
from handbook_utils.curation.near.sketches import BandIndex
from handbook_utils.curation.near.words import (
    U64,
    Ints,
    Runs,
    comparable,
    runs_of_words,
    text_hashes,
    word_hashes,
)

# a prompt of fewer words stands in too many texts by chance
SHORTEST = 5
# a run in more test prompts than this, and in more than this share of them, belongs to a template
TEMPLATE_PROMPTS, TEMPLATE_SHARE = 20, 0.05
_BITS = 24
# finds prompts of J = 0.6 with probability 0.988
LEAK_BANDS = 32
CONTEXT = 8


@dataclass(frozen=True)
class TestedPrompt:
    """A prompt that is tested on, and where it stands."""

    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A row that holds a tested prompt.

    Attributes:
        row: place of the row in the batch.
        prompt: place of the tested prompt in the index.
        how: "same prompt", "shared words" or "near-duplicate".
        share: of the tested prompt's runs that the row holds; of a near-duplicate the Jaccard similarity.
    """

    row: int
    prompt: int
    how: str
    share: float


class TestedPrompts:
    """An index of the prompts that are tested on.

    Args:
        prompts: what is tested on.
        words: of a run.
        share: of a prompt's runs, from which a row holds it.
        near: Jaccard similarity from which two prompts are near-duplicates.

    Attributes:
        template_runs: runs of words that many prompts share, which are ignored.
    """

    def __init__(
        self, prompts: Sequence[TestedPrompt], *, words: int = 8, share: float = 0.5, near: float = 0.6
    ) -> None:
        self.prompts, self.words, self._near = prompts, words, near
        texts = word_hashes([prompt.text for prompt in prompts])
        counts = np.diff(texts.starts)
        self._whole = _Lookup(text_hashes(texts), np.arange(len(prompts)), counts > 0)
        self._sizes = [size for size in range(SHORTEST, words) if (counts == size).any()] + [words]
        runs = [runs_of_words(texts, size) for size in self._sizes]
        self.template_runs = 0
        self._runs, self._least = [], np.ones(len(prompts))
        for size, found in zip(self._sizes, runs, strict=True):
            owners = np.repeat(np.arange(len(prompts)), np.diff(found.starts))
            counted = counts[owners] >= size if size == words else counts[owners] == size
            keys, at = _distinct(owners[counted], found.values[counted])
            if size == words:
                keys, at = self._without_template(keys, at)
            self._least[np.unique(at)] = np.bincount(at, minlength=len(prompts))[np.unique(at)] * share
            self._runs.append(_Lookup(keys, at, np.ones(len(keys), bool)))
        self._numbers = np.zeros(len(prompts), np.int64)
        for lookup in self._runs:
            self._numbers += np.bincount(lookup.owners, minlength=len(prompts))
        self._short = runs_of_words(texts, RUN)
        self._index = BandIndex(LEAK_BANDS)
        self._index.add(self._short)

    def __len__(self) -> int:
        return len(self.prompts)

    def hits(self, asked: Sequence[str], texts: Sequence[str]) -> list[Hit]:
        """Tested prompts in some rows, at most one hit for each row and prompt, ordered by row.

        Args:
            asked: (rows,) each row's prompt.
            texts: (rows,) all that each row says.
        """
        found: dict[tuple[int, int], Hit] = {}
        prompts = word_hashes(asked)
        for row, prompt in zip(*self._whole.find(text_hashes(prompts), np.arange(len(asked))), strict=True):
            found[int(row), int(prompt)] = Hit(int(row), int(prompt), "same prompt", 1.0)
        words = word_hashes(texts)
        for row, prompt, share in self._by_runs(words):
            found.setdefault((row, prompt), Hit(row, prompt, "shared words", share))
        for row, prompt, similarity in self._by_sketch(prompts):
            found.setdefault((row, prompt), Hit(row, prompt, "near-duplicate", similarity))
        return sorted(found.values(), key=lambda hit: (hit.row, -hit.share, hit.prompt))

    def _without_template(self, keys: U64, owners: Ints) -> tuple[U64, Ints]:
        _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
        many = counts > max(TEMPLATE_PROMPTS, TEMPLATE_SHARE * len(self.prompts))
        self.template_runs = int(many.sum())
        return keys[~many[group]], owners[~many[group]]

    def _by_runs(self, words: Runs) -> Iterator[tuple[int, int, float]]:
        for size, lookup in zip(self._sizes, self._runs, strict=True):
            if not len(lookup.owners):
                continue
            runs = runs_of_words(words, size)
            rows = np.repeat(np.arange(len(runs)), np.diff(runs.starts))
            rows, keys = _only(runs.values, rows, lookup)
            values, at = _distinct(rows, keys)
            of_row, prompt = lookup.find(values, at)
            pairs, counts = np.unique(of_row * len(self.prompts) + prompt, return_counts=True)
            held = counts >= self._least[pairs % len(self.prompts)]
            for pair, count in zip(pairs[held].tolist(), counts[held].tolist(), strict=True):
                row, place = divmod(pair, len(self.prompts))
                yield row, place, count / int(self._numbers[place])

    def _by_sketch(self, prompts: Runs) -> Iterator[tuple[int, int, float]]:
        runs = runs_of_words(prompts, RUN)
        pairs = [np.stack(found) for found in self._index.matches(runs)]
        if not pairs:
            return
        for prompt, row in np.unique(np.concatenate(pairs, axis=1), axis=1).T.tolist():
            mine, theirs = set(runs.of(row).tolist()), set(self._short.of(prompt).tolist())
            similarity = len(mine & theirs) / len(mine | theirs)
            if similarity >= self._near:
                yield row, prompt, similarity


class _Lookup:
    """Finds owners by 64-bit keys; a table of bits says quickly of most keys that nobody owns them."""

    def __init__(self, keys: U64, owners: Ints, counted: NDArray[np.bool_]) -> None:
        order = np.argsort(keys[counted], kind="stable")
        self.keys, self.owners = keys[counted][order], owners[counted][order]
        self._bits = np.zeros(1 << _BITS, dtype=bool)
        self._bits[self.keys >> np.uint64(64 - _BITS)] = True

    def may_hold(self, keys: U64) -> NDArray[np.bool_]:
        """(keys,) False only for keys that nobody owns."""
        found: NDArray[np.bool_] = self._bits[keys >> np.uint64(64 - _BITS)]
        return found

    def find(self, keys: U64, places: Ints) -> tuple[Ints, Ints]:
        """(n,) places whose key is owned, each with its owner; a key of several owners comes as often."""
        maybe = self.may_hold(keys)
        keys, places = keys[maybe], places[maybe]
        low = np.searchsorted(self.keys, keys, side="left")
        counts = np.searchsorted(self.keys, keys, side="right") - low
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(places, counts), self.owners[np.repeat(low, counts) + offsets]


def _only(values: U64, rows: Ints, lookup: _Lookup) -> tuple[Ints, U64]:
    maybe = lookup.may_hold(values)
    return rows[maybe], values[maybe]


def _distinct(owners: Ints, values: U64) -> tuple[U64, Ints]:
    """Each owner's values once."""
    order = np.lexsort((values, owners))
    owners, values = owners[order], values[order]
    is_new = np.ones(len(values), bool)
    is_new[1:] = (owners[1:] != owners[:-1]) | (values[1:] != values[:-1])
    return values[is_new], owners[is_new]


_WORD = re.compile(r"[^\W_]+")


def in_context(text: str, prompt: str, *, words: int = 8) -> str:
    """Where a text says what a tested prompt says: the longest stretch in brackets, some words around it.

    >>> in_context("First tell me what is the capital of France today?", "What is the capital of France?")
    'First tell me [what is the capital of France] today?'
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    mine = [comparable(text[begin:end]).lower() for begin, end in spans]
    theirs = [comparable(word).lower() for word in _WORD.findall(prompt)]
    size = min(words, len(theirs), len(mine)) or 1
    known = {tuple(theirs[at : at + size]) for at in range(len(theirs) - size + 1)}
    best, begin = (0, 0), None
    for at in range(len(mine) - size + 2):
        if at <= len(mine) - size and tuple(mine[at : at + size]) in known:
            begin = at if begin is None else begin
        elif begin is not None:
            best = max(best, (begin, at - 1 + size), key=lambda found: found[1] - found[0])
            begin = None
    if not best[1]:
        best = (0, min(len(mine), 2 * CONTEXT))
    if not mine:
        return text[:80]
    first, last = spans[best[0]][0], spans[best[1] - 1][1]
    before, after = spans[max(0, best[0] - CONTEXT)][0], spans[min(len(spans), best[1] + CONTEXT) - 1][1]
    before = 0 if best[0] <= CONTEXT else before
    after = len(text) if best[1] + CONTEXT >= len(spans) else after
    around = f"{text[before:first]}[{text[first:last]}]{text[last:after]}"
    return ("..." if before else "") + " ".join(around.split()) + ("..." if after < len(text) else "")
