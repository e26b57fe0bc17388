"""What a text is made of, by rules that need no library: words, sentences, and the language it is in."""

from __future__ import annotations

import re
from typing import Final

# a full stop after one of these ends no sentence
_ABBREVIATED: Final = (
    "mr mrs ms dr prof st sr jr capt lt col gen rev hon vs etc e.g i.e cf al no fig "
    "vol pp approx dept inc ltd co corp u.s u.k a.m p.m ph.d b.a m.a jan feb mar apr "
    "jun jul aug sep sept oct nov dec "
)
ABBREVIATIONS: Final = frozenset(_ABBREVIATED.split())
_CLOSERS: Final = "\"'”’)]}»*_"
# begun at the first mark of a run only, and never given back: linear, whatever the text
_MARKS: Final = re.compile(rf"(?<![.!?…])[.!?…]++[{re.escape(_CLOSERS)}]*+(?=\s|$)|[。！？]+")
_WORD: Final = re.compile(r"\w+")
_JOINED: Final = re.compile(r"\w+(?:[-'’.]\w+)*")

# the scripts of which a language may use one alone
_SCRIPTS: Final = {
    "bn": "\u0980-\u09ff", "pa": "\u0a00-\u0a7f", "gu": "\u0a80-\u0aff", "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f", "kn": "\u0c80-\u0cff", "ml": "\u0d00-\u0d7f", "th": "\u0e00-\u0e7f",
    "he": "\u0590-\u05ff", "ko": "\uac00-\ud7af\u1100-\u11ff", "ja": "\u3040-\u30ff",
    "arabic": "\u0600-\u06ff", "cyrillic": "\u0400-\u04ff", "devanagari": "\u0900-\u097f",
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
}  # fmt: skip
_LETTERS: Final = {name: re.compile(f"[{span}]") for name, span in _SCRIPTS.items()}
# characters of Chinese that Japanese writes between its own
_IDEOGRAPH: Final = re.compile(r"[\u4e00-\u9fff]")
# frequent words of languages that share a script
_FREQUENT: Final = {
    "latin": {
        "en": "the and of to is that it with for you this are was they have from be not by we your will",
        "es": "el los las una por para con pero muy más este esta como su está son y del lo usted también",
        "pt": "os uma não são com mais isso você ele ela dos das ao pela pelo muito também um seu sua à",
        "fr": "le les des est et une dans pour pas vous nous qui sur avec sont ce cette du au ou il elle",
        "de": "der die das und ist nicht ein eine mit für auf den dem zu sie wir ich auch von im sich werden",
        "it": "il gli che di è per non sono della nel alla questo questa più ma anche si delle dei una",
        "pl": "i nie się jest że na w do to z jak dla ale są tak przez oraz który może być",
        "vi": "và là của có không được cho một những các người trong với này để đã tôi bạn",
        "fi": "ja on ei se että hän olla ovat mutta kun niin myös tämä voi sekä kuin ole joka",
        "sw": "na ya wa kwa ni katika za la kama hii yake au kuwa watu lakini sana hiyo wake",
    },
    "cyrillic": {
        "ru": "и не что это он она как для его был они но все также вы мы или быть если очень",
        "uk": "і та що це не як для його був вони але також ви ми або бути якщо дуже є від які",
        "bg": "и не че това е той тя как за са но също вие ние или да ако много от който се",
    },
    "arabic": {
        "ar": "في من على إلى أن هذا هذه التي الذي كان لا مع عن هو هي ذلك أو ما",
        "fa": "و در به از که این است را با برای آن می یک شما ما هم بود هست",
        "ur": "اور کے میں ہے کی کا سے کو یہ ہیں نے پر بھی ایک آپ نہیں تھا",
    },
    "devanagari": {
        "hi": "है और के में की का से को यह हैं नहीं पर भी एक ने आप लिए",
        "mr": "आहे आणि मध्ये च्या हे ही ते नाही आहेत करा होते तुम्ही साठी एक या",
        "ne": "छ र को मा छन् हो यो पनि लागि गर्न छैन तपाईं भएको हुन्छ",
    },
}  # fmt: skip
_WORDS_OF: Final = {
    code: frozenset(words.split()) for group in _FREQUENT.values() for code, words in group.items()
}
LANGUAGES: Final = tuple(sorted({*_WORDS_OF, *(name for name in _SCRIPTS if len(name) == 2)}))


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: "it's" is two.

    >>> count_words("It's a well-known fact.")
    6
    """
    return sum(1 for _ in _WORD.finditer(text))


def count_sentences(text: str) -> int:
    """Sentences: each ends with . ! ? or … before a space or the end, and a rest without a mark counts too.

    No sentence ends after an abbreviation (`ABBREVIATIONS`), a single letter ("J. Smith") or a list's number
    ("1."). A line break ends none.

    >>> count_sentences("Dr. Smith paid 3.50 dollars. Did he? Yes")
    3
    """
    count = end = 0
    for mark in _MARKS.finditer(text):
        if _ends_sentence(text, mark):
            count, end = count + 1, mark.end()
    return count + bool(re.search(r"\w", text[end:]))


def _ends_sentence(text: str, mark: re.Match[str]) -> bool:
    if mark.group()[0] != "." or mark.group().startswith(".."):
        return True
    before = text[max(0, mark.start() - 24) : mark.start()].split()
    word = before[-1].lstrip("\"'(“‘[*_").lower() if before else ""
    if word in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    start = mark.start() - len(word)
    opens_line = not text[max(0, start - 8) : start].rpartition("\n")[2].strip()
    return not (word.isdigit() and opens_line)


def capital_words(text: str) -> int:
    """Words without a lower-case letter: "NASA", "A" and "WELL-KNOWN" are one each.

    >>> capital_words("NASA has a WELL-KNOWN plan B.")
    3
    """
    return sum(word.group().isupper() for word in _JOINED.finditer(text))


def language_of(text: str) -> str | None:
    """The language of a text as ISO 639-1 code, one of `LANGUAGES`; None where it cannot be told.

    Most of its letters decide the script. Of languages that share a script, the one whose frequent words are
    the most counts; two that tie, or none, is None.

    >>> [language_of(text) for text in ("The cat is on the mat.", "Die Katze ist auf dem Dach.", "42")]
    ['en', 'de', None]
    """
    found = _evidence(text)
    best = max(found.values(), default=0)
    winners = [code for code, count in found.items() if count == best]
    return winners[0] if best and len(winners) == 1 else None


def may_be_english(text: str) -> bool:
    """Whether nothing speaks clearly for another language: two more of its frequent words, or its script.

    >>> may_be_english("HURRY ON"), may_be_english("VIVE LA FRANCE, ET VIVE LES ROIS DU PAYS")
    (True, False)
    """
    found = _evidence(text)
    return not found or max(found.values()) < found.get("en", -2) + 2


def _evidence(text: str) -> dict[str, int]:
    """What speaks for each language of a text's script: frequent words, or letters where it shares none."""
    letters = {name: len(pattern.findall(text)) for name, pattern in _LETTERS.items()}
    if letters["ja"]:
        letters["ja"] += len(_IDEOGRAPH.findall(text))
    script = max(letters, key=lambda name: letters[name])
    others = sum(character.isalpha() for character in text) - letters[script]
    if not letters[script] or letters[script] < others:
        return {}
    if script not in _FREQUENT:
        return {script: letters[script]}
    # of Devanagari, marks of vowels stand between letters and are no word characters
    words = re.findall(r"[^\s\d.,;:!?…।()\"'“”«»*_-]+", text.lower())
    return {code: sum(word in _WORDS_OF[code] for word in words) for code in _FREQUENT[script]}
