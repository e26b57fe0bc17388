"""How weights are held in memory: device, number format, quantisation, attention."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, TypedDict

import torch

from handbook_utils.errors import MissingDependencyError, ModelError, suggest

Head = Literal["causal", "reward"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
# how other tools' files hold weights that transformers can turn into plain ones while it loads them
DEQUANTIZED_WHILE_LOADED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
# flash-attention 2 needs this compute capability (Ampere), and two-byte numbers
FLASH_CAPABILITY, FLASH, FLEX = (8, 0), "flash_attention_2", "flex_attention"


class LoadOptions(TypedDict, total=False):
    """Options of `load_model`, documented there."""

    dtype: str
    quantization: str
    attention: str
    revision: str | None
    device: str | torch.device | None


@dataclass(frozen=True)
class Loading:
    """How a model is to be loaded; names are checked when it is made."""

    head: Head = "causal"
    dtype: str = "auto"
    quantization: str = "auto"
    attention: str = "auto"
    revision: str | None = None
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        for name, known in (("dtype", [*DTYPES, "auto"]), ("quantization", [*QUANTIZATIONS, "auto"])):
            if getattr(self, name) not in known:
                raise ModelError(
                    f"unknown {name} '{getattr(self, name)}'. {suggest(getattr(self, name), known)}"
                )

    @property
    def target(self) -> torch.device:
        """Where the weights go."""
        return default_device() if self.device is None else torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Number format of the weights that are not quantised, and of computing with those that are."""
        return resolve_dtype(self.dtype, self.target)

    def replace(self, **changes: Any) -> Loading:
        """The same with some fields changed."""
        return replace(self, **changes)


def default_device() -> torch.device:
    """This process's GPU (the first, unless a launcher says otherwise), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch type of a name; "auto" is float32 on a CPU, bfloat16 on a GPU that has it."""
    if dtype == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}'. {suggest(dtype, [*DTYPES, 'auto'])}")
    return DTYPES[dtype]


def quantization_options(how: Loading) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise linear layers while it loads; nothing for "none" and "auto".

    NF4 with double quantisation is that of QLoRA (Dettmers et al. 2023); int8 that of LLM.int8() (Dettmers
    et al. 2022). The output head, embeddings and norms are never quantised.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if how.quantization in ("auto", "none"):
        return {}
    _require_bitsandbytes(how.quantization, "Or set quantization to 'none'.")
    from transformers import BitsAndBytesConfig

    if how.quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=how.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=how.torch_dtype,
            bnb_4bit_quant_storage=_storage(how.torch_dtype),
        )
    # placed while loading: bitsandbytes packs the weights on the device they will stay on
    return {"quantization_config": config, "device_map": {"": str(how.target)}}


def _require_bitsandbytes(quantization: str, otherwise: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"quantization '{quantization}' needs bitsandbytes: pip install bitsandbytes. {otherwise}"
        )


def stored_quantization(config: Any) -> str:
    """How a model's own files hold its weights, by its configuration.

    Returns:
        "none", "int8", "nf4" or "fp4" (all bitsandbytes), or another method's name, such as "gptq".
    """
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    if stored.get("load_in_4bit") or stored.get("_load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "fp4"))
    if stored.get("load_in_8bit") or stored.get("_load_in_8bit"):
        return "int8"
    return str(stored.get("quant_method", "none"))


def stored_options(config: Any, how: Loading) -> dict[str, Any]:
    """What `from_pretrained` takes to load weights whose files are quantised already.

    They are held as they are stored, computed with in the number format asked for, and a new score head stays
    whole. `how.quantization` of "none" turns formats into plain weights that can be so only while loaded.
    """
    import transformers

    stored = stored_quantization(config)
    options: dict[str, Any] = {"device_map": {"": str(how.target)}}
    if stored in QUANTIZATIONS:
        _require_bitsandbytes(stored, "Or take the model whose weights are not quantised.")
        settings = config.quantization_config
        if settings.get("llm_int8_skip_modules"):
            settings["llm_int8_skip_modules"] = [*settings["llm_int8_skip_modules"], "score"]
        settings["bnb_4bit_compute_dtype"] = str(how.torch_dtype).removeprefix("torch.")
    elif how.quantization == "none" and stored in DEQUANTIZED_WHILE_LOADED:
        kind = getattr(transformers, DEQUANTIZED_WHILE_LOADED[stored])
        options["quantization_config"] = kind(dequantize=True)
    return options


def _storage(dtype: torch.dtype) -> torch.dtype:
    # FSDP flattens parameters of one dtype only, so packed bytes have to pass as the dtype of the others
    return dtype if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" else torch.uint8


def dequantized(model: Any, dtype: torch.dtype) -> Any:
    """The model with every quantised layer as a plain one in `dtype`; other models as they are."""
    if not is_quantized(model):
        return model
    model = model.dequantize(dtype)
    # transformers leaves these marks behind, and trainers read them
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with all weights that are not quantised in one number format.

    Of a model whose files are quantised, transformers leaves them as stored, beside new ones in `dtype`.
    """
    for weight in model.parameters():
        if weight.is_floating_point() and not _is_packed(weight):
            weight.data = weight.data.to(dtype)
    return model


def quantized(model: Any, how: Loading) -> Any:
    """A model in memory, quantised as `how` says; it is not to be used afterwards."""
    options = quantization_options(how)
    if not options:
        return model
    packed = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=how.torch_dtype, **options
    )
    packed.name_or_path = packed.config.name_or_path = model.name_or_path
    return alike_on_all_cpus(packed.eval())


def alike_on_all_cpus(model: Any) -> Any:
    """The model, which is to hold its 4-bit weights as they were loaded.

    On a CPU that computes in bfloat16, bitsandbytes 0.50 rounds their scales to it at the first pass in
    evaluation mode. The model then can be neither trained nor dequantised, and gives other numbers.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def is_quantized(model: Any) -> bool:
    """Whether any layer of the model holds quantised weights."""
    return any(_is_packed(weight) for weight in model.parameters())


def quantized_share(model: Any) -> float:
    """Share of a model's weights that are held quantised; those of an adapter on it are not counted.

    Only linear layers are. Embeddings, the output head and norms stay as they are, and so do the experts of a
    mixture-of-experts model, which transformers 5 keeps in one three-dimensional tensor per layer.

    Returns:
        Between 0 and 1; a weight that two layers share counts once.
    """
    sizes = [
        (_true_size(weight), _is_packed(weight))
        for name, weight in model.named_parameters()
        if not any(part in name for part in (".lora_", ".modules_to_save."))
    ]
    return sum(size for size, packed in sizes if packed) / max(1, sum(size for size, _ in sizes))


def _is_packed(weight: torch.Tensor) -> bool:
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def _true_size(weight: Any) -> int:
    # two 4-bit weights share a byte: what they were is kept beside them
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else torch.Size(state.shape).numel())


def choose_attention(wanted: str, how: Loading, *, has_flash: bool) -> str | None:
    """The attention to ask transformers for; None leaves its own choice, SDPA where the model has it.

    Args:
        wanted: "auto", or a name that is taken as it is.
        how: where and in which number format the model runs.
        has_flash: whether the architecture can use flash-attention 2.
    Raises:
        MissingDependencyError, ModelError: what is wanted is not installed, or cannot run here.
    """
    if wanted == FLEX and how.target.type == "cpu":
        raise ModelError(f"attention '{FLEX}' has no backward pass on a CPU. Set attention to 'sdpa'.")
    if wanted not in ("auto", FLASH):
        return wanted
    reason = _no_flash(how)
    if wanted == "auto":
        return FLASH if has_flash and reason is None else None
    if find_spec("flash_attn") is None:
        raise MissingDependencyError(
            "attention 'flash_attention_2' needs flash-attn: pip install flash-attn --no-build-isolation. "
            "Or set attention to 'sdpa', which needs nothing."
        )
    if reason is not None:
        raise ModelError(f"attention 'flash_attention_2' {reason}. Set attention to 'sdpa'.")
    return FLASH


def _no_flash(how: Loading) -> str | None:
    """Why flash-attention 2 cannot run, or None."""
    if find_spec("flash_attn") is None:
        return "is not installed"
    if how.target.type != "cuda":
        return f"needs a CUDA GPU, and the model is loaded to {how.target}"
    if torch.cuda.get_device_capability(how.target) < FLASH_CAPABILITY:
        return f"needs an Ampere GPU or newer, and this is a {torch.cuda.get_device_name(how.target)}"
    if how.torch_dtype == torch.float32:
        return "needs float16 or bfloat16, and the weights are float32"
    return None
