"""Answers scored with their prompt computed once: both layouts against plain rows, and which is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handbook_utils.models.load import load_model
from handbook_utils.shared_prefix.answers import (
    AnswerRows,
    answer_logps,
    cheaper_layout,
    why_not_cached,
)

Architecture = Callable[[str], Path]


def batch(
    prompts: list[int], answers: list[int], *, samples: int = 3, masked: int | None = None
) -> AnswerRows:
    """Random ids: `samples` answers to each prompt, their lengths taken in turn."""
    draw = torch.Generator().manual_seed(0)
    wide, long = max(prompts), max(answers)
    rows = []
    for number, length in enumerate(prompts):
        prompt = torch.randint(7, 200, (length,), generator=draw)
        for sample in range(samples):
            own = answers[(number * samples + sample) % len(answers)]
            ids, mask = torch.zeros(2, wide + long, dtype=torch.long)
            ids[wide - length : wide] = prompt
            ids[wide : wide + own] = torch.randint(7, 200, (own,), generator=draw)
            mask[wide - length : wide + own] = 1
            rows.append((ids, mask))
    ids, mask = (torch.stack(each) for each in zip(*rows, strict=True))
    if masked is not None:
        mask[masked, wide:] = 0
    return AnswerRows(ids, mask, long)


def scorer(model: Any) -> Callable[..., tuple[torch.Tensor, None]]:
    """What a fused head gives: of each label its log-probability, 0 where there is none."""

    def score(labels: Any = None, shift_labels: Any = None, **inputs: Any) -> tuple[torch.Tensor, None]:
        logits = model(**inputs).logits
        if shift_labels is None:
            logits, shift_labels = logits[:, :-1], labels[:, 1:]
        taken = logits.log_softmax(-1).gather(-1, shift_labels.clamp(min=0)[..., None])[..., 0]
        return taken.masked_fill(shift_labels == -100, 0.0), None

    return score


def plain(model: Any, rows: AnswerRows) -> torch.Tensor:
    """(rows, answer columns) of each row by itself, without padding."""
    found = torch.zeros(len(rows.ids), rows.columns)
    for row, (ids, mask) in enumerate(zip(rows.ids, rows.mask, strict=True)):
        own = int(rows.answer_lengths[row])
        if own:
            logps = model(input_ids=ids[mask.bool()][None]).logits[0].log_softmax(-1)
            taken = logps[:-1].gather(-1, ids[mask.bool()][1:, None])[:, 0]
            found[row, :own] = taken[-own:]
    return found


@pytest.mark.parametrize("layout", ["rows", "cache"])
@pytest.mark.parametrize(
    ("prompts", "answers", "masked"),
    [([9, 4, 6], [5, 1, 3, 7], None), ([5, 5], [4], 2), ([1, 3], [2, 6], None), ([8], [1], None)],
)
def test_both_layouts_give_the_numbers_of_plain_rows(
    layout: Any, prompts: list[int], answers: list[int], masked: int | None, tiny_model_folder: Path
) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")
    rows = batch(prompts, answers, masked=masked)
    logps, _ = answer_logps(scorer(model), model, rows, layout)
    wanted = plain(model, rows)
    assert (logps - wanted).abs().max() < 1e-5
    weights = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad((logps * weights).sum(), parameters)
    theirs = torch.autograd.grad((wanted * weights).sum(), parameters)
    for name, mine, other in zip(names, ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm() + 1e-5, name


def test_the_decoder_is_as_it_was_after_an_error(tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")

    def broken(**_: Any) -> Any:
        raise RuntimeError("inside")

    before = dict(vars(model.model))
    for layout in ("rows", "cache"):
        with pytest.raises(RuntimeError, match="inside"):
            answer_logps(broken, model, batch([4], [3]), layout)  # type: ignore[arg-type]
    assert dict(vars(model.model)) == before


def test_short_answers_share_rows_and_long_ones_a_cache(tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")
    assert cheaper_layout(model, batch([200] * 2, [6], samples=8)) == "rows"
    assert cheaper_layout(model, batch([200] * 2, [300], samples=8)) == "cache"


def test_a_model_with_a_sliding_window_is_refused_a_cache(tiny_architecture: Architecture) -> None:
    model = load_model(str(tiny_architecture("gemma3_text")), device="cpu")
    assert "window" in str(why_not_cached(model))
    assert cheaper_layout(model, batch([200] * 2, [300], samples=8)) == "rows"
    with pytest.raises(ValueError, match="window"):
        answer_logps(scorer(model), model, batch([4], [3]), "cache")


def test_groups_stay_together_and_the_longest_answers_come_first() -> None:
    rows = batch([3, 4, 5], [2, 2, 2, 9, 1, 1, 5, 5, 5])
    assert rows.groups() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.by_length().tolist() == [3, 4, 5, 6, 7, 8, 0, 1, 2]
