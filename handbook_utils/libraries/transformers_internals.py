"""What we need of transformers that it gives no public name, or another name in each release.

All of it stands here and is held by `tests/contract/test_transformers.py`. Nothing is imported from
transformers before a function is called.
"""

from __future__ import annotations

import inspect
from typing import Any

# what a model takes and returns its keys and values as: the former since 5.24, the latter before
_CACHES = ("cache", "past_key_values")


def cache_name(model: Any) -> str:
    """What a decoder calls its key-value cache, as an argument and in its output."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(whole.forward).parameters
    return next((name for name in _CACHES if name in known), _CACHES[-1])


def given_cache(arguments: dict[str, Any]) -> Any:
    """The cache among the arguments of a decoder's forward pass, by either name; None without one."""
    return next((arguments[name] for name in _CACHES if arguments.get(name) is not None), None)


def attention_of(config: Any) -> str:
    """The implementation of attention that a model's configuration was resolved to, such as "sdpa"."""
    return str(config._attn_implementation)


def set_attention(config: Any, attention: str) -> None:
    """Have models built from a configuration use this implementation of attention."""
    config._attn_implementation = attention


def is_recurrent(decoder: Any) -> bool:
    """Whether a decoder keeps a state along the row instead of keys and values (Mamba and its like)."""
    return bool(getattr(decoder, "_is_stateful", False))


def takes_flash_attention(auto: Any, config: Any) -> bool:
    """Whether the model class behind a configuration supports FlashAttention.

    Args:
        auto: one of transformers' auto classes, such as `AutoModelForCausalLM`.
        config: of the model.
    """
    known = auto._model_mapping
    return type(config) in known and bool(known[type(config)]._supports_flash_attn)


def compile_template(template: str) -> Any:
    """A chat template compiled in transformers' sandbox, with its extensions and helper functions."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template)


def use_one_device(arguments: Any) -> None:
    """Keep a single process that sees several GPUs from splitting each batch over them (DataParallel).

    A step would then be larger than planned; several GPUs are for several processes.

    Args:
        arguments: transformers' `TrainingArguments`.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
