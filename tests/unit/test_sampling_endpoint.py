"""The endpoint engine against a real HTTP server that hangs, refuses, drops connections and talks rubbish."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from handbook_utils.errors import DataError, ModelError, RecipeError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_table
from handbook_utils.sampling import endpoint_client
from handbook_utils.sampling.endpoint_client import EndpointClient, wait_before
from handbook_utils.sampling.generation.engines.endpoint import EndpointEngine
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.schema.engines import EndpointSection
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.schema.stages import GenerateRecipe

PROMPTS = [(f"p{row}", [{"role": "user", "content": f"question {row}"}]) for row in range(3)]
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes each request, then replies by the script's next entry, or well where that is over."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.body = body
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, dict(self.headers), body))
            reply = self.server.script.pop(0) if self.server.script else well
        reply(self)

    def send(self, status: int, text: str, **headers: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.seen: list[tuple[float, str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Reply] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is part of the tests."""


def chat(**changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "an answer"}, "finish_reason": "stop"}
    return {"choices": [{**choice, **changes}], "usage": {"completion_tokens": 3}}


def well(handler: Handler) -> None:
    handler.send(200, json.dumps(chat(message={"content": f"to {handler.body['messages'][-1]['content']}"})))


def replies(status: int, text: str = "", **headers: str) -> Reply:
    return lambda handler: handler.send(status, text, **headers)


def drops(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def hangs(handler: Handler) -> None:
    time.sleep(1.0)
    drops(handler)


def drips(handler: Handler, begin: bytes) -> None:
    """One byte a tenth of a second: each read ends in time, and the answer never does."""
    handler.wfile.write(begin)
    for _ in range(30):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def drips_headers(handler: Handler) -> None:
    drips(handler, b"HTTP/1.1 200 OK\r\nSlow:")


def drips_body(handler: Handler) -> None:
    drips(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


@pytest.fixture
def server(monkeypatch, serving) -> Server:
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.01)
    return serving(Server())


def engine(server: Server, *, skip: bool = False, **changes: Any) -> EndpointEngine:
    options = {"kind": "endpoint", "url": server.url, "attempts": 3, "parallel": 1, "timeout_s": 0.4}
    return EndpointEngine(EndpointSection(**{**options, **changes}), "served", skip_refused=skip)


def test_each_answer_is_asked_for_by_itself_and_comes_in_order(server):
    answers = engine(server, parallel=4).answer(
        PROMPTS, SamplingSettings(samples=2, max_new_tokens=7, top_p=0.9)
    )
    rows = answers.completions
    assert [(row.prompt_id, row.sample_index) for row in rows] == [
        (f"p{p}", s) for p in range(3) for s in (0, 1)
    ]
    assert [row.completion for row in rows] == [f"to question {p}" for p in range(3) for _ in range(2)]
    assert {(row.tokens, row.finish_reason, row.logprob) for row in rows} == {(3, "stop", None)}
    bodies = [body for _, _, _, body in server.seen]
    assert {path for _, path, _, _ in server.seen} == {"/v1/chat/completions"}
    assert all(body["messages"] in [messages for _, messages in PROMPTS] for body in bodies)
    kept = {(body["model"], body["max_tokens"], body["temperature"], body["top_p"]) for body in bodies}
    assert kept == {("served", 7, 1.0, 0.9)}
    assert len({body["seed"] for body in bodies}) == 6


THINKING = [
    (
        {"content": "Pear.", "reasoning_content": "A fruit."},
        "stop",
        "<think>\nA fruit.\n</think>\n\nPear.",
        "Pear.",
    ),
    ({"content": "Pear.", "reasoning": "A fruit."}, "stop", "<think>\nA fruit.\n</think>\n\nPear.", "Pear."),
    # the limit fell into the thinking: a cut answer, its thinking open as where tokens are read
    ({"content": None, "reasoning_content": "A fr"}, "length", "<think>\nA fr", ""),
    ({"content": None}, "length", "", ""),
    (
        {"content": [{"type": "thinking", "thinking": "A fruit."}, {"type": "text", "text": "Pear."}]},
        "stop",
        "<think>\nA fruit.\n</think>\n\nPear.",
        "Pear.",
    ),
    ({"content": "Pear.", "reasoning_content": None}, "stop", "Pear.", "Pear."),
]


@pytest.mark.parametrize(("message", "reason", "kept", "dropped"), THINKING)
def test_what_a_server_tells_of_the_thinking_stands_before_the_answer_or_is_dropped(
    server, message, reason, kept, dropped
):
    for thinking, text in (("keep", kept), ("drop", dropped)):
        server.script = [replies(200, json.dumps(chat(message=message, finish_reason=reason)))]
        (row,) = engine(server, thinking=thinking).answer(PROMPTS[:1], SamplingSettings()).completions
        assert (row.completion, row.finish_reason) == (text, reason)


@pytest.mark.parametrize(
    ("answers", "temperature", "is_told"),
    [(["yes", "yes"], 0.7, True), (["yes", "no"], 0.7, False), (["yes", "yes"], 0, False)],
)
def test_samples_that_are_all_equal_at_a_temperature_are_a_caution(
    server, tmp_path, answers, temperature, is_told
):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Is it?"}\n', encoding="utf-8")
    server.script = [replies(200, json.dumps(chat(message={"content": text}))) for text in answers]
    content = {
        "stage": "generate",
        "model": {"name": "served"},
        "engine": {"kind": "endpoint", "url": server.url, "parallel": 1},
        "data": [{"name": str(file)}],
        "samples": 2,
        "temperature": temperature,
    }
    result = run_stage(check_recipe(content, "test"), tmp_path / "run", progress=False)
    told = [caution for caution in result.cautions if "equal at temperature" in caution]
    assert bool(told) == is_told
    if is_told:
        assert told[0].startswith("all 2 samples of each of 1 prompts are equal at temperature 0.7.")
        assert "generation_config" in told[0]


def refuses(parameter: str, why: str = "Unsupported parameter") -> Reply:
    return replies(
        400, json.dumps({"error": {"message": f"{why}: '{parameter}' is not supported with this model."}})
    )


def test_a_server_that_takes_the_limit_by_its_newer_name_gets_it_so_from_then_on(server):
    server.script = [refuses("max_tokens"), refuses("temperature")]
    answers = engine(server).answer(PROMPTS[:2], SamplingSettings(max_new_tokens=7))
    assert len(answers.completions) == 2
    bodies = [body for _, _, _, body in server.seen]
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 7, 7, 7]
    assert "max_tokens" not in bodies[-1]
    # 1 is what a server draws at that is told no temperature
    assert "temperature" not in bodies[-1]


def test_a_temperature_that_a_server_does_not_take_is_not_left_out_in_silence(server):
    server.script = [refuses("temperature", "Unsupported value")]
    with pytest.raises(DataError, match="Unsupported value: 'temperature'"):
        engine(server).answer(PROMPTS[:1], SamplingSettings(temperature=0.5))


def test_seeds_follow_from_seed_prompt_and_sample_alone(server):
    for asked, parallel in ((PROMPTS, 1), (PROMPTS[::-1][:2], 2)):
        engine(server, parallel=parallel).answer(asked, SamplingSettings(samples=2, seed=5))
    seeds: dict[str, set[int]] = {}
    for _, _, _, body in server.seen:
        seeds.setdefault(body["messages"][0]["content"], set()).add(body["seed"])
    assert all(len(found) == 2 for found in seeds.values())


@pytest.mark.parametrize(
    "trouble",
    [
        drops,
        breaks_off,
        hangs,
        replies(500),
        replies(503, "busy"),
        replies(429),
        replies(200, "<html>"),
        replies(200, "[]"),
    ],
    ids=["dropped", "half an answer", "timeout", "500", "503", "429", "no JSON", "no object"],
)
def test_a_passing_trouble_is_tried_again(trouble, server):
    server.script = [trouble, trouble]
    [row] = engine(server).answer(PROMPTS[:1], SamplingSettings()).completions
    assert row.completion == "to question 0"
    assert len(server.seen) == 3
    assert len({body["seed"] for _, _, _, body in server.seen}) == 1


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (drops, "Error"),
        (hangs, "Timeout"),
        (replies(503, "busy\nnow"), "HTTP 503, busy now"),
        (replies(429), "HTTP 429"),
    ],
    ids=["dropped", "timeout", "503", "429"],
)
def test_a_trouble_that_does_not_pass_ends_the_run_and_is_named(trouble, told, server):
    server.script = [trouble] * 3
    with pytest.raises(ModelError, match=rf"no answer in 3 attempts; the last: .*{told}"):
        engine(server, skip=True).answer(PROMPTS[:1], SamplingSettings())
    assert len(server.seen) == 3


def test_a_server_that_is_not_there_is_named():
    section = EndpointSection(kind="endpoint", url="http://127.0.0.1:9/v1", attempts=1)
    with pytest.raises(
        ModelError, match=r"http://127\.0\.0\.1:9/v1: no answer in 1 attempts; .*ConnectError"
    ):
        EndpointEngine(section, "served").answer(PROMPTS[:1], SamplingSettings())


def test_a_server_that_says_how_long_to_wait_is_waited_for(server):
    server.script = [replies(429, "slow down", Retry_After="0.6")]
    engine(server).answer(PROMPTS[:1], SamplingSettings())
    first, second = (moment for moment, *_ in server.seen)
    assert 0.6 <= second - first < 5


def test_waits_grow_unless_the_server_names_a_time_and_are_bounded():
    assert 1.0 <= wait_before(3, None) <= 2.0
    assert 1.0 <= wait_before(3, "soon") <= 2.0
    assert wait_before(1, "3600") == wait_before(99, "3600") == endpoint_client.LONGEST_WAIT_S
    assert wait_before(9, "Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    in_half_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < wait_before(1, in_half_a_minute) <= 30


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_key_name_or_address_ends_the_run_at_once(status, server):
    server.script = [replies(status, "no", Location="http://example.org/")]
    with pytest.raises(ModelError, match=rf"HTTP {status}, no\. Check the url, `model\.name`"):
        engine(server, skip=True).answer(PROMPTS, SamplingSettings())
    assert len(server.seen) <= 2  # the next one may be on its way


REFUSALS = {
    "too long": (replies(400, '{"error": "prompt is too long"}'), "HTTP 400, .*prompt is too long"),
    "filtered": (replies(200, json.dumps(chat(finish_reason="content_filter"))), "'content_filter'"),
    "no choice": (replies(200, '{"choices": [], "usage": {}}'), "no chat completion"),
    "no text": (replies(200, json.dumps(chat(message={"content": None}))), "the reason 'stop'"),
    "no number of tokens": (
        replies(200, json.dumps({**chat(), "usage": {"completion_tokens": -1}})),
        "-1 tokens",
    ),
    "half a surrogate pair": (replies(200, json.dumps(chat(message={"content": "a\ud83d"}))), "at place 2"),
    "nested too deeply": (
        replies(200, '{"choices": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "no JSON object",
    ),
    "a log-probability that is none": (
        replies(200, json.dumps(chat(logprobs={"content": [{"logprob": float("nan")}]}))),
        "log-probability nan",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_prompt_is_an_error_or_recorded_and_the_others_are_answered(refusal, server):
    reply, told = REFUSALS[refusal]
    tries = 3 if refusal == "nested too deeply" else 1
    server.script = [well, well, *[reply] * tries]
    with pytest.raises(DataError, match=rf"prompt 'p1' got no answer: .*{told}"):
        engine(server).answer(PROMPTS, SamplingSettings(samples=2))
    server.script = [well, well, *[reply] * tries]
    answers = engine(server, skip=True).answer(PROMPTS, SamplingSettings(samples=2))
    assert list(answers.skipped) == ["p1"]
    assert [row.prompt_id for row in answers.completions] == ["p0", "p0", "p2", "p2"]


def test_answers_that_are_rubbish_to_the_last_try_are_recorded(server):
    server.script = [replies(200, "<html>")] * 3
    answers = engine(server, skip=True).answer(PROMPTS[:2], SamplingSettings())
    assert "3 times the answer was no JSON object" in answers.skipped["p0"]
    assert [row.prompt_id for row in answers.completions] == ["p1"]


def test_logprobs_are_summed_where_the_recipe_asks_for_them(server):
    told = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
    server.script = [replies(200, json.dumps(chat(logprobs=told)))]
    [row] = engine(server, logprobs=True).answer(PROMPTS[:1], SamplingSettings()).completions
    assert row.logprob == -0.75
    assert server.seen[0][3]["logprobs"] is True


def test_an_answer_cut_at_the_limit_says_so(server):
    server.script = [replies(200, json.dumps(chat(finish_reason="length")))]
    [row] = engine(server).answer(PROMPTS[:1], SamplingSettings()).completions
    assert row.finish_reason == "length"


def test_further_fields_go_along_and_cannot_contradict_the_recipe(server):
    engine(server, extra_body={"top_k": -1}).answer(PROMPTS[:1], SamplingSettings())
    assert server.seen[0][3]["top_k"] == -1
    with pytest.raises(ValueError, match="'seed' follows from the recipe"):
        engine(server, extra_body={"seed": 1})


def test_the_key_comes_from_the_environment_and_is_told_to_nobody_else(server, monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    server.script = [replies(400, "bad request")]
    with pytest.raises(DataError) as caught:
        engine(server, key_env="SOME_KEY").answer(PROMPTS[:1], SamplingSettings())
    assert server.seen[0][2]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value) + caplog.text
    assert "sk-secret" not in repr(EndpointClient(server.url, "sk-secret"))


def echoes(status: int) -> Reply:
    """A server that shows what it was sent, as some proxies do."""

    def reply(handler: Handler) -> None:
        sent = handler.headers["Authorization"]
        handler.send(
            status, json.dumps({"error": f"no: {sent}", **chat(message={"content": f"I saw {sent}"})})
        )

    return reply


@pytest.mark.parametrize("written", ["sk-secret\n", " sk-secret ", "\ufeffsk-secret\r\n"])
def test_a_key_read_from_a_file_loses_the_line_break_that_came_along(written, server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", written)
    engine(server, key_env="SOME_KEY").answer(PROMPTS[:1], SamplingSettings())
    assert server.seen[0][2]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("written", "told"),
    [("Bearer sk-secret", "character 7 of 16 is a space"), ("sk-sécret", "character 5 of 9 is no printable")],
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(written, told, server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", written)
    with pytest.raises(RecipeError, match=told) as caught:
        engine(server, key_env="SOME_KEY")
    assert written not in str(caught.value)
    assert server.seen == []


def test_a_key_that_the_server_shows_stays_out_of_screen_log_manifest_report_and_answers(
    server, monkeypatch, handbook, tmp_path
):
    secret = "key/of-this-test-alone"
    monkeypatch.setenv("SOME_KEY", secret)
    recipe = {
        "stage": "generate",
        "model": {"name": "served"},
        "data": [{"name": "pocket:prompts", "split": "test[:7]"}],
        "prompts_per_part": 1,
        "engine": {
            "kind": "endpoint",
            "url": server.url,
            "key_env": "SOME_KEY",
            "attempts": 1,
            "parallel": 1,
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "run"
    # the first answer is kept; the second request is refused, and the run fails
    server.script = [echoes(200), echoes(401)]
    code, stdout, stderr = handbook("generate", tmp_path / "recipe.yaml", "--out", out)
    assert code == 2
    assert "HTTP 401" in stderr
    assert "no: Bearer [secret]" in stderr
    manifest = (out / "manifest.json").read_text()
    assert json.loads(manifest)["status"] == "failed"
    code, *shown = handbook("generate", tmp_path / "recipe.yaml", "--out", out)
    assert code == 0
    answers = str(read_table(out / "samples").to_pylist())
    assert "I saw Bearer [secret]" in answers
    handbook("report", out, "--out", tmp_path / "report.html")
    written = [file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 8
    for text in (stdout, stderr, *shown, manifest, answers, *written):
        assert secret not in text


@pytest.mark.parametrize("drip", [drips_headers, drips_body])
def test_a_try_ends_at_its_deadline_though_every_byte_comes_in_time(drip, server):
    server.script = [drip]
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"Timeout, no whole answer within 0\.4 s"):
        engine(server, attempts=1).answer(PROMPTS[:1], SamplingSettings())
    assert time.monotonic() - began < 2  # the server itself goes on for three seconds


def test_no_key_is_sent_unless_the_recipe_names_one(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    engine(server).answer(PROMPTS[:1], SamplingSettings())
    assert "Authorization" not in server.seen[0][2]


def test_a_key_that_is_not_there_is_an_error_before_anything_is_sent(server, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(RecipeError, match="environment variable 'SOME_KEY' holds no key"):
        engine(server, key_env="SOME_KEY")
    assert server.seen == []


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert engine(server).answer(PROMPTS[:1], SamplingSettings()).completions


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host:port/v1", "is no address"),
        ("https://", "is no address"),
        ("https://[::1/v1", "is no address"),
        ("https://me:pass-word@host/v1", "name, password or key in it would stand in every log"),
        ("https://host/v1?api_key=pass-word", "Put the key into a variable"),
    ],
)
def test_an_address_is_an_address_and_holds_no_secret(url, told):
    with pytest.raises(ValueError, match=told) as caught:
        EndpointSection(kind="endpoint", url=url)
    [problem] = caught.value.errors()
    assert "pass-word" not in problem["msg"]


@pytest.mark.parametrize("key", ["sk-" + "a1" * 12, "hf_" + "b2" * 17, "my key", "$OPENAI_API_KEY"])
def test_a_key_where_its_variables_name_belongs_is_refused_and_not_repeated(key, tmp_path, handbook):
    recipe = {
        "stage": "generate",
        "model": {"name": "served"},
        "data": [{"name": "pocket:prompts"}],
        "engine": {"kind": "endpoint", "url": "http://localhost/v1", "key_env": key},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, _, stderr = handbook("generate", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert "engine.key_env" in stderr
    assert "variable" in stderr
    assert key not in stderr
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_cannot_work_with_an_endpoint_is_refused():
    content = {"stage": "generate", "model": {"name": "served"}, "data": [{"name": "pocket:prompts"}]}
    with pytest.raises(ValueError, match="is no address"):
        GenerateRecipe(**content, engine={"kind": "endpoint", "url": "localhost:8000"})
    with pytest.raises(ValueError, match="`long_prompts: cut` needs the tokenizer"):
        GenerateRecipe(
            **content, engine={"kind": "endpoint", "url": "http://localhost/v1"}, long_prompts="cut"
        )
