"""Bytes that tensors hold at each moment, counted tensor by tensor; what nobody named is an activation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# what holds the bytes of tensors that nobody has named
ACTIVATIONS, GRADIENTS = "activations", "gradients"


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, every storage that an operation returns is counted until it is freed.

    A storage counts once, however many tensors look at it. What an operation allocates and frees inside its
    own kernel is not seen, nor is what an allocator keeps for later.

    Attributes:
        live: bytes by what they are for.
        phase: what is going on; peaks are kept apart for each.
        peaks: of each phase, the bytes by what they are for at its highest moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[str, int] = {}
        self.phase = "step"
        self.peaks: dict[str, dict[str, int]] = {}
        self._name = ACTIVATIONS
        self._seen: dict[int, tuple[str, int, Any]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count what it returns."""
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._count(result, self._name)
        else:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._count(leaf, self._name)
        return result

    def count(self, tensors: Iterable[torch.Tensor], name: str) -> None:
        """Count tensors that were there before, or give the bytes of known ones another name."""
        for tensor in tensors:
            self._count(tensor, name, renames=True)

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Within it, what is allocated has this name."""
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    @property
    def peak(self) -> dict[str, int]:
        """The highest moment of all phases, by what the bytes are for."""
        return max(self.peaks.values(), key=lambda parts: sum(parts.values()), default={})

    def watch_gradients(self, weights: Iterable[torch.Tensor]) -> None:
        """From now on, a gradient that a weight has taken counts as one."""
        for weight in weights:
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]

    def _take_gradient(self, weight: torch.Tensor) -> None:
        if weight.grad is not None:
            self._count(weight.grad, GRADIENTS, renames=True)

    def _count(self, tensor: torch.Tensor, name: str, *, renames: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._seen.get(key)
        if known is not None:
            if renames and known[0] != name:
                self.live[known[0]] -= known[1]
                self.live[name] = self.live.get(name, 0) + known[1]
                self._seen[key] = (name, known[1], known[2])
            return
        size = storage.nbytes()
        self.live[name] = self.live.get(name, 0) + size
        self._seen[key] = (name, size, weakref.finalize(storage, self._free, key))
        highest = self.peaks.get(self.phase)
        if highest is None or sum(self.live.values()) > sum(highest.values()):
            self.peaks[self.phase] = dict(self.live)

    def _free(self, key: int) -> None:
        name, size, _ = self._seen.pop(key)
        self.live[name] -= size
