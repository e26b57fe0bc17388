"""What answers say is looked for in what is learned: lost in some is told, lost in most is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.chat.checks import check_chat_template
from handbook_utils.chat.loss_masks import Turn, tokenize_turns
from handbook_utils.data.load import ResolvedInputs, to_dataset
from handbook_utils.data.training_data import SAMPLE, load_training_data
from handbook_utils.errors import TemplateError
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.training.dry_run import plan_training
from handbook_utils.training.rows.labelled import (
    TemplateWarning,
    check_rows,
    check_samples,
    labels_itself,
    training_rows,
)
from tests.chat_templates import UNMARKED, build_tokenizer, tokenizer_of, trl_templates, trl_tokenizer
from tests.tiny_models import CHAT_TEMPLATE, write_weights

ASK = [{"role": "user", "content": "12 times 7?"}]
THOUGHT = "Ten times seven, two times seven."
# keeps of every answer what follows the thinking, as the first R1 distills did
CUTS = UNMARKED.replace("message['content']", "message['content'].split('</think>')[-1]")
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {}}}]


def row(content: str = "84", **more: Any) -> dict[str, Any]:
    return {"prompt": ASK, "completion": [{"role": "assistant", "content": content, **more}]}


def calls(name: str = "get_weather") -> dict[str, Any]:
    call = {"type": "function", "id": "call_1", "function": {"name": name, "arguments": {"city": "Oslo"}}}
    return row("", tool_calls=[call]) | {"tools": TOOLS}


def thinks() -> dict[str, Any]:
    return row(f"<think>\n{THOUGHT}\n</think>\n\n84")


# shows which function is called, and of several calls the first
NAMES_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.parameters }}){% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALL_OF_CALLS = "{{ tools | tojson if tools else '' }}" + NAMES_ALONE.replace(
    "c.function.parameters", "c.function.arguments | tojson"
)
FIRST_CALLS = ALL_OF_CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")


def two_calls() -> dict[str, Any]:
    first, second = calls(), calls()
    call = second["completion"][0]["tool_calls"][0]
    call["function"] = {**call["function"], "arguments": {"city": "Bergen"}}
    message = {**first["completion"][0], "tool_calls": [*first["completion"][0]["tool_calls"], call]}
    return first | {"completion": [message]}


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


LOSSES = {
    "calls, and no tools": (UNMARKED, calls(), r"leaves out the tool call \('tool_calls'\).*'get_weather'"),
    "thinking is cut": (CUTS, thinks(), r"leaves out the thinking \('content'\).*Ten times seven"),
    "a key that it does not read": (
        UNMARKED,
        row(reasoning_content=THOUGHT),
        r"leaves out the thinking \('reasoning_content'\)",
    ),
    "arguments of a call": (NAMES_ALONE, calls(), r"leaves out the tool call \('tool_calls'\).*'city'"),
    "a second call of a function": (FIRST_CALLS, two_calls(), r"leaves out the tool call.*'Bergen'"),
    "text beside a call": (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
        "{{ m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.content }}{% endif %}<|end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        calls() | {"completion": [calls()["completion"][0] | {"content": "I look it up."}]},
        r"leaves out the text \('content'\).*I look it up",
    ),
    "outside the marks": (
        CHAT_TEMPLATE.replace("{% generation %}", "{{ message.thinking or '' }}{% generation %}"),
        row(thinking=THOUGHT),
        r"has no loss on the thinking \('thinking'\)",
    ),
}


@pytest.mark.filterwarnings("ignore:.*does not show the tools")
@pytest.mark.parametrize(("template", "lossy", "what"), LOSSES.values(), ids=LOSSES)
def test_what_is_lost_in_most_answers_is_refused_and_in_some_told(
    template: str, lossy: dict[str, Any], what: str
) -> None:
    tokenizer = tokenizer_of(template)
    with pytest.raises(TemplateError, match=rf"other answers than the data has.*{what}"):
        check_rows(tokenizer, to_dataset([lossy, lossy, row()]))
    with pytest.warns(TemplateWarning, match=what) as said:
        check_rows(tokenizer, to_dataset([row(), row(), lossy, row(), lossy]))
    found = [str(one.message) for one in said if "the first is" in str(one.message)]
    assert "in 2 of the first 5 answers; the first is answer 3" in found[0]
    assert "model.chat_template" in found[0]
    with silence():
        check_rows(tokenizer, to_dataset([row(), row()]))


def test_tools_that_a_template_does_not_show_are_told_and_those_that_it_shows_are_not() -> None:
    answered = row() | {"tools": TOOLS}
    told = r"does not show the tools of 1 of the first 2 answers; the first is answer 2, str 'get_weather'"
    with pytest.warns(TemplateWarning, match=told):
        check_rows(tokenizer_of(UNMARKED), to_dataset([row(), answered]))
    named = row("I would ask get_weather.") | {"tools": TOOLS}  # which shows nothing of the tool
    with pytest.warns(TemplateWarning, match="does not show the tools of 1 of the first 1"):
        check_rows(tokenizer_of(UNMARKED), to_dataset([named]))
    with silence():
        check_rows(tokenizer_of(ALL_OF_CALLS), to_dataset([row(), answered, named, calls(), two_calls()]))


@pytest.mark.parametrize("name", ["qwen3_training", "gptoss_training", "nemotron_3_nano", "gemma4_v5"])
def test_a_template_that_knows_calls_and_thinking_loses_neither(name: str) -> None:
    tokenizer = trl_tokenizer(name, trusted=True)
    both = to_dataset([calls(), row(reasoning_content=THOUGHT), row(thinking=THOUGHT), row()])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=TemplateWarning)
        warnings.filterwarnings("error", message=".*the chat template (leaves out|has no loss on)")
        check_rows(tokenizer, both)


def test_no_template_that_trl_ships_loses_plain_answers() -> None:
    texts = ["Zwölf, 12.", "  `x`\n\n\t- a\n", "a </b> <c>", "I'm sure , it 's \"84\"!", "\\n {{ x }} 数"]
    for name in trl_templates():
        tokenizer = trl_tokenizer(name, trusted=True)
        report = check_chat_template(tokenizer)
        if not report.ok:
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=TemplateWarning)
            warnings.filterwarnings("error", message=".*the chat template (leaves out|has no loss on)")
            try:
                check_rows(tokenizer, to_dataset([row(text) for text in texts]))
            except TemplateError as error:  # answers without the thinking that the prompt opens
                if "do not begin with the prompt" not in str(error):
                    raise


def test_both_answers_of_a_pair_are_looked_at_and_marks_do_not_count_where_trl_labels() -> None:
    tokenizer = tokenizer_of(CUTS)
    pair = {"prompt": ASK, "chosen": row()["completion"], "rejected": thinks()["completion"]}
    with pytest.warns(TemplateWarning, match=r"thinking \('content'\) in 1 of the first 2 answers.*answer 2"):
        check_rows(tokenizer, to_dataset([pair]))
    outside, lossy, _ = LOSSES["outside the marks"]
    rows = load_rows_of(to_dataset([lossy]))
    with silence():
        check_samples(tokenizer_of(outside), rows, has_marks=False)


def load_rows_of(rows: Any) -> Any:
    from handbook_utils.data.training_data import Sample

    return [Sample("rows", list(rows))]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def recipe_of(model: str, *data: str, stage: str = "sft", **more: Any) -> Any:
    content = {"stage": stage, "model": {"name": model}, "data": [{"name": name} for name in data]}
    return check_recipe({**content, "global_batch_size": 1, "training": {"use_cpu": True}, **more}, "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows_of_every_source_are_looked_at(tmp_path: Path, streaming: bool) -> None:
    many = write(tmp_path / "plain.jsonl", *[row(str(n)) for n in range(SAMPLE + 10)])
    few = write(tmp_path / "thinks.jsonl", thinks(), thinks())
    training = {"use_cpu": True, **({"max_steps": 1} if streaming else {})}
    recipe = recipe_of("x", many, few, streaming=streaming, training=training)
    samples = load_training_data(recipe, ResolvedInputs()).samples
    assert [(Path(sample.name).name, len(sample.rows)) for sample in samples] == [
        ("plain.jsonl", SAMPLE),
        ("thinks.jsonl", 2),
    ]
    with pytest.raises(TemplateError, match=r"thinks.jsonl: the chat template leaves out the thinking"):
        check_samples(tokenizer_of(CUTS), samples)


def test_held_out_rows_are_looked_at_too_and_a_dry_run_refuses_what_a_run_refuses(tmp_path: Path) -> None:
    tokenizer_of(CUTS).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    write_weights(tmp_path / "model")
    plain = write(tmp_path / "a.jsonl", row() | {"prompt": "Another question?"})
    lossy = write(tmp_path / "b.jsonl", thinks())
    for data, held_out in ((lossy, plain), (plain, lossy)):
        recipe = recipe_of(str(tmp_path / "model"), data, eval_data=[{"name": held_out}])
        with pytest.raises(TemplateError, match=r"b.jsonl: the chat template leaves out the thinking"):
            plan_training(recipe, {})


@pytest.mark.parametrize("stage", ["dpo", "reward", "kto"])
def test_trl_is_given_thinking_under_the_name_that_the_template_reads(stage: str) -> None:
    tokenizer = trl_tokenizer("gptoss", trusted=True)
    thinking, plain = row(reasoning_content=THOUGHT)["completion"], row()["completion"]
    rows = to_dataset([{"prompt": ASK, "chosen": thinking, "rejected": plain}] * 2)
    for given in (rows, rows.to_iterable_dataset()):
        (first, *_) = training_rows(recipe_of("x", "y", stage=stage), tokenizer, given)
        whole = tokenizer.apply_chat_template([*first["prompt"], *first["chosen"]], tokenize=False)
        assert THOUGHT in whole
        assert first["rejected"] == plain
    assert not labels_itself(recipe_of("x", "y", stage=stage))
    # the control: the name is the template's own, or it reads none
    assert training_rows(recipe_of("x", "y", stage=stage), tokenizer_of(UNMARKED), rows) is rows


def refusing(condition: str) -> str:
    """A template that refuses a conversation in which a message is as the condition says."""
    opening = "{% for message in messages %}"
    refusal = f"{{% if {condition} %}}{{{{ raise_exception('not so') }}}}{{% endif %}}"
    return UNMARKED.replace(opening, opening + refusal, 1)


SYSTEM, SAID = {"role": "system", "content": "s"}, {"role": "assistant", "content": "x"}
REFUSED = {
    "system": ("message.role == 'system'", [SYSTEM, *ASK], "takes no system message: put its text in front"),
    "twice": (
        "not loop.first and message.role == loop.previtem.role",
        [*ASK, *ASK],
        "wants user and assistant to alternate: join messages",
    ),
    "tool": (
        "message.role == 'tool'",
        [*ASK, SAID, {"role": "tool", "content": "y"}],
        "takes no messages of tools",
    ),
}


@pytest.mark.parametrize(("condition", "prompt", "cure"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_refuses_a_role_says_what_to_do(
    condition: str, prompt: list[dict[str, Any]], cure: str
) -> None:
    with pytest.raises(TemplateError, match=f"refuses conversation 1 .*{cure}.*model.chat_template"):
        tokenize_turns(tokenizer_of(refusing(condition)), [Turn(prompt, row()["completion"])])
    assert tokenize_turns(tokenizer_of(UNMARKED), [Turn(prompt, row()["completion"])])


def test_a_template_whose_tokens_the_tokenizer_lacks_says_which() -> None:
    lacking = build_tokenizer(UNMARKED.replace("<|' + m.role + '|>", "<|im_start|>' + m.role + '"))
    lacking.chat_template = (
        "{% for m in messages %}{{ '<|im_x|>' + m.role + '\n' + m.content + '<|im_y|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_x|>assistant\n{% endif %}"
    )
    with pytest.raises(
        TemplateError, match=r"has no '<\|im_x\|>' and no '<\|im_y\|>'.*chat_template: zephyr"
    ):
        check_rows(lacking, to_dataset([row()]))
    no_bos = tokenizer_of(UNMARKED)
    no_bos.chat_template = "{{ bos_token + 'x' }}" + UNMARKED
    no_bos.bos_token = None
    with pytest.raises(TemplateError, match="The tokenizer has no bos_token: name one in its"):
        tokenize_turns(no_bos, [Turn(ASK, row()["completion"])])


# shows no result of a tool, and says so nowhere, for it knows no `tools`
NO_RESULTS = ALL_OF_CALLS.replace("{{ tools | tojson if tools else '' }}", "").replace(
    "for m in messages", "for m in messages if m.role in ['user', 'assistant']"
)
# shows the names of arguments, and no value
KEYS_ALONE = ALL_OF_CALLS.replace("c.function.arguments | tojson", "c.function.arguments | join(' ')")


def answered(result: str = "sunny, 21 degrees") -> dict[str, Any]:
    call = calls()["completion"][0]
    given = {"role": "tool", "content": result, "tool_call_id": "call_1"}
    return {"prompt": [*ASK, call, given], "completion": [{"role": "assistant", "content": "Nice."}]}


def test_a_result_of_a_tool_that_no_answer_would_be_given_is_told() -> None:
    with pytest.warns(
        TemplateWarning, match="1 of the first 2 answers; .* answer 2, where the tool says.*21"
    ):
        check_rows(build_tokenizer(NO_RESULTS), [row(), answered()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rows(tokenizer_of(ALL_OF_CALLS), [row(), answered()])
        check_rows(build_tokenizer(NO_RESULTS), [row(), row("85")])


@pytest.mark.parametrize(
    "arguments", [{"n": 1729}, {"of": {"deep": ["Oslo", 1729]}}, {"of": [{"deep": "Oslo"}]}]
)
def test_a_value_of_a_call_is_looked_for_at_any_depth(arguments: Any) -> None:
    example = calls()
    example["completion"][0]["tool_calls"][0]["function"]["arguments"] = arguments
    del example["tools"]
    check_rows(tokenizer_of(ALL_OF_CALLS), [example])
    with pytest.raises(TemplateError, match=r"leaves out the tool call.*'(1729|Oslo|deep)'"):
        check_rows(tokenizer_of(KEYS_ALONE), [example])


def test_thinking_that_the_prompt_has_opened_is_found_where_all_is_learned() -> None:
    opened = row(f"{THOUGHT}\n</think>\n\n84")
    check_rows(tokenizer_of(ALL_OF_CALLS), [opened])
    with pytest.raises(TemplateError, match="leaves out the thinking"):
        check_rows(tokenizer_of(CUTS), [opened])
