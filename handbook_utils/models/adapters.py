"""Low-rank adapters on disk and in memory: what one stands on, putting it there, merging it in.

Beside an adapter's weights `base.json` says what the adapter was trained on: a model, or an earlier run whose
own adapter is merged in first. So a chain of runs loads as one model, and a copied `runs/` folder as well.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from handbook_utils.errors import ModelError
from handbook_utils.models.embeddings import fit_embeddings, untie_trained
from handbook_utils.models.places import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weights_fingerprint
from handbook_utils.models.precision import QUANTIZATIONS, Head
from handbook_utils.models.towers import tower_names
from handbook_utils.schema.sections import LoraSection

BASE_RECORD = "base.json"
SCORE_HEAD, OUTPUT_HEADS = "score", ("lm_head", "embed_out")
TRAINED_TOKENS = "token_adapter.trainable_tokens_delta"
LOST_HEAD = (
    "a reward model's adapter without its score head: that was not saved with it, nor has its base one, so "
    "its scores would be noise. Train it again with task_type='SEQ_CLS', as the stage `reward` does, or save "
    "its head as one of `modules_to_save`."
)
# how PEFT may begin an adapter by taking a part out of the base, which is done again on each load: by these
# alike from the base alone, by those with random draws, or with data or rounding that is not saved
# weights that only an adapter can bring; what is trained of a head's tokens may be tied to the embeddings
_OF_ADAPTER = re.compile(
    r"\.lora_\w+\.|\.modules_to_save\.|(?<!_head|d_out)\.token_adapter\.trainable_tokens_delta"
)
REPEATED_ON_BASE, LOST_ON_BASE = ("pissa", "olora"), ("pissa_niter", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterBase:
    """What an adapter was trained on.

    Attributes:
        name: as `load_model` takes it.
        revision: of a hub name.
        quantization: "none", "int8" or "nf4": how it was held in training.
        fingerprint: of its weights then; None for a hub name, or where it was not recorded.
    """

    name: str
    revision: str | None = None
    quantization: str = "none"
    fingerprint: str | None = None


def read_base(folder: str | Path) -> AdapterBase:
    """What the adapter in a folder stands on; PEFT's own note where there is no `base.json`.

    Raises:
        ModelError: neither says, or the note is damaged.
    """
    folder = Path(folder)
    try:
        if (folder / BASE_RECORD).exists():
            base = AdapterBase(**_read_json(folder / BASE_RECORD))
        else:
            config = _read_json(folder / ADAPTER_CONFIG)
            base = AdapterBase(config["base_model_name_or_path"] or "", config.get("revision"))
    except (KeyError, TypeError):
        raise ModelError(f"{folder}: damaged, so what this adapter was trained on is not known.") from None
    if not base.name or base.quantization not in QUANTIZATIONS:
        raise ModelError(
            f"{folder}: neither {BASE_RECORD} nor {ADAPTER_CONFIG} names the base of this adapter."
        )
    if base.name.startswith("."):  # beside the run that holds the adapter
        return AdapterBase(**{**asdict(base), "name": os.path.normpath(folder / base.name)})
    return base


def save_adapter(
    model: Any,
    folder: Path,
    base: AdapterBase,
    *,
    final: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter that was trained, not its frozen copy, and its base; `final` as in `write_base`."""
    whole = model.get_base_model()
    has_new_tokens = getattr(whole, "has_new_tokens", False)
    config = model.peft_config["default"]
    config.init_lora_weights = getattr(whole, "adapter_init", config.init_lora_weights)
    model.save_pretrained(
        folder, state_dict=weights, selected_adapters=["default"], save_embedding_layers=has_new_tokens
    )
    (folder / "README.md").unlink(missing_ok=True)  # a card that PEFT drafts
    write_base(folder, base, final=final)


def write_base(folder: Path, base: AdapterBase, *, final: Path) -> None:
    """Note what an adapter stands on; a base beside its run is named relative to `final`, its later place."""
    name = base.name
    path = Path(name).expanduser()
    if path.exists():
        runs = final.parent.parent
        is_beside = path.resolve().is_relative_to(runs.resolve())
        name = os.path.relpath(path.resolve(), final.resolve()) if is_beside else str(path.resolve())
    record = {**asdict(base), "name": name}
    (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    config = _read_json(folder / ADAPTER_CONFIG)
    config |= {"base_model_name_or_path": name, "revision": base.revision}
    (folder / ADAPTER_CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_lora(folder: str | Path) -> dict[str, Any]:
    """An adapter's settings: the fields of a recipe's `lora:` section, and `bias`."""
    config = _read_json(Path(folder) / ADAPTER_CONFIG)
    targets = config.get("target_modules") or []
    return {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout", 0.0),
        "targets": targets if isinstance(targets, str) else sorted(targets),
        "rslora": config.get("use_rslora", False),
        "bias": config.get("bias", "none"),
        "modules_to_save": sorted({*(config.get("modules_to_save") or [])} - {SCORE_HEAD, "classifier"}),
    }


def adapter_head(folder: str | Path) -> Head:
    """The head that an adapter was trained under."""
    return "reward" if _read_json(Path(folder) / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS" else "causal"


def check_adapter(folder: str | Path) -> None:
    """Refuse an adapter that cannot be put on its base as it was trained, before anything is loaded.

    Raises:
        ModelError: it is none of LoRA, or what its initialisation took out of the base cannot be told.
    """
    config = _read_json(Path(folder) / ADAPTER_CONFIG)
    if config.get("peft_type", "LORA") != "LORA":
        raise ModelError(f"{folder}: an adapter of type {config['peft_type']}; only LoRA is read.")
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{folder}: an activated LoRA (alora_invocation_tokens), which works only behind these tokens. "
            "Sampling here would not switch it on. Use it with PEFT itself, or train a plain LoRA."
        )
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(LOST_ON_BASE):
        raise ModelError(
            f"{folder}: this adapter was begun with init_lora_weights='{init}', which takes a part out of "
            "the base that cannot be told from the files. Where it was trained, save it with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER), which makes it a plain "
            "LoRA; or merge it there."
        )


def brings_score(folder: str | Path) -> bool:
    """Whether an adapter's weights hold a score head: PEFT saves it for the task SEQ_CLS, or when told to."""
    with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as weights:
        return any(_is_score(name) for name in weights.keys())  # noqa: SIM118 - no mapping


def _is_score(name: str) -> bool:
    return f".{SCORE_HEAD}." in name


def check_fingerprint(adapter: str, base: AdapterBase, place: str) -> None:
    """Refuse a base that holds other weights than those the adapter was trained on.

    Raises:
        ModelError: names the adapter and the base.
    """
    if base.fingerprint is not None and weights_fingerprint(place) != base.fingerprint:
        raise ModelError(
            f"{adapter}: this adapter was trained on {base.name}, which now holds other weights. Put the old "
            "ones back, or train the adapter again."
        )


def new_adapter(model: Any, section: LoraSection, head: Head) -> Any:
    """A model with an untrained adapter: it computes what it did before (Hu et al. 2021, section 4.1)."""
    from peft import LoraConfig

    is_reward = head == "reward"
    to_save = [*section.modules_to_save, *([SCORE_HEAD] if is_reward else [])]
    embeddings = model.get_input_embeddings()
    trains_embeddings = any(model.get_submodule(name) is embeddings for name in _named(model, to_save))
    towers = "|".join(map(re.escape, tower_names(model)))
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.targets,
        exclude_modules=rf"({towers})\..*" if towers else None,  # text does not go through them
        use_rslora=section.rslora,
        modules_to_save=to_save or None,
        # a tied head would otherwise keep the old embeddings, and lose the tie when saved
        ensure_weight_tying=trains_embeddings and bool(model.config.get_text_config().tie_word_embeddings),
        task_type="SEQ_CLS" if is_reward else "CAUSAL_LM",
    )
    try:
        return _with_peft(model, config)
    except ValueError as error:
        raise ModelError(f"lora: {str(error).splitlines()[0]}") from error


def router_weights(model: Any) -> list[Any]:
    """Weights of adapters on what chooses the experts of a mixture: the `gate` or `router` beside them."""
    layers = [name for name, layer in model.named_modules() if hasattr(layer, "experts")]
    routers = tuple(f"{name}.{router}." for name in layers for router in ("gate", "router"))
    return [
        weight for name, weight in model.named_parameters() if name.startswith(routers) and ".lora_" in name
    ]


def attach(model: Any, folder: str, *, head: Head, is_trainable: bool = False) -> Any:
    """Put the adapter of a folder on its base.

    Args:
        model: the base; changed in place.
        folder: with the adapter's configuration and weights.
        head: a causal adapter may stand under a new score head; the head is then drawn at random.
        is_trainable: whether its weights are to be trained on.
    Raises:
        ModelError: the adapter does not fit the model; both are named.
    """
    from peft import set_peft_model_state_dict

    check_adapter(folder)

    config = _adapter_config(folder, head)
    config.inference_mode = not is_trainable
    weights = _without_copies(load_file(Path(folder) / ADAPTER_WEIGHTS))
    if broken := next((name for name, weight in weights.items() if not weight.isfinite().all()), None):
        raise ModelError(f"{folder}: the adapter's weight {broken} holds what is no number. Train it again.")
    base_name = model.name_or_path or model.config.model_type
    try:
        fit_embeddings(model, weights, _trained_tokens(config), name=folder)
        model = _with_peft(model, config)
        if head == "reward":
            weights = _with_score_head(model, weights, folder)
        keys = set_peft_model_state_dict(model, weights)
    except ModelError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{folder}: this adapter does not fit its base {base_name}: {reason}") from error
    if keys.unexpected_keys:
        raise ModelError(
            f"{folder}: this adapter does not fit its base {base_name}, which has no "
            f"{keys.unexpected_keys[0].removeprefix('base_model.model.')}. Name the base it was trained on."
        )
    if missing := [name for name in keys.missing_keys if _OF_ADAPTER.search(name)]:
        raise ModelError(
            f"{folder}: this adapter lacks {len(missing)} of its weights, such as "
            f"{missing[0].removeprefix('base_model.model.')}, which would be as before training. It was not "
            "saved whole, as by some ways to train on several GPUs, or it was cut. Save it again."
        )
    if str(config.init_lora_weights).lower() in REPEATED_ON_BASE:
        # a copy of the adapter, such as DPO's reference, would take its part out of the base once more
        model.get_base_model().adapter_init = config.init_lora_weights  # `save_adapter` writes it again
        config.init_lora_weights = True
    return model


def merged(model: Any) -> Any:
    """An adapter merged into its base, which is not quantised: a plain model.

    Raises:
        ModelError: the adapter has a part for which the base has no place, or weights that are no numbers.
    """
    if any(config.layer_replication for config in model.peft_config.values()):
        raise ModelError(
            "this adapter cannot be merged into its base: it uses layers several times (layer_replication), "
            "and these share the weights that would be changed. Use it as an adapter."
        )
    untie_trained(model)
    try:
        return model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"this adapter cannot be merged into its base: {reason}") from error


def _with_peft(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 by a name that is on its way out
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # and prepares for adapters on the experts of a mixture, which are no linear layers and get none
        warnings.filterwarnings(
            "ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning
        )
        return get_peft_model(model, config)


def _adapter_config(folder: str, head: Head) -> Any:
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(folder)
    if head == "causal" and config.task_type == "SEQ_CLS":
        raise ModelError(
            f"{folder}: a reward model's adapter, which scores and cannot write. Load it with head='reward'."
        )
    if head == "reward" and config.task_type != "SEQ_CLS":
        config.task_type = "SEQ_CLS"
        config.modules_to_save = [name for name in config.modules_to_save or [] if name not in OUTPUT_HEADS]
    config.base_model_name_or_path = None
    return config


def _without_copies(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's weights without what PEFT saves once more where the vocabulary was changed."""
    heads = tuple(f"{name}.{TRAINED_TOKENS}" for name in OUTPUT_HEADS)
    tokens = [
        weight for name, weight in weights.items() if TRAINED_TOKENS in name and not name.endswith(heads)
    ]

    def is_copy(name: str, weight: torch.Tensor) -> bool:
        if name.endswith(heads):  # of a head that is tied to the embeddings
            return any(torch.equal(weight, one) for one in tokens)
        return ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in weights

    return {name: weight for name, weight in weights.items() if not is_copy(name, weight)}


def _trained_tokens(config: Any) -> list[int]:
    """Token ids whose embeddings an adapter trains one by one."""
    indices = config.trainable_token_indices or []
    return sorted({*chain.from_iterable(indices.values())} if isinstance(indices, dict) else indices)


def _with_score_head(model: Any, weights: dict[str, torch.Tensor], folder: str) -> dict[str, torch.Tensor]:
    """The weights for a model with a score head: the base's, or a random one, where the adapter brings none.

    Raises:
        ModelError: the adapter is of a reward model, and its head is lost.
    """
    whole = model.get_base_model()
    if (
        adapter_head(folder) == "reward"
        and getattr(whole, "has_new_score", False)
        and not brings_score(folder)
    ):
        raise ModelError(f"{folder}: {LOST_HEAD}")
    kept = {name: weight for name, weight in weights.items() if not name.endswith(_HEAD_WEIGHTS)}
    own = whole.score.original_module.weight
    return {f"base_model.model.{SCORE_HEAD}.weight": own, **kept}


_HEAD_WEIGHTS = tuple(f"{name}.weight" for name in OUTPUT_HEADS)


def _named(model: Any, names: list[str]) -> list[str]:
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in names]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ModelError(f"{file}: damaged; it is not JSON.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: damaged; it holds no mapping.")
    return content
