"""A folder of reference log-probabilities, shared by any runs and machines that use the same reference.

    store.json        whose log-probabilities these are
    SHA256.parquet    (key, logp) of some answers; the file's name is its checksum

A key is a hash of an answer's token ids, prompt included, and of where the answer begins: so rows may come in
any order, subset or mixture, and another tokenizer or template gives other keys. Files are written whole and
never changed. A store grows by further files, and two stores of one reference are joined by copying.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.errors import DataError, ModelError
from handbook_utils.models.logprobs import Floats, Sequenced
from handbook_utils.runs.atomic import TEMPORARY, atomic_file, write_json

FORMAT, RECORD = 1, "store.json"
ELSEWHERE = "Name another folder in `reference_logps`, or delete this one."


@dataclass(frozen=True)
class Reference:
    """A model whose log-probabilities are kept, as far as they depend on it.

    Attributes:
        model: what a reader would call it; two references may differ in it and be the same.
        weights: fingerprint of its weights and settings.
        adapter: None for a whole model; "on its base", or "merged" into it.
        quantization: "none", "int8" or "nf4".
        held_in: number format of the weights that are not quantised.
        computed_in: number format of matrix products.
    """

    model: str
    weights: str
    adapter: str | None
    quantization: str
    held_in: str
    computed_in: str

    @property
    def key(self) -> str:
        """Checksum of all but the name."""
        return hashlib.sha256(json.dumps(asdict(self) | {"model": None}).encode()).hexdigest()

    def differences(self, there: Reference) -> list[str]:
        """What is another there than here, a line each."""
        ours, theirs = asdict(self), asdict(there)
        return [
            f"{name}: there {_short(theirs[name])} (of {there.model}), here {_short(value)} (of {self.model})"
            for name, value in ours.items()
            if name != "model" and value != theirs[name]
        ]


def answer_key(sequence: Sequenced) -> bytes:
    """What an answer is filed under.

    >>> answer_key(([5, 6, 7], 1)) == answer_key(([5, 6, 7], 2))
    False
    """
    ids, start = sequence
    return hashlib.blake2b(np.array([start, *ids], dtype="<i8").tobytes(), digest_size=16).digest()


class ReferenceStore:
    """The log-probabilities of one reference, in a folder.

    Attributes:
        folder: where; it may not be there yet.
        reference: whose they are.
    """

    def __init__(self, folder: Path, reference: Reference) -> None:
        self.folder = folder
        self.reference = reference

    def check(self) -> None:
        """Refuse a folder that holds something else, or the log-probabilities of another reference.

        Raises:
            ModelError: of another reference; both are named.
            DataError: not a store, of another format, or damaged.
        """
        record = self.folder / RECORD
        if not record.exists():
            _refuse_foreign(self.folder)
            return
        changed = self.reference.differences(_read_record(record))
        if changed:
            listed = "\n".join(f"  {line}" for line in changed)
            raise ModelError(
                f"{self.folder}: these log-probabilities are of another reference:\n{listed}\n{ELSEWHERE}"
            )
        for name in self.files():
            self._checked(name)

    def open(self) -> list[str]:
        """Check the folder, or make it; returns the names of its files."""
        self.check()
        if not (self.folder / RECORD).exists():
            write_json(self.folder / RECORD, {"format": FORMAT, "reference": asdict(self.reference)})
        return self.files()

    def files(self) -> list[str]:
        """Names of the files that hold log-probabilities."""
        found = (file.name for file in self.folder.glob("*.parquet"))
        return sorted(name for name in found if not name.startswith(TEMPORARY))

    def read(self, files: Sequence[str], wanted: Collection[bytes]) -> dict[bytes, float]:
        """Log-probabilities by key, of those wanted that are in these files.

        Raises:
            DataError: a file is damaged, or was copied from another reference's store.
        """
        found: dict[bytes, float] = {}
        for name in files:
            table = self._checked(name)
            pairs = zip(table["key"].to_pylist(), table["logp"].to_pylist(), strict=True)
            found.update((key, logp) for key, logp in pairs if key in wanted)
        return found

    def add(self, keys: Sequence[bytes], logps: Floats) -> None:
        """Keep some more, in a file of their own: whole or not at all."""
        table = pa.table({"key": pa.array(keys, pa.binary()), "logp": pa.array(logps, pa.float64())})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({"reference": self.reference.key}), sink)
        content = sink.getvalue().to_pybytes()
        with atomic_file(self.folder / f"{hashlib.sha256(content).hexdigest()}.parquet") as temporary:
            temporary.write_bytes(content)

    def _checked(self, name: str) -> pa.Table:
        file = self.folder / name
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.stem:
            raise DataError(
                f"{file}: damaged: its content has not the checksum that is its name. Delete this file; what "
                "it held is computed again."
            )
        table = pq.read_table(pa.BufferReader(content))
        if (table.schema.metadata or {}).get(b"reference") != self.reference.key.encode():
            raise ModelError(
                f"{file}: log-probabilities of another reference than {self.folder / RECORD} names. Take it "
                "out of this folder."
            )
        return table


def _refuse_foreign(folder: Path) -> None:
    # another process may be about to make the store: what it has under temporary names is no reason
    entries = [folder] if folder.is_file() else folder.iterdir() if folder.is_dir() else []
    if any(not entry.name.startswith(TEMPORARY) for entry in entries):
        raise DataError(
            f"{folder}: not a folder of reference log-probabilities, and not empty. Name a new folder in "
            "`reference_logps`."
        )


def _short(value: str | None) -> str:
    is_checksum = value is not None and len(value) == 64
    return value[:12] if is_checksum and value else str(value)


def _read_record(file: Path) -> Reference:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        written = content["format"]
        if written == FORMAT:
            return Reference(**content["reference"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise DataError(
            f"{file}: damaged, so whose log-probabilities these are is not known. {ELSEWHERE}"
        ) from None
    raise DataError(f"{file}: its format is {written}, and this version reads {FORMAT}. {ELSEWHERE}")
