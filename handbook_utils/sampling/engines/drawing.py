"""One token a row from logits: inverse-CDF sampling with given uniform numbers."""

from __future__ import annotations

import torch


def draw_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """Draw one token a row; the same uniform number always gives the same token.

    The token is the first whose cumulative probability exceeds the row's uniform number. Probabilities
    are float32, their running sum float64. All tokens take part unless `top_p` cuts them (no top-k).

    Args:
        logits: (rows, vocab), any float dtype.
        uniforms: (rows,) float64 in [0, 1), on the same device.
        temperature: divides the logits; 0 takes the likeliest token and ignores `uniforms`.
        top_p: the smallest set of likeliest tokens with at least this probability takes part.
    Returns:
        (rows,) token ids.

    >>> draw_tokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6], dtype=torch.float64))
    tensor([1])
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    running = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * running[:, -1:]
    # right=True passes over tokens of probability 0; the clamp only matters for logits that are not numbers
    tokens = torch.searchsorted(running, target, right=True).squeeze(1)
    return tokens.clamp_(max=logits.shape[-1] - 1)


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural log-probability of one token a row at temperature 1, float32.

    Args:
        logits: (rows, vocab), any float dtype.
        tokens: (rows,) token ids.
    Returns:
        (rows,) float32.
    """
    logits = logits.float()
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of likeliest tokens that holds `top_p` (Holtzman et al. 2020)."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    # a token stays while the probability of those before it is below top_p; so the likeliest always stays
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(1, order, kept)
