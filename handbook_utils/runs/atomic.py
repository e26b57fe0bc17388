"""Files that are either whole or absent: temporary names, fsync, rename; locks and checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handbook_utils.errors import HandbookError, RunFolderError

if TYPE_CHECKING:
    import pyarrow as pa

TEMPORARY = ".tmp-"


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no finished artefact ever has."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


# how libraries that are not Python word a disk that is full: safetensors, and PyTorch's writer of checkpoints
NO_SPACE = ("os error 28", "PytorchStreamWriter", "inline_container")


@contextmanager
def explained_os_errors(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn what an operating system refuses into an error that says what to do.

    Args:
        path: what is written or read.
        reading: the block only reads `path`: what a library cannot make sense of there is damage.
    """
    try:
        yield
    except HandbookError:
        raise
    except OSError as error:
        message = _explanation(error, path)
        if message is None and reading and error.errno is None:  # pyarrow's, of a file it cannot read
            message = _damage(error, path)
        if message is None:
            raise
        raise RunFolderError(message) from error
    except Exception as error:
        message = _explanation_of_others(error, path, reading=reading)
        if message is None:
            raise
        raise RunFolderError(message) from error


_DISK_FULL = (
    "{}: the disk is full. What was finished before is kept; free some space and run the same "
    "command again to go on."
)


def _explanation_of_others(error: Exception, path: Path, *, reading: bool) -> str | None:
    """What a library's own error means of a disk, or of a file that it was given."""
    if any(words in str(error) for words in NO_SPACE) or any(map(_is_no_space, _causes(error))):
        return _DISK_FULL.format(path)
    library = type(error).__module__.partition(".")[0]
    is_unreadable = isinstance(error, UnicodeDecodeError) or library == "pyarrow"
    if library == "safetensors" or (reading and is_unreadable):
        return _damage(error, path)
    return None


def _damage(error: Exception, path: Path) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"{path}: a file that is read here is damaged ({reason}). If a stage made it, run that stage "
        "again, which makes anew what is damaged. A file of your own has to be written again."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _explanation(error: OSError, path: Path) -> str | None:
    if _is_no_space(error):
        return _DISK_FULL.format(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or path
        return f"{where}: permission denied. Choose another folder with --out, or change its rights."
    if error.errno == errno.EEXIST:
        return f"{error.filename or path}: a file of this name is in the way. Choose another --out."
    if error.errno == errno.EISDIR:
        return f"{path}: a folder, where a file is to be written. Give the file's name too."
    if error.errno == errno.ENOTDIR:
        return f"{path}: a part of this path is a file, not a folder."
    return None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes `path` when the block ends well."""
    temporary = temporary_name(path)
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` when the block ends well."""
    temporary = temporary_name(path)
    with explained_os_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never outlives its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none of it."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or none of it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole parquet file or none of it."""
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left under temporary names."""
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Checksum of a file, or of a folder's files and their names."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path)}\0{sha256_of(file)}\n".encode())
    else:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold an exclusive lock file; a second holder is refused with the first one's process and host."""
    with explained_os_errors(path):
        stream = path.open("a+", encoding="utf-8")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise RunFolderError(
                f"{what}: this run folder is in use by {owner}. "
                "Wait for it, stop it, or choose another folder with --out."
            ) from error
        with explained_os_errors(path):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
        yield
