"""What the checks say of every template that TRL ships, and of templates broken by hand, one fault each."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from handbook_utils.chat import bounded_render, loss_masks
from handbook_utils.chat.bounded_render import require_bounded
from handbook_utils.chat.checks import CHECKS, check_chat_template
from handbook_utils.errors import TemplateError
from handbook_utils.models.load import load_tokenizer
from tests.chat_templates import BOS, build_tokenizer, trl_templates, trl_tokenizer
from tests.tiny_models import build_tiny_tokenizer, write_weights

# Fails that are the template's own doing; all write special tokens that a user could write as well.
THINKS = frozenset({"earlier-turns"})
SPEAKS = frozenset({"system-less"})
EXPECTED = {
    # images alone: the text of a message is looked for in a list of blocks, and not found
    **dict.fromkeys(["idefics3", "smolvlm"], frozenset({"every-turn", "system-turn"})),
    "llava_next": frozenset({"renders"}),
    # the generation prompt opens <think>, earlier answers never have it; no schema of a tool is shown
    "deepseek_r1_distill": frozenset({"inference-prompt", "tool-turns", "thinking"}),
    # of every answer what follows </think> is shown
    "deepseekv3": frozenset({"inference-prompt", "tool-turns", "thinking"}),
    # TRL's version keeps an answer's thinking: a row that thinks begins with the prompt
    "deepseek_r1_distill_training": frozenset({"tool-turns"}),
    # no token ends an answer: only the next speaker's mark does, which TRL's version trains
    "glm4moe": frozenset({"end-trained", *THINKS}),
    "glm4moe_training": frozenset({"end-is-eos", *THINKS}),
    # a call of a tool is not rendered
    "lfm2": frozenset({"tool-turns"}),
    # an earlier answer loses its thinking, or the end that a last one has
    **dict.fromkeys(["phi3", "phi3_5"], THINKS),
    "gptoss": THINKS | SPEAKS | {"same-each-day"},
    # a system message of the template's own where none is given, with the date in some
    **dict.fromkeys(["cohere2", "llama3_1", "qwen2_5", "qwen2_5_vl", "qwen3_8"], SPEAKS),
    **dict.fromkeys(["llama3_2", "muse_glimmer"], SPEAKS | {"same-each-day"}),
    **dict.fromkeys(["lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"], THINKS),
    **dict.fromkeys([f"nemotron_3_{n}" for n in ("nano", "super", "ultra", "5_lightning")], THINKS),
    **dict.fromkeys(["qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"], THINKS),
    # TRL's training versions of these keep earlier thinking
    **dict.fromkeys([f"qwen3{n}_training" for n in ("", "_5_nothink", "_5_think", "_6")], frozenset()),
}
NO_SYSTEM = {"gemma", "gemma_training"}
NO_TOOLS = {
    *(
        "cohere",
        "cohere2",
        "gemma",
        "gemma3",
        "idefics3",
        "llama3",
        "phi3",
        "phi3_5",
        "qwen2_5_vl",
        "smolvlm",
    ),
}


@pytest.fixture(scope="module")
def trl_tokenizers() -> dict[str, Any]:
    tokenizers = {name: trl_tokenizer(name) for name in trl_templates()}
    require_bounded(*tokenizers.values())  # all in one child process
    return tokenizers


def expected_of(name: str) -> frozenset[str]:
    base = name.removesuffix("_training")
    return EXPECTED.get(name, EXPECTED.get(base, frozenset()))


@pytest.mark.parametrize("name", trl_templates())
def test_a_template_that_trl_ships_fails_where_it_is_known_to(
    name: str, trl_tokenizers: dict[str, Any]
) -> None:
    report = check_chat_template(trl_tokenizers[name])
    failed = {check.name for check in report.checks if check.status == "fail"}
    known = expected_of(name)
    # where messages are rendered at all, a user can write special tokens into them
    assert failed == (known if known & {"renders", "every-turn"} else known | {"text-stays-text"})
    if "renders" in failed:
        return
    unused = {check.name for check in report.checks if check.status == "not applicable"}
    base = name.removesuffix("_training")
    marked = re.search(r"%-?\s*generation\s*-?%", trl_tokenizers[name].chat_template)
    expected = {"marks-agree"} - ({"marks-agree"} if marked else set())
    expected |= {"system-turn"} if name in NO_SYSTEM else set()
    expected |= {"tool-turns"} if base in NO_TOOLS else set()
    expected |= {"end-is-eos"} if name == "glm4moe" else set()
    expected |= {"thinking"} if "every-turn" in failed else set()
    assert unused == expected


def test_trl_ships_as_many_templates_as_were_looked_at() -> None:
    names = set(trl_templates())
    assert len(names) >= 72
    assert {*EXPECTED, *NO_TOOLS, *NO_SYSTEM} <= names


GOOD = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('!') }}{% endif %}" + GOOD
# one fault each: (template, the checks that fail beside what every template with special tokens fails)
BROKEN = {
    "good": (GOOD, set()),
    "good, with marks": (MARKED, set()),
    "no end": (GOOD.replace("<|end|>\n{% endfor", "\n{% endfor"), {"end-trained"}),
    "end outside the marks": (
        MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"),
        {"end-trained", "marks-agree"},
    ),
    "marks around the end alone": (
        MARKED.replace("{% generation %}{{ m.content }}", "{{ m.content }}{% generation %}"),
        {"every-turn", "marks-agree"},
    ),
    "two beginnings": ("{{ bos_token }}{{ bos_token }}" + GOOD, {"one-bos"}),
    "drops the system turn": (
        GOOD.replace("<|start|>{{", "{% if m.role != 'system' %}<|start|>{{").replace(
            "<|end|>\n{% endfor", "<|end|>\n{% endif %}{% endfor"
        ),
        {"system-turn"},
    ),
    "swallows the last turn": (
        GOOD.replace("in messages %}", "in messages[:-1] %}"),
        {"every-turn", "inference-prompt"},
    ),
    "no generation prompt": (GOOD.partition("{% if add")[0], {"generation-prompt"}),
    "trains another prompt than inference gives": (
        GOOD.replace("<|start|>assistant\n{% endif", "<|start|>assistant\nAnswer: {% endif"),
        {"inference-prompt"},
    ),
    "needs a system turn": (NEEDS_SYSTEM, {"renders"}),
}  # fmt: skip


@pytest.mark.parametrize(("template", "failing"), BROKEN.values(), ids=BROKEN)
def test_a_template_broken_by_hand_fails_the_checks_of_its_fault(template: str, failing: set[str]) -> None:
    report = check_chat_template(build_tokenizer(template))
    failed = {check.name for check in report.checks if check.status == "fail"}
    assert failed - {"text-stays-text"} == failing
    errors = {"renders", "every-turn", "inference-prompt", "end-trained"}
    assert report.ok == (not failing & errors)
    assert all(check.remedy for check in report.checks if check.status == "fail" and check.name != "renders")


def test_a_missing_template_is_reported_alone() -> None:
    (check,) = check_chat_template(build_tokenizer(None)).checks
    assert (check.name, check.status) == ("renders", "fail")
    assert "no chat template" in check.message


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within",
        ),
        ("{{ 'a' * 10**10 }}", "more memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{% for i in range(10**12) %}{% endfor %}", "far too much"),
        ("{{ ''.__class__.__mro__ }}", "no business with"),
        ("{% for x in messages %}", "no valid template"),
    ],
)
def test_a_harmful_template_is_refused_and_never_rendered_here(
    harm: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_render, "CPU_SECONDS", 1)
    tokenizer = build_tokenizer(GOOD + harm, trusted=False)
    rendered: list[Any] = []
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: rendered.append(a))
    monkeypatch.setattr(loss_masks, "render_conversations", lambda *a, **k: rendered.append(a))
    report = check_chat_template(tokenizer)
    assert [(check.name, check.status) for check in report.checks] == [("renders", "fail")]
    assert what in report.checks[0].message
    assert rendered == []


def test_a_tokenizer_with_a_harmful_template_does_not_load(tmp_path: Any) -> None:
    build_tokenizer(GOOD + "{{ ''.__class__.__mro__ }}", trusted=False).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    write_weights(tmp_path)
    with pytest.raises(TemplateError, match=r"refused.*SecurityError"):
        load_tokenizer(str(tmp_path))


def test_a_template_is_tried_in_a_child_process_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = bounded_render._run_child
    monkeypatch.setattr(bounded_render, "_run_child", lambda jobs: calls.append(len(jobs)) or run(jobs))
    tokenizer = build_tokenizer(GOOD + "{# once #}", trusted=False)
    require_bounded(tokenizer)
    require_bounded(tokenizer)
    require_bounded(load_tokenizer("pocket:base"))  # its template is the package's own
    assert calls == [10]  # five conversations, each as a prompt and whole


def test_the_packages_own_tokenizer_passes_all_but_forged_tokens() -> None:
    report = check_chat_template(load_tokenizer("pocket:base"))
    assert report.ok
    assert [check.name for check in report.checks if check.status == "fail"] == ["text-stays-text"]
    assert [check.name for check in report.checks] == ["renders", *(name for name, _, _ in CHECKS)]


def test_padding_that_is_the_end_is_noted() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    check = check_chat_template(tokenizer)["pad-apart"]
    assert (check.status, check.severity) == ("fail", "note")
    assert "'<|end|>' is both padding and end-of-turn token" in check.message


def test_a_tokenizer_that_adds_a_second_beginning_to_rendered_text_is_noted() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer("{{ bos_token }}" + GOOD)
    pair = (BOS, tokenizer.convert_tokens_to_ids(BOS))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[pair])
    check = check_chat_template(tokenizer)["same-from-text"]
    assert check.status == "fail"
    assert f"begins '{BOS}{BOS}'" in check.message


def test_special_tokens_that_stay_text_pass() -> None:
    broken_up = "{{ m.content | replace('<|', '<') }}"
    tokenizer = build_tokenizer(f"{{% for m in messages %}}{broken_up}{{{{ eos_token }}}}{{% endfor %}}")
    assert check_chat_template(tokenizer)["text-stays-text"].status == "pass"


def test_a_report_reads_as_text_as_html_and_as_json() -> None:
    report = check_chat_template(build_tokenizer(GOOD.replace("<|end|>\n{% endfor", "<b>\x1b\n{% endfor")))
    lines = str(report).splitlines()
    assert len(lines) == len(report.checks) == 17
    assert lines[3].startswith("error   end-trained")
    html = report._repr_html_()
    assert "<b>" not in html
    assert "\x1b" not in html + str(report)
    assert json.loads(json.dumps(report.to_json()))["ok"] is False
