"""Log-probabilities and rewards of given answers, like lengths together so that little is padding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handbook_utils.chat.loss_masks import encode_conversations
from handbook_utils.errors import DataError, TemplateError
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.records import Message
from handbook_utils.shared_prefix.decoder import shared_prefixes, why_not_shared
from handbook_utils.shared_prefix.layout import rows_together

Conversation = tuple[list[Message], str]
# token ids, and where the response begins
Sequenced = tuple[list[int], int]
Floats = NDArray[np.float64]

# of all tokens of a forward pass: in float32, and twice while they are normalised, 2 GiB
LOGITS_PER_PASS = 2**28


def render_ids(tokenizer: Any, prompt: list[Message], response: str) -> Sequenced:
    """Token ids of a conversation under the chat template, and where the response begins.

    Returns:
        (ids, start): `ids[start:]` is the response with its end-of-turn token, exactly as in training.
    Raises:
        TemplateError: the template renders the prompt alone otherwise than before an answer.
    """
    return render_rows(tokenizer, [(prompt, response)])[0]


def render_rows(tokenizer: Any, rows: Sequence[Conversation]) -> list[Sequenced]:
    """As `render_ids`, for many rows at once: each distinct prompt is rendered once."""
    prompts = {json.dumps(prompt): prompt for prompt, _ in rows}
    opened = encode_conversations(tokenizer, list(prompts.values()), add_generation_prompt=True)
    openings = dict(zip(prompts, opened, strict=True))
    answered = [[*prompt, Message(role="assistant", content=response)] for prompt, response in rows]
    rendered = []
    for (prompt, _), ids in zip(rows, encode_conversations(tokenizer, answered), strict=True):
        opening = openings[json.dumps(prompt)]
        if ids[: len(opening)] != opening:
            raise TemplateError(
                "the chat template renders a prompt otherwise when an answer follows, so where the answer "
                "begins cannot be told. Use a template whose generation prompt is a prefix of the whole."
            )
        rendered.append((ids, len(opening)))
    return rendered


@naming_untested_versions
def response_logprobs(
    model: Any, tokenizer: Any, rows: Sequence[Conversation], *, batch_size: int = 64
) -> Floats:
    """Log-probability of each response given its prompt.

    Args:
        model: a causal language model; evaluation mode is the caller's to set.
        tokenizer: renders the conversation by its chat template.
        rows: (prompt messages, response text).
        batch_size: rows per forward pass.
    Returns:
        (rows,) natural log, summed over the response's tokens and the end-of-turn token.
    Source: log pi(y|x) of Rafailov et al. 2023, Eq. 7.
    """
    return response_logprob_sums(model, tokenizer, rows, batch_size=batch_size)[0]


def response_logprob_sums(
    model: Any, tokenizer: Any, rows: Sequence[Conversation], *, batch_size: int = 64
) -> tuple[Floats, NDArray[np.int64]]:
    """As `response_logprobs`, together with the number of tokens each sum runs over."""
    rendered = render_rows(tokenizer, rows)
    return sequence_logprob_sums(model, rendered, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size)


def sequence_logprob_sums(
    model: Any, sequences: Sequence[Sequenced], *, pad_token_id: int, batch_size: int = 64
) -> tuple[Floats, NDArray[np.int64]]:
    """Sum of token log-probabilities from position `start` on, for (ids, start) pairs.

    The first token of a sequence is given, never predicted, so `start` 0 counts as 1. Where the logits of
    `batch_size` rows would take too much memory, fewer rows are passed at once.

    Returns:
        ((rows,) natural log, (rows,) number of tokens summed).
    """
    starts = [max(start, 1) for _, start in sequences]
    counts = np.array([len(ids) - start for (ids, _), start in zip(sequences, starts, strict=True)])
    if (counts < 1).any():
        raise DataError(
            f"row {int(np.argmax(counts < 1)) + 1} has no token whose probability could be taken."
        )

    def measure(batch: Sequence[int], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first = min(starts[row] for row in batch)
        # logits of the prompts' positions are not needed, and they are the larger part of the memory
        keep = ids.shape[1] - first + 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        taken = logps.gather(-1, ids[:, first:, None]).squeeze(-1)
        position = torch.arange(first, ids.shape[1], device=ids.device)
        begins = torch.tensor([starts[row] for row in batch], device=ids.device)
        in_response = (position >= begins[:, None]) & mask[:, first:].bool()
        return (taken.double() * in_response).sum(dim=1)

    longest = max((len(ids) for ids, _ in sequences), default=1)
    fitting = max(1, LOGITS_PER_PASS // (longest * model.config.get_text_config().vocab_size))
    return _by_length(model, sequences, pad_token_id, min(batch_size, fitting), measure), counts


@naming_untested_versions
def reward_scores(
    model: Any, tokenizer: Any, rows: Sequence[Conversation], *, batch_size: int = 64
) -> Floats:
    """Reward of each response, on the very tokens the reward model was trained on.

    Args:
        model: a sequence classification model with one label.
        tokenizer: renders the conversation by its chat template.
        rows: (prompt messages, response text); the samples of one prompt may stand side by side.
        batch_size: rows per forward pass.
    Returns:
        (rows,) log-odds; only differences between answers to one prompt mean something.
    Raises:
        TemplateError: the template renders the prompt alone otherwise than before an answer.
    Source: Bradley and Terry 1952. Book: chapter "Preferences and reward models".
    """
    sequences = render_rows(tokenizer, rows)
    return sequence_rewards(model, sequences, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size)


def sequence_rewards(
    model: Any, sequences: Sequence[Sequenced], *, pad_token_id: int, batch_size: int = 64
) -> Floats:
    """As `reward_scores`, for (ids, start) pairs."""
    # transformers 5.24 reads the score at the last token that is not this one, whatever the mask says: a
    # padding token of another number would be read itself, in all but the longest row
    own = model.config.get_text_config().pad_token_id
    filler = pad_token_id if own is None else own

    def measure(_: Sequence[int], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return scores.squeeze(-1).double()

    return _by_length(model, sequences, filler, batch_size, measure)


Measure = Callable[[Sequence[int], torch.Tensor, torch.Tensor], torch.Tensor]


def _by_length(
    model: Any, sequences: Sequence[Sequenced], pad_token_id: int, batch_size: int, measure: Measure
) -> Floats:
    """Apply `measure` to padded batches of like lengths and return its numbers in the given order.

    Where the model allows it exactly, rows that answer one prompt stand in one batch, which computes it once.
    """
    values = np.empty(len(sequences))
    is_shared = why_not_shared(model) is None
    size = model.config.get_text_config().hidden_size
    units = _same_prompt(sequences, size) if is_shared else [[row] for row in range(len(sequences))]
    with torch.inference_mode():
        for batch in _batches(units, sequences, batch_size):
            rows = [row for unit in batch for row in unit]
            groups = [number for number, unit in enumerate(batch) for _ in unit]
            width = max(len(sequences[row][0]) for row in rows)
            ids = torch.full((len(rows), width), pad_token_id)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for line, row in enumerate(rows):
                own = sequences[row][0]
                ids[line, : len(own)] = torch.tensor(own)
                mask[line, : len(own)] = 1
            with shared_prefixes(model, groups) if is_shared else nullcontext():
                values[rows] = measure(rows, ids.to(model.device), mask.to(model.device)).cpu().numpy()
    return values


def _same_prompt(sequences: Sequence[Sequenced], hidden_size: int) -> list[list[int]]:
    """Rows of one prompt together, as many as is cheapest, those of like length first."""
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(range(len(sequences)), key=lambda row: -len(sequences[row][0])):
        ids, start = sequences[row]
        of_prompt.setdefault(tuple(ids[:start]), []).append(row)
    units = []
    for prompt, rows in of_prompt.items():
        own = sum(len(sequences[row][0]) for row in rows) / len(rows) - len(prompt)
        most = rows_together(len(prompt), own, hidden_size)
        parts = math.ceil(len(rows) / most)
        units += [list(part) for part in np.array_split(rows, parts)]
    return units


def _batches(
    units: Sequence[list[int]], sequences: Sequence[Sequenced], batch_size: int
) -> Iterator[list[list[int]]]:
    """Units of like length, at most `batch_size` rows at once unless one unit has more."""
    # longest first: a batch that does not fit into memory fails at once, not after an hour
    batch: list[list[int]] = []
    for unit in sorted(units, key=lambda unit: -_width(unit, sequences)):
        if batch and sum(map(len, batch)) + len(unit) > batch_size:
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


def _width(unit: Sequence[int], sequences: Sequence[Sequenced]) -> int:
    """Tokens of a unit that are computed."""
    start = sequences[unit[0]][1]
    return start + sum(len(sequences[row][0]) - start for row in unit)
