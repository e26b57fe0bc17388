"""All methods, from `papers.json`: stages, losses and ways to select, their needs and papers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Method:
    """One stage, or one value of a stage's `training.loss_type`, or of the `strategy` of `select`.

    Attributes:
        stage: "" for a stage itself, else the stage whose loss or strategy this is.
        name: as it is written in a recipe.
        does: what it does, in a few words.
        paper: title of the paper it is from; "" where there is no one paper.
        year: of that paper.
        arxiv: its number there; "" where it has none.
        needs: what it needs beyond its stage's data.
    """

    stage: str
    name: str
    does: str
    paper: str = ""
    year: int | None = None
    arxiv: str = ""
    needs: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def methods() -> list[Method]:
    """All stages, then the losses or strategies of each stage that has several.

    >>> next(method.arxiv for method in methods() if method.name == "dpo")
    '2305.18290'
    """
    content = json.loads(files("handbook_utils").joinpath("cli", "papers.json").read_text(encoding="utf-8"))
    return [
        Method("" if group == "stages" else group, name, **entry)
        for group, named in content.items()
        for name, entry in named.items()
    ]
