"""What a row is taken for, and why; what could be two things is an error that names both."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.known_formats import FORMATS
from handbook_utils.data.recognise import describe_format
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import DataSource
from handbook_utils.schema.stage_table import Kind

ASK, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
EXAMPLES = [(name, kind) for name, known in FORMATS.items() for kind in known.kinds]


@pytest.mark.parametrize(("name", "kind"), EXAMPLES)
def test_every_format_is_recognised_by_its_example_and_gives_its_kinds(name: str, kind: Kind) -> None:
    example = FORMATS[name].example
    assert describe_format(example, kind=kind).format == name
    known = FORMATS[name]
    rows = normalise_rows(known.rows, kind=kind, pairs=known.pairs)
    assert rows == normalise_rows(known.rows, kind=kind, format=name, pairs=known.pairs)
    assert (
        set(rows[0])
        == {
            "text": {"text"},
            "conversation": {"prompt", "completion"},
            "preference": {"prompt", "chosen", "rejected"},
            "feedback": {"prompt", "completion", "label"},
            "prompt": {"prompt_id", "prompt"},
        }[kind]
    )


def test_recipes_take_every_format_by_name() -> None:
    named = get_args(DataSource.model_fields["format"].annotation)
    assert set(named) == {"auto", *FORMATS}


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(DataError, match="this row: not an object with columns, found str 'Hello'"):
        describe_format("Hello", kind="text")  # type: ignore[arg-type]


def test_the_reason_names_the_columns() -> None:
    found = describe_format({"prompt": "a", "completion": "b", "score": 1}, kind="conversation")
    assert str(found) == "prompt_completion (it has the columns 'prompt', 'completion')"
    found = describe_format(FORMATS["transcript"].example, kind="preference")
    assert found.because == "it has the columns 'chosen', 'rejected', and both are transcripts"


AMBIGUOUS: list[tuple[Kind, dict[str, Any], list[str]]] = [
    ("prompt", {"prompt": "2 + 2?", "messages": [ASK, ANSWER]}, ["messages", "prompt"]),
    (
        "conversation",
        {"prompt": "a", "completion": "b", "messages": [ASK, ANSWER]},
        ["messages", "prompt_comp"],
    ),
    ("conversation", {"messages": [ASK, ANSWER], "conversations": []}, ["messages", "sharegpt"]),
    ("preference", {"prompt": "a", **FORMATS["transcript"].example}, ["preference", "transcript"]),
]


@pytest.mark.parametrize(("kind", "row", "choices"), AMBIGUOUS)
def test_what_could_be_two_formats_is_refused_with_the_choices(
    kind: Kind, row: dict[str, Any], choices: list[str]
) -> None:
    with pytest.raises(DataError, match=rf"{choices[0]} or as {choices[1]}.*such as `format: {choices[0]}`"):
        describe_format(row, kind=kind)
    assert describe_format(row, kind=kind, format=choices[0]).because == "named in the recipe"


def test_answers_that_people_disliked_are_not_taken_for_demonstrations() -> None:
    with pytest.raises(DataError, match="looks like the format 'feedback', which gives: feedback, prompt"):
        describe_format(FORMATS["feedback"].example, kind="conversation")


MIXED: list[tuple[list[Any], str]] = [
    (
        [{"messages": [ASK, ANSWER]}, FORMATS["ultrafeedback"].example],
        r"row 2 is ultrafeedback \(it has .*, and the rows before it are messages",
    ),
    (
        [{"messages": [ASK, ANSWER]}, {"conversations": [ASK, ANSWER]}],
        r"row 2 lacks the column 'messages'; found 'conversations'.*split the file",
    ),
    (
        [{"prompt": "a", "completion": "b"}] * 2 + [{"prompt": "a", "completion": "b", "label": False}],
        r"row 3: .*looks like the format 'feedback'",
    ),
    (
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "messages": [ASK]}],
        r"row 2: could be read as messages or as prompt_completion",
    ),
]


@pytest.mark.parametrize(("rows", "message"), MIXED)
def test_a_row_in_another_format_than_the_first_is_named(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        normalise_rows(rows, kind="conversation")


def test_columns_that_carry_nothing_may_come_and_go() -> None:
    rows = [{"messages": [ASK, ANSWER]}, {"messages": [ASK, ANSWER], "source": "x", "tools": None}]
    assert len(normalise_rows(rows, kind="conversation")) == 2
