"""One token per row from logits: inverse-CDF sampling with given uniform numbers."""

from __future__ import annotations

import math

import torch

# running sums over a whole vocabulary take as long as a small model's layer; over sums of so many they do not
BLOCK = 64
LAST = math.nextafter(1.0, 0.0)


def draw_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row; the same uniform number always gives the same token.

    The token is the first whose cumulative probability exceeds the row's uniform number. Probabilities and
    the sums of 64 of them are float32, running sums float64. All tokens take part unless `top_p` cuts them
    (no top-k).

    Args:
        logits: (rows, vocab), any float dtype.
        uniforms: (rows,) float64 in [0, 1), on the same device.
        temperature: divides the logits; 0 takes the likeliest token and ignores `uniforms`.
        top_p: the smallest set of likeliest tokens with at least this probability takes part.
    Returns:
        (rows,) token ids, and (rows,) float32 their natural log-probabilities at temperature 1 without top-p.

    >>> tokens, logps = draw_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6], dtype=torch.float64))
    >>> tokens, logps
    (tensor([1]), tensor([-0.6931]))
    """
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _logprobs(logits, tokens)
    probabilities = torch.softmax(logits / temperature if temperature != 1 else logits, dim=-1)
    tokens = _inverse_cdf(_nucleus(probabilities, top_p) if top_p < 1 else probabilities, uniforms)
    if temperature != 1:
        return tokens, _logprobs(logits, tokens)
    # the normaliser is in the probabilities already: no second pass over the vocabulary
    return tokens, probabilities.gather(1, tokens[:, None]).squeeze(1).log()


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def _inverse_cdf(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token in whose interval each number falls; for many tokens the block of tokens first."""
    rows, vocab = probabilities.shape
    if vocab <= 2 * BLOCK:
        return _place(probabilities, uniforms)[0]
    padded = torch.nn.functional.pad(probabilities, (0, -vocab % BLOCK)) if vocab % BLOCK else probabilities
    blocks = padded.view(rows, -1, BLOCK)
    block, rest = _place(blocks.sum(-1), uniforms)
    within = blocks[torch.arange(rows, device=block.device), block]
    # a block is only entered if it has probability, so this finds a token that has some
    return block * BLOCK + _place(within, rest)[0]


def _place(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place among weights (rows, places) in whose interval each number falls, and how far into it."""
    running = weights.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * running[:, -1:]
    # right=True passes over weights of 0; the clamp only matters for logits that are not numbers
    place = torch.searchsorted(running, target, right=True).clamp_(max=weights.shape[-1] - 1)
    end = running.gather(1, place)
    start = running.gather(1, (place - 1).clamp(min=0)).masked_fill(place == 0, 0.0)
    return place.squeeze(1), ((target - start) / (end - start)).clamp_(max=LAST).squeeze(1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of likeliest tokens that holds `top_p` (Holtzman et al. 2020)."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    # a token stays while the probability of those before it is below top_p; so the likeliest always stays
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(1, order, kept)
