"""Several answers to each prompt, scored with the prompt computed once: two layouts, and which is cheaper.

    rows:    a prompt and some of its answers are one row of the decoder; no answer attends to another
    cache:   each prompt fills a cache, with gradient, and its answers run on copies of that cache

Both give the numbers of plain rows up to rounding. Rows suit short answers; the cache suits long ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from handbook_utils.libraries.transformers_internals import cache_name
from handbook_utils.shared_prefix.decoder import decoder_of, pass_overhead, shared_prefixes, why_not_shared
from handbook_utils.shared_prefix.layout import rows_together

Layout = Literal["rows", "cache"]
# takes a batch and its labels as keywords; gives each label's log-probability and entropy, or None for it
Score = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
IGNORED = -100


@dataclass(frozen=True)
class AnswerRows:
    """Prompts padded on the left, and one answer to each, padded on the right.

    Attributes:
        ids: (rows, prompt columns + answer columns) token ids.
        mask: 1 at tokens and 0 at padding, shaped as `ids`; an answer may be masked as a whole.
        columns: answer columns.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: int

    @property
    def prompts(self) -> int:
        """Prompt columns."""
        return self.ids.shape[1] - self.columns

    @property
    def prompt_lengths(self) -> torch.Tensor:
        """(rows,) tokens of each row's prompt."""
        return self.mask[:, : self.prompts].sum(1)

    @property
    def answer_lengths(self) -> torch.Tensor:
        """(rows,) tokens of each row's answer that are not masked."""
        return self.mask[:, self.prompts :].sum(1)

    def groups(self) -> list[int]:
        """(rows,) the number of each row's prompt, in order of first appearance."""
        seen: dict[bytes, int] = {}
        ids, mask = self.ids[:, : self.prompts].cpu().numpy(), self.mask[:, : self.prompts].cpu().numpy()
        return [
            seen.setdefault(row[kept.astype(bool)].tobytes(), len(seen))
            for row, kept in zip(ids, mask, strict=True)
        ]

    def by_length(self) -> torch.Tensor:
        """(rows,) places of the rows, whole groups together, those with the longest answer first."""
        groups = torch.tensor(self.groups(), device=self.ids.device)
        lengths = self.answer_lengths
        longest = lengths.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, lengths, "amax")
        rank = longest.argsort(descending=True, stable=True).argsort()
        return rank[groups].argsort(stable=True)

    def only(self, chosen: torch.Tensor) -> AnswerRows:
        """Some of the rows."""
        return AnswerRows(self.ids[chosen], self.mask[chosen], self.columns)


def answer_logps(
    score: Score, model: Any, rows: AnswerRows, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability and entropy of each answer's tokens, with each prompt computed once.

    Args:
        score: runs the model; inside it the decoder lays the rows out anew. It is called once.
        model: what `score` runs, unwrapped.
        rows: answers of which several have the same prompt.
        layout: as `cheaper_layout` says.
    Returns:
        Two tensors (rows, answer columns), 0 where an answer is masked; the second is None where `score`
        gives no entropy.
    Raises:
        ValueError: this model cannot be computed so, see `why_not_shared` and `why_not_cached`.
    """
    return _by_rows(score, model, rows) if layout == "rows" else _by_cache(score, model, rows)


def cheaper_layout(model: Any, rows: AnswerRows) -> Layout:
    """The layout with less to compute, in tokens through the decoder's weights; attention counts too."""
    if why_not_cached(model) is not None:
        return "rows"
    size = decoder_of(model).config.hidden_size
    groups, own = np.asarray(rows.groups()), rows.answer_lengths.cpu().numpy()
    prefixes = rows.prompt_lengths.cpu().numpy()
    return (
        "rows"
        if _cost_of_rows(groups, prefixes, own, size) <= _cost_of_cache(groups, prefixes, own, size)
        else "cache"
    )


def why_not_cached(model: Any) -> str | None:
    """Why answers cannot run on a cache of their prompts; None where they can."""
    if reason := why_not_shared(model):
        return reason
    config = decoder_of(model).config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None):
        return f"{config.model_type} has layers that see a window of the row only"
    if any(getattr(module, "gradient_checkpointing", False) for module in decoder_of(model).modules()):
        return "activation checkpointing drops the cache"
    return None


def _cost_of_rows(
    groups: NDArray[np.int64], prefixes: NDArray[np.int64], own: NDArray[np.int64], size: int
) -> float:
    cost = 0.0
    together = rows_together(int(prefixes.mean()), float(max(own.mean(), 1.0)), size)
    for group in np.unique(groups):
        members = groups == group
        parts = math.ceil(members.sum() / together)
        prefix, total = int(prefixes[members][0]), int(own[members].sum())
        width = prefix + total / parts
        cost += parts * (width + width**2 / (6 * size))
    return cost


def _cost_of_cache(
    groups: NDArray[np.int64], prefixes: NDArray[np.int64], own: NDArray[np.int64], size: int
) -> float:
    prefix, longest = int(prefixes.max()), int(own.max(initial=1))
    prompts = len(np.unique(groups)) * (prefix + prefix**2 / (6 * size))
    return prompts + len(own) * longest * (1 + (prefix + longest) / (6 * size)) + pass_overhead(size)


def _by_rows(score: Score, model: Any, rows: AnswerRows) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows moved to the left, some answers behind their prompt in one row, and numbers put back."""
    width = int((rows.prompt_lengths + rows.answer_lengths).max())
    lengths = rows.prompt_lengths
    at = torch.arange(width, device=rows.ids.device)[None] + (rows.prompts - lengths)[:, None]
    is_there = at < rows.ids.shape[1]
    at = at.clamp(max=rows.ids.shape[1] - 1)
    mask = rows.mask.gather(1, at) * is_there
    ids = rows.ids.gather(1, at)
    is_prompt = torch.arange(width, device=ids.device)[None] < lengths[:, None]
    labels = ids.masked_fill((mask == 0) | is_prompt, IGNORED)
    # on a GPU it was not measured whether more passes pay
    skips = rows.ids.device.type == "cpu"
    with shared_prefixes(model, _subgroups(model, rows), skip_padding=skips):
        logps, entropy = score(input_ids=ids, attention_mask=mask, labels=labels)
    # of the label in column c the number stands in column c - 1
    back = lengths[:, None] - 1 + torch.arange(rows.columns, device=ids.device)[None]
    is_beyond = back >= logps.shape[1]
    back = back.clamp(max=logps.shape[1] - 1)
    found = [
        None if values is None else values.gather(1, back).masked_fill(is_beyond, 0.0)
        for values in (logps, entropy)
    ]
    assert found[0] is not None
    return found[0], found[1]


def _subgroups(model: Any, rows: AnswerRows) -> list[int]:
    """(rows,) which of them share a row of the decoder: a prompt's, in parts where that is cheaper."""
    groups = rows.groups()
    own = float(rows.answer_lengths.float().mean())
    together = rows_together(
        int(rows.prompt_lengths.float().mean()), max(own, 1.0), decoder_of(model).config.hidden_size
    )
    counts = np.bincount(groups)
    places: dict[int, int] = {}
    names: dict[tuple[int, int], int] = {}
    found = []
    for group in groups:
        place = places.get(group, 0)
        places[group] = place + 1
        part = place * math.ceil(counts[group] / together) // int(counts[group])
        found.append(names.setdefault((group, part), len(names)))
    return found


def _by_cache(score: Score, model: Any, rows: AnswerRows) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts without their last token fill a cache; that token and the answer run on a copy of it."""
    if reason := why_not_cached(model):
        raise ValueError(f"answers cannot run on a cache of their prompts: {reason}.")
    groups = rows.groups()
    firsts = [groups.index(group) for group in range(max(groups) + 1)]
    index = torch.tensor(groups, device=rows.ids.device)
    begin = int(rows.prompts - rows.prompt_lengths.max())
    prompt_ids = rows.ids[firsts, begin : rows.prompts - 1]
    prompt_mask = rows.mask[firsts, begin : rows.prompts - 1]
    longest = max(1, int(rows.answer_lengths.max()))
    end = rows.prompts + longest
    ids, mask = rows.ids[:, rows.prompts - 1 : end - 1], rows.mask[:, rows.prompts : end]
    labels = rows.ids[:, rows.prompts : end].masked_fill(mask == 0, IGNORED)
    positions = prompt_mask.sum(1)[index][:, None] + torch.arange(longest, device=ids.device)[None]
    seen = torch.cat([prompt_mask[index], mask.new_ones(len(ids), 1), mask[:, :-1]], 1)
    with _prompts_before(decoder_of(model), prompt_ids, prompt_mask, index):
        logps, entropy = score(
            input_ids=ids, attention_mask=seen, position_ids=positions, shift_labels=labels
        )
    missing = (0, rows.columns - longest)
    wider = None if entropy is None else torch.nn.functional.pad(entropy, missing)
    return torch.nn.functional.pad(logps, missing), wider


@contextmanager
def _prompts_before(
    decoder: Any, ids: torch.Tensor, mask: torch.Tensor, index: torch.Tensor
) -> Iterator[None]:
    """The decoder's `forward` on a cache that it fills first; wrappers of the model see one forward pass."""
    original, hooked = decoder.forward, "forward" in vars(decoder)
    name = cache_name(decoder)

    def forward(**arguments: Any) -> Any:
        if ids.shape[1] == 0:  # prompts of a single token leave nothing to fill a cache with
            return original(**arguments)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        is_full = bool(mask.all())
        output = original(
            input_ids=ids,
            attention_mask=None if is_full else mask,
            position_ids=positions,
            use_cache=True,
        )
        cache = getattr(output, name)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        return original(**{**arguments, name: cache})

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        if hooked:
            decoder.forward = original
