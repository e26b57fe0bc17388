"""`handbook check-served`: a real `transformers serve`, and stubs that speak as other servers do."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fakes import finished_run, recipe_of

from handbook_utils.errors import DataError, ModelError, RecipeError, RunFolderError
from handbook_utils.export.folder import export_run
from handbook_utils.export.served import check as served_check
from handbook_utils.export.served.check import ServedReport, Server, check_served
from handbook_utils.export.served.likeliest import Likeliest, likeliest_answers
from handbook_utils.export.served.replies import Reply, reply_of
from handbook_utils.export.served.verdicts import check_answer, check_prompt
from handbook_utils.export.talks import TALKS, prompts_of
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.sampling import endpoint_client
from handbook_utils.sampling.endpoint_client import RefusedError
from tests.tiny_models import CHAT_TEMPLATE, tiny_model
from tests.waiting import wait_for

NEWLINE = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}{% endif %}", "{{ '<|assistant|>\\n' }}{% endif %}")
NO_SYSTEM = CHAT_TEMPLATE.replace("in messages %}", "in messages if message['role'] != 'system' %}")
TRIMMED = CHAT_TEMPLATE.replace("message['content'] +", "message['content'] | trim +")


# the real server


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of `transformers serve`, in a thread of this process; it loads whatever a request names."""
    from transformers.cli.serve import Serve
    from transformers.utils.import_utils import is_serve_available

    assert is_serve_available(), "the extra `test` brings what transformers serves with"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    level = logging.getLogger("transformers").level
    server = Serve(host="127.0.0.1", port=port, device="cpu", model_timeout=-1, non_blocking=True)
    wait_for(lambda: server.server.started)
    yield f"http://127.0.0.1:{port}/v1"
    server.kill_server()
    logging.getLogger("transformers").setLevel(level)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny model as it was trained."""
    return tiny_model("llama", tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def with_template(trained, tmp_path) -> Callable[[str], Path]:
    """The same model, with another template."""

    def make(template: str) -> Path:
        folder = tmp_path / "other"
        shutil.copytree(trained, folder)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return folder

    return make


def compared(trained: Path, url: str, model: Path | str | None = None, **options: Any) -> ServedReport:
    return check_served(trained, Server(url, None if model is None else str(model), attempts=1), **options)


def test_the_model_that_was_trained_is_found_to_be_the_same(served, trained):
    report = compared(trained, served, trained)
    assert report.problems == []
    assert len(report.prompts) == len(TALKS) >= 6
    assert report.by == "counts"
    assert {check.verdict for check in report.answers} == {"same"}


def test_an_export_is_served_as_it_is_and_answers_as_its_run_does(served, trained, tmp_path):
    def fill(folder: Path) -> None:
        shutil.copytree(trained, folder, dirs_exist_ok=True)

    run = finished_run(tmp_path / "sft", recipe_of("sft", {"name": "pocket:base"}), fill)
    made = export_run(run, tmp_path / "model")
    report = compared(run, served, made.folder)
    assert (report.problems, len(report.answers)) == ([], len(TALKS))


@pytest.mark.parametrize(
    ("template", "changed", "words"),
    [
        (NEWLINE, len(TALKS), "each prompt has 1 token more"),
        (NO_SYSTEM, 5, "the server's template drops it"),
        (TRIMMED, 2, "white space around messages"),
    ],
)
def test_a_template_that_differs_is_told_with_what_it_does(
    served, trained, with_template, template, changed, words
):
    report = compared(trained, served, with_template(template), prompts_only=True)
    assert sum(check.verdict == "other" for check in report.prompts) == changed
    assert words in report.problems[0]
    assert report.answers == []


def test_a_wrong_template_changes_the_count_of_at_least_four_of_six_conversations():
    """Both faults that matter most: a line break too many, and no system message."""
    from tests.tiny_models import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    right = {name: len(ids) for name, ids in prompts_of(tokenizer).ids.items()}
    for template in (NEWLINE, NO_SYSTEM):
        tokenizer.chat_template = template
        wrong = prompts_of(tokenizer).ids
        assert len(right) >= 6
        assert sum(len(wrong[name]) != count for name, count in right.items()) >= 4


def test_another_model_behind_the_same_template_is_told(served, trained, tmp_path):
    other = tiny_model("llama", tmp_path / "other", seed=1)
    report = compared(trained, served, other)
    assert {check.verdict for check in report.prompts} == {"same"}
    (problem,) = report.problems
    assert problem.startswith("model:")


def test_a_server_that_lost_the_trained_end_is_told(served, trained, truth, tmp_path):
    """The token that ends answers in training is no end in the server's settings."""
    written = [said.ids[2] for _, said in truth.values()]
    end = max(set(written), key=written.count)  # ends some answers at their third token, at the latest
    right, wrong = (shutil.copytree(trained, tmp_path / name) for name in ("right", "wrong"))
    settings = json.loads((right / "generation_config.json").read_text(encoding="utf-8"))
    changed = json.dumps({**settings, "eos_token_id": [settings["eos_token_id"], end]})
    (right / "generation_config.json").write_text(changed, encoding="utf-8")
    assert compared(right, served, right).problems == []
    (problem,) = compared(right, served, wrong).problems
    assert problem.startswith("end:")


# servers that say more, or speak badly: stubs


Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Stub(ThreadingHTTPServer):
    """A stand-in for a server: `answer` makes (status, JSON) of a request's body."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["served"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        self.server.headers.append(dict(self.headers))
        self.send(*self.server.answer(body))

    def send(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def stub(monkeypatch, serving) -> Callable[[Answer], Stub]:
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.01)
    return lambda answer: serving(Stub(answer))


@pytest.fixture(scope="module")
def truth(trained) -> dict[str, tuple[list[int], Likeliest]]:
    """Prompts and likeliest answers of the trained model, by the last message and the number of messages."""
    tokenizer = load_tokenizer(str(trained))
    prompts = prompts_of(tokenizer).ids
    answers = likeliest_answers(
        load_model(str(trained)), tokenizer, prompts, tokens=served_check.ANSWER_TOKENS
    )
    return {json.dumps(TALKS[name]): (prompts[name], answers[name]) for name in prompts}


def vllm(
    truth: dict[str, tuple[list[int], Likeliest]],
    *,
    shift: float = 0.0,
    change: Callable[[list[int]], list[int]] = list,
) -> Answer:
    """Replies in the form of `vllm serve`, made here of what the model would say: no vLLM is run."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        ids, said = truth[json.dumps(body["messages"])]
        ids, content = change(ids), [{"logprob": value - shift} for value in said.logprobs]
        choice = {
            "message": {"content": said.text},
            "finish_reason": "stop" if said.ended else "length",
            "token_ids": list(said.ids),
            "logprobs": {"content": content},
        }
        return 200, {"choices": [choice], "prompt_token_ids": ids, "usage": {"prompt_tokens": len(ids)}}

    return answer


def test_ids_and_log_probabilities_of_vllm_are_compared_where_it_sends_them(stub, trained, truth):
    report = compared(trained, stub(vllm(truth)).url)
    assert (report.by, report.has_logprobs, report.problems) == ("ids", True, [])
    assert report.model == "served"


def test_a_prompt_of_as_many_other_tokens_is_told_where_ids_are_sent(stub, trained, truth):
    """One mark replaced by another: no count can show it."""
    report = compared(trained, stub(vllm(truth, change=lambda ids: [*ids[:-1], ids[-1] + 1])).url)
    assert {check.verdict for check in report.prompts} == {"other"}
    assert all(check.trained == check.served == check.first_other for check in report.prompts)


def test_a_near_copy_of_the_model_is_told_by_its_log_probabilities(stub, trained, truth):
    """Its likeliest answers are the same."""
    report = compared(trained, stub(vllm(truth, shift=0.2)).url)
    (problem,) = report.problems
    assert problem.startswith(f"model: {len(TALKS)} of {len(TALKS)}")
    assert compared(trained, stub(vllm(truth, shift=0.01)).url).problems == []


def test_only_what_is_needed_is_sent_and_the_key_with_it(stub, trained, truth, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "key-of-this-test")
    server = stub(vllm(truth))
    check_served(trained, Server(server.url, key_env="SERVED_KEY"), prompts_only=True)
    assert {body["max_tokens"] for body in server.seen} == {1}
    assert {body["temperature"] for body in server.seen} == {0.0}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer key-of-this-test"}


def test_a_server_that_echoes_the_key_shows_it_to_nobody(stub, trained, handbook, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "key-of-this-test")
    server = stub(lambda body: (401, {"error": "Bearer key-of-this-test is wrong"}))
    code, out, err = handbook("check-served", trained, "--url", server.url, "--key-env", "SERVED_KEY")
    assert code == 2
    assert "401" in err
    assert "key-of-this-test" not in out + err


# nothing is compared


def refuse_to_load(*_: Any, **__: Any) -> None:
    raise AssertionError("no model may be loaded before the server has answered")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {"choices": [{"message": {"content": "a"}}]}), "the prompt has None tokens"),
        (
            (200, {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": True}}),
            "has True tokens",
        ),
        ((200, {"hello": 1}), "no chat completion"),
        ((400, {"error": "too long"}), "too long"),
    ],
)
def test_replies_that_nothing_can_be_compared_with_are_refused(stub, trained, monkeypatch, answer, words):
    monkeypatch.setattr(served_check, "load_model", refuse_to_load)
    with pytest.raises(DataError, match=words):
        compared(trained, stub(lambda body: answer).url)


def test_a_server_of_several_models_wants_one_named(stub, trained, truth):
    server = stub(vllm(truth))
    server.models = ["first", "second"]
    with pytest.raises(RecipeError, match=r"Name one with --model\. Choose from: first, second"):
        compared(trained, server.url)
    assert compared(trained, server.url, "second", prompts_only=True).model == "second"
    server.models = []
    with pytest.raises(ModelError, match="lists no model"):
        compared(trained, server.url)


def test_no_server_is_told_before_a_model_is_loaded(trained, monkeypatch):
    monkeypatch.setattr(served_check, "load_model", refuse_to_load)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ModelError, match="no answer in 1 attempts"):
            compared(trained, f"http://127.0.0.1:{free.getsockname()[1]}/v1")


@pytest.mark.parametrize("url", ["localhost:8000", "http://me:secret@host/v1", "http://host:0x/v1"])
def test_what_is_no_address_is_refused_without_repeating_a_password(trained, url):
    with pytest.raises(RecipeError, match="--url") as caught:
        compared(trained, url)
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_there_is_named(trained, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(RecipeError, match=r"check-served\.key_env: the environment variable 'NO_KEY'"):
        check_served(trained, Server("http://127.0.0.1:1/v1", key_env="NO_KEY"))


def test_a_run_that_is_not_finished_is_refused_before_the_server_is_asked(tmp_path):
    manifest = {"format": 1, "stage": "sft", "status": "failed", "recipe": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RunFolderError, match="the run is failed"):
        compared(tmp_path, "http://127.0.0.1:1/v1")


def test_the_command_exits_with_1_where_something_differs_and_says_what(stub, trained, truth, handbook):
    code, out, _ = handbook("check-served", trained, "--url", stub(vllm(truth)).url)
    assert code == 0
    assert "nothing tells 'served' from" in out
    code, out, _ = handbook("check-served", trained, "--url", stub(vllm(truth, shift=1.0)).url)
    assert code == 1
    assert "model: 10 of 10" in out
    code, out, _ = handbook("check-served", trained, "--url", stub(vllm(truth, shift=1.0)).url, "--json")
    record = json.loads(out)
    assert (code, record["same"], record["by"]) == (1, False, "ids")


def test_log_probabilities_are_the_models_own_whatever_a_penalty_makes_of_them(trained):
    """A server gives them before the penalty for repeating, which changes what is likeliest all the same."""
    model, tokenizer = load_model(str(trained)), load_tokenizer(str(trained))
    prompts = {"question": prompts_of(tokenizer).ids["question"]}
    plain = likeliest_answers(model, tokenizer, prompts, tokens=1)["question"]
    model.generation_config.repetition_penalty = 5.0
    said = likeliest_answers(model, tokenizer, prompts, tokens=1)["question"]
    with torch.inference_mode():
        logps = model(torch.tensor([prompts["question"]])).logits[0, -1].log_softmax(-1)
    assert plain.logprobs[0] == pytest.approx(float(logps.max()), abs=1e-5)
    assert said.logprobs[0] == pytest.approx(float(logps[said.ids[0]]), abs=1e-5)


# the comparison itself


def likeliest(
    ids: list[int], beginnings: list[str], *, margin: float = 5.0, ended: bool = False
) -> Likeliest:
    n = len(ids)
    return Likeliest(ids, beginnings[-1], beginnings, [margin] * n, [-0.5] * n, 1.0, ended)


def reply(text: str, ids: list[int] | None = None, *, ended: bool = True, **more: Any) -> Reply:
    return Reply(9, None, text, ids, more.get("logprobs"), ended)


THREE = ["a", "ab", "abc"]


@pytest.mark.parametrize(
    ("trained_answer", "said", "verdict"),
    [
        (likeliest([1, 2, 3], THREE), reply("abc"), "same"),
        (likeliest([1, 2, 3], THREE), reply("  abc\n"), "same"),  # servers cut white space
        (likeliest([1, 2, 3], THREE), reply("abx"), "other"),
        (likeliest([1, 2, 3], THREE, margin=0.9), reply("abx"), "undecided"),
        (likeliest([1, 2, 3], THREE), reply("ab"), "other"),  # it ends where the trained model goes on
        (likeliest([1, 2, 3], THREE), reply("abc", [1, 2, 3]), "same"),
        (likeliest([1, 2, 3], THREE), reply("abc", [1, 4, 3]), "other"),  # the same text of other tokens
        (likeliest([1, 2, 0], ["a", "ab", "ab"], ended=True), reply("ab", [1, 2]), "same"),
        (likeliest([1, 2, 0], ["a", "ab", "ab"], ended=True), reply("abc", [1, 2, 3, 4]), "other"),
        (likeliest([1, 0], ["a", "a"], ended=True, margin=0.9), reply("a and on"), "undecided"),
        (likeliest([1, 2], ["\ufffd", "é"]), reply("é"), "same"),  # half a character is no difference
        (likeliest([1], ["a"]), reply("a", logprobs=[-0.5]), "same"),
        (likeliest([1], ["a"]), reply("a", logprobs=[-0.9]), "other"),
    ],
)
def test_answers_are_the_same_another_or_undecided(trained_answer, said, verdict):
    assert check_answer("x", trained_answer, said).verdict == verdict


def test_the_first_other_token_of_a_prompt_is_named():
    said = Reply(3, [1, 2, 9], "", None, None, True)
    assert check_prompt("x", [1, 2, 3], said).first_other == 3
    assert check_prompt("x", [1, 2], said).first_other == 3
    assert check_prompt("x", [1, 2, 9], said).first_other is None


def test_log_probabilities_that_are_none_are_left_out():
    content = {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": None}]}}]}
    assert reply_of({**content, "usage": {"prompt_tokens": 3}}).logprobs is None
    with pytest.raises(RefusedError):
        reply_of({**content, "usage": {"prompt_tokens": 0}})
