"""What operations allocate, on tensors without data: mixed precision, fused attention, the loss head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# rows and columns of the tile in which the trainers' loss head computes logits; TRL 1.16
TILE_TOKENS, TILE_WORDS = 4096, 32768
# tiles in float32 that its plain form holds at once where no kernel folds them (a CPU)
FORWARD_TILES, BACKWARD_TILES = 3, 7


class AsComputed(TorchFunctionMode):
    """Within it, operations on tensors without data allocate what the same operations on real ones do.

    Args:
        half: the number format that linear layers and attention compute in; None: that of their inputs.
        is_padded: what a comparison of a whole mask with its all-ones form would find.
        drops: whether fused attention can leave weights out at random; on a CPU it cannot.
    """

    def __init__(self, half: torch.dtype | None, *, is_padded: bool, drops: bool = True) -> None:
        super().__init__()
        self.half, self.is_padded, self.drops = half, is_padded, drops
        self._cast: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation as it is run in training."""
        kwargs = kwargs or {}
        if function in (torch.Tensor.__bool__, torch.Tensor.item):
            return not self.is_padded
        if function in _IN_HALF and self.half is not None:
            args = tuple(self._in_half(value) for value in args)
            kwargs = {name: self._in_half(value) for name, value in kwargs.items()}
        is_fused = self.drops or not kwargs.get("dropout_p")
        if function is torch.nn.functional.scaled_dot_product_attention and is_fused:
            return _fused_attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _in_half(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        if torch.is_inference_mode_enabled():
            return value.to(self.half)
        # autocast keeps what it made of a trained weight for the rest of the pass
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(self.half)
        return self._cast[id(value)]


_IN_HALF = {
    torch.nn.functional.linear,
    torch.nn.functional.conv1d,
    torch.nn.functional.scaled_dot_product_attention,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.bmm,
    torch.Tensor.bmm,
    torch.baddbmm,
    torch.Tensor.baddbmm,
    torch.addmm,
    torch.Tensor.addmm,
    torch.einsum,
}


def _fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # PyTorch turns it into numbers to add, anew in each layer, before it chooses a kernel
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    result: torch.Tensor = _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return result


class _FusedAttention(torch.autograd.Function):
    """A kernel that never holds the scores: it keeps its inputs, its output, and a number per query."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any
    ) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        made = [torch.empty_like(each) for each in (query, key, value)]
        return (*made, None)


class LossHead(torch.autograd.Function):
    """Log-probabilities of tokens as the trainers' loss head computes them, tile by tile.

    The backward pass makes both gradients in float32 before it rounds them.

    Source: `trl.kernels.chunked_logprob` of TRL 1.16, in whose memory this is. On a GPU a kernel folds each
    tile in place; on a CPU, `folds=False`, each takes several tiles in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        compute: torch.dtype,
        folds: bool,
        named: Callable[[], AbstractContextManager[None]],
    ) -> torch.Tensor:
        """Log-probabilities, (tokens,), of hidden states, (tokens, channels)."""
        tokens, words = hidden.shape[0], weight.shape[0]
        statistics = [hidden.new_empty(tokens, dtype=torch.float32) for _ in range(7)]
        tile = hidden.new_empty(min(tokens, TILE_TOKENS), TILE_WORDS, dtype=compute)
        _fold(hidden, weight, compute, 0 if folds else FORWARD_TILES, words)
        ctx.save_for_backward(hidden, weight, *statistics[:2])
        ctx.compute, ctx.folds, ctx.named = compute, folds, named
        del tile
        return hidden.new_empty(tokens, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of hidden states and of the weights."""
        with ctx.named():
            return _head_gradients(ctx)


def _head_gradients(ctx: Any) -> Any:
    hidden, weight, *_ = ctx.saved_tensors
    kept = [
        torch.empty(each.shape, dtype=torch.float32, device=each.device) if wanted else None
        for each, wanted in zip((hidden, weight), ctx.needs_input_grad, strict=False)
    ]
    tile = hidden.new_empty(min(len(hidden), TILE_TOKENS), TILE_WORDS, dtype=ctx.compute)
    _fold(hidden, weight, ctx.compute, 0 if ctx.folds else BACKWARD_TILES, len(weight))
    del tile
    made = [
        None if full is None else full.to(each.dtype)
        for full, each in zip(kept, (hidden, weight), strict=True)
    ]
    return (*made, None, None, None)


def _fold(hidden: torch.Tensor, weight: torch.Tensor, compute: torch.dtype, tiles: int, words: int) -> None:
    """The casts and temporary tiles of one step of the loop, all at once."""
    rows = min(len(hidden), TILE_TOKENS)
    columns = min(words, TILE_WORDS)
    made = [weight.new_empty(columns, weight.shape[1], dtype=compute)] if weight.dtype != compute else []
    made += [hidden.new_empty(rows, columns, dtype=torch.float32) for _ in range(tiles)]
    del made


class PackedLinear(torch.nn.Module):
    """A linear layer whose weights are held packed: each pass makes them whole for itself.

    Args:
        layer: a linear layer without data.
        bytes_per_weight: 0.516 for NF4 with double quantisation, 1 for int8.
        compute: the number format it computes in.
    """

    def __init__(self, layer: torch.nn.Linear, bytes_per_weight: float, compute: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        size = math.ceil(layer.weight.numel() * bytes_per_weight)
        self.packed = torch.nn.Buffer(torch.empty(size, dtype=torch.uint8, device="meta"))
        self.bias, self.compute = layer.bias, compute

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the layer."""
        shape = (self.out_features, self.in_features)
        out: torch.Tensor = _Unpacked.apply(inputs.to(self.compute), shape)  # type: ignore[no-untyped-call]
        return out.to(inputs.dtype)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        ctx.shape = shape
        return inputs.matmul(inputs.new_empty(shape).t())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].matmul(gradients[0].new_empty(ctx.shape)), None


class LowRank(torch.nn.Module):
    """A linear layer with a low-rank adapter beside it, as PEFT computes it.

    Args:
        layer: any layer with `in_features` and `out_features`, without data.
        rank, dropout: of the adapter.
        dtype: the number format its two factors are held in.
    """

    def __init__(self, layer: Any, rank: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        like: Mapping[str, Any] = {"bias": False, "device": "meta", "dtype": dtype}
        self.base_layer = layer
        self.down = torch.nn.Linear(layer.in_features, rank, **like)
        self.up = torch.nn.Linear(rank, layer.out_features, **like)
        self.dropout = torch.nn.Dropout(dropout) if dropout else torch.nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of the layer plus the adapter's."""
        out = self.base_layer(inputs)
        cast = inputs.to(self.down.weight.dtype)
        total: torch.Tensor = out + self.up(self.down(self.dropout(cast))) * 2.0
        return total.to(out.dtype)
