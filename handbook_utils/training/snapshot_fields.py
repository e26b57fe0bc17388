"""Write `schema/trainer_fields.json`: what `training:` in a recipe may hold; checking it then needs no TRL.

python -m handbook_utils.training.snapshot_fields             write it, for what is installed
python -m handbook_utils.training.snapshot_fields --changes   say what that would change, and write nothing
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib import metadata
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import handbook_utils

SNAPSHOT = Path(handbook_utils.__file__).parent / "schema" / "trainer_fields.json"
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", NoneType: "null"}
_HELP_CHOICES = re.compile(r"Possible values are:? (.*)")
_QUOTED = re.compile(r"`'?([a-z0-9_]+)'?`")


def render_snapshot() -> str:
    """Return the snapshot's text for what is installed: stage -> field -> types, choices, default.

    Beside the stages, `made_with` says which releases that is.
    """
    from handbook_utils.training.trl_bridge import CONFIGS

    stages = {stage: config_fields(config) for stage, config in CONFIGS.items()}
    made_with = {name: metadata.version(name) for name in ("transformers", "trl")}
    lines = [f'  "made_with": {json.dumps(made_with)}']
    lines += [
        f'  "{stage}": {{\n'
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(named.items()))
        + "\n  }"
        for stage, named in stages.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def config_fields(config: Any) -> dict[str, dict[str, Any]]:
    """Describe every field of one of TRL's config classes, in a form that needs no TRL to be read.

    Returns:
        field name -> `types` (of "null", "bool", "int", "float", "str", "list", "dict"; empty: anything),
        `choices` (values a string, or a list's strings, may take; None: any) and `default`.
    """
    hints = get_type_hints(config)
    return {field.name: _describe(field, hints[field.name]) for field in fields(config) if field.init}


def _describe(field: Field[Any], hint: Any) -> dict[str, Any]:
    types, choices = _kinds(hint)
    if field.name == "loss_type":
        types = types | {"str"}  # DPO's config takes one loss by name as well as a list of them
    listed = field.metadata.get("choices") or choices or _choices_in_help(field)
    return {
        "types": sorted(types),
        "choices": sorted(str(choice) for choice in listed) if listed else None,
        "default": _plain_default(field),
    }


def _kinds(hint: Any) -> tuple[set[str], list[str]]:
    """Return the simple type names a hint allows and the strings its enums or literals name."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        parts = [_kinds(argument) for argument in get_args(hint)]
        return set().union(*(kinds for kinds, _ in parts)), [name for _, names in parts for name in names]
    if origin is Literal:
        return {_KINDS[type(value)] for value in get_args(hint)}, []
    if origin in _KINDS:
        return {_KINDS[origin]}, []
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"str"}, [str(member.value) for member in hint]
    return ({_KINDS[hint]}, []) if hint in _KINDS else (set(), [])


def _choices_in_help(field: Field[Any]) -> list[str]:
    # DPO's losses are listed only in the help text; a test holds that the list is found
    found = _HELP_CHOICES.search(field.metadata.get("help", ""))
    if not found or field.name not in {"loss_type", "f_divergence_type"}:
        return []
    return _QUOTED.findall(found.group(1).split(". ")[0])


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two snapshots: a line per field, with the packaged recipes that set it.

    >>> changes({"sft": {"lr": {"default": 1}}}, {"sft": {"lr": {"default": 2}}})
    ['sft.lr: default 1 -> 2']
    """
    setting = _recipes_by_field()
    lines = []
    for stage in sorted({*before, *after} - {"made_with"}):
        old, new = before.get(stage, {}), after.get(stage, {})
        for name in sorted({*old, *new}):
            for what in _difference(old.get(name), new.get(name)):
                users = setting.get((stage, name), [])
                lines.append(f"{stage}.{name}: {what}" + (f"; set by {', '.join(users)}" if users else ""))
    return lines


def _difference(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    if old is None or new is None:
        yield "new" if old is None else "gone"
        return
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key} {old.get(key)} -> {new.get(key)}"


def _recipes_by_field() -> dict[tuple[str, str], list[str]]:
    """Packaged recipes by the stage and field that their `training:` sets."""
    from handbook_utils.schema.recipe import load_recipe, recipe_names

    found: dict[tuple[str, str], list[str]] = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        for field in getattr(recipe, "training", {}):
            found.setdefault((recipe.stage, field), []).append(name)
    return found


def _plain_default(field: Field[Any]) -> Any:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return None
    return value.value if isinstance(value, Enum) else value


def main() -> None:
    """Write the snapshot, or print what writing it would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", action="store_true", help="print the changes, and write nothing")
    text = render_snapshot()
    if not parser.parse_args().changes:
        SNAPSHOT.write_text(text, encoding="utf-8")
        print(SNAPSHOT)
        return
    before, after = json.loads(SNAPSHOT.read_text(encoding="utf-8")), json.loads(text)
    print(f"from {before['made_with']} to {after['made_with']}")
    print("\n".join(changes(before, after)) or "no field of a trainer's configuration changes")


if __name__ == "__main__":
    main()
