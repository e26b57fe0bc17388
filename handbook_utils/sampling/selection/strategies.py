"""The strategies of selection on arrays: places of a `Groups` in, places out; nothing is read or written.

Ties and random choices are drawn from (seed, prompt id), so a choice depends neither on the order of the rows
nor on which other prompts there are. `scores` are by place and finite.
"""

from __future__ import annotations

import numpy as np

from handbook_utils.errors import DataError
from handbook_utils.sampling.noise import KeyedDraws
from handbook_utils.sampling.selection.groups import Bools, Floats, Groups, Ints

Pairs = tuple[Ints, Ints]


def ranked(groups: Groups, scores: Floats, *, seed: int) -> Ints:
    """Places of each prompt from the highest score to the lowest, ties in an order drawn by the seed."""
    prompt_of = groups.prompt_of
    plain = np.lexsort((-scores, prompt_of))
    alike = (scores[plain][1:] == scores[plain][:-1]) & (prompt_of[1:] == prompt_of[:-1])
    if not alike.any():
        return plain
    # an order costs a draw for each prompt, and few prompts have ties
    order = groups.shuffled("ties", seed, prompts=np.unique(prompt_of[1:][alike]))
    return order[np.lexsort((-scores[order], prompt_of))]


def first_of(groups: Groups, order: Ints, counts: Ints | int) -> Ints:
    """The first places of each prompt in an order, `counts` for each prompt or for all."""
    limits = counts if isinstance(counts, int) else counts[groups.prompt_of]
    return order[groups.rank_of < limits]


def top(groups: Groups, scores: Floats, *, k: int, seed: int) -> Ints:
    """The k highest scores of each prompt, best first; all of a prompt that has fewer."""
    return first_of(groups, ranked(groups, scores, seed=seed), k)


def at_least(groups: Groups, scores: Floats, *, threshold: float, k: int | None, seed: int) -> Ints:
    """Places whose score is `threshold` or higher, best first, at most k per prompt where k is given."""
    order = ranked(groups, scores, seed=seed)
    kept = order if k is None else first_of(groups, order, k)
    return kept[scores[kept] >= threshold]


def random_control(groups: Groups, counts: Ints | int, *, seed: int) -> Ints:
    """Distinct places drawn uniformly, as many of each prompt as `counts` says: what a selection has to beat.

    Its prompts, its size and its samples are those of the selection; only the scores are not looked at.
    """
    return first_of(groups, groups.shuffled("random", seed), counts)


def statistical_rejection(groups: Groups, scores: Floats, *, k: int, beta: float, seed: int) -> Ints:
    """k samples of each prompt by statistical rejection sampling, in the order of their acceptance.

    In each round every candidate that is left is accepted with probability exp((score - max) / beta), max
    being the highest score left; accepted ones leave at the end of the round, until k are found. With many
    candidates the first one accepted follows the policy that maximises the mean score less beta times the KL
    divergence from the sampling policy. Candidates are visited in an order drawn for each prompt. Equal texts
    count as separate candidates, as that policy needs; the listing in the paper merges them, which filtering
    for distinct texts first does too.

    Args:
        k: samples per prompt; all of a prompt that has fewer.
        beta: in units of the score; towards 0 it takes the highest scores, large ones take any.
    Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", Algorithm 1.
    """
    order, prompt_of, first = groups.shuffled("rso", seed), groups.prompt_of, groups.starts[:-1]
    values = scores[order]
    wanted = np.minimum(groups.sizes, k)
    turn_of = np.full(len(order), k)
    for turn in range(k):
        missing = wanted - groups.counts(np.flatnonzero(turn_of < k))
        left = (turn_of == k) & (missing > 0)[prompt_of]
        if not left.any():
            break
        highest = np.maximum.reduceat(np.where(left, values, -np.inf), first)
        # where nothing is left the exponent is not looked at
        exponent = np.where(left, values - np.where(missing > 0, highest, 0.0)[prompt_of], -np.inf) / beta
        accepted = left & (_uniforms(groups, missing > 0, seed, turn) < np.exp(exponent))
        seen = np.cumsum(accepted)
        within = seen - np.repeat((seen - accepted)[first], groups.sizes)
        turn_of[accepted & (within <= missing[prompt_of])] = turn
    places = np.lexsort((turn_of, prompt_of))
    return order[places[turn_of[places] < k]]


def best_and_worst(groups: Groups, scores: Floats, texts: Ints, *, seed: int) -> Pairs:
    """Best and worst place of each prompt; one whose two are the same text or score alike gives no pair.

    Args:
        texts: (places,) a number for each distinct text.
    Returns:
        Chosen and rejected places.
    """
    order = ranked(groups, scores, seed=seed)
    best, worst = order[groups.starts[:-1]], order[groups.starts[1:] - 1]
    tells = (scores[best] > scores[worst]) & (texts[best] != texts[worst])
    return best[tells], worst[tells]


def rejection_pairs(groups: Groups, scores: Floats, texts: Ints, *, k: int, beta: float, seed: int) -> Pairs:
    """k samples of each prompt by statistical rejection sampling, paired at random, the higher score chosen.

    So both answers of a pair come from about the policy that is aimed at, and not from the two ends. With a
    large `beta` they are any two samples, labelled by the score (the paper's sft-sample-rank). Two that are
    the same text or score alike give no pair, nor does an odd one out.

    Args:
        texts: (places,) a number for each distinct text.
        k: samples per prompt; the paper takes 8 of 64.
        beta: in units of the score.
    Returns:
        Chosen and rejected places, prompt after prompt.
    Source: Liu et al. 2023, Sections 3.1 (rso-sample-rank) and 5.2 (first-round-rank).
    """
    is_accepted = np.zeros(len(groups.rows), dtype=bool)
    is_accepted[statistical_rejection(groups, scores, k=k, beta=beta, seed=seed)] = True
    accepted = groups.subset(is_accepted)
    # the order of acceptance tells of the scores, so another one pairs them
    order = np.flatnonzero(is_accepted)[accepted.shuffled("rso-pairs", seed)]
    rank = accepted.rank_of
    ones = np.flatnonzero((rank % 2 == 0) & (rank + 1 < accepted.sizes[accepted.prompt_of]))
    one, other = order[ones], order[ones + 1]
    is_higher = scores[one] > scores[other]
    chosen, rejected = np.where(is_higher, one, other), np.where(is_higher, other, one)
    tells = (scores[chosen] > scores[rejected]) & (texts[chosen] != texts[rejected])
    return chosen[tells], rejected[tells]


def random_pairs(groups: Groups, texts: Ints, counts: Ints, *, seed: int) -> Pairs:
    """Pairs of places with different texts in random order, `counts` of each prompt; the control of pairs.

    No sample is in two of them unless texts of its prompt repeat.

    Raises:
        DataError: a prompt has no two different texts.
    """
    order = groups.shuffled("random", seed, prompts=np.flatnonzero(counts))
    made = [
        _pairs_from(groups, order, texts, 2 * turn, prompts=np.flatnonzero(counts > turn))
        for turn in range(counts.max(initial=1))
    ]
    first, second = (np.concatenate(places) for places in zip(*made, strict=True))
    by_prompt = np.argsort(groups.prompt_of[first], kind="stable")
    return first[by_prompt], second[by_prompt]


def _pairs_from(groups: Groups, order: Ints, texts: Ints, start: int, *, prompts: Ints) -> Pairs:
    """The place at a rank of each prompt's order, and the next one round the circle with another text."""
    begins, prompt_of = groups.starts[:-1], groups.prompt_of
    turned = order[begins[prompt_of] + (groups.rank_of + start) % groups.sizes[prompt_of]]
    first = turned[begins]
    differs = texts[turned] != texts[first][prompt_of]
    nowhere = len(turned)
    second = np.minimum.reduceat(np.where(differs, np.arange(nowhere), nowhere), begins)[prompts]
    if (second == nowhere).any():
        name = groups.prompt_ids[prompts[second == nowhere][0]]
        raise DataError(f"prompt '{name}' has no two different texts, so there is no pair of them.")
    return first[prompts], turned[second]


def _uniforms(groups: Groups, active: Bools, seed: int, turn: int) -> Floats:
    """(places,) uniform in [0, 1) for the places of active prompts, 1 elsewhere."""
    drawn = np.ones(len(groups.rows))
    draws = KeyedDraws("rso-accept", seed, stream=turn)
    starts, sizes = groups.starts.tolist(), groups.sizes.tolist()
    for prompt in np.flatnonzero(active).tolist():
        first, size = starts[prompt], sizes[prompt]
        drawn[first : first + size] = draws.at(groups.prompt_ids[prompt]).random(size)
    return drawn
