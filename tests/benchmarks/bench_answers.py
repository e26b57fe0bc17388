"""Time to judge distinct answers by the scorer `answer`: two processes, time limit on.

A tenth each of integers, decimals, fractions, units, percentages, intervals, sets, roots, text around, and
wrong ones. Of a sample the verdicts are compared with math-verify's: none may differ, for no trap is in it.

    python tests/benchmarks/bench_answers.py [--rows 10000]
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable

from _record import record
from math_verify import parse, verify

from handbook_utils.sampling.scoring.answers.verdict import AnswerVerdict, reference_answer
from handbook_utils.sampling.scoring.bounded import BoundedPool
from handbook_utils.sampling.scoring.scorers.verifiers import ANSWER_S

ROWS, PROCESSES, GOAL_S, COMPARED = 100_000, 2, 60.0, 400
Pair = tuple[str, str]


def makers(draw: random.Random) -> list[Callable[[int], Pair]]:
    """A function of the row's number for each kind; numbers make every text distinct."""
    small = draw.randint

    def interval(row: int) -> Pair:
        left, right = draw.choice("([") + f"{row}", f"{row + small(1, 99)}" + draw.choice(")]")
        return f"{left},{right}", f"{left}, {right}"

    def root(row: int) -> Pair:
        times, below = small(2, 9), row + 2
        return rf"{times}\sqrt{{{below}}}", rf"\sqrt{{{times * times * below}}}"

    def around(row: int) -> Pair:
        texts = ("So the total is {}.", "The answer is {}.", "We add them up.\n\nThus we get ${}$ in all.")
        return f"{row}", draw.choice(texts).format(row)

    def wrong(row: int) -> Pair:
        reference, answer = draw.choice(
            [
                (f"{row}", f"{row + 1}"),
                (rf"\frac{{{row}}}{{7}}", rf"\frac{{{row + 1}}}{{7}}"),
                (rf"2\sqrt{{{row + 2}}}", rf"3\sqrt{{{row + 2}}}"),
                (rf"x^2+{row}", rf"x^2-{row}"),
                (f"({row},{row + 3})", f"({row},{row + 4}]"),
            ]
        )
        return reference, answer

    return [
        lambda row: (f"{row}", f"{row:,}"),
        lambda row: (f"{row}.25", f"{row}.250"),
        lambda row: (rf"\frac{{{row}}}{{4}}", f"{2 * row}/8"),
        lambda row: (rf"{row}\text{{ cm}}", f"{row}"),
        lambda row: (f"{row}.5%", rf"{row}.50\%"),
        interval,
        lambda row: (rf"\{{{row},{row + 5},{row + 9}\}}", f"{row + 9}, {row}, {row + 5}"),
        root,
        around,
        wrong,
    ]


def pairs(rows: int, seed: int = 0) -> list[Pair]:
    """References and completions, a tenth of each kind, in mixed order."""
    draw = random.Random(seed)
    kinds = makers(draw)
    made = [kinds[row % len(kinds)](row) for row in range(rows)]
    boxed = [(a, b if row % len(kinds) == 8 else rf"\boxed{{{b}}}") for row, (a, b) in enumerate(made)]
    draw.shuffle(boxed)
    return boxed


def main() -> None:
    """Measure, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    work = pairs(rows)
    pool = BoundedPool(seconds=ANSWER_S, processes=PROCESSES)
    start = time.perf_counter()
    references = pool.map(reference_answer, [reference for reference, _ in work])
    items = [(reference, answer) for reference, (_, answer) in zip(references, work, strict=True)]
    verdicts = pool.map(AnswerVerdict(), items)
    seconds = time.perf_counter() - start
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    start = time.perf_counter()
    theirs = [
        float(verify(parse(rf"\boxed{{{reference}}}"), parse(answer)))
        for reference, answer in work[:COMPARED]
    ]
    peer = (time.perf_counter() - start) / COMPARED * rows / PROCESSES
    differ = [work[row] for row in range(COMPARED) if verdicts[row] != theirs[row]]
    scaled = seconds * ROWS / rows
    record(
        name="judge_100000_answers_seconds",
        value=scaled,
        unit="s",
        goal=GOAL_S,
        peer={
            "name": f"math-verify alone, {COMPARED} of them scaled up, ideally split in two",
            "value": peer,
        },
    )
    record(name="judge_answers_unlike_math_verify", value=float(len(differ)), unit="verdicts", goal=0.0)
    print(
        f"{rows} answers: {seconds:.1f} s, so 100,000: {scaled:.1f} s; math-verify: {peer:.0f} s for {rows}"
    )
    print(f"of {COMPARED}, unlike math-verify's: {len(differ)} {differ[:5]}")


if __name__ == "__main__":
    main()
