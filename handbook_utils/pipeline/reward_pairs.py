"""Compared answers with scores, for a report on reward models: from a file, a benchmark, or scored here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handbook_utils.data.formats import Normaliser, prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.sources import Origin, read_rows
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.reward.comparisons import Comparisons, reduce_scores, ruler_scores
from handbook_utils.records import Completion
from handbook_utils.runs.state import read_manifest
from handbook_utils.sampling.scoring.score import NoScore, Scorer

SIDES = ("chosen", "rejected")
GOLD = "gold"
BATCH = 1024


class Candidates(NamedTuple):
    """One row: a prompt with answers that should win and answers that should lose.

    Attributes:
        number: of the row, from 1.
        row: as it was read.
        right: answers, as text.
        wrong: answers, as text.
    """

    number: int
    row: Row
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def read_comparisons(
    name: str,
    *,
    models: Sequence[str] = (),
    split: str = "train",
    rows_per_batch: int = 256,
    advance: Callable[[int, int], None] = lambda tokens, rows: None,
) -> Comparisons:
    """Compared answers with the scores of every model that is named or has columns.

    A row has `chosen` and `rejected`: texts, conversations that end in the answer, or lists of texts, as in
    RewardBench 2 (`chosen` one and `rejected` three, say). Scores stand in columns `NAME.chosen` and
    `NAME.rejected`, as `handbook score` writes them: a number, or a list beside a list of answers. Also read:
    `subset`, `prompt_id` or `id`, `gold.chosen` and `gold.rejected`, and `first` ("chosen" or "rejected",
    which was shown first).

    Args:
        name: a file, folder or hub name; or the run folder of a reward model, which is scored on its
            `eval_data`.
        models: NAME=MODEL to score here, as `scorers` in a recipe.
        split: with an optional slice, such as filtered[:200].
        rows_per_batch: answers per forward pass.
        advance: told of (0, rows) as they are scored.
    Raises:
        DataError: rows without both sides, a row id that repeats, a score that is missing or no number
            (row named), or no model at all.
        ModelError, RecipeError: a model that cannot be loaded or gives no score; before any is loaded.
    """
    if (Path(name) / "manifest.json").exists():
        name, split, models = _of_run(name, split, models)
    first, rows = read_rows(Origin(name, parse_split(split)))
    rows = [_with_gold(row) for row in rows] if "gold_chosen" in rows[0] else rows
    taken, sections = score_columns(rows[0]), _sections(models)
    _check_models(name, taken, sections)
    answered = [_candidates(name, number, row) for number, row in enumerate(rows, start=first)]
    prompts = _prompts(name, answered)  # checks the rows, before any model is loaded
    scores = {model: _given(name, answered, model) for model in taken}
    if sections:
        # imported where it is needed: a report on given scores loads no scorer
        from handbook_utils.data.load import ResolvedInputs
        from handbook_utils.sampling.scoring.scorers.load import load_scorers

        loaded = load_scorers(sections, ResolvedInputs(), rows_per_batch=rows_per_batch)
        scores |= _scored(name, answered, loaded, advance)
    return _compared(name, prompts, answered, scores)


def _check_models(name: str, taken: Sequence[str], sections: Mapping[str, Any]) -> None:
    """Refuse a model that has scores already, and rows that no model scores."""
    both = [model for model in sections if model in taken]
    if both:
        raise DataError(f"{name}: has scores of '{both[0]}' already. Give the model another name.")
    if not sections and taken in ([], [GOLD]):
        raise DataError(
            f"{name}: rows have no scores of a model. Give --model NAME=MODEL to score them, or columns "
            "NAME.chosen and NAME.rejected as `handbook score` writes."
        )


def _compared(
    name: str,
    prompts: NDArray[np.intp],
    answered: Sequence[Candidates],
    scores: Mapping[str, NDArray[np.float64]],
) -> Comparisons:
    """The better and the worse side of each row, by every model, by length and by the gold reward."""
    starts, is_right = _layout(answered)
    words = np.array(
        [len(text.split()) for row in answered for text in (*row.right, *row.wrong)], dtype=np.float64
    )
    reduced = {model: reduce_scores(each, starts, is_right) for model, each in scores.items()}
    gold = reduced.pop(GOLD, None)
    lengths = reduce_scores(words, starts, is_right)
    return Comparisons(
        prompts=prompts,
        subsets=[str(row.row.get("subset", "")) for row in answered],
        models=reduced,
        words_right=lengths.right,
        words_wrong=lengths.wrong,
        rulers=ruler_scores(words, starts, is_right),
        gold=gold,
        chosen_first=_orders(name, answered),
        is_pair=all(len(row.right) == len(row.wrong) == 1 for row in answered),
    )


def _sections(models: Sequence[str]) -> Mapping[str, Any]:
    if not models:
        return {}
    from handbook_utils.schema.recipe import scorer_sections

    return scorer_sections(list(models), option="--model")


def score_columns(row: Row) -> list[str]:
    """Names of the scorers whose columns a row has, in their order."""
    return [
        str(c).removesuffix(".chosen")
        for c in row
        if str(c).endswith(".chosen") and f"{str(c)[:-7]}.rejected" in row
    ]


def _of_run(folder: str, split: str, models: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """The held-out pairs that a reward model's run names, and the run as the model."""
    manifest = read_manifest(Path(folder))
    if manifest["stage"] != "reward":
        raise DataError(
            f"{folder}: a run of stage '{manifest['stage']}' trained no reward model. Give a run of "
            "`handbook train` with a "
            "reward recipe, or a file of pairs."
        )
    held_out = manifest["recipe"].get("eval_data") or []
    if not held_out:
        raise DataError(f"{folder}: its recipe names no `eval_data`. Give pairs and --model NAME={folder}.")
    source = held_out[0]
    beside = Path(folder).parent / str(source.get("from"))
    given = source.get("name") or str(beside if beside.exists() else source["from"])
    chosen = source.get("split") or "train"
    own = f"{Path(folder).name}={folder}"
    return str(given), chosen if split == "train" else split, [own, *models]


def _with_gold(row: Row) -> Row:
    """A pair of an earlier stage, whose gold rewards stand in columns of other names."""
    return {**row, f"{GOLD}.chosen": row["gold_chosen"], f"{GOLD}.rejected": row["gold_rejected"]}


def _candidates(name: str, number: int, row: Row) -> Candidates:
    sides = []
    for side in SIDES:
        value = row.get(side)
        if value is None or value in ("", []):
            raise DataError(f"{name}: row {number} has no '{side}'. {suggest(side, map(str, row))}")
        sides.append(_texts(f"{name}: row {number}", side, value))
    return Candidates(number, row, *sides)


def _texts(place: str, side: str, value: Any) -> tuple[str, ...]:
    """Answers of one side: a text, a conversation that ends in one, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and value:
        if isinstance(value[0], Mapping):
            last = value[-1].get("content")
            if isinstance(last, str):
                return (last,)
        elif all(isinstance(each, str) for each in value):
            return tuple(value)
    raise DataError(f"{place}: '{side}' is no text, conversation or list of texts: {type(value).__name__}.")


def _prompts(name: str, answered: Sequence[Candidates]) -> NDArray[np.intp]:
    """Number of each row's prompt; a given id of a row may come once."""
    seen: dict[str, int] = {}
    keys = []
    for each in answered:
        if each.row.get("id") is not None and each.row.get("prompt_id") is None:
            key = f"{each.row.get('subset', '')}/{each.row['id']}"
            if key in seen:
                raise DataError(
                    f"{name}: row {each.number} repeats id '{each.row['id']}' of row {seen[key]}. "
                    "Each pair may come once; rows of one prompt share a `prompt_id`."
                )
            seen[key] = each.number
        prompt = each.row.get("prompt_id", each.row.get("prompt", each.number))
        keys.append(prompt if isinstance(prompt, str) else repr(prompt))
    pairs: dict[tuple[str, ...], int] = {}
    for key, each in zip(keys, answered, strict=True):
        earlier = pairs.setdefault((key, *each.right, "", *each.wrong), each.number)
        if earlier != each.number:
            raise DataError(
                f"{name}: rows {earlier} and {each.number} are the same pair to prompt {key[:60]!r}. Drop "
                "one."
            )
    return np.unique(keys, return_inverse=True)[1]


def _layout(answered: Sequence[Candidates]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    counts = np.array([(len(row.right), len(row.wrong)) for row in answered], dtype=np.intp)
    totals = counts.sum(axis=1)
    starts = np.cumsum(totals) - totals
    places = np.arange(int(totals.sum())) - np.repeat(starts, totals)
    return starts, places < np.repeat(counts[:, 0], totals)


def _given(name: str, answered: Sequence[Candidates], model: str) -> NDArray[np.float64]:
    found: list[Any] = []
    columns = {side: f"{model}.{side}" for side in SIDES}
    for each in answered:
        for side, answers in zip(SIDES, (each.right, each.wrong), strict=True):
            value = each.row.get(columns[side])
            if len(answers) == 1 and isinstance(value, float):
                found.append(value)
                continue
            values = list(value) if isinstance(value, list | tuple) else [value]
            if len(values) != len(answers):
                raise DataError(
                    f"{name}: row {each.number} has {len(values)} scores in '{model}.{side}' for "
                    f"{len(answers)} answers."
                )
            found += values
    try:
        scores = np.array(found, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.array([np.nan if not isinstance(v, int | float) else v for v in found], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        row = next(r for r, last in zip(answered, _ends(answered), strict=True) if bad[0] < last)
        raise DataError(
            f"{name}: row {row.number} has no number for '{model}' ({len(bad)} scores are missing). "
            "Score these rows again, or drop them for all models."
        )
    return scores


def _ends(answered: Sequence[Candidates]) -> Iterator[int]:
    end = 0
    for row in answered:
        end += len(row.right) + len(row.wrong)
        yield end


def _scored(
    name: str, answered: Sequence[Candidates], scorers: Sequence[Scorer], advance: Callable[[int, int], None]
) -> dict[str, NDArray[np.float64]]:
    completions = _completions(name, answered)
    columns: dict[str, list[float]] = {}
    for start in range(0, len(completions), BATCH):
        batch = completions[start : start + BATCH]
        for scorer in scorers:
            for column, values in scorer(batch).items():
                missing = next((v for v in values if isinstance(v, NoScore)), None)
                if missing is not None:
                    raise DataError(f"{name}: '{column}' has no score for an answer: {missing.reason}")
                columns.setdefault(column, []).extend(np.asarray(values, dtype=np.float64).tolist())
        advance(0, len(batch))
    # parts of a score, such as `gold.words`, are no models
    return {column: np.array(values) for column, values in columns.items() if "." not in column}


def _completions(name: str, answered: Sequence[Candidates]) -> list[Completion]:
    """All answers in the order of the layout, each with the conversation that it answers."""
    normalise = Normaliser(kind="preference", name=name)
    made = []
    for each in answered:
        pair = dict(each.row)
        if not isinstance(each.row["chosen"], str) and not isinstance(each.row["chosen"][0], Mapping):
            pair |= {"chosen": each.right[0], "rejected": each.wrong[0]}
        known: Row = {key: pair[key] for key in ("prompt", "chosen", "rejected") if key in pair}
        prompt = normalise(each.number, known)[-1]["prompt"]
        for index, text in enumerate((*each.right, *each.wrong)):
            made.append(Completion(prompt_hash(prompt), index, prompt, text, 0, "stop", None))
    return made


def _orders(name: str, answered: Sequence[Candidates]) -> NDArray[np.float64] | None:
    if "first" not in answered[0].row:
        return None
    found = []
    for each in answered:
        value = each.row.get("first")
        if value not in SIDES:
            raise DataError(f"{name}: row {each.number} has 'first' {value!r}. Write chosen or rejected.")
        found.append(float(value == "chosen"))
    return np.array(found)
