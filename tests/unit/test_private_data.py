"""Rows that leave the machine: what is private in them is counted and shown first, and never repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_utils.curation.rules.private_data import private_data
from handbook_utils.errors import ModelError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.sampling.endpoint_client import EndpointClient
from handbook_utils.sampling.private_data import PrivateDataWarning
from handbook_utils.sampling.tables import SAMPLES
from handbook_utils.schema.recipe import check_recipe

PRIVATE = {
    "e-mail addresses": ["mail ann.b+c@mail.example.co.uk now"],
    "telephone numbers": [
        "ring +49 (0)30 1234-5678",
        "(555) 010-9999 or so",
        "call 555-010-9999.",
        "\n+4915112345678",
    ],
    "postal addresses": [
        "at 221b Baker Street",
        "Lange Straße 12 in Ulm",
        "12, rue de la Paix",
        "Musterweg 3",
    ],
    "IP addresses": ["host 203.0.113.7 is down", "2001:db8:85a3:0:0:8a2e:370:7334"],
    "payment card numbers": ["card 4111 1111 1111 1111", "5500-0000-0000-0004"],
    "IBANs": ["to DE89 3704 0044 0532 0130 00 please", "GB82WEST12345698765432"],
    "social security numbers": ["SSN 078-05-1120"],
    "keys": [
        f"hf_{'a1' * 17}",
        f"AKIA{'Z2' * 8}",
        "-----BEGIN RSA PRIVATE KEY-----",
        f"export K=sk-{'x1' * 15}",
    ],
}
HARMLESS = [
    "Version 3.11.7 and 1.2.3.4.5; the ratio is 4:3:2:1, the time 12:30:45",
    "127.0.0.1 is this machine, 300.1.2.3 is none",
    "4111 1111 1111 1112 has a wrong check digit, 0000 0000 0000 0000 none",
    "3.14159265358979323846 and 2024-05-01 and 1234567890123",
    "DE00 3704 0044 0532 0130 00 has wrong check digits",
    "x@y, @name, a decorator @app.route",
    "The task is sk-learn's; hf_hub_download loads it. 12 Monkeys, 3 Main courses",
]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in PRIVATE.items() for text in texts]
)
def test_what_has_a_form_of_its_own_is_found_as_what_it_is(kind: str, text: str) -> None:
    found = private_data([("first", "nothing"), ("second", text), ("third", text)])
    assert {name: (each.rows, each.first) for name, each in found.items()} == {kind: (2, "second")}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_a_little_like_it_is_not(text: str) -> None:
    assert private_data([("row", text)]) == {}


MAIL = "ann@example.org"


def endpoint_recipe(folder: Path, url: str) -> Path:
    rows = [{"prompt": "Which river?"}, {"prompt": f"Write to {MAIL}"}, {"prompt": f"{MAIL} and {MAIL}"}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "stage": "generate",
        "model": {"name": "served"},
        "data": [{"name": str(folder / "prompts.jsonl")}],
        "engine": {"kind": "endpoint", "url": url, "attempts": 1},
    }
    (folder / "generate.yaml").write_text(json.dumps(recipe))
    return folder / "generate.yaml"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been sent; no server is reached."""
    bodies: list[Any] = []

    def post(self: EndpointClient, path: str, body: Any, watch: None) -> Any:
        bodies.append(body)
        raise ModelError("nothing is sent in this test")

    monkeypatch.setattr(EndpointClient, "post", post)
    return bodies


def test_prompts_are_counted_before_the_first_one_is_sent(tmp_path: Path, sent: list[Any]) -> None:
    recipe = endpoint_recipe(tmp_path, "https://api.example.org/v1")
    with pytest.raises(
        PrivateDataWarning, match=r"go to api\.example\.org hold e-mail addresses \(in 2 rows"
    ) as told:
        run_stage(recipe, tmp_path / "run", progress=False)  # warnings are errors in tests
    assert MAIL not in str(told.value)
    assert sent == []
    with pytest.warns(PrivateDataWarning), pytest.raises(ModelError):
        run_stage(recipe, tmp_path / "run", progress=False)
    assert sent


def test_a_server_on_this_machine_needs_no_warning(tmp_path: Path, sent: list[Any]) -> None:
    with pytest.raises(ModelError, match="nothing is sent"):
        run_stage(endpoint_recipe(tmp_path, "http://localhost:8000/v1"), tmp_path / "run", progress=False)


def test_a_dry_run_shows_what_would_leave(
    tmp_path: Path, handbook: Callable[..., tuple[int, str, str]], sent: list[Any]
) -> None:
    recipe = endpoint_recipe(tmp_path, "https://api.example.org/v1")
    code, out, _ = handbook("generate", recipe, "--dry-run", "--json")
    plan = json.loads(out)["plan"]
    assert code == 0
    assert "e-mail addresses (in 2 rows" in plan["prompts go to api.example.org"]
    assert sent == []


def test_answers_that_a_judge_elsewhere_gets_are_counted_first(tmp_path: Path, sent: list[Any]) -> None:
    row = {
        "prompt_id": "p", "sample_index": 0, "prompt": [{"role": "user", "content": "q"}],
        "completion": f"{MAIL} is hers", "tokens": 1, "finish_reason": "stop", "logprob": None,
    }  # fmt: skip
    rows = [row, {**row, "sample_index": 1, "completion": "no"}]
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES), tmp_path / "rows.parquet")
    judge = {
        "kind": "judge", "url": "https://api.example.org/v1", "model": "m", "max_requests": 9,
        "cache": str(tmp_path / "replies.jsonl"),
    }  # fmt: skip
    brief = {"kind": "length"}
    content = {"stage": "score", "data": [{"name": str(tmp_path / "rows.parquet")}]}
    recipe = check_recipe({**content, "scorers": {"judge": judge, "brief": brief}}, "test")
    told_of = r"e-mail addresses \(in 1 row, the first is 'p, sample 0'\)"
    with pytest.warns(PrivateDataWarning, match=told_of), pytest.raises(ModelError):
        run_stage(recipe, tmp_path / "run", progress=False)
    assert sent
