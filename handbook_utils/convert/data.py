"""`dataset_mixer`, `dataset_mixture` and `dataset_name` as our `data` and `eval_data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handbook_utils.convert.notes import Work, expect
from handbook_utils.convert.tables import HELD_OUT
from handbook_utils.errors import RecipeError

Sources = list[dict[str, Any]]


def convert_data(work: Work) -> dict[str, Any]:
    """The keys `data` and, where official test splits are named, `eval_data`."""
    readers = {"dataset_mixture": _mixture, "dataset_mixer": _mixer, "dataset_name": _one_dataset}
    found = [key for key in readers if key in work.left]
    if len(found) != 1:
        said = f"has {' and '.join(found)}" if found else "names no data"
        raise RecipeError(f"the recipe {said}; exactly one of {', '.join(readers)} is needed.")
    train, held_out = readers[found[0]](work)
    if not train:
        raise RecipeError(f"'{found[0]}' holds test splits only; test rows stay out of training.")
    return {"data": train, **({"eval_data": held_out} if held_out else {})}


def _mixture(work: Work) -> tuple[Sources, Sources]:
    given = work.take("dataset_mixture", "now `data` and `eval_data`, a source per line.")
    expect(given, Mapping, "dataset_mixture", "a mapping with the key 'datasets'")
    mixture = dict(given)
    items = mixture.pop("datasets", None)
    expect(items, list, "dataset_mixture.datasets", "a list of data sets")
    for item in items:
        expect(item, Mapping, "dataset_mixture.datasets", "a list of mappings")
        expect(item.get("id"), str, "dataset_mixture.datasets.id", "a name")
        expect(item.get("split", "train"), str, "dataset_mixture.datasets.split", "a name")
    _note_columns(work, items)
    sources = [
        _source(
            item["id"],
            split=item.get("split", "train"),
            config=item.get("config"),
            weight=item.get("weight"),
        )
        for item in items
    ]
    train, held_out = _apart(work, "dataset_mixture", sources)
    if (size := mixture.pop("test_split_size", None)) is not None:
        rows = "the official test rows are in eval_data instead" if held_out else "give rows in eval_data"
        why = f"{size} rows, cut off the mixture at random; {rows}."
        work.note("dataset_mixture.test_split_size", "left out", why)
    if mixture.pop("seed", None) is not None:
        work.note("dataset_mixture.seed", "left out", "the recipe's one seed also draws the mixture.")
    for key in mixture:
        work.note(f"dataset_mixture.{key}", "unknown", "no equivalent.")
    return train, held_out


def _mixer(work: Work) -> tuple[Sources, Sources]:
    mixer = work.take("dataset_mixer", "now `data`, a source for each dataset and split.")
    expect(mixer, Mapping, "dataset_mixer", "a mapping of names to fractions")
    splits = work.take("dataset_splits", "now each source's split.") or ["train", "test"]
    expect(splits, list, "dataset_splits", "a list of names")
    configs = work.take("dataset_configs", "now each source's subset.") or [None] * len(mixer)
    expect(configs, list, "dataset_configs", "a list of names")
    if len(configs) != len(mixer):
        raise RecipeError(f"'dataset_configs' names {len(configs)} for {len(mixer)} data sets.")
    if any(weight != 1 for weight in mixer.values()):
        work.note(
            "dataset_mixer", "changed", "a fraction took the first rows; weight draws them with the seed."
        )
    pairs = list(zip(mixer.items(), configs, strict=True))
    # an official test split was used whole
    train = [
        _source(name, split=split, config=config, weight=weight)
        for split in splits
        if not _is_held_out(split)
        for (name, weight), config in pairs
    ]
    held_out = [
        _source(name, split=split, config=config)
        for split in splits
        if _is_held_out(split)
        for (name, _), config in pairs
    ]
    return train, held_out


def _one_dataset(work: Work) -> tuple[Sources, Sources]:
    name = work.take("dataset_name", "now data[0].name.")
    config = work.take("dataset_config", "now data[0].subset.")
    train = work.take("dataset_train_split", "now data[0].split.") or "train"
    test = work.take("dataset_test_split", "now eval_data[0].split.")
    for key, value in (("dataset_train_split", train), ("dataset_test_split", test or "")):
        expect(value, str, key, "a name")
    held_out = [_source(name, split=test, config=config)] if test else []
    return [_source(name, split=train, config=config)], held_out


def _source(
    name: str, *, split: str, config: str | None = None, weight: float | None = None
) -> dict[str, Any]:
    source: dict[str, Any] = {"name": name}
    if config not in (None, "default"):
        source["subset"] = config
    source["split"] = split
    if weight not in (None, 1):
        source["weight"] = weight
    return source


def _note_columns(work: Work, items: Sequence[Mapping[str, Any]]) -> None:
    named = sorted({column for item in items for column in item.get("columns") or ()})
    if named:
        why = f"{', '.join(named)}: a source's format knows the columns it reads."
        work.note("dataset_mixture.datasets.columns", "left out", why)


def _apart(work: Work, key: str, sources: Sources) -> tuple[Sources, Sources]:
    """Split sources into those to train on and official test splits."""
    held_out = [source for source in sources if _is_held_out(source["split"])]
    if held_out:
        names = ", ".join(f"{source['name']}:{source['split']}" for source in held_out)
        why = f"{names}: official test rows, mixed into training there, are eval_data here."
        work.note(f"{key}.datasets", "changed", why)
    return [source for source in sources if source not in held_out], held_out


def _is_held_out(split: str) -> bool:
    return split.startswith(HELD_OUT)
