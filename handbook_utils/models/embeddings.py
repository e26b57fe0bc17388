"""The rows of a model's vocabulary: how many there are, and as many as an adapter was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from handbook_utils.errors import ModelError

# what an adapter may have put around an embedding
_INNER = ("original_module", "base_layer")
_PREFIX = "base_model.model."


def embedding_rows(model: Any) -> int:
    """The number of rows of a model's input embeddings, with or without an adapter around them."""
    layer = model.get_input_embeddings()
    while not hasattr(layer, "num_embeddings"):
        layer = getattr(layer, next(name for name in _INNER if hasattr(layer, name)))
    return int(layer.num_embeddings)


def fit_embeddings(
    model: Any, weights: Mapping[str, torch.Tensor], trained_tokens: list[int], *, name: str
) -> None:
    """Give a base as many embeddings as an adapter was trained with, more or fewer than its own.

    Args:
        model: the base, without an adapter; changed in place. `has_new_tokens` then says that its embeddings
            have to be saved with the adapter.
        weights: the adapter's, by name.
        trained_tokens: token ids whose embeddings the adapter trains one by one.
        name: of the adapter, for errors.
    Raises:
        ModelError: the adapter trains tokens that the base lacks, and holds no embeddings for all of them.
    """
    held = embedding_rows(model)
    saved = _saved_rows(model, weights)
    wanted = saved if saved is not None else max(held, *(token + 1 for token in trained_tokens), 0)
    if wanted == held:
        return
    if saved is None:
        missing = set(range(held, wanted)) - {*trained_tokens}
        if missing or not model.config.get_text_config().tie_word_embeddings:
            raise ModelError(
                f"{name}: this adapter trains token {wanted - 1}, its base has embeddings for {held} tokens, "
                "and the other new rows were not saved. Save it again with save_embedding_layers=True."
            )
    model.resize_token_embeddings(wanted, mean_resizing=False)
    model.has_new_tokens = True


def _saved_rows(model: Any, weights: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the embeddings, or of the output head, that an adapter brings whole; None without any."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, layer in model.named_modules() if any(layer is one for one in layers)]
    prefixes = tuple(f"{_PREFIX}{name}." for name in names)
    whole = (
        key for key in weights if key.startswith(prefixes) and key.endswith(".weight") and ".lora_" not in key
    )
    return next((len(weights[key]) for key in whole), None)


def untie_trained(model: Any) -> None:
    """Give the output head weights of its own where an adapter is about to change it or the embeddings alone.

    Args:
        model: a base with an adapter on it, whose head and embeddings are one tensor.
    """
    layer, head = model.get_input_embeddings(), model.get_output_embeddings()
    text = model.config.get_text_config()
    has_own = getattr(head, "lora_A", None)
    if not text.tie_word_embeddings or not (has_own or getattr(layer, "lora_embedding_A", None)):
        return
    if head is not None and (has_own or not hasattr(head, "base_layer")):
        plain = head.base_layer if has_own else head
        plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = text.tie_word_embeddings = False
