"""Speculative rejection: score the beginnings of answers, and do not finish those that score low.

Source: Sun et al. 2024, "Fast Best-of-N Decoding via Speculative Rejection" (arXiv 2410.20290). There the
moment of a decision follows from the memory of the GPU; here it is a number of tokens, so that the answers
do not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handbook_utils.errors import DataError
from handbook_utils.records import Completion, Message
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.rendering import FittedPrompts
from handbook_utils.sampling.scoring.score import Scorer, score
from handbook_utils.schema.speculative import speculation_problem


def survivors(scores: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which of one prompt's unfinished answers go on: all but the floor(alpha * m) lowest of m scores.

    Of answers that score alike the earlier ones go on. One without a score (NaN) goes on and does not count:
    nothing speaks against it.

    Args:
        scores: (answers,) of the beginnings, by sample index.
        alpha: share that is stopped, at least 0 and below 1; so one answer goes on whatever m.
    Returns:
        (answers,) True for those that go on.
    Source: Sun et al. 2024, Algorithm 1, with the quantile as a rank, so that ties are settled.

    >>> survivors([0.1, 0.7, 0.1, 0.4], alpha=0.5).tolist()
    [False, True, False, True]
    """
    known = np.asarray(scores, dtype=np.float64)
    worst_first = np.lexsort((-np.arange(len(known)), known))  # NaN comes last
    count = np.isfinite(known).sum()
    goes_on = np.ones(len(known), dtype=np.bool_)
    # a share such as 0.29 of 100 may come out a rounding below a whole number
    goes_on[worst_first[: math.floor(alpha * count + 1e-9)]] = False
    return goes_on


@dataclass(frozen=True)
class Speculation:
    """When and by what unfinished answers are stopped.

    Attributes:
        scorer: gives a beginning a score as if the answer ended there.
        column: of the scorer's columns, the one that decides.
        after: tokens of an answer after which its beginning is scored.
        alpha: share of a prompt's unfinished answers that is stopped each time.
    """

    scorer: Scorer
    column: str
    after: Sequence[int]
    alpha: float

    def check(self, settings: SamplingSettings) -> None:
        """Refuse settings under which nothing would be decided, or a prompt's answers are not seen together.

        Raises:
            DataError: one of these.
        """
        problem = speculation_problem(
            self.after,
            self.alpha,
            samples=settings.samples,
            max_new_tokens=settings.max_new_tokens,
            rows_per_batch=settings.rows_per_batch,
        )
        if problem:
            raise DataError(problem)


def replay(
    partial: ArrayLike, tokens: ArrayLike, *, after: Sequence[int], alpha: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """What speculative rejection would have made of answers that plain sampling finished.

    The sampling noise is fixed for each prompt and sample, so this is exact: a surviving answer is the very
    answer of plain sampling.

    Args:
        partial: (m, decisions) scores of one prompt's beginnings; those of answers that had ended are unused.
        tokens: (m,) tokens of the finished answers.
        after: (decisions,) tokens after which a decision falls, ascending.
        alpha: as in `survivors`.
    Returns:
        (m,) True for the answers that are finished; (m,) tokens generated of each; (m, decisions) True where
        a beginning is scored.

    >>> finished, generated, scored = replay([[0.2], [0.9], [0.5]], [8, 6, 3], after=[4], alpha=0.5)
    >>> finished.tolist(), generated.tolist(), scored.ravel().tolist()
    ([False, True, True], [4, 6, 3], [True, True, False])
    """
    table, lengths = np.asarray(partial, dtype=np.float64), np.asarray(tokens, dtype=np.int64)
    generated, scored = lengths.copy(), np.zeros(table.shape, dtype=np.bool_)
    finished = np.ones(len(lengths), dtype=np.bool_)
    for place, length in enumerate(after):
        unfinished = np.flatnonzero(finished & (lengths > length))
        scored[unfinished, place] = True
        stopped = unfinished[~survivors(table[unfinished, place], alpha)]
        finished[stopped], generated[stopped] = False, length
    return finished, generated, scored


class Watch:
    """Looks at the unfinished answers of one call of an engine, and counts what looking costs.

    Attributes:
        after: tokens after which it looks.
        scored_tokens: tokens that went through the scorer so far, prompts included, by the count of the
            tokenizer that samples.
    """

    def __init__(self, speculation: Speculation, tokenizer: Any, fitted: FittedPrompts) -> None:
        self.after = frozenset(speculation.after)
        self.scored_tokens = 0
        self._speculation = speculation
        self._tokenizer = tokenizer
        self._messages: Mapping[str, list[Message]] = dict(fitted.prompts)
        self._prompt_tokens = {prompt.prompt_id: len(prompt.token_ids) for prompt in fitted.tokens}

    def goes_on(
        self, streams: Sequence[tuple[str, int]], token_ids: Sequence[list[int]]
    ) -> NDArray[np.bool_]:
        """Which of these unfinished answers go on.

        Args:
            streams: (rows,) prompt id and sample index; all unfinished answers of a prompt together.
            token_ids: (rows,) the tokens of each so far.
        Returns:
            (rows,) True for those that go on.
        Raises:
            DataError: a score is a number but not a finite one.
        """
        goes_on = np.ones(len(streams), dtype=np.bool_)
        if not len(streams):
            return goes_on
        scores = self._scores(streams, token_ids)
        self.scored_tokens += sum(self._prompt_tokens[name] for name, _ in streams)
        self.scored_tokens += sum(map(len, token_ids))
        prompts = np.array([name for name, _ in streams])
        for name in dict.fromkeys(prompts.tolist()):
            rows = prompts == name
            goes_on[rows] = survivors(scores[rows], self._speculation.alpha)
        return goes_on

    def _scores(
        self, streams: Sequence[tuple[str, int]], token_ids: Sequence[list[int]]
    ) -> NDArray[np.float64]:
        texts: list[str] = self._tokenizer.batch_decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        beginnings = [
            Completion(name, index, self._messages[name], text, len(ids), "length", None)
            for (name, index), text, ids in zip(streams, texts, token_ids, strict=True)
        ]
        rows = score(beginnings, self._speculation.scorer)
        return np.array([row.scores[self._speculation.column] for row in rows])
