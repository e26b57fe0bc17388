"""One of several processes that tokenize rows: `python -m ...training.rows.label_worker CONNECTION`.

Only `sharing.py` starts it. It answers batches of rows by batches of tokens until its connection closes. A
batch that fails is answered by nothing: the process that asked tries it again, and raises the error itself.
"""

from __future__ import annotations

import gc
import pickle
import sys
import warnings
from multiprocessing.connection import Connection

import pyarrow as pa

READY, DONE, FAILED = b"ready", b"done", b"failed"


def main(descriptor: int) -> None:
    """Serve one connection."""
    warnings.simplefilter("ignore")  # whatever there is to say was said of the first rows
    with Connection(descriptor) as connection:
        try:
            serve(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the process that asks has ended


def serve(connection: Connection) -> None:
    """Load the tokenizer that comes first, and answer each batch behind it."""
    from transformers.utils import logging

    from handbook_utils.training.rows.tokenized import RowTokenizer, columns_of

    logging.set_verbosity_error()
    given = connection.recv_bytes()
    try:
        tokenizer, as_json = pickle.loads(given)
        tokenize = RowTokenizer(tokenizer)
    except Exception as error:  # noqa: BLE001 - a tokenizer of somebody's own may raise anything
        print(f"{type(error).__name__}: {error}", flush=True)  # its last words, which the other process reads
        connection.send_bytes(FAILED)
        return
    connection.send_bytes(READY)
    gc.freeze()  # what was imported stays: to look through it again and again takes longer than the rows
    while True:
        table = pa.ipc.open_stream(connection.recv_bytes()).read_all()
        try:
            made = as_bytes(tokenize(columns_of(table, as_json)))
        except Exception:  # noqa: BLE001 - raised again where it can be seen
            connection.send_bytes(FAILED)
            continue
        connection.send_bytes(DONE)
        connection.send_bytes(made)


def as_bytes(rows: pa.Table | pa.RecordBatch) -> pa.Buffer:
    """Rows as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    return sink.getvalue()


if __name__ == "__main__":
    main(int(sys.argv[1]))
