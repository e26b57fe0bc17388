"""What a model is asked of people's rows: to compare two answers, to rate each, or to revise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from handbook_utils.curation.rows import SourceRows
from handbook_utils.records import Message
from handbook_utils.sampling.annotation.feedback.rating import Aspects, mean_rating
from handbook_utils.sampling.annotation.feedback.revising import Revised, drawn_principles, revise
from handbook_utils.sampling.annotation.pairs import Answer, AnswerGroup, AnswerPair, read_answers, read_pairs
from handbook_utils.sampling.asking import Asker
from handbook_utils.sampling.judging import Compared, compare

Row = dict[str, Any]
Ratings = Mapping[str, int]


@dataclass(frozen=True)
class Item:
    """What is asked about at once.

    Attributes:
        name: where it comes from, such as "pairs:3".
        prompt: the conversation.
        answers: the texts that are sent beside it.
        of: what the task made it from.
    """

    name: str
    prompt: list[Message]
    answers: tuple[str, ...]
    of: Any = None

    @property
    def texts(self) -> str:
        """All that would be sent of it, one text per line."""
        return "\n".join([*(str(message["content"]) for message in self.prompt), *self.answers])


class Task(Protocol):
    """One way to have a model give feedback."""

    @property
    def kind(self) -> str:
        """Its name on the command line."""

    @property
    def requests(self) -> int:
        """Requests that one item takes at most."""

    def items(self, sources: Sequence[SourceRows]) -> tuple[list[Item], list[str]]:
        """What to ask about, and what was left out, in words."""

    def ask(self, asker: Asker, item: Item) -> Any:
        """What the model says of an item; raises what `Asker` does."""

    def rows(self, items: Sequence[Item], said: Sequence[Any], model: str) -> list[Row]:
        """Rows of training data; `said` is None where nothing was said."""

    def verdict(self, said: Sequence[Any]) -> str:
        """The better of two answers, "a", "b" or "tie", by what was said of `pair_items`."""

    def pair_items(self, pair: AnswerPair) -> list[Item]:
        """What to ask to find the better of two answers; [] where the task does not tell."""


@dataclass(frozen=True)
class CompareTask:
    """Pairs compared in both orders."""

    criterion: str
    kind: str = "compare"
    requests: int = 2

    def items(self, sources: Sequence[SourceRows]) -> tuple[list[Item], list[str]]:
        """Pairs, as the page to compare answers reads them."""
        read = read_pairs(sources)
        return [self.pair_items(pair)[0] for pair in read.pairs], read.said()

    def pair_items(self, pair: AnswerPair) -> list[Item]:
        """The pair itself."""
        return [Item(pair.origins[0].partition(" ")[0], pair.prompt, (pair.a, pair.b), pair)]

    def ask(self, asker: Asker, item: Item) -> Compared:
        """The verdicts of both orders."""
        return compare(asker, item.prompt, *item.answers, criterion=self.criterion)

    def verdict(self, said: Sequence[Compared]) -> str:
        """Of the one comparison."""
        return said[0].verdict

    def rows(self, items: Sequence[Item], said: Sequence[Compared | None], model: str) -> list[Row]:
        """One row per pair, in the format `judged`."""
        return [
            {
                "prompt_id": item.of.prompt_id,
                "prompt": item.prompt,
                "answer_a": item.of.a,
                "answer_b": item.of.b,
                "preference": compared.preference,
                "judgement": {"by": model, "orders": compared.orders, "origins": item.of.origins},
                **item.of.beside,
            }
            for item, compared in zip(items, said, strict=True)
            if compared is not None
        ]


def _answer_items(sources: Sequence[SourceRows]) -> tuple[list[Item], list[str]]:
    """Each answer by itself."""
    groups, found = read_answers(sources)
    made = [
        Item(answer.origin, group.prompt, (answer.text,), (group, answer))
        for group in groups
        for answer in group.answers
    ]
    return made, found.said()


@dataclass(frozen=True)
class RateTask:
    """Answers rated by aspects."""

    aspects: Aspects
    kind: str = "rate"
    requests: int = 1

    def items(self, sources: Sequence[SourceRows]) -> tuple[list[Item], list[str]]:
        """Each answer by itself."""
        return _answer_items(sources)

    def pair_items(self, pair: AnswerPair) -> list[Item]:
        """Both answers, each by itself."""
        return [Item(pair.origins[0], pair.prompt, (text,)) for text in (pair.a, pair.b)]

    def ask(self, asker: Asker, item: Item) -> Ratings:
        """The ratings of the answer."""
        return self.aspects.rate(asker, item.prompt, item.answers[0])

    def verdict(self, said: Sequence[Ratings]) -> str:
        """The answer with the higher mean rating."""
        first, second = map(mean_rating, said)
        return "a" if first > second else "b" if first < second else "tie"

    def rows(self, items: Sequence[Item], said: Sequence[Ratings | None], model: str) -> list[Row]:
        """One row per prompt with all its rated answers, in the format `rated_answers`."""
        groups: dict[str, tuple[AnswerGroup, list[tuple[Answer, Ratings]]]] = {}
        for item, ratings in zip(items, said, strict=True):
            if ratings is not None:
                group, answer = item.of
                groups.setdefault(group.prompt_id, (group, []))[1].append((answer, ratings))
        return [
            {
                "prompt_id": name,
                "prompt": group.prompt,
                "answers": [{"answer": answer.text, **ratings} for answer, ratings in rated],
                "judgement": {"by": model, "origins": [answer.origin for answer, _ in rated]},
                **rated[0][0].beside,
            }
            for name, (group, rated) in groups.items()
        ]


@dataclass(frozen=True)
class ReviseTask:
    """Answers reviewed and rewritten by principles."""

    principles: Sequence[str]
    steps: int = 1
    seed: int = 0
    kind: str = "revise"
    requests: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", 2 * min(self.steps, len(self.principles)))

    def items(self, sources: Sequence[SourceRows]) -> tuple[list[Item], list[str]]:
        """Each answer by itself."""
        return _answer_items(sources)

    def pair_items(self, _: AnswerPair) -> list[Item]:
        """Nothing: a revision says of no other answer how good it is."""
        return []

    def ask(self, asker: Asker, item: Item) -> Revised:
        """The answer after all its principles."""
        drawn = drawn_principles(self.principles, item.name, steps=self.steps, seed=self.seed)
        return revise(asker, item.prompt, item.answers[0], drawn)

    def verdict(self, _: Sequence[Revised]) -> str:
        """Never asked."""
        raise NotImplementedError("a revision compares no answers")

    def rows(self, items: Sequence[Item], said: Sequence[Revised | None], model: str) -> list[Row]:
        """One pair per answer that was changed: the revision is chosen, what it came from is rejected."""
        return [
            {
                "prompt_id": item.of[0].prompt_id,
                "prompt": item.prompt,
                "chosen": revised.text,
                "rejected": item.answers[0],
                "judgement": {"by": model, "origin": item.name, "steps": [asdict(s) for s in revised.steps]},
                **item.of[1].beside,
            }
            for item, revised in zip(items, said, strict=True)
            if revised is not None and revised.text != item.answers[0]
        ]
