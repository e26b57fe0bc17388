"""JSON columns of `datasets` that keep what was written: its own round numbers and refuse large ones.

`datasets` 5 encodes them by pandas' ujson, with ten decimals: 1e-12 becomes 0.0, and 2**70 is an error.
What we need of its inside stands here and is held by `tests/contract/test_datasets.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from datasets import Json, arrow_writer
from datasets.features import features as features_module
from datasets.utils import json as json_module


class ExactJson(Json):  # type: ignore[misc]  # datasets ships no types
    """A column of JSON whose numbers keep their digits; saved, it is a `Json` like any other."""

    def encode_example(self, example_data: Any) -> str | None:
        """The text that Arrow keeps."""
        return None if example_data is None else _dumps(example_data)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """The value as it was given."""
        return None if example_data is None else json.loads(example_data)


@contextmanager
def exact_json() -> Iterator[None]:
    """Have `datasets` write JSON columns exactly while a block runs: in `map` it encodes them once more."""
    with ExitStack() as stack:
        for module in (json_module, features_module, arrow_writer):
            stack.enter_context(patch.object(module, "ujson_dumps", _dumps))
            if hasattr(module, "ujson_loads"):
                stack.enter_context(patch.object(module, "ujson_loads", json.loads))
        yield


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
