"""Curation from rows to folder: what is written, looked up and put back, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.curation.curate import curate
from handbook_utils.curation.folder import explain, restore
from handbook_utils.curation.look import look_at
from handbook_utils.curation.page import page_html
from handbook_utils.curation.rows import Reading, open_sources
from handbook_utils.curation.rules.table import RULES, Settings, Thresholds
from handbook_utils.curation.tested import find_leaks, read_tested
from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, HandbookError, RunFolderError
from handbook_utils.schema.sections import DataSource

Row = Mapping[str, Any]


def chat(asked: str, answered: str, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return {"messages": said, **more}


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def opened(*paths: Path, **options: Any) -> Any:
    return open_sources([DataSource(name=str(path), **options) for path in paths])


def good(number: int) -> dict[str, Any]:
    return chat(
        f"What is {number} and {number}, and why?", f"It is {2 * number}, for {number} is taken twice."
    )


ROWS = [
    good(1),
    good(2),
    good(1),
    {"messages": [{"role": "assistant", "content": "Hello."}]},
    chat("Say it.", "   "),
    chat("Loop?", "I like tea very much. " * 30),
    chat("Write to whom?", "To ann@example.org, please."),
    chat("May I?", "I'm sorry, but I can't help with that."),
    {"messages": "a text"},
    good(3),
]
FATES = {3: "duplicate", 4: "role_order", 5: "empty", 6: "repetitive", 9: "unreadable"}


@pytest.fixture
def tips(tmp_path: Path) -> Path:
    return write(tmp_path / "tips.jsonl", ROWS)


def test_each_row_that_goes_is_named_with_its_reason_and_kept_whole(tips: Path, tmp_path: Path) -> None:
    done = curate(opened(tips), tmp_path / "clean")
    gone = read(tmp_path / "clean/removed.jsonl")
    assert {line["row"]: line["rules"][0]["rule"] for line in gone} == FATES
    assert [line["data"] for line in gone] == [ROWS[number - 1] for number in FATES]
    assert all(found["why"] for line in gone for found in line["rules"])
    kept = [row for number, row in enumerate(ROWS, start=1) if number not in FATES]
    assert read(tmp_path / "clean/kept/tips.jsonl") == kept
    assert done.report["removed"] == 5
    assert done.report["kept"] == 5


def test_what_is_flagged_is_kept_and_listed(tips: Path, tmp_path: Path) -> None:
    curate(opened(tips), tmp_path / "clean")
    flagged = read(tmp_path / "clean/flagged.jsonl")
    assert {line["row"]: line["rules"][0]["rule"] for line in flagged} == {7: "private_data", 8: "refused"}


def test_private_data_is_not_repeated_in_reports(tips: Path, tmp_path: Path) -> None:
    curate(opened(tips), tmp_path / "clean")
    for name in ("curation.json", "flagged.jsonl"):
        assert "ann@example" not in (tmp_path / "clean" / name).read_text(encoding="utf-8")


def test_every_count_of_the_report_adds_up(tips: Path, tmp_path: Path) -> None:
    report = curate(opened(tips), tmp_path / "clean").report
    assert report["rows"] == report["kept"] + report["removed"] == len(ROWS)
    for about in report["rules"].values():
        assert sum(about["by_source"].values()) == about["removed"] + about["flagged"]
        assert len(about["examples"]) == min(3, about["removed"] + about["flagged"])
    assert report["rules"].keys() == RULES.keys()


def test_what_is_kept_can_be_trained_on(tips: Path, tmp_path: Path) -> None:
    curate(opened(tips), tmp_path / "clean")
    rows = load_dataset(str(tmp_path / "clean/kept/tips.jsonl"), kind="conversation")
    assert len(rows) == 5


@pytest.mark.parametrize("action", ["flag", "off"])
def test_a_rule_can_be_turned_down_or_off(action: Any, tips: Path, tmp_path: Path) -> None:
    report = curate(opened(tips), tmp_path / "clean", Settings({"repetitive": action})).report
    about = report["rules"]["repetitive"]
    assert (about["removed"], about["flagged"]) == (0, int(action == "flag"))
    assert report["kept"] == 6


def test_a_rule_can_be_turned_up(tips: Path, tmp_path: Path) -> None:
    report = curate(opened(tips), tmp_path / "clean", Settings({"refused": "drop"})).report
    assert report["rules"]["refused"]["removed"] == 1


def test_duplicates_are_found_across_sources_and_named_by_source(tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / "one.jsonl", [good(1), good(2)]),
        write(tmp_path / "two.jsonl", [good(2), good(4)]),
    )
    curate(opened(one, other), tmp_path / "clean")
    gone = read(tmp_path / "clean/removed.jsonl")
    assert [(line["id"], line["rules"][0]["why"]) for line in gone] == [
        ("two:1", "in the same words as one:2")
    ]


def test_sources_of_one_name_keep_their_rows_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [write(tmp_path / "a" / "x.jsonl", [good(1)]), write(tmp_path / "x.jsonl", [good(2)])]
    report = curate(opened(*paths), tmp_path / "clean").report
    assert [source["file"] for source in report["sources"]] == ["kept/x.jsonl", "kept/x-2.jsonl"]


def test_pairs_that_do_not_differ_go_and_length_bias_is_told(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"What is {n}?", "chosen": f"It is the number {n}, a fine one.", "rejected": f"It is {n}."}
        for n in range(20)
    ]
    pairs.append({"prompt": "Same?", "chosen": "It is the same.", "rejected": "It is  the same."})
    report = curate(opened(write(tmp_path / "pairs.jsonl", pairs)), tmp_path / "clean").report
    assert report["rules"]["equal_pair"]["removed"] == 1
    assert report["length_bias"]["longer_chosen"]["value"] == 1.0
    assert report["length_bias"]["pairs"] == 20


def test_a_pair_whose_rejected_answer_has_no_text_goes_and_is_no_evidence_of_length(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"What is {n}?", "chosen": f"It is the number {n}, a fine one.", "rejected": f"It is {n}."}
        for n in range(7)
    ]
    refusal = "I'm sorry, but I can't help with that."  # a rejected answer may be as bad as it likes
    pairs.append({"prompt": "Can you?", "chosen": "Yes, that is easy.", "rejected": refusal})
    pairs += [{"prompt": f"And {n}?", "chosen": f"It is {n}, I say.", "rejected": ""} for n in range(5)]
    report = curate(opened(write(tmp_path / "pairs.jsonl", pairs)), tmp_path / "clean").report
    assert (report["kept"], report["rules"]["empty"]["removed"], report["flagged"]) == (8, 5, 0)
    assert report["rules"]["empty"]["examples"][0]["why"] == "rejected answer: no text"
    assert report["length_bias"]["pairs"] == 8


def test_a_look_and_a_curation_tell_the_same_length_bias(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"What is {n}?", "chosen": f"It is the number {n}, a fine one.", "rejected": f"It is {n}."}
        for n in range(9)
    ]
    pairs.append({"prompt": "Same?", "chosen": "It is the same.", "rejected": "It is the same."})
    pairs.append({"prompt": "Silent?", "chosen": "It is not.", "rejected": " "})
    path = write(tmp_path / "pairs.jsonl", pairs)
    (source,) = opened(path)
    assert look_at(source).length_bias == curate(opened(path), tmp_path / "clean").report["length_bias"]


def test_an_answer_that_only_calls_a_tool_is_not_empty(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Rome"}}}
    silent = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [{"messages": [{"role": "user", "content": "Is it sunny in Rome?"}, silent]}, good(1)]
    report = curate(opened(write(tmp_path / "calls.jsonl", rows)), tmp_path / "clean").report
    assert (report["kept"], report["flagged"]) == (2, 0)


def test_a_sentence_that_many_answers_share_is_boilerplate(tmp_path: Path) -> None:
    opening = "Certainly, here is what you asked for! "
    rows = [good(n) for n in range(60)]
    for n in range(0, 60, 2):
        rows[n]["messages"][1]["content"] = opening + rows[n]["messages"][1]["content"]
    report = curate(opened(write(tmp_path / "x.jsonl", rows)), tmp_path / "clean").report
    assert report["rules"]["boilerplate"]["flagged"] == 30
    assert "30 of 60 answers" in report["rules"]["boilerplate"]["examples"][0]["why"]


class FakeTokenizer:
    """Knows one control token."""

    all_special_tokens = ("<|end|>",)
    added_tokens_decoder: Mapping[int, Any] = {}

    def convert_tokens_to_ids(self, text: str) -> int:
        return 7

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [7 if text == "<|end|>" else 1]}


def test_text_that_becomes_a_control_token_goes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [good(1), chat("How does it end?", "With <|end|> it ends.")])
    settings = Settings(tokenizer="fake")
    report = curate(opened(path), tmp_path / "clean", settings, tokenizer=FakeTokenizer()).report
    assert report["rules"]["control_tokens"]["removed"] == 1
    assert "control_tokens" not in report["not_checked"]
    unchecked = curate(opened(path), tmp_path / "other").report
    assert "--model" in unchecked["not_checked"]["control_tokens"]


# the fate of one row, and undoing it


def test_the_fate_of_a_row_is_told(tips: Path, tmp_path: Path) -> None:
    curate(opened(tips), tmp_path / "clean")
    gone = explain(tmp_path / "clean", "tips:3")
    assert (gone["fate"], gone["data"]) == ("removed", ROWS[2])
    assert gone["rules"] == [{"rule": "duplicate", "why": "in the same words as tips:1"}]
    assert explain(tmp_path / "clean", "1")["stands_for"] == ["tips:3"]
    assert explain(tmp_path / "clean", "tips:8")["fate"] == "flagged"
    for number in (1, 2, 7, 8, 10):  # kept rows are found behind the gaps
        assert explain(tmp_path / "clean", str(number))["data"] == ROWS[number - 1]


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("tips:99", "has the rows 1 to 10"),
        ("tip:3", "Did you mean 'tips'"),
        ("tips:x", "has the rows 1 to 10"),
        ("tips.jsonl:3", "Did you mean 'tips:3'"),
    ],
)
def test_a_row_that_is_not_there_is_refused_with_those_that_are(
    id: str, message: str, tips: Path, tmp_path: Path
) -> None:
    curate(opened(tips), tmp_path / "clean")
    with pytest.raises(DataError, match=message):
        explain(tmp_path / "clean", id)


def test_a_removal_can_be_undone_and_the_row_stands_where_it_stood(tips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    curate(opened(tips), folder)
    assert restore(folder, ["tips:3", "repetitive"]) == ["tips:3", "tips:6"]
    kept = [row for number, row in enumerate(ROWS, start=1) if number not in (4, 5, 9)]
    assert read(folder / "kept/tips.jsonl") == kept
    assert explain(folder, "tips:3")["fate"] == "restored"
    assert explain(folder, "tips:7")["data"] == ROWS[6]
    report = json.loads((folder / "curation.json").read_text(encoding="utf-8"))
    assert (report["kept"], report["removed"]) == (7, 3)
    assert report["rules"]["duplicate"]["removed"] == 0


def test_a_row_that_was_kept_cannot_be_put_back(tips: Path, tmp_path: Path) -> None:
    curate(opened(tips), tmp_path / "clean")
    with pytest.raises(DataError, match="'tips:1' was not removed"):
        restore(tmp_path / "clean", ["tips:1"])


# the folder


def test_the_same_curation_is_not_done_twice_and_another_is_refused(tips: Path, tmp_path: Path) -> None:
    first = curate(opened(tips), tmp_path / "clean")
    again = curate(opened(tips), tmp_path / "clean")
    assert again.is_reused
    assert again.report == json.loads(json.dumps(first.report))
    other = Settings(thresholds=Thresholds(near=0.9))
    with pytest.raises(RunFolderError, match=r"other settings.*--overwrite"):
        curate(opened(tips), tmp_path / "clean", other)
    assert not curate(opened(tips), tmp_path / "clean", other, overwrite=True).is_reused


def test_a_folder_of_something_else_is_not_overwritten(tips: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("words", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds other things"):
        curate(opened(tips), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/thesis.txt").exists()


HOLD = """
import sys
from pathlib import Path
from handbook_utils.curation.folder import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_folder(tips: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "clean")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"in use by process {holder.pid}"):
            curate(opened(tips), tmp_path / "clean")
        holder.communicate("")
    assert curate(opened(tips), tmp_path / "clean").report["kept"] == 5


def test_a_full_disk_leaves_no_half_folder(
    tips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(row: Row) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("handbook_utils.curation.curate.row_json", full)
    with pytest.raises(HandbookError, match="the disk is full"):
        curate(opened(tips), tmp_path / "clean")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"tips.jsonl", ".clean.lock"}


def test_a_full_disk_while_rows_are_put_back_leaves_the_folder_as_it_was(
    tips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(opened(tips), tmp_path / "clean")
    before = (tmp_path / "clean/kept/tips.jsonl").read_bytes()

    def full(row: Row) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("handbook_utils.curation.folder.row_json", full)
    with pytest.raises(HandbookError, match="the disk is full"):
        restore(tmp_path / "clean", ["tips:3"])
    assert (tmp_path / "clean/kept/tips.jsonl").read_bytes() == before
    assert explain(tmp_path / "clean", "tips:3")["fate"] == "removed"


# input that is not as it should be


def test_an_input_that_is_deleted_while_it_is_read_is_said_so(tips: Path, tmp_path: Path) -> None:
    sources = opened(tips)
    with pytest.raises(DataError, match="moved or deleted while it was read"):
        curate(sources, tmp_path / "clean", watch=lambda rows: tips.unlink())
    assert not (tmp_path / "clean").exists()


def test_an_input_that_is_changed_while_it_is_read_is_said_so(tips: Path, tmp_path: Path) -> None:
    sources = opened(tips)

    def add(rows: int) -> None:
        with tips.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(good(5)) + "\n")

    with pytest.raises(DataError, match="was changed while it was read"):
        curate(sources, tmp_path / "clean", watch=add)


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.7z", "rows.jsonl.zst"])
def test_an_archive_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is packed, which is not read here\. Unpack it"):
        opened(tmp_path / name)


def test_the_training_file_is_no_evaluation_file(tips: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is the data itself, so every row"):
        read_tested([DataSource(name=str(tips))], opened(tips))
    copy = tmp_path / "test.jsonl"
    copy.write_bytes(tips.read_bytes())
    with pytest.raises(DataError, match=r"is the data itself, a copy of .*tips\.jsonl"):
        read_tested([DataSource(name=str(copy))], opened(tips))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no rows|ends at|end at"):
        opened(tmp_path / "none.jsonl")


def test_a_source_that_was_misunderstood_is_an_error_and_not_a_hundred_bad_rows(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}]} for n in range(150)]
    with pytest.raises(DataError, match="The same is true of all the first 100 rows"):
        curate(opened(write(tmp_path / "x.jsonl", rows)), tmp_path / "clean")


def test_where_no_row_is_left_the_rule_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [chat("Loop?", "I like tea very much. " * 30)])
    with pytest.raises(DataError, match="'repetitive' alone removed 1"):
        curate(opened(path), tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_a_conversation_of_a_hundred_thousand_words_is_a_row_like_others(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": f"{role} says the number {n} and much else " * 6}
        for n in range(1000)
        for role in ("user", "assistant")
    ]
    assert sum(len(turn["content"].split()) for turn in turns) > 90_000
    path = write(tmp_path / "x.jsonl", [good(1), {"messages": turns}])
    report = curate(opened(path), tmp_path / "clean", Settings({"repetitive": "flag"})).report
    assert report["kept"] == 2


def test_ten_thousand_columns_are_read_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [good(1) | {f"column {n}": n for n in range(10_000)}, good(2)])
    assert curate(opened(path), tmp_path / "clean").report["kept"] == 2
    look = look_at(opened(path)[0])
    assert len(look.columns) == 10_001
    assert "and 9,981 more" in page_html([look])


def test_a_row_of_fifty_megabytes_is_a_row_like_others(tmp_path: Path) -> None:
    long = "some words that go on " * (50_000_000 // 22)
    path = write(tmp_path / "x.jsonl", [good(1), chat("Long?", long)])
    settings = Settings(dict.fromkeys(RULES, "off") | {"duplicate": "drop", "empty": "drop"})
    assert curate(opened(path), tmp_path / "clean", settings).report["kept"] == 2


def test_half_of_a_surrogate_pair_goes_as_unreadable_and_is_kept_as_written(tmp_path: Path) -> None:
    rows = [good(1), chat("Emoji?", "Half: \ud83d and more.")]
    path = write(tmp_path / "x.jsonl", rows)
    curate(opened(path), tmp_path / "clean")
    assert read(tmp_path / "clean/removed.jsonl")[0]["data"] == rows[1]


# what is tested on


def index_of(tmp_path: Path, prompts: Sequence[str], sources: Any) -> Any:
    path = write(tmp_path / "test.jsonl", [{"prompt": prompt} for prompt in prompts])
    return read_tested([DataSource(name=str(path))], sources)


QUESTION = "A train leaves the station at noon and travels at sixty miles an hour. When does it arrive?"


@pytest.mark.parametrize(
    ("row", "how"),
    [
        (chat(QUESTION, "At four."), "asks the same as test:1"),
        (chat(QUESTION.upper().replace(".", " ;"), "At four."), "asks the same as test:1"),
        (chat(f"Here is my homework. {QUESTION} Be brief.", "At four."), "of the word runs of test:1"),
        (chat("Tell me a riddle.", f"Gladly! {QUESTION}"), "of the word runs of test:1"),
        (chat(QUESTION.replace("sixty", "fifty"), "At four."), "test:1"),
    ],
)
def test_a_tested_prompt_is_found_and_shown_in_its_context(row: Row, how: str, tmp_path: Path) -> None:
    sources = opened(write(tmp_path / "x.jsonl", [good(1), row]))
    report = find_leaks(sources, index_of(tmp_path, [QUESTION], sources))
    assert [leak.id for leak in report.leaks["x"]] == ["x:2"]
    assert how in report.leaks["x"][0].why
    assert "[" in report.leaks["x"][0].why


@pytest.mark.parametrize(
    ("prompt", "leaks"),
    [
        ("Why?", ["x:2"]),  # too short to be looked for inside
        ("Who wrote the song Yesterday?", ["x:1"]),  # five words: found where they stand whole
        ("A train leaves the station at noon, as every day, and nobody is on it, for it is Sunday.", []),
    ],
)
def test_short_prompts_and_common_beginnings_are_no_leaks_by_chance(
    prompt: str, leaks: list[str], tmp_path: Path
) -> None:
    rows = [
        chat("Tell me why. Who wrote the song Yesterday, and when?", "Paul did, in 1965."),
        chat("why", "So."),
    ]
    rows.append(chat(QUESTION, "At four."))
    sources = opened(write(tmp_path / "x.jsonl", rows))
    found = find_leaks(sources, index_of(tmp_path, [prompt], sources))
    assert [leak.id for leak in found.leaks["x"]] == leaks


def test_the_template_of_a_test_is_no_evidence(tmp_path: Path) -> None:
    template = (
        "Answer the following multiple choice question and end with the letter of the right answer alone."
    )
    prompts = [f"{template} What is {n} and {n}?" for n in range(200)]
    sources = opened(write(tmp_path / "x.jsonl", [chat(f"{template} Who was first on the moon?", "B")]))
    report = find_leaks(sources, index_of(tmp_path, prompts, sources))
    assert report.template_runs > 0
    assert report.leaks["x"] == []


def test_leaks_go_in_curation_with_the_words_in_their_place(tmp_path: Path) -> None:
    sources = opened(write(tmp_path / "x.jsonl", [good(1), chat(QUESTION, "At four.")]))
    index = index_of(tmp_path, [QUESTION], sources)
    curate(sources, tmp_path / "clean", Settings(tested=("test.jsonl",)), tested=index)
    (gone,) = read(tmp_path / "clean/removed.jsonl")
    assert gone["rules"][0]["rule"] == "test_prompt"
    assert "[A train leaves the station" in gone["rules"][0]["why"]


# a look


def test_a_look_tells_format_counts_lengths_and_rows(tips: Path) -> None:
    look = look_at(opened(tips)[0])
    assert look.recognised == "messages (it has the column 'messages')"
    assert (look.rows, look.readable, len(look.problems)) == (10, 7, 3)
    assert look.lengths["asked"]["words"]["shortest"] == 1
    assert look.shown[0].number == 1
    assert len(look.shown) == 3


def test_nothing_that_a_row_says_acts_in_the_page(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    path = write(tmp_path / "x.jsonl", [chat(attack, attack, **{attack: 1})])
    page = page_html([look_at(opened(path)[0])])
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "width=device-width" in page
    assert "color-scheme: light dark" in page


def readings(path: Path, **options: Any) -> Iterator[Reading]:
    return (reading for _, _, reading in opened(path, **options)[0])


def test_what_is_read_at_a_glance_is_what_the_reader_of_rows_reads(tmp_path: Path) -> None:
    rows = [
        good(1),
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *good(2)["messages"],
                *good(3)["messages"],
            ]
        },
        good(4) | {"id": "x"},
    ]
    plain = list(readings(write(tmp_path / "x.jsonl", rows)))
    slow = list(readings(write(tmp_path / "y.jsonl", [row | {"of": "slow"} for row in rows])))
    assert plain == slow
    assert plain[1].other == ("Be brief.",)
    assert len(plain[1].answers) == 2


def test_rated_answers_are_read_without_a_recipe(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "response": "It is four.", "helpfulness": 4}
    (reading,) = readings(write(tmp_path / "x.jsonl", [row]))
    assert (reading.asked, reading.answers) == ("2 + 2?", ("It is four.",))


def test_a_column_can_be_renamed(tmp_path: Path) -> None:
    row = {"question": "2 + 2?", "reply": "It is four."}
    columns = {"question": "prompt", "reply": "completion"}
    (reading,) = readings(write(tmp_path / "x.jsonl", [row]), columns=columns)
    assert reading.answers == ("It is four.",)
