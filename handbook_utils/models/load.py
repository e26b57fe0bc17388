"""Tokenizers and models by name: `pocket:base`, a local folder, an earlier run, or the hub."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import ModelError, TemplateError, suggest
from handbook_utils.pocket.base_model import base_path, build_init_model, build_tokenizer

Head = Literal["causal", "reward"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BASE, INIT = "pocket:base", "pocket:init"


def load_tokenizer(name: str, *, revision: str | None = None, for_chat: bool = True) -> Any:
    """Load a tokenizer that can render conversations and pad batches.

    Args:
        name: as for `load_model`.
        revision: branch, tag or commit of a hub name.
        for_chat: whether a chat template is needed; plain text needs none.
    Raises:
        ModelError: nothing there, or it has no end-of-sequence token.
        TemplateError: the tokenizer has no chat template.
    """
    if name == INIT:
        return build_tokenizer()
    place = _place(name)
    with _quiet_if_local(place):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_loaded(name, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: the tokenizer has no end-of-sequence token, so no answer could ever end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if for_chat and not tokenizer.chat_template:
        raise TemplateError(
            f"{name}: the tokenizer has no chat template, so conversations cannot be rendered. "
            "Use the instruction-tuned sibling's tokenizer, or put a chat_template.jinja into the folder."
        )
    return tokenizer


def load_model(
    name: str,
    *,
    head: Head = "causal",
    dtype: str = "auto",
    attention: str = "auto",
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Load a model, in evaluation mode.

    Args:
        name: `pocket:base`, `pocket:init` (its untrained form), a folder with config.json and
            safetensors, a run folder (its `model/` is read), or a name on the hub. Code that comes with a
            model is never run.
        head: "causal" for a language model; "reward" for one score a conversation. A model without a
            score head gets a random one. What is random is drawn from torch's global generator.
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on a GPU that has it.
        attention: "sdpa", "eager", "flash_attention_2", or "auto".
        revision: branch, tag or commit of a hub name.
        device: where to put it; None for the first GPU, or else the CPU.
    Raises:
        ModelError: nothing there, weights missing, or no safetensors.
    """
    device = torch.device(device) if device is not None else default_device()
    if name == INIT:
        return build_init_model(_drawn_seed()).to(device)
    place = _place(name)
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    auto = AutoModelForCausalLM
    if head == "reward":
        auto, options["num_labels"] = AutoModelForSequenceClassification, 1
    with _quiet_if_local(place):
        try:
            model, info = auto.from_pretrained(
                place,
                revision=revision,
                dtype=resolve_dtype(dtype, device),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, ImportError) as error:
            raise _not_loaded(name, "model", error) from error
    _check_weights(name, head, info)
    if head == "reward" and model.config.get_text_config().pad_token_id is None:
        # without it the score is read at the last position, which is padding in all but the longest row
        model.config.get_text_config().pad_token_id = load_tokenizer(name, revision=revision).pad_token_id
    return model.to(device).eval()


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch type of a name; "auto" is float32 on a CPU, bfloat16 on a GPU that has it."""
    if dtype == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}'. {suggest(dtype, [*DTYPES, 'auto'])}")
    return DTYPES[dtype]


def _place(name: str) -> str:
    """The folder or hub name to load from; what is missing on disk is an error before anything heavy."""
    if name.startswith("pocket:"):
        if name != BASE:
            raise ModelError(f"unknown model '{name}'. {suggest(name, (BASE, INIT))}")
        return str(base_path())
    path = Path(name).expanduser()
    if (path / "manifest.json").exists():
        path = path / "model"
        if not path.is_dir():
            raise ModelError(f"{name}: this run holds no model. Name a run of sft, dpo, reward or pretrain.")
    if path.is_dir():
        _check_folder(path)
        return str(path)
    if path.exists():
        raise ModelError(f"{name}: a file. Give the folder that holds config.json and the weights.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggest(path.name, beside) if beside else f"The folder {path.parent} is missing or empty."
        raise ModelError(f"{name}: no such folder. {hint}")
    return name


def _check_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise ModelError(f"{path}: no config.json, so this is not a model folder.")
    if not list(path.glob("*.safetensors")):
        others = [entry.name for entry in path.glob("*.bin")]
        found = f"only {others[0]}, which can run code when it is loaded" if others else "none"
        raise ModelError(f"{path}: weights have to be .safetensors; found {found}.")


def _check_weights(name: str, head: Head, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights: transformers would fill them with noise and a warning."""
    missing = {key for key in info["missing_keys"] if not (head == "reward" and key.startswith("score."))}
    mismatched = {str(key) for key in info["mismatched_keys"]}
    if missing or mismatched:
        listed = ", ".join(sorted(missing | mismatched)[:3])
        raise ModelError(f"{name}: the weights do not fit the config: {listed} missing or of another shape.")


def _drawn_seed() -> int:
    # from torch's own generator, so that whoever seeds that decides about these weights as well
    return int(torch.randint(2**31, ()).item())


def _quiet_if_local(place: str) -> AbstractContextManager[None]:
    # a download keeps its progress bar: it can take minutes
    return quiet_libraries() if Path(place).is_dir() else nullcontext()


def _not_loaded(name: str, what: str, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    local = Path(name).expanduser().exists() or name.startswith("pocket:")
    hint = " No such folder here, and HF_HUB_OFFLINE is set, so the hub is not asked." if offline else ""
    return ModelError(f"{name}: cannot load the {what}: {reason}{'' if local else hint}")
