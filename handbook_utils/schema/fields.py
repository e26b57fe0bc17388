"""What `training:` of a recipe may hold: the fields of each trainer's TRL config, from a stored snapshot."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from handbook_utils.errors import suggest

RUN_OWNED = {
    "output_dir": "the run folder decides it (--out)",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "gradient_accumulation_steps": "it is derived from `global_batch_size`",
    "resume_from_checkpoint": "an interrupted run resumes by itself",
    "overwrite_output_dir": "use --overwrite",
    "model_init_kwargs": "the section `model` says how the model is loaded",
    "trust_remote_code": "code from a model's repository is never run",
}


@cache
def trainer_fields(trainer: str) -> dict[str, dict[str, Any]]:
    """The stored snapshot of a TRL config's fields: type names and choices by field name."""
    text = files("handbook_utils").joinpath("schema", "trainer_fields.json").read_text(encoding="utf-8")
    fields: dict[str, dict[str, Any]] = json.loads(text)[trainer]
    return fields


PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
    "null": (type(None),),
}


def checked_field(key: str, value: Any, fields: dict[str, dict[str, Any]]) -> Any:
    """Return the value if that trainer field takes it; raise ValueError otherwise."""
    if key in RUN_OWNED:
        raise ValueError(f"'{key}' is not set under `training`: {RUN_OWNED[key]}")
    if key not in fields:
        raise ValueError(
            f"unknown key '{key}' under 'training'. {suggest(key, set(fields) - set(RUN_OWNED))}"
        )
    kinds = fields[key]["types"]
    if "any" not in kinds and not _fits(value, kinds):
        raise ValueError(f"'{key}' under 'training' takes {' or '.join(kinds)}, got {value!r}")
    choices = fields[key].get("choices")
    for item in value if isinstance(value, list) else [value]:
        if choices and isinstance(item, str) and item not in choices:
            raise ValueError(f"unknown value '{item}' for 'training.{key}'. {suggest(item, choices)}")
    return value


def _fits(value: Any, kinds: list[str]) -> bool:
    # bool is an int to Python, but `learning_rate: true` is a mistake
    if isinstance(value, bool):
        return "bool" in kinds
    return any(isinstance(value, PYTHON_TYPES[kind]) for kind in kinds)
