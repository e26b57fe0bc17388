"""What a curated folder holds: written once, looked up by row, and put back where a removal was wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handbook_utils.curation.rules.table import RULES
from handbook_utils.errors import DataError, RunFolderError, suggest
from handbook_utils.runs.atomic import TEMPORARY, atomic_folder, explained_os_errors, locked

KEPT, REMOVED, FLAGGED, REPORT = "kept", "removed.jsonl", "flagged.jsonl", "curation.json"

_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def row_json(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON; dates and the like, which JSON lacks, as text."""
    try:
        return _ENCODER.encode(row).encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        return json.dumps(row, default=str).encode()


def check_out(out: Path) -> None:
    """Refuse a place that a curated folder cannot be written to.

    Raises:
        RunFolderError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file. Name a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise RunFolderError(f"{out}: holds other things than a curation. Name a new folder with --out.")


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder for this process alone; what a killed one left of it is deleted.

    Raises:
        RunFolderError: another process holds it.
    """
    with explained_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), out):
        for leftover in out.parent.glob(f"{TEMPORARY}*-{out.name}"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def reuse(out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The report of a folder that holds the same curation already; None where there is none, or it goes.

    Raises:
        RunFolderError: it holds a curation of other rows or settings.
    """
    if not (out / REPORT).is_file():
        return None
    stored = read_report(out)
    same = json.loads(json.dumps(identity)) == stored["identity"]
    if same and not overwrite:
        return stored
    if not overwrite:
        changed = [
            key for key in identity if json.loads(json.dumps(identity[key])) != stored["identity"].get(key)
        ]
        raise RunFolderError(
            f"{out}: holds a curation with other {' and '.join(changed)}. Choose another folder with --out, "
            "or replace it with --overwrite."
        )
    return None


def read_report(folder: Path) -> dict[str, Any]:
    """What `curation.json` of a folder says.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / REPORT
    if not path.is_file():
        raise DataError(
            f"{folder}: holds no curation ({REPORT} is missing). Write one: handbook data curate."
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}). Curate again with --overwrite.") from None
    return found


def explain(folder: Path, id: str) -> dict[str, Any]:
    """The fate of one row.

    Args:
        folder: of a curation.
        id: `<source>:<row>`, such as `tips:17`; the number alone where there is one source.
    Returns:
        `id`, `fate` ("kept", "flagged", "removed" or "restored"), `rules` with their reasons, the `data` of
        the row, and `stands_for`: ids of the rows that were removed because they repeat it.
    Raises:
        DataError: there is no such row.
    """
    report = read_report(folder)
    source, number = _parse(report, id, folder)
    wanted = f"{source['label']}:{number}"
    gone, data, rules, fate = 0, None, [], "kept"
    first = source.get("first", 1)
    stands_for = []
    for line in _records(folder / REMOVED):
        if any(r["why"].split(" (")[0].endswith(f" {wanted}") for r in line["rules"]):
            stands_for.append(line["id"])
        if line["source"] != source["label"]:
            continue
        gone += line["row"] < number
        if line["id"] == wanted:
            fate, rules, data = "removed", line["rules"], line["data"]
    if fate == "kept":
        with (folder / source["file"]).open("rb") as lines:
            data = next(
                (json.loads(line) for at, line in enumerate(lines) if at == number - first - gone), None
            )
        for line in _records(folder / FLAGGED):
            if line["id"] == wanted:
                fate, rules = "flagged", line["rules"]
        for line in report["restored"]:
            if line["id"] == wanted:
                fate, rules = "restored", line["rules"]
    return {"id": wanted, "fate": fate, "rules": rules, "data": data, "stands_for": stands_for}


def restore(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Put removed rows back in their places.

    Args:
        folder: of a curation.
        wanted: ids of rows, and names of rules, which mean all rows that no other rule removed as well.
    Returns:
        The ids of the rows that are kept again.
    Raises:
        DataError: a row was not removed, or there is no such row or rule.
    """
    with exclusive(folder):
        report = read_report(folder)
        dropping = {name for name, about in report["rules"].items() if about["action"] == "drop"}
        rules = {name for name in wanted if name in RULES}
        ids = {
            ":".join((s["label"], str(n)))
            for s, n in (_parse(report, one, folder) for one in wanted if one not in rules)
        }
        back = []
        for line in _records(folder / REMOVED):
            reasons = {found["rule"] for found in line["rules"]} & dropping
            if line["id"] in ids or (reasons and reasons <= rules):
                back.append(line["id"])
        if missing := sorted(ids - set(back)):
            raise DataError(f"{folder}: row '{missing[0]}' was not removed, so it cannot be put back.")
        with atomic_folder(folder) as made:
            _rewrite(folder, made, report, frozenset(back))
    return back


def _rewrite(folder: Path, made: Path, report: dict[str, Any], back: frozenset[str]) -> None:
    (made / KEPT).mkdir()
    _link(folder / FLAGGED, made / FLAGGED)
    affected = {id.rpartition(":")[0] for id in back}
    for source in report["sources"]:
        if source["label"] in affected:
            _merge(folder, made, source, back)
            source["kept"] += sum(id.rpartition(":")[0] == source["label"] for id in back)
        else:
            _link(folder / source["file"], made / source["file"])
    with (folder / REMOVED).open("rb") as before, (made / REMOVED).open("wb") as after:
        for line in before:
            record = json.loads(line)
            if record["id"] not in back:
                after.write(line)
                continue
            source = next(s for s in report["sources"] if s["label"] == record["source"])
            source["kept_unread"] = source.get("kept_unread", 0) + record.get("unread", False)
            report["restored"].append({"id": record["id"], "rules": record["rules"]})
            for name in {found["rule"] for found in record["rules"]}:
                about = report["rules"][name]
                about["removed" if about["action"] == "drop" else "flagged"] -= 1
                about["by_source"][record["source"]] -= 1
    report["kept"] += len(back)
    report["removed"] -= len(back)
    (made / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _merge(folder: Path, made: Path, source: Mapping[str, Any], back: frozenset[str]) -> None:
    """The kept rows of a source with those that come back, each where it stood."""
    gone = (line for line in _records(folder / REMOVED) if line["source"] == source["label"])
    with (folder / source["file"]).open("rb") as kept, (made / source["file"]).open("wb") as after:
        number = source.get("first", 1)
        for line in gone:
            while number < line["row"]:
                after.write(kept.readline())
                number += 1
            if line["id"] in back:
                after.write(row_json(line["data"]) + b"\n")
            number += 1
        shutil.copyfileobj(kept, after)


def _link(path: Path, made: Path) -> None:
    """The same file under another name, or a copy of it where the disk has no such names."""
    try:
        os.link(path, made)
    except OSError:
        shutil.copyfile(path, made)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _parse(report: Mapping[str, Any], id: str, folder: Path) -> tuple[dict[str, Any], int]:
    """The source and the number that an id means."""
    labels = {source["label"]: source for source in report["sources"]}
    label, _, number = id.rpartition(":")
    if not label and len(labels) == 1:
        label = next(iter(labels))
    if label not in labels:
        example = f"{next(iter(labels))}:17"
        named = next((s["label"] for s in labels.values() if _is_file(label, s)), None)
        if named is not None:
            raise DataError(f"{folder}: there is no row '{id}'. Did you mean '{named}:{number}'?")
        hint = suggest(label, labels) if label else f"Rows are named like '{example}'."
        hint = f"{hint} Rules are: {', '.join(RULES)}." if not number.isdigit() else hint
        raise DataError(f"{folder}: there is no row '{id}'. {hint}")
    source = labels[label]
    first = source.get("first", 1)
    if not number.isdigit() or not first <= int(number) < first + source["rows"]:
        last = first + source["rows"] - 1
        raise DataError(f"{folder}: there is no row '{id}'; '{label}' has the rows {first:,} to {last:,}.")
    return source, int(number)


def _is_file(name: str, source: Mapping[str, Any]) -> bool:
    """Whether a name is the file of a source, with or without its folders."""
    return bool(name) and Path(name).name == Path(source["name"]).name
