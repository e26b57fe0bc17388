"""What every engine promises, tried on each with one model; an engine that is not installed says so."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils.import_utils import is_serve_available

from handbook_utils.errors import DataError, MissingDependencyError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.sampling.generation.engines.endpoint import EndpointEngine
from handbook_utils.sampling.generation.engines.interface import Engine, SamplingSettings
from handbook_utils.sampling.generation.engines.vllm import load_vllm
from handbook_utils.sampling.generation.generate import TransformersEngine
from handbook_utils.schema.engines import EndpointSection, VllmSection
from handbook_utils.schema.sections import ModelSection
from tests.waiting import wait_for

PROMPTS = [
    ("short", [{"role": "user", "content": "Say moon once."}]),
    ("system", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name two drinks."}]),
    (
        "turns",
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "And now?"},
        ],
    ),
]
LIMIT = 12


@pytest.fixture(scope="module")
def model_folder(tiny_model_folder, tmp_path_factory) -> Path:
    """A model that ends its turns now and then."""
    folder = tmp_path_factory.mktemp("conformance") / "model"
    model, tokenizer = load_model(str(tiny_model_folder)), load_tokenizer(str(tiny_model_folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def transformers_engine(folder: Path) -> Iterator[Engine]:
    yield TransformersEngine(load_model(str(folder)), load_tokenizer(str(folder)), "skip")


def endpoint_engine(folder: Path) -> Iterator[Engine]:
    """A small server of our own that answers by `model.generate`."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                status, content = served_answer(model, tokenizer, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield EndpointEngine(EndpointSection(kind="endpoint", url=url), str(folder), skip_refused=True)
        server.shutdown()
        thread.join()


def generated(model: Any, ids: list[int], seed: int, temperature: float, limit: int) -> list[int]:
    """New tokens by `model.generate`."""
    torch.manual_seed(seed)
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=limit,
        **{"do_sample": False, **drawing},
    )
    return output[0, len(ids) :].tolist()


def served_answer(model: Any, tokenizer: Any, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    if len(ids) > model.config.max_position_embeddings - body["max_tokens"]:
        return 400, {"error": {"message": "the prompt is too long"}}
    new = generated(model, ids, body["seed"], body["temperature"], body["max_tokens"])
    has_ended = new[-1] == tokenizer.eos_token_id
    message = {"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)}
    choice = {"index": 0, "message": message, "finish_reason": "stop" if has_ended else "length"}
    return 200, {"choices": [choice], "usage": {"completion_tokens": len(new)}}


def transformers_serve(folder: Path) -> Iterator[Engine]:
    """The server of transformers itself, in a process of its own."""
    if not is_serve_available():
        pytest.skip("`transformers serve` needs fastapi, uvicorn and openai, which are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    drawing = {"do_sample": True, "top_k": 0, "eos_token_id": load_tokenizer(str(folder)).eos_token_id}
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--device", "cpu"], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_for(lambda: listens(process, port), timeout_s=120, failure="the server never listened")
        section = EndpointSection(
            kind="endpoint",
            url=f"http://127.0.0.1:{port}/v1",
            parallel=1,  # its seed is one for the whole server
            # without this it is greedy, or draws among the likeliest 50
            extra_body={"generation_config": json.dumps(drawing)},
        )
        yield EndpointEngine(section, str(folder), skip_refused=True)
    finally:
        process.terminate()
        process.wait()


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, "the server ended by itself"
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def vllm_engine(folder: Path) -> Iterator[Engine]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    model = ModelSection(name=str(folder), dtype="float32")
    yield load_vllm(
        VllmSection(kind="vllm", gpu_memory_utilization=0.2), model, str(folder), long_prompts="skip"
    )


def vllm_stand_in(folder: Path) -> Iterator[Engine]:
    """The vLLM engine over a few lines that take and give what `vllm.LLM` does, by `model.generate`."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))

    class Config:
        max_model_len = model.config.max_position_embeddings

        def try_get_generation_config(self) -> dict[str, Any]:
            return {"eos_token_id": tokenizer.eos_token_id}

    class LLM:
        llm_engine = SimpleNamespace(model_config=Config())

        def __init__(self, **options: Any) -> None:
            assert options["trust_remote_code"] is False
            assert options["generation_config"] == "vllm"

        def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            pairs = zip(prompts, parameters, strict=True)
            return [
                SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], each)])
                for prompt, each in pairs
            ]

        def _one(self, ids: list[int], asked: Any) -> Any:
            assert asked.top_k == 0
            new = generated(model, ids, asked.seed, asked.temperature, asked.max_tokens)
            reason = "stop" if new[-1] in asked.stop_token_ids else "length"
            return SimpleNamespace(token_ids=new, finish_reason=reason, cumulative_logprob=-1.0)

    module = SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", module)
        yield load_vllm(
            VllmSection(kind="vllm"), ModelSection(name=str(folder)), str(folder), long_prompts="skip"
        )


ENGINES = {
    "transformers": transformers_engine,
    "endpoint": endpoint_engine,
    "endpoint: transformers serve": transformers_serve,
    "vllm": vllm_engine,
    "vllm, a stand-in for its library": vllm_stand_in,
}


@pytest.fixture(scope="module", params=ENGINES)
def engine_name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(engine_name, model_folder) -> Iterator[Engine]:
    yield from ENGINES[engine_name](model_folder)


def settings(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"samples": 4, "max_new_tokens": LIMIT, **changes})


def test_every_prompt_is_answered_n_times_in_order(engine):
    answers = engine.answer(PROMPTS, settings())
    expected = [(name, index) for name, _ in PROMPTS for index in range(4)]
    assert [(row.prompt_id, row.sample_index) for row in answers.completions] == expected
    assert all(row.prompt == dict(PROMPTS)[row.prompt_id] for row in answers.completions)
    assert not answers.skipped


def test_greedy_answers_are_those_of_the_prompt_rendered_once(engine, model_folder):
    """A template applied twice, or a second beginning-of-text token, would give other answers."""
    model, tokenizer = load_model(str(model_folder)), load_tokenizer(str(model_folder))
    rows = engine.answer(PROMPTS, settings(samples=1, temperature=0.0)).completions
    for row, (_, messages) in zip(rows, PROMPTS, strict=True):
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=LIMIT)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert row.completion == tokenizer.decode(new, skip_special_tokens=True)
        assert row.tokens == len(new)


def test_answers_say_whether_the_model_or_the_limit_ended_them(engine):
    rows = engine.answer(PROMPTS, settings(samples=16)).completions
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    assert all(row.tokens == LIMIT for row in rows if row.finish_reason == "length")
    assert all(1 <= row.tokens <= LIMIT for row in rows)
    assert not any(row.completion.endswith("<|end|>") for row in rows)


def test_a_seed_gives_its_own_answers_each_time(engine):
    first, again, other = (
        [row.completion for row in engine.answer(PROMPTS, settings(seed=seed)).completions]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert len(set(first)) > len(PROMPTS)
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 6


def test_a_prompt_beyond_the_window_is_skipped_with_the_reason_and_the_others_are_answered(
    engine, engine_name
):
    if engine_name == "endpoint: transformers serve":
        pytest.skip("`transformers serve` answers prompts beyond the model's window, and says nothing")
    long = ("long", [{"role": "user", "content": "moon " * 110}])
    answers = engine.answer([PROMPTS[0], long, PROMPTS[1]], settings(samples=1))
    assert list(answers.skipped) == ["long"]
    assert answers.skipped["long"]
    assert [row.prompt_id for row in answers.completions] == ["short", "system"]


def test_no_prompts_and_repeated_ids_are_errors(engine):
    with pytest.raises(DataError, match="there are no prompts"):
        engine.answer([], settings())
    with pytest.raises(DataError, match="prompt ids occur more than once, such as 'short'"):
        engine.answer([*PROMPTS, PROMPTS[0]], settings())


def test_a_model_that_talks_prose_labels_nothing_and_is_paid_once(
    engine, engine_name, model_folder, tmp_path, handbook
):
    """`handbook data label` against a real server, whose model knows nothing of verdicts."""
    if engine_name != "endpoint: transformers serve":
        pytest.skip("what other servers do is in test_label.py")
    rows = [{"prompt": f"Say moon {n} times.", "chosen": "moon", "rejected": "sun"} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("--url", engine._section.url, "--model", model_folder, "--out", tmp_path / "labels", "--json")
    for paid in (2, 0):  # the first order of each pair, and then nothing
        code, printed, _ = handbook(
            "data", "label", tmp_path / "rows.jsonl", *given, "--reply-tokens", LIMIT, "--parallel", 1
        )
        report = json.loads(printed)
        assert code == 0
        assert (report["counts"]["labelled"], report["counts"]["failed"]) == (0, 2)
        assert report["spent"]["this_run"]["requests"] == paid
    assert 0 < report["spent"]["tokens_out"] <= 2 * LIMIT
    assert report["spent"]["tokens_in"] > 100  # as the server counted them
    failed = (tmp_path / "labels" / "failed.jsonl").read_text()
    assert "no verdict in the reply" in failed or "no text" in failed
    code, printed, _ = handbook(
        "data", "label", tmp_path / "rows.jsonl", *given[:-1], "--reply-tokens", LIMIT
    )
    assert "next: read " in printed


def test_progress_counts_every_token_and_answer_once(engine):
    calls: list[tuple[int, int]] = []
    rows = engine.answer(PROMPTS, settings(), progress=lambda *counted: calls.append(counted)).completions
    assert sum(tokens for tokens, _ in calls) == sum(row.tokens for row in rows)
    assert sum(answers for _, answers in calls) == len(rows)


def test_vllm_that_is_not_installed_is_told_with_the_extra_and_the_alternatives(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'handbook-utils\[vllm\]'.*an endpoint"):
        load_vllm(VllmSection(kind="vllm"), ModelSection(name="m"), str(model_folder), long_prompts="skip")
