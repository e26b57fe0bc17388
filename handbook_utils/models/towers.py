"""The parts of a model that text does not go through, such as a vision tower."""

from __future__ import annotations

from typing import Any


def tower_names(model: Any) -> list[str]:
    """Names of a multimodal model's modules beside its text decoder and heads, the topmost of each.

    Returns:
        Such as ["model.vision_tower", "model.multi_modal_projector"]; none of a model that takes text alone.
    """
    if model.config.get_text_config() is model.config:
        return []
    heads = [model.get_input_embeddings(), model.get_output_embeddings(), getattr(model, "score", None)]
    text = {id(layer) for layer in (*model.get_decoder().modules(), *heads)}
    found: list[str] = []
    for name, layer in model.named_modules():
        is_inside = any(name.startswith(f"{tower}.") for tower in found)
        if name and not is_inside and not any(id(part) in text for part in layer.modules()):
            found.append(name)
    return found
