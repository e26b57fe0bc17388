"""Tokenize texts that have much in common, each piece of text once.

A fast tokenizer takes its added tokens (`<|im_start|>` and the like) out of a text before all else, and
encodes what stands between them apart. So a text that is cut in front of such tokens has the tokens of its
pieces, one after another. The prompts of a conversation, and its wholes, differ in their last pieces only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

from handbook_utils.chat.render import Span

_CLOSED = re.compile(r"[^\w\s]")


def encode_texts(
    tokenizer: Any, texts: Sequence[str], spans: Sequence[Sequence[Span]] = ()
) -> tuple[list[list[int]], list[list[Span]]]:
    """Token ids of texts, no special tokens added; the same as of each text by itself.

    Args:
        tokenizer: any; one that is not fast encodes whole texts.
        texts: such as rendered conversations.
        spans: (begin, end) in characters, a list for each of the first texts; to be found among the tokens.
    Returns:
        (ids, spans), the latter in tokens. As in transformers' masks, a span whose first character is in no
        token ends its text's list, and one whose last character is in none goes on to the end.
    """
    pattern = boundaries(tokenizer, max(texts, key=len, default=""))
    pieces = [cut(text, pattern) for text in texts] if pattern else [[text] for text in texts]
    places = {piece: place for place, piece in enumerate(dict.fromkeys(chain.from_iterable(pieces)))}
    if not places:
        return [[] for _ in texts], [[] for _ in spans]
    encoded = tokenizer(
        list(places),
        add_special_tokens=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    known = encoded["input_ids"]
    ids = [list(chain.from_iterable(known[places[piece]] for piece in text)) for text in pieces]
    found = [
        _token_spans(encoded, text, [places[piece] for piece in text], wanted)
        for text, wanted in zip(pieces, spans, strict=False)
    ]
    return ids, found


def cut(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The text's pieces; each but the first starts with a match."""
    ends = [0, *(match.start() for match in pattern.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(ends) if begin < end]


def boundaries(tokenizer: Any, text: str) -> re.Pattern[str] | None:
    """Where a text may be cut: in front of added tokens, of those that a typical one holds."""
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    added = list(tokenizer.added_tokens_decoder.values())
    names = [token.content for token in added]
    chosen = [token.content for token in added if token.content in text and _stands_alone(token, names)]
    return re.compile("|".join(map(re.escape, chosen))) if chosen else None


def _stands_alone(token: Any, names: Sequence[str]) -> bool:
    """Whether an added token is found wherever it is written, whatever is in front of it.

    One that also takes the space before it or wants no letter there, or whose beginning may be part of
    another one, does depend on that.
    """
    depends = token.normalized or token.lstrip or token.single_word
    name = token.content
    if depends or not _CLOSED.match(name):
        return False
    return not any(name[0] in other[1:] or (other != name and other.startswith(name)) for other in names)


def _token_spans(
    encoded: Any, pieces: Sequence[str], places: Sequence[int], spans: Sequence[Span]
) -> list[Span]:
    """Spans of one text, in its tokens."""
    known = encoded["input_ids"]
    chars = list(accumulate(map(len, pieces), initial=0))
    tokens = list(accumulate((len(known[place]) for place in places), initial=0))

    def token_of(char: int) -> int | None:
        number = bisect_right(chars, char) - 1
        if number == len(pieces):
            return None
        inside = encoded.char_to_token(places[number], char - chars[number])
        return None if inside is None else tokens[number] + inside

    return spans_in_tokens(token_of, spans, chars[-1], tokens[-1])


def spans_in_tokens(
    token_of: Callable[[int], int | None], spans: Sequence[Span], chars: int, tokens: int
) -> list[Span]:
    """Spans of one text in its tokens, as `encode_texts` says.

    Args:
        token_of: the token that a character is in; None where it is in none.
        spans: (begin, end) in characters.
        chars: of the text.
        tokens: of the text.
    """
    found = []
    for begin, end in spans:
        first, last = token_of(begin), token_of(end - 1)
        if first is None:
            break
        # a last character of several tokens: the next one begins behind all of them
        after = token_of(end) if end < chars else tokens
        found.append((first, max(last + 1, after or 0) if last else tokens))
    return found
