"""A plain LoRA merged into a base on disk, one tensor at a time: neither model is ever whole in memory.

Source: Hu et al. 2021, section 4.1. Book: chapter "LoRA and QLoRA".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from handbook_utils.errors import ModelError
from handbook_utils.models.model_files import INDEX, WHOLE

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
# random directions in which each merged weight is compared, and how far roundings may add up, in units of the
# norm of all: they go beyond with a chance below 1e-13 (Hoeffding's inequality, 2 exp(-8^2 / 2))
DIRECTIONS, ROUNDINGS = 4, 8.0
# of the largest change, for the rounding of computing it in float32
COMPUTING = 1e-5


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one weight: `scale * b @ a`.

    Attributes:
        a: (rank, inputs), float32 on the CPU.
        b: (outputs, rank), likewise.
        scale: alpha / rank, or as the adapter says.
        is_transposed: the weight is (inputs, outputs).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    is_transposed: bool = False

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight, float32, rounded nowhere in between."""
        product = self.b @ self.a
        return torch.add(weight.float(), product.T if self.is_transposed else product, alpha=self.scale)


@dataclass(frozen=True)
class MergePlan:
    """How a model is merged from files.

    Attributes:
        folder: of the base.
        files: names of its files of weights; for each, its tensors in their order.
        dtypes: number format that each tensor is written in.
        updates: of the weights that change.
    """

    folder: Path
    files: Mapping[str, list[str]]
    dtypes: Mapping[str, torch.dtype]
    updates: Mapping[str, Update]


def plan_merge(model: Any, folder: Path) -> MergePlan | None:
    """How to merge the files of a base with the adapter that is on it in memory.

    Args:
        model: of PEFT, on a base that was loaded from `folder` and is not quantised.
        folder: with the base's files.
    Returns:
        None where the adapter does more than add a product to weights of linear layers, or where the names in
        the files are not the model's: such a model has to be merged in memory.
    """
    updates = _plain_updates(model)
    files = _tensors(folder)
    if updates is None or files is None:
        return None
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.get_base_model().state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }
    stored = {name: shape for shapes in files.values() for name, shape in shapes.items()}
    if any(name not in weights or weights[name].shape != shape for name, shape in stored.items()):
        return None
    loaded = {id(weights[name]) for name in stored}
    is_tied = len(loaded) < len(stored) or any(
        weight is weights[name] for name in updates for other, weight in weights.items() if other != name
    )
    if is_tied or any(id(weight) not in loaded for weight in weights.values()):
        return None
    dtypes = {name: weights[name].dtype for name in stored}
    if not {*dtypes.values()} <= _CODES.keys():
        return None
    return MergePlan(folder, {file: list(shapes) for file, shapes in files.items()}, dtypes, updates)


def _plain_updates(model: Any) -> dict[str, Update] | None:
    """What each layer of an adapter adds, by the name of the weight; None where it does anything else."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    config, whole = model.peft_config["default"], model.get_base_model()
    changes_base = getattr(whole, "has_new_tokens", False) or hasattr(whole, "adapter_init")
    if changes_base or config.bias != "none" or config.layer_replication is not None:
        return None
    updates = {}
    for name, layer in whole.named_modules():
        if isinstance(layer, AuxiliaryTrainingWrapper):
            return None
        if not isinstance(layer, BaseTunerLayer):
            continue
        is_plain = type(layer) is Linear and set(layer.lora_A) == set(layer.lora_B) == {"default"}
        if not is_plain or layer.lora_variant or layer.lora_B["default"].bias is not None:
            return None
        a, b = (part["default"].weight.detach().float().cpu() for part in (layer.lora_A, layer.lora_B))
        updates[f"{name}.weight"] = Update(a, b, float(layer.scaling["default"]), bool(layer.fan_in_fan_out))
    return updates


def _tensors(folder: Path) -> dict[str, dict[str, torch.Size]] | None:
    """Shapes by name in each file that transformers would load; None where it would load others."""
    if (folder / WHOLE).is_file():
        files = [WHOLE]
    elif (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({*names})
    else:
        return None
    return {file: _shapes(folder / file) for file in files}


def _shapes(file: Path) -> dict[str, torch.Size]:
    with safe_open(file, "pt") as weights:
        return {name: torch.Size(weights.get_slice(name).get_shape()) for name in weights.offset_keys()}


def write_merged(plan: MergePlan, out: Path) -> None:
    """Write the merged weights to files of the base's names; at most one tensor and its update are in memory.

    Raises:
        ModelError: a merged weight holds what is no number.
    """
    for file, names in plan.files.items():
        with safe_open(plan.folder / file, "pt") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in names}
        with (out / file).open("wb") as stream:
            stream.write(_header(shapes, plan.dtypes))
            for name in names:
                stream.write(_bytes(_merged(plan, name, _tensor(plan.folder / file, name))))
    if len(plan.files) > 1:
        size = sum((out / file).stat().st_size for file in plan.files)
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: file for file, names in plan.files.items() for name in names},
        }
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _merged(plan: MergePlan, name: str, weight: torch.Tensor) -> torch.Tensor:
    update, dtype = plan.updates.get(name), plan.dtypes[name]
    if update is None and dtype == weight.dtype:
        return weight
    written = (weight if update is None else update.added_to(weight)).to(dtype)
    if not written.isfinite().all():
        what = (
            "the model cannot be written" if update is None else "this adapter cannot be merged into its base"
        )
        raise ModelError(
            f"{what}: {name} would hold values that are no numbers, or too large for "
            f"{str(dtype).removeprefix('torch.')}."
        )
    return written


def _header(shapes: Mapping[str, list[int]], dtypes: Mapping[str, torch.dtype]) -> bytes:
    """The beginning of a safetensors file: a length, and as much JSON, padded to a multiple of 8 bytes."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtypes[name].itemsize
        described[name] = {"dtype": _CODES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(weight: torch.Tensor) -> memoryview:
    return weight.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _tensor(file: Path, name: str) -> torch.Tensor:
    # opened for each: what a file that stays open has read counts as this process's memory
    with safe_open(file, "pt") as weights:
        found: torch.Tensor = weights.get_tensor(name)
    return found


def check_merged(plan: MergePlan, out: Path) -> int:
    """Read the merged files back and compare every weight with the base's: what has changed is the update.

    A weight without an update is the base's, bit by bit. For the others `(W_merged - W) x` is compared with
    `scale * b @ (a @ x)` for random x of ones and minus ones; each output may differ by what rounding the
    numbers of its row can add up to.

    Returns:
        Weights compared.
    Raises:
        ModelError: names the first weight that is another one.
    """
    compared = 0
    for file, name in _places(plan):
        old, new = _tensor(plan.folder / file, name), _tensor(out / file, name)
        update = plan.updates.get(name)
        is_right = torch.equal(old.to(new.dtype), new) if update is None else _is_updated(old, new, update)
        if not is_right:
            what = "the base's" if update is None else "the base's with the adapter's update"
            raise ModelError(f"the merged model is another one: {name} is not {what}. Nothing written.")
        compared += 1
    return compared


def _places(plan: MergePlan) -> Iterator[tuple[str, str]]:
    yield from ((file, name) for file, names in plan.files.items() for name in names)


def _is_updated(old: torch.Tensor, new: torch.Tensor, update: Update) -> bool:
    unit = torch.finfo(new.dtype).eps / 2 + 2 * torch.finfo(torch.float32).eps
    old, new = old.float(), new.float()
    if update.is_transposed:
        old, new = old.T, new.T
    random = torch.Generator().manual_seed(0)
    x = torch.randint(2, (old.shape[1], DIRECTIONS), generator=random).float() * 2 - 1
    expected = update.scale * (update.b @ (update.a @ x))
    error = ((new - old) @ x - expected).abs()
    largest = float(expected.abs().max())
    allowed = ROUNDINGS * unit * new.norm(dim=1, keepdim=True) + COMPUTING * largest
    return bool((error <= allowed).all())  # what is no number is no pass
