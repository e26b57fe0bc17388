"""The export: weights, texts, Modelfile and card in one folder that is whole or absent; resumed if killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.environment import versions
from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.export.card import CardFacts, model_card
from handbook_utils.export.licences import check_licence
from handbook_utils.export.lineage import lineage
from handbook_utils.export.ollama import modelfile
from handbook_utils.export.source import ExportSource, export_dtype, export_source
from handbook_utils.export.talks import Prompts, prompts_of
from handbook_utils.export.texts import check_texts, settle_end, write_texts
from handbook_utils.export.weights import check_weights, write_weights
from handbook_utils.models.load import load_tokenizer
from handbook_utils.records import Estimate
from handbook_utils.runs.atomic import TEMPORARY, explained_os_errors, locked, sync, write_json, write_text
from handbook_utils.runs.checksums import RUN, checksum_of
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import read_manifest, run_fingerprint

RECORD, CARD, MODELFILE = "export.json", "README.md", "Modelfile"


@dataclass(frozen=True)
class Export:
    """A folder that servers take.

    Attributes:
        folder: where it is.
        run: that it was made from.
        dtype: of the weights.
        ends: texts of the tokens that end an answer.
        conversations: whose tokens were compared with those of training.
        refused: conversations that the chat template takes not.
        ollama_template: whether the Modelfile has the chat template in Ollama's notation.
        made: False where the folder was there already, of the same run and options.
    """

    folder: Path
    run: Path
    dtype: str
    ends: Sequence[str]
    conversations: int
    refused: Mapping[str, str]
    ollama_template: bool
    made: bool


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    dtype: str = "auto",
    licence: str | None = None,
    evaluations: Sequence[str | Path] = (),
    device: str | None = None,
) -> Export:
    """Write a run's model as a folder that `vllm serve` and `transformers serve` take, with a model card.

    An adapter is merged. What ends a trained answer becomes the tokenizer's end and that of the generation
    settings. Tokenizer and template are read back, and make the tokens of training of every conversation.
    A killed export goes on from the weights, where they were whole; a finished one is not made again.

    Args:
        run: a finished run of a training stage, or of rejection sampling.
        out: the folder; not there, empty, or a finished export of the same run and options.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto": as they are stored.
        licence: of the model, as the hub names it; None: the card says that it is unknown.
        evaluations: runs of `handbook evaluate` with this model, whose figures go into the card.
        device: where an adapter is merged; None for this process's GPU, or else the CPU.
    Raises:
        RunFolderError: the run is not finished or was altered, `out` holds something else, or the disk is
            full.
        ModelError: no model, a reward model, or what was written is another model.
        DataError: an evaluation of another model.
        RecipeError: a licence that the hub does not know.
    Book: chapter "Using what was trained".
    """
    out = Path(out).expanduser()
    licence = check_licence(licence)
    source = export_source(run)
    dtype_written = export_dtype(source, dtype)
    named = _by_name(evaluations)
    figures = {name: evaluation_of(source, folder) for name, folder in named.items()}
    identity = {
        "run": source.fingerprint,
        "dtype": dtype_written,
        "license": licence,
        "evaluations": {name: run_fingerprint(folder) for name, folder in sorted(named.items())},
    }
    if (found := _finished(out, identity)) is not None:
        return Export(out, source.run, made=False, **found)
    _refuse_other(out)
    has_chat = source.stage != "pretrain"
    tokenizer = load_tokenizer(str(source.place), for_chat=has_chat)
    check_weights(source, out, dtype)
    staging = out.with_name(f"{TEMPORARY}export-{out.name}")
    with explained_os_errors(out):
        staging.mkdir(parents=True, exist_ok=True)
        try:
            with locked(staging / ".lock", out):
                checked = _weights(source, staging, identity, dtype, device)
                facts = _finish(
                    source, staging / "model", tokenizer, identity, checked, figures, name=out.name
                )
                _appear(staging / "model", out)
        finally:
            if not (staging / "model").exists():  # nothing in it that a second try would go on from
                shutil.rmtree(staging)
    return Export(out, source.run, made=True, **facts)


def _by_name(evaluations: Sequence[str | Path]) -> dict[str, Path]:
    """Evaluations by the last part of their path, under which the card shows them."""
    named: dict[str, Path] = {}
    for folder in map(Path, evaluations):
        if folder.name in named:
            raise DataError(
                f"--evaluation: two folders are called '{folder.name}', {named[folder.name]} and {folder}, "
                "and the card could not tell them apart. Rename one, or leave it out."
            )
        named[folder.name] = folder
    return named


def evaluation_of(source: ExportSource, evaluation: Path) -> dict[str, Estimate]:
    """The figures of an evaluation, after a look at whether it is one of this model.

    Raises:
        DataError: it is of another model, or no evaluation.
    """
    manifest = read_manifest(evaluation)
    section = manifest["recipe"].get("model") or {}
    named = str(section.get("from") or section.get("name"))
    if manifest["stage"] != "evaluate":
        raise DataError(
            f"{evaluation}: a run of stage '{manifest['stage']}', not of 'evaluate', so it has no figures "
            "about a model's answers. Measure them: handbook evaluate --help"
        )
    seen = str(manifest.get("inputs", {}).get(named, ""))
    if seen.removeprefix(RUN) != source.fingerprint:
        raise DataError(
            f"{evaluation}: an evaluation of '{named}', which is not the model of {source.run} as it is now. "
            "Evaluate that run, or leave this one out."
        )
    return dict(read_result(evaluation).final_metrics)


def _finished(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is on record of a whole export of the same run and options; None where there is none."""
    record = read_record(out)
    if record is None or record["identity"] != identity:
        return None
    files = record["files"]
    if any(not (out / name).is_file() or checksum_of(out / name) != sum_ for name, sum_ in files.items()):
        raise RunFolderError(
            f"{out}: an export of this run of which a file is gone or was altered, such as by hand. Delete "
            "the folder or choose another --out; nothing was touched."
        )
    facts: dict[str, Any] = record["facts"]
    return facts


def read_record(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself; None of any other folder."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_one = isinstance(record, dict) and {"identity", "facts", "files"} <= record.keys()
    return record if is_one else None


def _refuse_other(out: Path) -> None:
    if out.is_file():
        raise RunFolderError(f"{out}: a file. Choose another --out; nothing was touched.")
    if out.is_dir() and any(out.iterdir()):
        what = "an export of another run, or with other options" if read_record(out) else "not empty"
        raise RunFolderError(f"{out}: {what}. Choose another --out, or delete it; nothing was touched.")


def _weights(
    source: ExportSource, staging: Path, identity: Mapping[str, Any], dtype: str, device: str | None
) -> dict[str, Any]:
    """The weights in `staging/model`: those of an export that was killed, if they are of the same model."""
    note = staging / "weights.json"
    wanted = {"run": identity["run"], "dtype": identity["dtype"]}
    try:
        left = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        left = {}
    if left.get("of") == wanted and (staging / "model").is_dir():
        checked: dict[str, Any] = left["checked"]
        return checked
    for entry in staging.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    checked = write_weights(source, staging / "model", dtype, device=device)
    write_json(note, {"of": wanted, "checked": checked})
    return checked


def _finish(
    source: ExportSource,
    folder: Path,
    tokenizer: Any,
    identity: Mapping[str, Any],
    checked: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Estimate]],
    *,
    name: str,
) -> dict[str, Any]:
    """Write all but the weights, read it back, and note what the folder holds."""
    dtype, has_template = str(identity["dtype"]), bool(tokenizer.chat_template)
    prompts = prompts_of(tokenizer) if has_template else Prompts({}, {})
    end = settle_end(tokenizer)
    ids = write_texts(folder, tokenizer, dtype=dtype)
    check_texts(folder, prompts, end)
    ends = [str(tokenizer.convert_ids_to_tokens(number)) for number in ids]
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recipe = modelfile(tokenizer, settings, ends=ends, positions=config.get("max_position_embeddings"))
    write_text(folder / MODELFILE, recipe)
    result = read_result(source.run)
    facts = CardFacts(
        name=name,
        manifest=source.manifest,
        metrics=result.final_metrics,
        cautions=result.cautions,
        evaluations=figures,
        steps=lineage(source.run),
        licence=str(identity["license"]),
        dtype=dtype,
        ends=ends,
        checked=_in_words(checked, len(prompts.ids)),
        has_template=has_template,
        fingerprint=source.fingerprint,
    )
    write_text(folder / CARD, model_card(facts))
    noted = {
        "dtype": dtype,
        "ends": ends,
        "conversations": len(prompts.ids),
        "refused": dict(prompts.refused),
        "ollama_template": "\nTEMPLATE " in recipe,
    }
    files = {file.name: checksum_of(file) for file in sorted(folder.iterdir()) if file.name != RECORD}
    record = {"format": 1, "identity": dict(identity), "facts": noted, "files": files, "versions": versions()}
    write_json(folder / RECORD, record)
    return noted


def _in_words(checked: Mapping[str, Any], conversations: int) -> str:
    """What an export compared, for its card."""
    weights = checked["weights"]
    how = {True: "merged", False: "copied"}[bool(checked["merged"])]
    how = "rounded" if checked.get("rounded") else how
    tensors = "compared by outputs" if weights is None else f"all {weights:,} tensors"
    outputs = ""
    if checked["merged"]:
        outputs = f", outputs within {checked['difference']:.2g} of the largest"
    return f"{how} weights: {tensors}{outputs}; the tokens of {conversations} conversations"


def _appear(made: Path, out: Path) -> None:
    """Let the finished folder take its place, of which only an empty folder may be there."""
    for file in made.rglob("*"):
        if file.is_file():
            sync(file)
    if out.is_dir():
        out.rmdir()
    os.replace(made, out)
    sync(out.parent)
