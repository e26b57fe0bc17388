"""Answers as texts: one spelling for what is written in many, and where in a text its answer is."""

from __future__ import annotations

from functools import lru_cache

import regex

# signs that models write for what LaTeX has a command for
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u200a\u3000", " "),
        **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F) if chr(code) not in "-$"},
        **{"\u200b": "", "\ufeff": "", "\u2044": "/", "’": "'", "“": '"', "”": '"'},
        **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "√": r"\sqrt ", "π": r"\pi "},
        **{"∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup "},
        **{"∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "²": "^2", "³": "^3"},
        **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}"},
        **{"¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}"},
    }
)
_SPELLINGS = [
    (regex.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits)(?![a-zA-Z])|\\!\s*", ""),
        (r"\{,\}", ","),
        (r"^\\\{\s*\\\}$|\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        # a thin space between digits marks thousands; LaTeX's readers take it for a product
        (r"(?<=\d)\\[,;:](?=\d{3}(?!\d))", ","),
        (r"\\[,;: ]|~", " "),
        (r"\\(?:d|t|c)frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{([^{}]*)\}", r"\\frac{\1}{\2}"),
        (
            r"\\(?:textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|text|operatorname)\s*\{",
            r"\\text{",
        ),
        (r"(?<![\\a-zA-Z])sqrt(?=\s*[\d({])", r"\\sqrt"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi"),
        (r"(?<![\\a-zA-Z])(?:inf|infinity)(?![a-zA-Z])", r"\\infty"),
        (
            r"\\degrees?(?![a-zA-Z])|(?<=\d)\s*\^\s*\{?\s*(?:o|\\text\{\s*o\s*\})\s*\}?(?![a-zA-Z])",
            r"^\\circ",
        ),
        (r"\\%", "%"),
        (r"(?<=\d)\s*\*\*\s*(?=[\d(-])", "^"),
        (r"(?<=\d)\s*(?:x|X|\\cdot|\\times)\s*10\s*\^", r"\\cdot 10^"),
        (r"\\leq(?![a-zA-Z])", r"\\le"),
        (r"\\geq(?![a-zA-Z])", r"\\ge"),
    )
]
# a text without any of these has nothing that they change
_SPELLED = regex.compile(r"[\\~*a-zA-Z]|\{,\}")
_THOUSANDS = regex.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d])")
_WRAPPED = regex.compile(
    r"\$\$(.*)\$\$|\$([^$]*)\$|\\\[(.*)\\\]|\\\((.*)\\\)|\\text\{([^{}]*)\}|\\boxed\{(.*)\}|`([^`]*)`",
    regex.DOTALL,
)
_MARKER = regex.compile(
    r"\banswer\b(?!\s+(?:the|this|that|these|your|any|each|it|a)\b)[^.\n:=]{0,60}?(?:\bis\b|:|=)(?:\s*(?:is|:))?"
    r"(?P<rest>[^\n]*(?:\n\s*\S[^\n]*)?)",
    regex.IGNORECASE,
)
_BOLD = regex.compile(r"(?<![\d)])\*\*|\*\*(?![\d(-])")
# characters: what is longer is no answer, and an answer without a mark stands at the end of a text
LONGEST, _SHORT, _TAIL = 1000, 300, 5000
# maths in running text: between marks, or a run of signs; words of three letters between dollars are prose
_SIGN = (
    r"\\[a-zA-Z]+(?:\{[a-z]*matrix\})?|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z'])|(?<=\d):(?=\d)|[\d.{}^_/*+=<>!|% -]"
)
_GROUP = rf"(?:[(\[]|\\?\{{)(?:{_SIGN})++(?:,(?:{_SIGN})++)+(?:[)\]]|\\?\}})"
_SEGMENT = regex.compile(
    r"\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|(?<![\\\d])\$(?P<dollar>(?:\\text\{[^{}$]*\}|\\[a-zA-Z]+|\\.|(?![a-zA-Z]{3,})[^$\n\\])++)\$"
    rf"|(?P<group>{_GROUP}(?:\s*\\c[ua]p\s*{_GROUP})*)"
    rf"|(?P<bare>(?:{_SIGN}|\\[{{}}%]|,(?![ \n])|(?!{_GROUP})[()\[\]])++)",
    regex.DOTALL,
)
_BETWEEN = regex.compile(r"\s*(?:,|;|,?\s*(?:and|or))\s*")
_HALF_OPEN = regex.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
_SENTENCE_END, _COMMA = regex.compile(r"[.;](?:\s|$)|\s\("), regex.compile(r",\s")
_SAYS = regex.compile(r"\d|\\[a-zA-Z]")
_BOXED = regex.compile(r"\\f?boxed\s*(?:\{|\s(?P<bare>\S+))")
_BRACE = regex.compile(r"\\.|[{}]")
_LONE_LETTERS = regex.compile(r"^(?:\s*[aAI]\s+)+|\s[aAI]\s*$")
_JOINED = regex.compile(r"[\s$\\()\[\]]*(?:,|;|,?\s*(?:and|or)\s)?[\s$\\()\[\]]*")


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """One spelling: signs as LaTeX has them, marks and brackets around the whole off, no closing full stop.

    >>> clean(" $\\\\dfrac12$. "), clean("**1\\\\,000**")
    ('\\\\frac{1}{2}', '1,000')
    """
    text = _BOLD.sub("", text.translate(_SIGNS)).strip()
    while True:
        text = text.strip(" \n\t").removesuffix("\\").rstrip()
        if text.endswith((".", ";", ",", "。")) and not text.endswith("\\;"):
            text = text[:-1]
            continue
        inner = _WRAPPED.fullmatch(text)
        content = next((group for group in inner.groups() if group is not None), None) if inner else None
        if content is None or not _is_balanced(content):
            break
        text = content
    if _SPELLED.search(text):
        for pattern, new in _SPELLINGS:
            text = pattern.sub(new, text)
    text = _THOUSANDS.sub(lambda found: found[0].replace(" ", ","), text)
    return " ".join(text.split())


def stated_answers(text: str) -> tuple[list[str], bool]:
    """What a text may give as its answer, best first, and whether it says so.

    The last `\\boxed{}`, the line after `####`, or what follows "the answer is": then the answer is one of
    these readings of it. A text without such a mark may be the answer itself, or end in it.

    >>> stated_answers("So x = 3, and the answer is \\\\boxed{3}.")
    (['3'], True)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return _distinct([boxed]), True
    if "####" in text:
        return _distinct([text.rpartition("####")[2].strip().partition("\n")[0]]), True
    marks = list(_MARKER.finditer(text))
    if marks and (rest := _BOLD.sub("", marks[-1]["rest"]).strip(" *_:\n\t")):
        line = rest.partition("\n")[0].strip()
        sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
        return _distinct([line, sentence, _COMMA.split(sentence)[0], *segments(rest[:_TAIL])[:1]]), True
    last_line = text.strip().rpartition("\n")[2]
    whole = [text] if len(text) <= _SHORT else []
    return _distinct([*whole, last_line, *segments(text[-_TAIL:])[-1:]]), False


def after_thinking(text: str) -> str | None:
    """A completion without its thinking; None where the thinking never ended, so that there is no answer.

    >>> after_thinking("<think>4?</think> 5"), after_thinking("<think>4?")
    (' 5', None)
    """
    _, end, rest = text.rpartition("</think>")
    if end:
        return rest
    return None if text.lstrip().startswith("<think>") else text


def segments(text: str) -> list[str]:
    """The pieces of maths in a running text, in its order; `$1$ and $2$` are one.

    >>> segments("First 3, and then $x = 1$ or $x = 2$.")
    ['3', 'x = 1,x = 2']
    """
    pieces: list[str] = []
    ended = None
    for found in _SEGMENT.finditer(text := text.translate(_SIGNS)):
        kind = str(found.lastgroup)
        piece = _trimmed(found[kind]) if kind == "bare" else found[kind].strip()
        if not _SAYS.search(piece):
            continue
        is_marked = kind not in ("bare", "group")
        if is_marked and ended is not None and _BETWEEN.fullmatch(text, ended, found.start()):
            pieces[-1] += f",{piece}"
        else:
            pieces.append(piece)
        ended = found.end() if is_marked else None
    return pieces


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}`; several in a row, or joined by "and", are one list. None for none.

    >>> last_boxed(r"\\boxed{1} then \\boxed{2} and \\boxed{3}"), last_boxed("none")
    ('2,3', None)
    """
    contents: list[str] = []
    follows = len(text)
    for mark in reversed(list(_BOXED.finditer(text))):
        # one that never closes was cut, and nobody knows what it would have held
        end = mark.end() if mark["bare"] else _closing(text, mark.end())
        if contents and (end is None or not _JOINED.fullmatch(text, end + 1, follows)):
            break
        contents.insert(
            0, mark["bare"].rstrip("$.") if mark["bare"] else text[mark.end() : end] if end else ""
        )
        follows = mark.start()
    return ",".join(_distinct(contents)) if contents else None


def _closing(text: str, place: int) -> int | None:
    """Where the bracket closes that was opened before `place`."""
    depth = 1
    for found in _BRACE.finditer(text, pos=place):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return int(found.start())
    return None


def _is_balanced(text: str) -> bool:
    """Whether no bracket of the text closes before it is opened, or stays open."""
    depth = 0
    for found in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth < 0:
            return False
    return depth == 0


def _trimmed(piece: str) -> str:
    """A run of signs without what belongs to the prose around it: "a", "I", punctuation, odd brackets."""
    piece = _LONE_LETTERS.sub(" ", piece).strip(" .,;:=*/+!<>^_").rstrip("-")
    if _HALF_OPEN.fullmatch(piece):
        return piece
    for opened, closed in ("()", "[]", "{}"):
        if piece.count(opened) > piece.count(closed):
            piece = piece.lstrip(f"{opened} ") if piece.startswith(opened) else piece.rpartition(opened)[2]
        elif piece.count(opened) < piece.count(closed):
            piece = piece.rstrip(f"{closed} ") if piece.endswith(closed) else piece.partition(closed)[0]
    return piece.strip(" .,;:=")


def _distinct(texts: list[str]) -> list[str]:
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text and len(text) <= LONGEST]
