"""The strategies of selection on arrays: places of a `Groups` in, places out; nothing is read or written.

Ties and random choices are drawn from (seed, prompt id), so a choice depends neither on the order of the rows
nor on which other prompts there are. `scores` are by place and finite.
"""

from __future__ import annotations

import numpy as np

from handbook_utils.errors import DataError
from handbook_utils.sampling.groups import Bools, Floats, Groups, Ints
from handbook_utils.sampling.noise import KeyedDraws

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
    """Places whose score is `threshold` or higher, best first, at most k a prompt where k is given."""
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
        k: samples a prompt; all of a prompt that has fewer.
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


def random_pairs(groups: Groups, texts: Ints, prompts: Ints, *, seed: int) -> Pairs:
    """For the given prompts two places with different texts in random order; the control of pairs.

    Raises:
        DataError: a prompt has no two different texts.
    """
    order = groups.shuffled("random", seed, prompts=prompts)
    first = order[groups.starts[:-1]]
    differs = texts[order] != texts[first][groups.prompt_of]
    nowhere = len(order)
    second = np.minimum.reduceat(np.where(differs, np.arange(nowhere), nowhere), groups.starts[:-1])[prompts]
    if (second == nowhere).any():
        name = groups.prompt_ids[prompts[second == nowhere][0]]
        raise DataError(f"prompt '{name}' has no two different texts, so there is no pair of them.")
    return first[prompts], order[second]


def _uniforms(groups: Groups, active: Bools, seed: int, turn: int) -> Floats:
    """(places,) uniform in [0, 1) for the places of active prompts, 1 elsewhere."""
    drawn = np.ones(len(groups.rows))
    draws = KeyedDraws("rso-accept", seed, stream=turn)
    starts, sizes = groups.starts.tolist(), groups.sizes.tolist()
    for prompt in np.flatnonzero(active).tolist():
        first, size = starts[prompt], sizes[prompt]
        drawn[first : first + size] = draws.at(groups.prompt_ids[prompt]).random(size)
    return drawn
