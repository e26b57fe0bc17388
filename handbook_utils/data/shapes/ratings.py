"""Rated answers to a prompt and the pair made of them: as UltraFeedback, HelpSteer, Argilla keep them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

from handbook_utils.data.shapes.calls import first_of
from handbook_utils.data.shapes.values import ShapeError, list_in_text, parse_text, shown
from handbook_utils.errors import suggest
from handbook_utils.schema.sections import PairsSection

# columns with a list of answers, and what the text of one is called there
GATHERED = "rated_rows"  # what `gather_answers` adds to a row
ANSWER_LISTS = (GATHERED, "completions", "answers", "generations")
_ANSWER = ("response", "answer", "completion", "generation", "text", "content", "output")
# a rating of each side of a pair that somebody has made: H4's, Argilla's, distilabel's
_PAIR_RATINGS = (
    *(("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")),
    *(("rating_chosen", "rating_rejected"), ("chosen_rating", "rejected_rating")),
    *(("chosen-rating", "rejected-rating"), ("chosen_avg_rating", "rejected_avg_rating")),
)
# columns that say how good the answers of a pair are
PAIR_RATINGS = frozenset({*chain.from_iterable(_PAIR_RATINGS), "rating"})
# which of two answers people prefer: below 0 the first (HelpSteer 2 and 3), or by votes and ranks (Argilla)
COMPARED = {
    "preference_strength": ("response_1", "response_2"),
    "overall_preference": ("response1", "response2"),
    "preference": ("response1", "response2"),
}
# ours, named as in a judge's rows: "a" or 0 where the first is better, "b" or 1 where the second is
JUDGED = ("answer_a", "answer_b")
_VERDICTS = {
    **{"a": -1.0, "b": 1.0, "model_a": -1.0, "model_b": 1.0},
    **dict.fromkeys(("tie", "both_bad", "tie (bothbad)"), 0.0),
}
# words in the name of a rating: a rank of 1 is the best, unless points are given for it
_RANKS, _POINTS = {"rank", "ranks", "ranking", "rankings", "ranked"}, {"score", "scores", "points", "reward"}
# words of which nobody says whether more is better here
_FAULTS = {
    *("toxicity", "perplexity", "ppl", "loss", "nll", "error", "errors", "penalty", "harmfulness", "harm"),
    *("hallucination", "hallucinations", "violation", "violations", "place", "position", "order"),
    # how much was written, at what cost, and numbers that only tell answers apart
    *("verbosity", "length", "lengths", "len", "tokens", "words", "chars", "characters", "latency", "time"),
    *("cost", "price", "id", "ids", "idx", "index", "seed", "temperature"),
}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True)
class RatedAnswer:
    """One answer and its ratings by name, higher meaning better."""

    answer: Any
    ratings: Mapping[str, float]


def rated_answers(row: Mapping[str, Any]) -> list[RatedAnswer]:
    """The answers of a row that lists them, each with its ratings.

    Either every answer is an object with its ratings, or ratings stand in lists of the same length.

    >>> rated_answers({"answers": [{"answer": "4", "rank": 1}]})
    [RatedAnswer(answer='4', ratings={'rank': -1.0})]
    """
    column = next((name for name in ANSWER_LISTS if row.get(name)), ANSWER_LISTS[0])
    listed = row.get(column)
    if isinstance(listed, str):
        listed = parse_text(listed)
    if not isinstance(listed, list | tuple) or not listed:
        raise ShapeError(f"has no list of answers in '{column}', found {shown(listed)}.")
    if all(isinstance(item, Mapping) for item in listed):
        return [RatedAnswer(_text(item), dict(_ratings(item))) for item in listed]
    columns = {name: list_in_text(values) for name, values in row.items() if name != column}
    beside = {
        name: [number_of(value) for value in values]
        for name, values in columns.items()
        if isinstance(values, list | tuple) and len(values) == len(listed)
    }
    return [
        RatedAnswer(
            answer, {name: _signed(name, n) for name, ns in beside.items() if (n := ns[place]) is not None}
        )
        for place, answer in enumerate(listed)
    ]


def _text(item: Mapping[str, Any]) -> Any:
    found = first_of(item, _ANSWER)
    if found is None:
        raise ShapeError(
            f"has an answer without its text (under {', '.join(map(repr, _ANSWER))}), "
            f"found {shown(dict(item))}."
        )
    return found


def _ratings(item: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Numbers of an answer by name; those of UltraFeedback's annotations lie two keys deeper."""
    made = []
    for name, value in item.items():
        if name in _ANSWER:
            continue
        if isinstance(value, Mapping):
            inner = (
                (key, first_of(v, ("Rating", "rating", "score")) if isinstance(v, Mapping) else v)
                for key, v in value.items()
            )
            made += [(key, n) for key, v in inner if (n := number_of(v)) is not None]
        elif (number := number_of(value)) is not None:
            made.append((name, _signed(name, number)))
    return made


def _signed(name: str, number: float) -> float:
    words = _words(name)
    return -number if words & _RANKS and not words & _POINTS else number


def _is_doubtful(name: str) -> bool:
    words = _words(name)
    return bool(words & _FAULTS or (words & _RANKS and words & _POINTS))


def _words(name: str) -> set[str]:
    """The words of a rating's name: of `gpt4_ranking`, `Rank` and `overallRank` alike."""
    return {word.lower() for word in _WORDS.findall(name)}


def number_of(value: Any) -> float | None:
    """A rating as a number; of several people's, the mean of what they submitted; None where there is none.

    >>> number_of("4"), number_of([{"value": 3, "status": "submitted"}, {"value": 1, "status": "discarded"}])
    (4.0, 3.0)
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, Mapping):
        value = value.get("value") if value.get("status", "submitted") == "submitted" else None
    elif isinstance(value, list | tuple):
        plain = (each for each in value if not isinstance(each, list | tuple))
        numbers = [number for each in plain if (number := number_of(each)) is not None]
        return fmean(numbers) if numbers else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def choose_pairs(answers: Sequence[RatedAnswer], pairs: PairsSection | None) -> list[tuple[Any, Any]]:
    """(chosen, rejected) of rated answers, as the recipe says; [] where the best is no better than the other.

    Raises:
        ShapeError: the recipe does not say by which rating, or answers lack it.
    """
    names = sorted({name for answer in answers for name in answer.ratings})
    if pairs is None or (pairs.rating is None and len(names) != 1):
        raise ShapeError(
            f"holds {len(answers)} answers with the ratings {', '.join(map(repr, names)) or 'none'}, and the "
            "recipe does not say how a pair is chosen. Say so beside the source: `pairs: {rating: "
            f"{names[0] if names else 'NAME'}}}` (`rejected` and `margin` say more)."
        )
    wanted = (
        names if pairs.rating is None else [pairs.rating] if isinstance(pairs.rating, str) else pairs.rating
    )
    if missing := next((name for name in wanted if name not in names), None):
        other = suggest(missing, names) if names else "Ratings are numbers, one for each answer."
        raise ShapeError(f"has no rating '{missing}'. {other}")
    if doubtful := next((name for name in wanted if _is_doubtful(name)), None):
        raise ShapeError(
            f"has the rating '{doubtful}', of which less may be better, and the highest would be chosen. "
            "Write its negative into a rating of another name, such as 'quality'."
        )
    # an answer that somebody left unrated can be neither better nor worse
    rated = [answer for answer in answers if all(name in answer.ratings for name in wanted)]
    scores = [fmean(answer.ratings[name] for name in wanted) for answer in rated]
    order = sorted(range(len(rated)), key=lambda place: -scores[place])
    if pairs.rejected == "all":
        couples = [(one, other) for n, one in enumerate(order) for other in order[n + 1 :]]
    elif pairs.rejected == "random" and len(order) > 1:
        couples = [(order[0], order[1:][_draw([str(answer.answer) for answer in rated], len(order) - 1)])]
    else:
        couples = [(order[0], order[-1])] if len(order) > 1 else []
    apart = [(one, other) for one, other in couples if scores[one] - scores[other] > pairs.margin]
    return [(rated[one].answer, rated[other].answer) for one, other in apart]


def _draw(texts: Sequence[str], count: int) -> int:
    """One of `count` places, by the answers themselves: the same in every run and process."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % count


def compared_answers(row: Mapping[str, Any], column: str, margin: float) -> tuple[str, str] | None:
    """The columns of the chosen and the rejected of two answers; None where they are a tie.

    >>> compared_answers({"overall_preference": 2}, "overall_preference", 0.0)
    ('response2', 'response1')
    """
    if column == "preference" and row.keys() >= set(JUDGED):
        return _judged(row[column], margin)
    first, second = COMPARED[column]
    value = row[column]
    strength = number_of(value)
    if strength is not None and column == "preference" and strength != 0:
        raise ShapeError(
            f"has in 'preference' the number {shown(value)}, which may count the answers from 0 or from 1. "
            f"Write '{first}', '{second}' or 'tie'."
        )
    if strength is None:
        votes = [vote for each in _listed(value) if (vote := _vote(each, first, second)) is not None]
        if not votes and not _is_silent(value):
            raise ShapeError(
                f"has in '{column}' no number, below 0 where the first answer is better, and no votes for "
                f"'{first}' and '{second}', found {shown(value)}."
            )
        strength = fmean(votes) if votes else 0.0
    if abs(strength) <= margin:
        return None
    return (first, second) if strength < 0 else (second, first)


def _judged(value: Any, margin: float) -> tuple[str, str] | None:
    """The same of our own rows."""
    number = judged_preference(value)
    if abs(number) <= margin:
        return None
    return JUDGED if number < 0 else (JUDGED[1], JUDGED[0])


def judged_preference(value: Any) -> float:
    """A verdict or a number from 0 to 1 as a number from -1 (the first answer is better) to 1 (the second).

    Raises:
        ShapeError: it is neither.

    >>> judged_preference("a"), judged_preference(0.5)
    (-1.0, 0.0)
    """
    number = _VERDICTS.get(value.strip().lower()) if isinstance(value, str) else None
    if number is None and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        number = 2.0 * value - 1.0
    if number is None:
        raise ShapeError(
            'has in \'preference\' neither "a", "b" or "tie" nor a number from 0 (answer_a) to 1 (answer_b), '
            f"found {shown(value)}."
        )
    return number


def _is_silent(value: Any) -> bool:
    """Whether nobody has voted: nothing is there, or only what was not submitted."""
    if isinstance(value, Mapping):
        return value.get("status", "submitted") != "submitted" or _is_silent(value.get("value"))
    if isinstance(value, list | tuple):
        return all(map(_is_silent, value))
    return value is None


def _listed(value: Any) -> list[Any]:
    """One vote for each person; a single ranking, which is a list too, is one."""
    is_list = isinstance(value, list | tuple) and not any(
        isinstance(v, Mapping) and "rank" in v for v in value
    )
    return list(value) if is_list else [value]


def _vote(value: Any, first: str, second: str) -> float | None:
    """-1 for the first answer, 1 for the second, 0 for a tie; None where nobody has said so.

    >>> _vote({"value": [{"rank": 1, "value": "b"}, {"rank": 2, "value": "a"}]}, "a", "b")
    1.0
    """
    if isinstance(value, Mapping):
        return (
            _vote(value.get("value"), first, second)
            if value.get("status", "submitted") == "submitted"
            else None
        )
    if isinstance(value, list | tuple):
        ranks = {_letters(v.get("value")): number_of(v.get("rank")) for v in value if isinstance(v, Mapping)}
        ranks = ranks or {_letters(name): float(place) for place, name in enumerate(value)}
        one, other = ranks.get(_letters(first)), ranks.get(_letters(second))
        return None if one is None or other is None else float((one > other) - (one < other))
    known = {
        _letters(first): -1.0,
        _letters(second): 1.0,
        **dict.fromkeys(("tie", "same", "equal", "both"), 0.0),
    }
    return known.get(_letters(value))


def _letters(name: Any) -> str:
    return "".join(filter(str.isalnum, str(name))).lower()


def rating_gap(row: Mapping[str, Any]) -> float | None:
    """How much better than the rejected the chosen answer is rated; None where the pair carries no ratings.

    >>> rating_gap({"score_chosen": 8.0, "score_rejected": 8.0})
    0.0
    """
    for chosen, rejected in _PAIR_RATINGS:
        better, worse = number_of(row.get(chosen)), number_of(row.get(rejected))
        if better is not None and worse is not None:
            return better - worse
    ratings = row.get("rating")  # distilabel's, of the two answers in the order in which they were judged
    if "chosen" in row and isinstance(ratings, list | tuple) and len(ratings) == 2:
        one, other = map(number_of, ratings)
        return None if one is None or other is None else abs(one - other)
    return None


def is_even(row: Mapping[str, Any]) -> bool:
    """Whether a pair's own ratings say that the chosen answer is no better than the rejected one."""
    gap = rating_gap(row)
    return gap is not None and gap <= 0
