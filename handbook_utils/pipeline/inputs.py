"""What a stage reads beside its recipe: earlier runs, files, the pocket world, templates and code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from handbook_utils.errors import RecipeError, RunFolderError, suggest
from handbook_utils.pocket.fingerprint import PREFIX, pocket_fingerprint
from handbook_utils.runs.checksums import RUN, checksum_of, input_fingerprint
from handbook_utils.runs.state import check_unaltered, is_finished, read_manifest, run_fingerprint
from handbook_utils.schema.sampling import FunctionSection
from handbook_utils.schema.sections import Reads, Section, Source
from handbook_utils.schema.training import StageRecipe, TrainingRecipe

# fields of a trainer that may name a file of settings
SETTINGS = (".json", ".yaml", ".yml", ".jinja")
Wanted = TypeVar("Wanted", bound=Section)


def sources_of(recipe: BaseModel) -> Iterator[tuple[str, Source]]:
    """Every section of a recipe that reads a model or data, with its dotted key."""
    return _sections_of(recipe, Source)


def check_code(recipe: BaseModel, *, allow_code: bool) -> None:
    """Refuse a recipe that names Python functions unless whoever runs it allows code.

    Raises:
        RecipeError: names the first one, and how to allow it.
    """
    for key, section in _sections_of(recipe, FunctionSection):
        if not allow_code:
            raise RecipeError(
                f"'{key}' runs code, the function '{section.function}'. The recipe allows it, and its writer "
                "may be somebody else. Where you trust it, give --allow-code too (in Python allow_code=True)."
            )


def _sections_of(recipe: BaseModel, kind: type[Wanted]) -> Iterator[tuple[str, Wanted]]:
    """Every section of a kind in a recipe, with its dotted key."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Wanted]]:
        if isinstance(value, kind):
            yield key, value
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from walk(getattr(value, name), f"{key}.{name}")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from walk(item, f"{key}.{index}")

    for name in type(recipe).model_fields:
        yield from walk(getattr(recipe, name), name)


def resolve_inputs(recipe: StageRecipe, out: Path) -> dict[str, Path]:
    """The finished run folder behind each `from`; a bare name is a folder beside the run's own."""
    inputs = {}
    for key, source in sources_of(recipe):
        if source.from_ is None:
            continue
        path = out.parent / source.from_
        if not path.exists() and Path(source.from_).exists():
            path = Path(source.from_)
        if not (path / "manifest.json").exists():
            raise RecipeError(_missing_input(key, source.from_, path))
        try:
            done = is_finished(path)
        except RunFolderError as error:
            raise RecipeError(f"'{key}' reads the run {path}. {error}") from None
        if not done:
            status = read_manifest(path)["status"]
            raise RecipeError(
                f"'{key}' reads the run {path}, which is {status}. Run that stage again to finish it."
            )
        inputs[source.from_] = path
    return inputs


def _missing_input(key: str, name: str, path: Path) -> str:
    beside = [entry.parent.name for entry in path.parent.glob("*/manifest.json")]
    near = f" {suggest(name, beside)}" if beside else ""
    return (
        f"'{key}' reads the earlier run '{name}', and there is no run at {path}.{near} "
        f"Run that stage first, or say where it is: --set {key}.from=PATH."
    )


def check_inputs(recipe: BaseModel, inputs: Mapping[str, Path]) -> None:
    """Compare the earlier runs that a stage is about to read with their manifests' checksums.

    Raises:
        RunFolderError: a file of one is not as the run wrote it.
    """
    named = [Path(source.name) for _, source in sources_of(recipe) if source.name and _is_run(source.name)]
    for path in dict.fromkeys([*inputs.values(), *named]):
        check_unaltered(path)


def fingerprint_inputs(recipe: StageRecipe, inputs: Mapping[str, Path]) -> dict[str, str]:
    """Checksums of all that a stage reads: earlier runs, local files and folders, the pocket world, code."""
    fingerprints = {name: run_fingerprint(path) for name, path in inputs.items()}
    for _, source in sources_of(recipe):
        if source.name and source.name.startswith(PREFIX):
            fingerprints[source.name] = pocket_fingerprint(source.name)
        elif source.name and _is_run(source.name):
            fingerprints[source.name] = RUN + run_fingerprint(source.name)
        elif source.name and Path(source.name).exists():
            fingerprints[source.name] = input_fingerprint(Path(source.name))
    for what, text in _marked(recipe):
        if what == "file" and (file := _file(text)) is not None:
            fingerprints[text] = checksum_of(file)
        elif what == "code" and (code := _code(text)):
            fingerprints[text] = hashlib.sha256("".join(map(checksum_of, code)).encode()).hexdigest()
    return fingerprints


def _is_run(name: str) -> bool:
    try:
        return is_finished(name)
    except RunFolderError:  # a manifest of another tool
        return False


def _marked(value: Any) -> Iterator[tuple[str, str]]:
    """Texts of a recipe that may name a file or code, each with which of them."""
    if isinstance(value, TrainingRecipe):
        texts = [text for text in value.training.values() if isinstance(text, str)]
        yield from (("file", text) for text in texts if text.endswith(SETTINGS))
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            content = getattr(value, name)
            kinds = [mark.what for mark in field.metadata if isinstance(mark, Reads)]
            if kinds and isinstance(content, str):
                yield kinds[0], content
            yield from _marked(content)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _marked(item)


def _file(text: str) -> Path | None:
    if "\n" in text or len(text) > 1000:
        return None
    path = Path(text).expanduser()
    return path if path.is_file() else None


def _code(dotted: str) -> list[Path]:
    """The file of a function's module; of a module in a package, the code files beside it as well."""
    top, *rest = dotted.partition(":")[0].split(".")
    try:
        found = find_spec(top)  # of a top-level name nothing is run
    except (ImportError, ValueError):
        return []
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return []  # what cannot be imported is told when it is loaded
    if not rest and not found.submodule_search_locations:
        return [Path(found.origin)]
    place = Path(found.origin).parent.joinpath(*rest)
    return sorted((place if place.is_dir() else place.parent).glob("*.py"))
