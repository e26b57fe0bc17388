"""Comparing answers by people: what is read, who gets what, what is kept, and what the server refuses."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.curation.rows import SourceRows, open_sources
from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, LaunchError, RunFolderError
from handbook_utils.pipeline.judgements import read_judgements
from handbook_utils.sampling.annotation import judgements as judgements_module
from handbook_utils.sampling.annotation.guideline import guideline_blocks, read_guideline
from handbook_utils.sampling.annotation.hand_out import HELD_S, HandOut, is_swapped
from handbook_utils.sampling.annotation.judgements import JudgementFile, read_judgement_file
from handbook_utils.sampling.annotation.pairs import AnswerPair, pair_id, read_pairs
from handbook_utils.sampling.annotation.people import agreed_rows, summarise_people
from handbook_utils.sampling.annotation.server import COOKIE, Access, CompareServer
from handbook_utils.sampling.annotation.session import Session
from handbook_utils.schema.sections import DataSource

pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def pairs(count: int) -> list[AnswerPair]:
    made = []
    for n in range(count):
        prompt, a, b = asked(f"Question {n}?"), f"First {n}.", f"Second {n}."
        made.append(
            AnswerPair(pair_id(prompt, a, b), f"p{n}", prompt, a, b, (f"x:{n} chosen", f"x:{n} rejected"))
        )
    return made


def sources(folder: Path, *files: Sequence[dict[str, Any]]) -> list[SourceRows]:
    named = []
    for number, rows in enumerate(files):
        path = folder / f"file{number}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        named.append(DataSource(name=str(path)))
    return open_sources(named)


def answer(prompt: str, text: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": text}


# what is compared


def test_pairs_are_read_from_pairs_from_answers_and_from_two_files(tmp_path: Path) -> None:
    of_pairs = read_pairs(sources(tmp_path, [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}]))
    (pair,) = of_pairs.pairs
    assert (pair.a, pair.b, pair.origins) == ("4", "5", ("file0:1 chosen", "file0:1 rejected"))
    several = [answer("Hi", "A"), answer("Hi", "A"), answer("Hi", "B"), answer("Hi", "C"), answer("Yo", "D")]
    of_one = read_pairs(sources(tmp_path, several))
    assert [(p.a, p.b) for p in of_one.pairs] == [("A", "B")]
    assert (of_one.alone, of_one.more) == (1, 1)
    of_two = read_pairs(
        sources(tmp_path, [answer("Hi", "A"), answer("Yo", "D")], [answer("Yo", "E"), answer("Hi", "A")])
    )
    assert [(p.a, p.b, p.origins) for p in of_two.pairs] == [
        ("D", "E", ("file0:2 completion", "file1:1 completion"))
    ]
    assert of_two.said() == ["1 pairs of two equal answers are left out"]


def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot compare file0 \(prompt\)\. Name files of pairs"):
        read_pairs(sources(tmp_path, [{"prompt": "Hi"}]))
    with pytest.raises(DataError, match="no pair to compare: 1 prompts have one answer only"):
        read_pairs(sources(tmp_path, [answer("Hi", "A")]))
    rows = [
        {"prompt": "Hi", "chosen": "A", "rejected": "B"},
        {"prompt": "Hi", "chosen": None, "rejected": "B"},
    ]
    with pytest.raises(DataError, match=r"row 2.*find and remove all such rows"):
        read_pairs(sources(tmp_path, rows))


def test_a_guideline_is_text_whatever_it_holds(tmp_path: Path) -> None:
    blocks = guideline_blocks("# One\ntwo\nthree\n\n1. four\n```\n<b>\n```\n<script>x</script>")
    assert [block["kind"] for block in blocks] == ["h1", "p", "li", "pre", "p"]
    assert blocks[1]["spans"] == [["", "two three"]]
    assert blocks[4]["spans"] == [["", "<script>x</script>"]]
    bad = tmp_path / "rules.pdf"
    bad.write_bytes(b"%PDF\xff\xfe")
    with pytest.raises(DataError, match="no UTF-8 text"):
        read_guideline(bad)
    with pytest.raises(DataError, match="there is no file"):
        read_guideline(tmp_path / "none.md")


# who is shown what


def test_each_pair_is_judged_once_and_the_shared_ones_by_several() -> None:
    ids = [pair.id for pair in pairs(20)]
    hand_out = HandOut(ids, overlap=0.3, people=2, seed=0)
    judged: Counter[str] = Counter()
    by_person: dict[str, set[str]] = {name: set() for name in ("ann", "bob", "cy")}
    while True:
        given = [(name, hand_out.next(name, 0.0)) for name in by_person]
        assert len({pair for _, pair in given if pair}) >= len([p for _, p in given if p]) - 1
        if not any(pair for _, pair in given):
            break
        for name, pair in given:
            if pair:
                assert pair not in by_person[name]
                by_person[name].add(pair)
                judged[pair] += 1
                hand_out.note(name, pair, is_skip=False)
    assert Counter(judged.values()) == {1: 14, 2: 6}
    progress = hand_out.progress("ann", 0.0)
    assert (progress.done, progress.needed, progress.mine) == (26, 26, len(by_person["ann"]))


def test_a_pair_on_a_closed_page_goes_to_the_next_person_and_a_late_judgement_counts() -> None:
    (name,) = (pair.id for pair in pairs(1))
    hand_out = HandOut([name], overlap=0, people=2, seed=0)
    assert hand_out.next("ann", 0.0) == name
    assert hand_out.next("bob", HELD_S - 1) is None
    assert hand_out.progress("bob", 0.0).held == 1
    assert hand_out.next("bob", HELD_S + 1) == name
    hand_out.note("ann", name, is_skip=False)
    assert hand_out.progress("ann", 0.0).mine == 1


def test_what_is_skipped_is_left_to_others() -> None:
    (name,) = (pair.id for pair in pairs(1))
    hand_out = HandOut([name], overlap=0, people=2, seed=0)
    hand_out.next("ann", 0.0)
    hand_out.note("ann", name, is_skip=True)
    assert hand_out.next("ann", 0.0) is None
    assert hand_out.next("bob", 0.0) == name


def test_sides_depend_on_seed_person_and_pair_and_come_out_even() -> None:
    ids = [pair.id for pair in pairs(400)]
    sides = [is_swapped(0, "ann", name) for name in ids]
    assert sides == [is_swapped(0, "ann", name) for name in ids]
    assert 160 < sum(sides) < 240
    for other in ([is_swapped(1, "ann", n) for n in ids], [is_swapped(0, "bob", n) for n in ids]):
        assert 160 < sum(one == two for one, two in zip(sides, other, strict=True)) < 240


@pytest.mark.parametrize(("overlap", "people", "said"), [(1.5, 2, "--overlap"), (0.5, 1, "--people")])
def test_work_that_cannot_be_shared_so_is_refused(overlap: float, people: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        HandOut(["x"], overlap=overlap, people=people, seed=0)


# what is kept


def session(path: Path, count: int = 4, *, overlap: float = 1.0, **options: Any) -> Session:
    known = pairs(count)
    hand_out = HandOut([pair.id for pair in known], overlap=overlap, people=2, seed=0)
    return Session(known, JudgementFile(path), hand_out, seed=0, **options)


def work(of: Session, person: str, *choices: str) -> dict[str, Any]:
    shown = of.show(person)
    for choice in choices:
        shown = of.judge(person, shown["pair"]["id"], choice, 1.5)
    return shown


def test_judgements_are_preference_data_without_what_was_skipped_or_taken_back(tmp_path: Path) -> None:
    out = tmp_path / "judged.jsonl"
    of = session(out)
    shown = work(of, "ann", "left", "tie", "skip", "right")
    assert shown["pair"] is None
    back = of.undo("ann", shown["said"])
    assert back["pair"]["left"].split()[1] == back["pair"]["right"].split()[1]
    lines = read_judgement_file(out)
    assert [(line.judgement.verdict, line.is_undone) for line in lines if line.is_undone] == [
        (lines[3].judgement.verdict, True)
    ]
    with pytest.warns(UserWarning, match="2 rows left out: 'weight' leaves no answer to learn"):
        (pair,) = load_dataset(str(out), kind="preference")
    better = "First" if lines[0].judgement.verdict == "a" else "Second"
    assert pair["chosen"][0]["content"].startswith(better)
    again = of.judge("ann", back["pair"]["id"], "left", None)
    assert again["progress"]["mine"] == 3


def test_the_choice_is_of_the_answer_that_was_shown_there(tmp_path: Path) -> None:
    of = session(tmp_path / "j.jsonl", 30, overlap=0)
    wanted = {}
    while (shown := of.show("ann"))["pair"]:
        wanted[shown["pair"]["id"]] = shown["pair"]["left"]
        of.judge("ann", shown["pair"]["id"], "left", 1)
    lines = read_judgement_file(tmp_path / "j.jsonl")
    assert len(lines) == 30
    for line in lines:
        assert line.row[f"answer_{line.judgement.verdict}"] == wanted[line.judgement.pair]
        assert line.judgement.first == line.judgement.verdict
    assert {line.judgement.verdict for line in lines} == {"a", "b"}


def test_a_request_that_is_sent_twice_counts_once(tmp_path: Path) -> None:
    of = session(tmp_path / "j.jsonl")
    first = of.show("ann")["pair"]["id"]
    one = of.judge("ann", first, "left", 1)
    two = of.judge("ann", first, "left", 1)
    assert one["pair"] == two["pair"]
    assert two["note"] is None
    assert of.judge("ann", first, "tie", 1)["note"] == "You judged that pair before, which stays."
    said = of.show("ann")["said"]
    assert of.undo("ann", said)["said"] == 0
    assert of.undo("ann", said)["note"] == "Nothing was undone: you have judged since."
    assert of.undo("ann", 0)["note"] == "There is nothing to undo."


def test_a_session_that_was_closed_keeps_nothing_more_and_says_so(tmp_path: Path) -> None:
    of = session(tmp_path / "j.jsonl")
    shown = work(of, "ann", "left")
    of.close()
    with pytest.raises(DataError, match="the command was stopped, so this was not kept"):
        work(of, "ann", "left")
    with pytest.raises(DataError, match="the command was stopped"):
        of.undo("ann", shown["said"])
    assert len(read_judgement_file(tmp_path / "j.jsonl")) == 1


def test_a_name_in_another_case_or_spacing_is_the_same_person(tmp_path: Path) -> None:
    of = session(tmp_path / "j.jsonl")
    work(of, "Ann  Lee", "left")
    assert of.show(" ann lee ")["progress"]["mine"] == 1
    for bad in ("", "  ", "x" * 65, "a\x1b[0m", "\ud800", 3, None):
        with pytest.raises(DataError, match="a name has 1 to 64"):
            of.show(bad)


def test_a_session_goes_on_where_the_file_ends_and_a_cut_line_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "j.jsonl"
    file = JudgementFile(out)
    hand_out = HandOut([pair.id for pair in pairs(4)], overlap=1, people=2, seed=0)
    work(Session(pairs(4), file, hand_out, seed=0), "ann", "left", "tie")
    with pytest.raises(RunFolderError, match="another process writes judgements to it"):
        JudgementFile(out)
    file.__exit__(None, None, None)
    with out.open("ab") as stream:
        stream.write(b'{"weight": 1, "judgement": {"und')
    assert len(read_judgement_file(out)) == 2
    of = session(out)
    assert of.show("ann")["progress"]["mine"] == 2
    assert out.read_bytes().endswith(b"}\n")


def test_a_line_break_that_an_editor_has_left_out_is_put_back(tmp_path: Path) -> None:
    out = tmp_path / "j.jsonl"
    with JudgementFile(out) as file:
        work(
            Session(pairs(4), file, HandOut([p.id for p in pairs(4)], overlap=0, people=2, seed=0), seed=0),
            "a",
            "tie",
        )
    out.write_bytes(out.read_bytes().rstrip(b"\n"))
    work(session(out), "ann", "left")
    assert len(read_judgement_file(out)) == 2


def test_files_of_something_else_are_never_written_to(tmp_path: Path) -> None:
    other = tmp_path / "data.jsonl"
    other.write_text('{"prompt": "Hi"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1 is no judgement"):
        JudgementFile(other)
    assert other.read_text(encoding="utf-8") == '{"prompt": "Hi"}\n'
    with pytest.raises(DataError, match=r"appended to a \.jsonl file"):
        JudgementFile(tmp_path / "data.csv")


def test_a_full_disk_keeps_what_was_there_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "j.jsonl"
    of = session(out)
    work(of, "ann", "left")
    before = out.read_bytes()
    real, pair = os.pwrite, of.show("ann")["pair"]["id"]

    def half(descriptor: int, content: bytes, at: int) -> int:
        if len(content) > 40:
            return real(descriptor, content[:40], at)
        raise OSError(errno.ENOSPC, "no space")

    def fails_later(descriptor: int, content: bytes, at: int) -> int:
        if at > len(before):
            raise OSError(errno.ENOSPC, "no space")
        return half(descriptor, content, at)

    monkeypatch.setattr(judgements_module.os, "pwrite", fails_later)
    with pytest.raises(RunFolderError, match="the disk is full"):
        of.judge("ann", pair, "left", 1)
    assert out.read_bytes() == before
    monkeypatch.setattr(judgements_module.os, "pwrite", real)
    assert of.judge("ann", pair, "left", 1)["progress"]["mine"] == 2


@pytest.mark.parametrize("what", ["moved", "deleted", "changed"])
def test_a_file_that_goes_or_changes_meanwhile_is_an_error_and_no_loss(tmp_path: Path, what: str) -> None:
    out = tmp_path / "j.jsonl"
    of = session(out)
    work(of, "ann", "left")
    if what == "moved":
        out.rename(tmp_path / "k.jsonl")
    elif what == "deleted":
        out.unlink()
    else:
        with out.open("ab") as stream:
            stream.write(b"{}\n")
    with pytest.raises(RunFolderError, match=r"moved or deleted|changed by another program"):
        work(of, "ann", "left")


def test_agreement_is_of_what_was_judged_by_two_and_votes_decide(tmp_path: Path) -> None:
    out = tmp_path / "j.jsonl"
    of = session(out, 12)
    for person in ("ann", "bob"):
        while (shown := of.show(person))["pair"]:
            side = "left" if shown["pair"]["left"].startswith("First") else "right"
            number = int(shown["pair"]["left"].split()[1].rstrip("."))
            other = "right" if side == "left" else "left"
            prefers_first = number % 2 == 0 or (person == "bob" and number == 1)
            of.judge(person, shown["pair"]["id"], side if prefers_first else other, 2)
    report = summarise_people(read_judgement_file(out))
    # of 12 pairs one differs; ann says a 6 times, bob 7: chance agrees in 6/12 * 7/12 + 6/12 * 5/12 = 1/2
    assert report.kappas["ann", "bob"].value == pytest.approx((11 / 12 - 0.5) / 0.5)
    assert (report.pairs, report.shared, report.judgements) == (12, 12, 24)
    assert report.people["ann"].seconds == 2
    assert report.people["ann"].first is not None
    assert of.show("ann")["agreement"]["metrics"]["agreement"]["value"] == pytest.approx(11 / 12)
    rows = agreed_rows(read_judgement_file(out))
    assert Counter(row["preference"] for row in rows) == {"a": 6, "b": 5, "tie": 1}
    assert "weight" not in rows[0]


def test_what_most_people_preferred_is_written_for_training_and_for_win_rates(
    tmp_path: Path, handbook
) -> None:
    out, agreed = tmp_path / "j.jsonl", tmp_path / "agreed.jsonl"
    work(session(out), "ann", "left", "left", "tie", "right")
    code, said, _ = handbook("data", "agreement", out, "--out", agreed)
    assert code == 0
    assert "4 judgements of 4 pairs by 1 people; 0 pairs were judged by two or more" in said
    assert "caution: 0 items were judged by two people or more" in said
    assert len(load_dataset(str(agreed), kind="preference")) == 3
    assert sorted(read_judgements(str(agreed)).preferences) in (
        [0, 0, 0, 0.5],
        [0, 0, 0.5, 1],
        [0, 0.5, 1, 1],
        [0.5, 1, 1, 1],
    )
    code, _, error = handbook("data", "agreement", out, "--out", agreed)
    assert (code, "is there already" in error) == (2, True)
    _, printed, _ = handbook("data", "agreement", out, "--json")
    assert json.loads(printed)["people"]["ann"]["judged"] == 4
    code, _, error = handbook("data", "agreement", tmp_path / "none.jsonl")
    assert (code, "no such file" in error) == (2, True)


def test_mistakes_on_the_command_line_are_told_before_anything_is_served(tmp_path: Path, handbook) -> None:
    for given, said in (
        (("x.jsonl",), "name the file to write with --out"),
        (("--out", "j.jsonl"), "name the data"),
        ((tmp_path / "none.jsonl", "--out", "j.jsonl"), "none.jsonl"),
        ((tmp_path, "--out", "j.jsonl", "--guideline", "none.md"), "--guideline: there is no file none.md"),
    ):
        code, _, error = handbook("data", "compare", *given)
        assert (code, said in error) == (2, True), error


# what the server answers


@pytest.fixture
def serve(tmp_path: Path, serving: Callable[[CompareServer], CompareServer]) -> Callable[..., CompareServer]:
    def start(access: Access | None = None, **options: Any) -> CompareServer:
        of = session(tmp_path / "served.jsonl", **options)
        return serving(CompareServer(of, access or Access.to("127.0.0.1"), 0, []))

    return start


def ask(
    server: CompareServer, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and content; a body makes it a request of the page's own."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    given = {"Host": f"127.0.0.1:{port}"}
    if body is not None:
        given |= {"X-Handbook-Token": server.access.page_token, "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = raw if raw is not None else None if body is None else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, content, given)
    response = connection.getresponse()
    data = response.read()
    found = dict(response.getheaders())
    connection.close()
    is_json = found["Content-Type"].startswith("application/json")
    return response.status, found, json.loads(data) if is_json else data


ANN = {"person": "ann"}


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_text_of_a_model(serve) -> None:
    server = serve()
    status, headers, content = ask(server, "/")
    assert status == 200
    assert not re.search(rb"https?://|<script>|onclick|style=", content)
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for part in ("/compare.js", "/compare.css"):
        status, _, content = ask(server, part)
        assert status == 200
        assert b"innerHTML" not in content
        assert not re.search(rb"https?://|@import|eval\(", content)
    assert ask(server, "/../judgements.py")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::"])
def test_a_name_that_was_pointed_at_this_machine_is_refused(serve, host: str) -> None:
    server = serve()
    for body in (None, ANN):
        assert ask(server, "/" if body is None else "/api/show", body, Host=host)[0] == 421
    assert ask(server, "/", Host="localhost:1")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Handbook_Token": "wrong"},
        {"X_Handbook_Token": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
def test_a_request_that_another_page_sends_changes_nothing(serve, tmp_path: Path, headers) -> None:
    server = serve()
    shown = ask(server, "/api/show", ANN)[2]
    body = {**ANN, "pair": shown["pair"]["id"], "choice": "left"}
    assert ask(server, "/api/judge", body, **headers)[0] in (400, 403)
    assert read_judgement_file(tmp_path / "served.jsonl") == []
    assert ask(server, "/api/judge", body)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/judge", {**ANN, "pair": "none", "choice": "left"}, 400),
        ("/api/judge", {**ANN, "pair": ["x"], "choice": "left"}, 400),
        ("/api/judge", ANN, 400),
        ("/api/show", {"person": "\x00"}, 400),
        ("/api/nothing", ANN, 404),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(serve, path: str, body: Any, status: int) -> None:
    found, _, content = ask(serve(), path, body)
    assert found == status
    assert content["error"]


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"[" * 60_000, b'{"person": "' + b"x" * 70_000 + b'"}', b"\xff"]
)
def test_a_body_that_is_no_small_object_is_refused(serve, raw: bytes) -> None:
    assert ask(serve(), "/api/show", {}, raw=raw)[0] == 400


def test_elsewhere_nothing_is_answered_without_the_token(serve) -> None:
    server = serve(Access("0.0.0.0", "secret-token"))
    assert server.url.endswith("/?token=secret-token")
    for path in ("/", "/compare.js", "/?token=wrong"):
        assert ask(server, path)[0] == 403
    assert ask(server, "/api/show", ANN)[0] == 403
    status, headers, _ = ask(server, "/?token=secret-token")
    assert (status, headers["Location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert ask(server, "/", Cookie=cookie)[0] == 200
    assert ask(server, "/api/show", ANN, Cookie=cookie)[0] == 200
    assert ask(server, "/api/show", ANN, Cookie=f"{COOKIE}=other")[0] == 403
    assert ask(server, "/", Host="10.1.2.3:80", Cookie=cookie)[0] == 200
    assert ask(server, "/", Host="evil.example", Cookie=cookie)[0] == 421
    assert Access.to("::1").token is None
    assert len(Access.to("10.0.0.1").token or "") > 30


def test_a_port_that_is_taken_is_told(serve, tmp_path: Path) -> None:
    server = serve()
    with pytest.raises(LaunchError, match="Name another --port"):
        CompareServer(server.session, Access.to("127.0.0.1"), server.server_address[1], [])


def test_names_of_models_and_files_never_reach_the_page(serve) -> None:
    shown = json.dumps(ask(serve(), "/api/show", ANN)[2])
    assert "x:" not in shown
    assert "chosen" not in shown


def test_many_people_at_once_lose_nothing(serve, tmp_path: Path) -> None:
    server = serve(count=30)

    def person(name: str) -> None:
        shown = ask(server, "/api/show", {"person": name})[2]
        while shown["pair"]:
            body = {"person": name, "pair": shown["pair"]["id"], "choice": "tie"}
            shown = ask(server, "/api/judge", body)[2]

    threads = [threading.Thread(target=person, args=(name,)) for name in ("ann", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [line.judgement for line in read_judgement_file(tmp_path / "served.jsonl")]
    assert len(said) == 60
    assert set(Counter(each.pair for each in said).values()) == {2}
    assert len({(each.person, each.pair) for each in said}) == 60


def test_a_killed_command_has_kept_every_judgement_it_acknowledged(tmp_path: Path) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "judged.jsonl"
    rows = [{"prompt": f"Q{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "handbook_utils.cli",
        "data",
        "compare",
        data,
        "--out",
        out,
        "--port",
        "0",
    ]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        port = int(
            next(found[1] for line in lines if (found := re.search(r"open http://127.0.0.1:(\d+)/", line)))
        )
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        page = connection.getresponse().read().decode()
        token = re.search(r'page-token" content="([^"]+)"', page)
        assert token is not None
        headers = {"Content-Type": "application/json", "X-Handbook-Token": token[1]}

        def post(path: str, body: Any) -> Any:
            connection.request("POST", path, json.dumps(body), headers)
            return json.loads(connection.getresponse().read())

        shown = post("/api/show", ANN)
        for _ in range(3):
            shown = post("/api/judge", {**ANN, "pair": shown["pair"]["id"], "choice": "left"})
        process.send_signal(signal.SIGKILL)
        connection.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert len(read_judgement_file(out)) == 3
    assert session(out).show("ann")["said"] == 3
