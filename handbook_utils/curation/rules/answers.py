"""Rules about one answer's text. Each function returns what it saw, "" where it saw nothing. Pure."""

from __future__ import annotations

import hashlib
import re
import string

import numpy as np

from handbook_utils.curation.near.words import runs_of_words, word_hashes

# words that are enough to tell a sentence that stops from a name, a title or a number
SENTENCE_WORDS = 8
# words of a run, and of a text from which repetition is looked for
LOOP_RUN, LOOP_WORDS = 4, 24
SHOWN = 80
# characters from which it is quicker to count runs than to count words first
LONG = 50_000

_ENDS = frozenset(".!?…\"'”’»)]}>`*_~|:。！？」』）】؟۔।॥")
_ITEM = re.compile(r"\s*(?:[-*+•·–—#>|]|\d{1,3}[.):]|[a-zA-Z][.)]\s)")
_CODE = re.compile(r"[{}();=<>\[\]\\/]|\b(?:def|return|import|class|const|let|var)\b")
_DANGLING = re.compile(
    r"(?:[,;(–—-]|\b(?:and|or|but|the|a|an|of|to|in|for|with|that|which|because|is|are|was|as|by|on|from"
    r"|und|oder|der|die|das|et|ou|le|la|les|de|que|y|o|el|los|del))$",
    re.IGNORECASE,
)
_CANNOT = r"(?:can['’]?t|cannot|can not|unable|won['’]?t|not able|decline)"
_REFUSED_VERBS = (
    "help|assist|provide|comply|fulfil|answer|do that|create|generate|write|support|engage|discuss|give|"
    "share|continue|participate|recommend|offer"
)
_REFUSALS = (
    rf"\bi['’]?m (?:very |so |really |truly )?(?:sorry|afraid)\b[^.!?\n]{{0,60}}?\b{_CANNOT}\b",
    rf"^(?:i (?:apologi[sz]e|regret)|sorry|apologies|unfortunately)\b[^.!?\n]{{0,80}}?\b{_CANNOT}\b",
    r"(?<![\"“‘'„«])\bi (?:can['’]?t|cannot|can not|won['’]?t|will not|must decline to"
    r"|am (?:unable|not able) to)"
    rf" (?:{_REFUSED_VERBS})\b",
    r"\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant)?,? "
    r"i (?:can['’]?t|cannot|can not|don['’]?t|do not|am not|am unable)\b",
    r"\btut mir leid\b[^.!?\n]{0,60}?\b(?:nichts?|kein\w*)\b",
    r"\bdésolée?\b[^.!?\n]{0,60}?\bne (?:peux|suis) pas\b",
    r"\blo siento\b[^.!?\n]{0,60}?\bno puedo\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)
_MARKS = str.maketrans(dict.fromkeys(string.punctuation, " "))
# a refusal opens an answer; later on it may be quoted
OPENING = 240


def empty(text: str) -> str:
    """Whether an answer says nothing: no letter, digit or symbol in it.

    >>> empty(" ... "), empty("4"), empty("\\N{THUMBS UP SIGN}")
    ("nothing but '...'", '', '')
    """
    plain = text.strip()
    if any(character.isalnum() or ord(character) > 0x2000 for character in plain):
        return ""
    return f"nothing but '{plain[:20]}'" if plain else "no text"


def cut(text: str) -> str:
    """Whether an answer stops in the middle: a sentence without an end, a block of code that stays open.

    >>> cut("First you take the flour and then you mix it with the")
    "ends with '...then you mix it with the'"
    >>> cut("Paris") or cut("- flour\\n- a little water and three large eggs from the market")
    ''
    """
    plain = text.rstrip()
    if plain.count("```") % 2:
        return "a block of code is not closed"
    last = plain.rpartition("\n")[2].strip()
    ends_open = plain[-1:] not in _ENDS and (plain[-1:].isalnum() or plain[-1:] in ",;(-–—")
    if not ends_open or len(plain.split()) < SENTENCE_WORDS:
        return ""
    is_item = _ITEM.match(last) or _CODE.search(last) or "://" in last
    if _DANGLING.search(last) or (not is_item and len(last.split()) >= SENTENCE_WORDS):
        return f"ends with '...{' '.join(last.split()[-6:])[-SHOWN:]}'"
    return ""


def refused(text: str) -> str:
    """Whether an answer opens with a refusal (English, and the commonest of German, French and Spanish).

    >>> refused("I'm sorry, but I can't help with that.")
    "says 'I'm sorry, but I can't'"
    """
    found = _REFUSAL.search(text[:OPENING])
    return f"says '{found[0][:SHOWN]}'" if found else ""


def repetitive(text: str, share: float) -> str:
    """Whether an answer goes round in circles: how many of its runs of four words came before in it.

    Args:
        text: an answer.
        share: of the runs, from which it is one.

    >>> repetitive("I like tea very much. " * 10, 0.5)
    '89% of its runs of four words came before in it'
    """
    if text.isascii() and len(text) < LONG:
        words = text.lower().translate(_MARKS).split()
        runs_in_it = len(words) - LOOP_RUN + 1
        # each new word makes a new run, so many words say without counting runs that it does not
        if runs_in_it < LOOP_WORDS - LOOP_RUN + 1 or len(set(words)) - LOOP_RUN > (1 - share) * runs_in_it:
            return ""
    runs = runs_of_words(word_hashes([text]), LOOP_RUN).values
    if len(runs) < LOOP_WORDS - LOOP_RUN + 1:
        return ""
    repeated = 1 - len(np.unique(runs)) / len(runs)
    return f"{repeated:.0%} of its runs of four words came before in it" if repeated >= share else ""


_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)]*\s|\n")


def edge_sentences(text: str) -> tuple[str, str]:
    """The first and the last sentence of an answer, "" where it has only one or they are short.

    >>> edge_sentences("Certainly, here is an answer! Tea. I hope that this helps you.")
    ('Certainly, here is an answer!', 'I hope that this helps you.')
    """
    plain = text.strip()
    first = _SENTENCE_END.search(plain)
    if first is None:
        return "", ""
    opening = plain[: first.end()].strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(plain, max(0, len(plain) - 400))]
    closing = plain[ends[-1] :].strip() if ends else ""
    return tuple(one if 4 <= len(one.split()) <= 40 else "" for one in (opening, closing))  # type: ignore[return-value]


def hash_of(text: str) -> int:
    """A number for a text, the same in every process; case and spacing do not count."""
    plain = " ".join(text.lower().split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")
