"""KTO's stage: what reaches TRL, which reads rows in order and measures its KL on neighbours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from handbook_utils.data.training_data import TrainingData
from handbook_utils.training import stages


def test_rows_are_shuffled_by_the_seed_so_that_a_pairs_answers_are_not_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = Dataset.from_list([{"number": n, "label": n % 2 == 0} for n in range(40)])
    seen: list[list[int]] = []
    monkeypatch.setattr(stages, "load_rows", lambda *_, **__: TrainingData(rows, None, []))

    def fit(recipe: Any, run: Any, data: TrainingData, **_: Any) -> dict[str, Any]:
        seen.append(list(data.train["number"]))
        return {}

    monkeypatch.setattr(stages, "fit", fit)
    for seed in (0, 0, 1):
        assert stages.run_kto(SimpleNamespace(seed=seed), None) == {}  # type: ignore[arg-type]
    assert sorted(seen[0]) == list(range(40))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    pairs = sum(abs(a - b) == 1 and a // 2 == b // 2 for a, b in zip(seen[0], seen[0][1:], strict=False))
    assert pairs < 10  # unshuffled: 20
