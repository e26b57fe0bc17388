"""Tokenizers and models by name: `pocket:base`, a local folder, an earlier run, an adapter, or the hub."""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from handbook_utils.chat.bounded_render import require_bounded
from handbook_utils.chat.templates import chat_template_text
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import HandbookError, ModelError, TemplateError
from handbook_utils.libraries.notices import silence_notices
from handbook_utils.libraries.transformers_internals import attention_of, takes_flash_attention
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.models.adapters import (
    AdapterBase,
    attach,
    check_adapter,
    check_fingerprint,
    merged,
    read_base,
)
from handbook_utils.models.embeddings import embedding_rows
from handbook_utils.models.padding import padding_of
from handbook_utils.models.places import INIT, is_adapter, not_found, resolve_model
from handbook_utils.models.precision import (
    Head,
    Loading,
    LoadOptions,
    alike_on_all_cpus,
    choose_attention,
    dequantized,
    in_dtype,
    quantization_options,
    quantized,
    stored_options,
    stored_quantization,
)
from handbook_utils.pocket.base_model import build_init_model, build_tokenizer
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.sections import ModelSection

_LAYER = re.compile(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.\d+\.")
LOGGER = logging.getLogger("handbook_utils")


@naming_untested_versions
def load_tokenizer(
    name: str, *, revision: str | None = None, for_chat: bool = True, chat_template: str | None = None
) -> Any:
    """Load a tokenizer that can render conversations and pad batches.

    Args:
        name: as for `load_model`; an adapter without a tokenizer has that of its base.
        revision: branch, tag or commit of a hub name.
        for_chat: whether a chat template is needed; plain text needs none.
        chat_template: takes the place of the tokenizer's own: a packaged name, a .jinja file, or its text.
    Raises:
        ModelError: nothing there, or it has no end-of-sequence token.
        TemplateError: the tokenizer has no chat template, or one that does not end or is no template.
    """
    if name == INIT:
        return build_tokenizer()
    place = resolve_model(name, revision=revision)
    if is_adapter(place) and not (Path(place) / "tokenizer_config.json").exists():
        base = read_base(place)
        return load_tokenizer(
            base.name, revision=base.revision, for_chat=for_chat, chat_template=chat_template
        )
    with _quiet_if_local(place):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_loaded(name, "tokenizer", error, revision) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{name}: the tokenizer has no end-of-sequence token, so no answer could ever end. Write it as "
            "'eos_token' into the tokenizer_config.json of a copy of that folder."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = padding_of(tokenizer)
    if chat_template is not None:
        tokenizer.chat_template = chat_template_text(chat_template)
    if for_chat and not tokenizer.chat_template:
        raise TemplateError(
            f"{name}: the tokenizer has no chat template, so conversations cannot be rendered. "
            "Use the instruction-tuned sibling's tokenizer, or put a chat_template.jinja into the folder."
        )
    if for_chat:
        require_bounded(tokenizer)
    return tokenizer


class UnusedWeightsWarning(UserWarning):
    """The files of a model hold layers that its configuration does not count."""


@naming_untested_versions
def load_model(name: str, *, head: Head = "causal", **options: Unpack[LoadOptions]) -> Any:
    """Load a model, in evaluation mode; an adapter together with what it was trained on.

    Args:
        name: `pocket:base`, `pocket:init` (its untrained form), a folder with safetensors and a config.json
            or an adapter_config.json, a run folder (its `model/` is read), or a name on the hub. Code that
            comes with a model is never run.
        head: "causal" for a language model; "reward" for one score a conversation. A model without a
            score head gets a random one. What is random is drawn from torch's global generator.
        options:
            - `dtype`: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on a GPU that
              has it.
            - `quantization`: "none", "int8", "nf4", or "auto": an adapter's base as it was in training, a
              whole model not at all. "none" for an adapter trained on a quantised base dequantises that base:
              the same model, but for rounding.
            - `attention`: "sdpa", "eager", "flash_attention_2", "flex_attention", or "auto": flash-attention
              where it is installed and the GPU and the dtype allow it, else SDPA. The choice is logged.
            - `revision`: branch, tag or commit of a hub name.
            - `device`: where to put it; None for this process's GPU, or else the CPU.
    Raises:
        ModelError: nothing there, weights missing, no safetensors, or an adapter of another base.
        MissingDependencyError: the quantisation or attention needs a library that is not installed.
    Book: chapter "LoRA and QLoRA".
    """
    silence_notices()
    how = Loading(head, **options)
    if name == INIT:
        return build_init_model(_drawn_seed()).to(how.target)
    place = resolve_model(name, revision=how.revision)
    return load_on_base(place, how) if is_adapter(place) else _load_whole(name, place, how)


def read_config(name: str, *, revision: str | None = None) -> Any:
    """A model's configuration, without its weights; an adapter's is that of its base.

    Raises:
        ModelError: nothing there, or it cannot be read.
    """
    if name == INIT:
        return build_init_model().config
    place = resolve_model(name, revision=revision)
    if is_adapter(place):
        base = read_base(place)
        return read_config(base.name, revision=base.revision)
    with _quiet_if_local(place):
        try:
            return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_loaded(name, "configuration", error, revision) from error


def load_pair(name: str, *, head: Head = "causal", **options: Unpack[LoadOptions]) -> tuple[Any, Any]:
    """A model and the tokenizer beside it, checked against each other; options as for `load_model`."""
    tokenizer = load_tokenizer(name, revision=options.get("revision"))
    model = load_model(name, head=head, **options)
    check_vocabulary(model, tokenizer, name)
    return model, tokenizer


def options_of(section: ModelSection) -> LoadOptions:
    """The options that a recipe's section gives to `load_model`."""
    return {
        "dtype": section.dtype,
        "quantization": section.quantization,
        "attention": section.attention,
        "revision": section.revision,
    }


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that knows more tokens than the model has embeddings.

    Fewer are fine: vocabularies are often padded to a round number.
    """
    rows = embedding_rows(model)
    if len(tokenizer) > rows:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings, so a text "
            "could hold tokens the model has no place for. Use the tokenizer the model was trained with, or "
            "resize the model's embeddings (resize_token_embeddings) and save both together."
        )


def load_on_base(place: str, how: Loading, *, is_trainable: bool = False) -> Any:
    """An adapter on what it was trained on.

    Args:
        place: the adapter's folder, as `resolve_model` gives it.
        how: `quantization` is that of the base.
        is_trainable: whether the adapter is to be trained on.
    """
    check_adapter(place)
    base = adapter_base(place)
    wanted = base.quantization if how.quantization == "auto" else how.quantization
    # what training rounded stays rounded: the adapter has learned to make up for it
    held = wanted if base.quantization == "none" else base.quantization
    model = _load_base(place, base, how.replace(quantization=held, revision=base.revision))
    with quiet_libraries():
        if wanted != held:
            model = quantized(dequantized(model, how.torch_dtype), how.replace(quantization=wanted))
        return attach(model, place, head=how.head, is_trainable=is_trainable).eval()


def adapter_base(place: str) -> AdapterBase:
    """What an adapter stands on, as `read_base`; a base whose own files are quantised is held as they are."""
    base = read_base(place)
    if base.quantization == "none":
        with suppress(ModelError):  # loading says what is wrong with it
            base = replace(base, quantization=stored_as(base.name, revision=base.revision))
    return base


def stored_as(name: str, *, revision: str | None = None) -> str:
    """How a whole model's files hold its weights, as `stored_quantization`; of an adapter "none".

    Raises:
        ModelError: as `read_config`.
    """
    if name == INIT or is_adapter(resolve_model(name, revision=revision)):
        return "none"
    return stored_quantization(read_config(name, revision=revision))


def load_merged(place: str, how: Loading) -> Any:
    """An adapter merged into what it was trained on, dequantised first, as one whole model.

    Merging into quantised weights would round the sum again and lose much of a small update.
    """
    model = load_on_base(place, how.replace(quantization="none"))
    with quiet_libraries():
        return merged(model).requires_grad_(True).eval()


def _load_base(adapter: str, base: AdapterBase, how: Loading) -> Any:
    """What an adapter stands on; an earlier adapter in that is merged first."""
    try:
        place = resolve_model(base.name, revision=base.revision)
    except ModelError as error:
        raise ModelError(
            f"{adapter}: the base of this adapter, {base.name}, cannot be found: {error}"
        ) from error
    check_fingerprint(adapter, base, place)
    if is_adapter(place):
        with quiet_libraries():
            return quantized(load_merged(place, how), how)
    return _load_whole(base.name, place, how)


def _load_whole(name: str, place: str, how: Loading) -> Any:
    config = read_config(name, revision=how.revision)
    stored = stored_quantization(config)
    options = quantization_options(how) if stored == "none" else stored_options(config, how)
    auto = AutoModelForCausalLM
    if how.head == "reward":
        auto, config.num_labels = AutoModelForSequenceClassification, 1
    with _quiet_if_local(place):
        try:
            attention = choose_attention(how.attention, how, has_flash=_has_flash(auto, place, how))
            if attention is not None:
                options["attn_implementation"] = attention
            model, info = auto.from_pretrained(
                place,
                config=config,
                revision=how.revision,
                dtype=how.torch_dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name below
                **options,
            )
        except HandbookError:
            raise
        except (OSError, ValueError, ImportError) as error:
            raise _not_loaded(name, "model", error, how.revision) from error
    LOGGER.info("%s: attention %s", name, attention_of(model.config))
    _check_weights(name, how.head, info)
    model.has_new_score = any(key.startswith("score.") for key in info["missing_keys"])
    if how.head == "reward" and model.config.get_text_config().pad_token_id is None:
        # without it the score is read at the last position, which is padding in all but the longest row
        tokenizer = load_tokenizer(name, revision=how.revision, for_chat=False)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if stored != "none":
        plain = how.quantization not in ("auto", stored)
        model = in_dtype(dequantized(model, how.torch_dtype) if plain else model, how.torch_dtype)
        model = quantized(model, how) if plain else model
    # quantised weights were placed while they were loaded, and cannot all be moved
    return alike_on_all_cpus(model if "device_map" in options else model.to(how.target)).eval()


def _has_flash(auto: Any, place: str, how: Loading) -> bool:
    if how.attention != "auto" or how.target.type != "cuda":
        return False
    config = AutoConfig.from_pretrained(place, revision=how.revision, trust_remote_code=False)
    return takes_flash_attention(auto, config)


def _check_weights(name: str, head: Head, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers would fill them with noise and a warning."""
    missing = {key for key in info["missing_keys"] if not (head == "reward" and key.startswith("score."))}
    mismatched = {str(key) for key in info["mismatched_keys"]}
    if missing or mismatched:
        listed = ", ".join(sorted(missing | mismatched)[:3])
        raise ModelError(f"{name}: the weights do not fit the config: {listed} missing or of another shape.")
    # a layer beside others that the config does not count; heads and towers are left out on purpose
    layers = [key for key in sorted(info["unexpected_keys"]) if _LAYER.match(key)]
    if layers:
        warn_and_log(
            f"{name}: {len(layers)} weights of its files are not used, such as {layers[0]}: the config "
            "counts fewer layers. Where that is not meant, look at num_hidden_layers of its config.json.",
            UnusedWeightsWarning,
        )


def check_numbers(model: Any, name: str) -> None:
    """Refuse a model with a weight that is no number: nothing can be trained on it, and no loss would tell.

    Each weight is summed, which costs a small part of one step; only a sum that is no number is looked into.

    Args:
        model: loaded; weights that are held elsewhere (ZeRO-3) or rounded to integers are left out.
        name: what it was loaded from; opens the error message.
    Raises:
        ModelError: names the first such weight.
    """
    for key, weight in model.named_parameters():
        plain = weight.detach()
        if plain.is_meta or not plain.is_floating_point() or plain.sum().isfinite():
            continue
        if broken := int((~plain.isfinite()).sum()):
            raise ModelError(
                f"{name}: {broken:,} of {plain.numel():,} numbers of the weight {key} are NaN or infinite, "
                "so nothing can be trained on this model. Take an earlier checkpoint, or fetch the files "
                "again."
            )


def _drawn_seed() -> int:
    # from torch's own generator, so that whoever seeds that decides about these weights as well
    return int(torch.randint(2**31, ()).item())


def _quiet_if_local(place: str) -> AbstractContextManager[None]:
    # a download keeps its progress bar: it can take minutes
    return quiet_libraries() if Path(place).is_dir() else nullcontext()


def _not_loaded(name: str, what: str, error: Exception, revision: str | None) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if Path(name).expanduser().exists() or name.startswith("pocket:"):
        return ModelError(f"{name}: cannot load the {what}: {reason}")
    return not_found(name, f"cannot load the {what}", revision=revision, reason=reason)
