"""Which language a text is in: by its script, or by the commonest words of seven languages in Latin script.

Nothing is said of a text that is short, mixed, or mostly code: an answer counts as one in another language
only where both sides are clear.
"""

from __future__ import annotations

import re

# words that tell, and letters looked at
ENOUGH_WORDS, LEAD, LOOKED_AT = 3, 2.0, 2000
# the commonest words of each language that stand in few other languages
_WORDS = {
    "en": "the of and to in is that it for was with as are this be have from or by not but what they "
    "which you your can how if",
    "de": "der die das und ist nicht ein eine mit von den dem auf für sich auch wird sind wie wenn "
    "oder ich du werden kann bei",
    "fr": "le les des est et une dans pour que qui sur pas avec plus vous sont ce cette aux du être "
    "ou nous il elle leur mais",
    "es": "el los las que es una por con para del se como más pero su al lo está son también muy "
    "puede este esta cuando hay",
    "it": "il di che è per una non con del della sono gli le più come anche dei nel alla questo si ma "
    "può essere ed sia dal",
    "pt": "o os que é uma para com não do da em mais como dos das por se ao também muito pode você "
    "são isso mas ou quando seu",
    "nl": "de het een en van is dat niet op te voor met zijn aan er ook als maar bij naar je wordt "
    "deze kan om uit worden hebben",
}
_KNOWN: dict[str, list[str]] = {}
for _code, _listed in _WORDS.items():
    for _word in _listed.split():
        _KNOWN.setdefault(_word, []).append(_code)
_SCRIPTS = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}
_WORD = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`", re.DOTALL)
_NAMES = (
    "english|german|french|spanish|italian|portuguese|dutch|chinese|japanese|korean|russian|arabic|hindi|greek|"
    "hebrew|thai|deutsch|englisch|französisch|anglais|français|allemand|espagnol|español|inglés|francés|alemán|"
    "inglese|português"
)
_TRANSLATES = re.compile(
    "translat|übersetz|tradu[izc]|vertaal|翻译|翻譯|перевед|переклад"
    rf"|\b(?:in|into|to|auf|en|em|van) (?:{_NAMES})\b",
    re.IGNORECASE,
)


def known_languages() -> tuple[str, ...]:
    """Codes of all languages that are told apart."""
    return (*_WORDS, *_SCRIPTS)


def language_of(text: str) -> str | None:
    """The code of a text's language, None where it is not clear; of a script, that of its commonest language.

    >>> language_of("What is the capital of France?"), language_of("Wie groß ist die Stadt und wer?")
    ('en', 'de')
    >>> language_of("2 + 2 = 4"), language_of("Как дела сегодня?")
    (None, 'ru')
    """
    plain = _CODE.sub(" ", text[:LOOKED_AT])
    letters = sum(map(str.isalpha, plain))
    if not plain.isascii() and letters:
        counts = {code: len(pattern.findall(plain)) for code, pattern in _SCRIPTS.items()}
        if counts["ja"] and counts["ja"] >= 0.1 * (counts["ja"] + counts["zh"]):
            counts["ja"] += counts.pop("zh")
        code = max(counts, key=lambda name: counts[name])
        if counts[code] >= 4 and counts[code] > 0.5 * letters:
            return code
    found: dict[str, float] = {}
    for word in _WORD.findall(plain.lower()):
        codes = _KNOWN.get(word, ())
        for one in codes:
            found[one] = found.get(one, 0.0) + 1 / len(codes)
    ranked = sorted(found.items(), key=lambda pair: -pair[1])[:2]
    if not ranked or ranked[0][1] < ENOUGH_WORDS - 0.01:
        return None
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    return ranked[0][0] if ranked[0][1] >= LEAD * second else None


def wrong_language(asked: str, answer: str, languages: tuple[str, ...] = ()) -> str:
    """Whether an answer is in another language than it should be: one of `languages`, or its prompt's.

    >>> wrong_language("What is the best way to make tea?", "Das ist nicht schwer, wenn der Tee gut ist.")
    'the answer is in de, the prompt in en'
    """
    spoken = language_of(answer)
    if spoken is None:
        return ""
    if languages:
        return "" if spoken in languages else f"the answer is in {spoken}, not in {' or '.join(languages)}"
    wanted = language_of(asked)
    if wanted is None or wanted == spoken or _TRANSLATES.search(asked):
        return ""
    return f"the answer is in {spoken}, the prompt in {wanted}"
