"""Filters against repetition among a prompt's samples: equal texts, and texts of nearly the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from handbook_utils.sampling.selection.groups import Bools, Groups, Ints

# words in a row that make one unit of comparison; three tell word order apart and still tolerate an edit
SHINGLE_WORDS = 3


def first_of_each_text(groups: Groups, order: Ints, texts: Ints) -> Bools:
    """Keep the first place of each text of a prompt, in the given order of places.

    Args:
        order: all places, prompt after prompt, such as best first.
        texts: (places,) a number for each distinct text.
    Returns:
        (places,) which to keep.
    """
    of_prompt = groups.prompt_of[order] * (int(texts.max(initial=0)) + 1) + texts[order]
    first = np.unique(of_prompt, return_index=True)[1]
    kept = np.zeros(len(order), dtype=bool)
    kept[order[first]] = True
    return kept


def first_of_the_alike(groups: Groups, order: Ints, texts: Sequence[str], *, max_similarity: float) -> Bools:
    """Keep a place unless it is too similar to one of its prompt that was kept before, in the given order.

    Args:
        order: all places, prompt after prompt, such as best first.
        texts: (places,) the texts.
        max_similarity: highest Jaccard similarity of two kept texts, of their runs of three words.
    Returns:
        (places,) which to keep; the first of each prompt always is.
    Source: Broder 1997, "On the resemblance and containment of documents"; computed exactly, as the samples
        of one prompt are few.
    """
    kept = np.zeros(len(order), dtype=bool)
    for first, end in zip(groups.starts[:-1].tolist(), groups.starts[1:].tolist(), strict=True):
        before: list[frozenset[str]] = []
        for place in order[first:end].tolist():
            found = shingles(texts[place])
            if all(similarity(found, other) <= max_similarity for other in before):
                before.append(found)
                kept[place] = True
    return kept


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, without regard to case; a shorter text is one run.

    >>> sorted(shingles("One two  three FOUR"))
    ['one two three', 'two three four']
    """
    words = text.lower().split()
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(runs))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity: what both have over what either has.

    >>> similarity(shingles("a b c d"), shingles("a b c e"))
    0.3333333333333333
    """
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
