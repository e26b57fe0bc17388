"""The real lm-evaluation-harness on local tasks: `make compatible WITH=lm-eval` runs this.

Its extra is not among those of `test`: it brings some thirty packages, and one that is older than a pin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.benchmarks import run as benchmark_run
from handbook_utils.benchmarks.run import BenchmarkSettings, read_benchmarks, run_benchmarks
from handbook_utils.errors import DataError, ModelError, RecipeError, RunFolderError
from handbook_utils.models.load import load_model, load_tokenizer
from tests.tiny_models import CHAT_TEMPLATE, tiny_model

if importlib.util.find_spec("lm_eval") is None and os.environ.get("HANDBOOK_LM_EVAL") != "1":
    pytest.skip("lm-eval is not installed; `make compatible WITH=lm-eval` runs this", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("default")  # the harness's own
CHOICES = ["apple", "pear", "red cherry"]
QUESTIONS = [
    {"question": f"Which fruit is number {n}?", "choices": CHOICES, "answer": n % 3} for n in range(12)
]
CHOOSE = """
task: local_choose
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
READ = """
task: local_read
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""
SAY = """
task: local_say
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model whose template ends a prompt with a line break."""
    folder = tiny_model("llama", tmp_path_factory.mktemp("models") / "model")
    template = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>\\n' }}")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    """Three task files and their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "questions.jsonl"
    rows.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n", encoding="utf-8")
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
    for name, text in (("choose", CHOOSE), ("say", SAY), ("read", READ)):
        (folder / f"{name}.yaml").write_text(text + where, encoding="utf-8")
    return [str(folder / f"{name}.yaml") for name in ("choose", "say", "read")]


@pytest.fixture(scope="module")
def result(model, tasks, tmp_path_factory) -> Any:
    """These tasks on that model."""
    return run_benchmarks(str(model), tasks, tmp_path_factory.mktemp("out") / "out", allow_code=True)


def own_choices(model_folder: Path) -> list[int]:
    """What the model chooses, computed here: the choice with the highest sum of log-probabilities."""
    import torch

    model, tokenizer = load_model(str(model_folder)), load_tokenizer(str(model_folder))
    chosen = []
    for row in QUESTIONS:
        message = [{"role": "user", "content": row["question"]}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        sums = []
        for choice in CHOICES:
            ids = tokenizer(text + choice, add_special_tokens=False)["input_ids"]
            n = len(ids) - len(tokenizer(text, add_special_tokens=False)["input_ids"])
            with torch.inference_mode():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logps[len(ids) - n + k - 1, ids[len(ids) - n + k]]) for k in range(n)))
        chosen.append(sums.index(max(sums)))
    return chosen


def test_the_harness_scores_are_ours_to_the_last_digit(model, result):
    (accuracy,) = [score for score in result.scores if score.metric == "acc,none"]
    ours = [float(chosen == row["answer"]) for chosen, row in zip(own_choices(model), QUESTIONS, strict=True)]
    assert list(accuracy.values.values()) == ours
    assert accuracy.theirs == sum(ours) / len(ours) == accuracy.mean.value
    assert accuracy.mean.n == len(QUESTIONS)
    assert accuracy.stderr > 0


def test_every_metric_of_a_generated_answer_is_there_too(result):
    assert {score.name for score in result.scores} == {
        "local_choose: acc,none",
        "local_choose: acc_norm,none",
        "local_say: exact_match,none",
        "local_read: word_perplexity,none",
    }
    no_means = [score.task for score in result.scores if score.mean is None]
    assert no_means == ["local_read"], "a perplexity of all texts is no mean over them"


def asked(model: Path, *, by_template: bool = True) -> Any:
    return asked_with(load_model(str(model)), load_tokenizer(str(model)), by_template=by_template)


def asked_with(model: Any, tokenizer: Any, *, by_template: bool = True) -> Any:
    from handbook_utils.benchmarks.chat_lm import TrainedLM

    return TrainedLM(model, tokenizer, rows=2, by_template=by_template)


def test_a_prompt_that_ends_with_a_line_break_keeps_it(model):
    """The harness's own class gives it to the choice: if it no longer does, ours can go."""
    from lm_eval.models.huggingface import HFLM

    ours, tokenizer = asked(model), load_tokenizer(str(model))
    text = ours.apply_chat_template([{"role": "user", "content": "Hi"}])
    trained = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text.endswith("\n")
    assert ours._encode_pair(text, "pear")[0] == trained
    theirs = HFLM(pretrained=load_model(str(model)), tokenizer=tokenizer, device="cpu")
    assert theirs._encode_pair(text, "pear")[0] == trained[:-1]


def test_greedy_answers_are_the_likeliest_whatever_the_models_own_settings(model):
    """lm-eval 0.4.13 with transformers 5.24 applies a penalty of the model: if not, ours can go."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    question, tokenizer = "apple pear apple pear", load_tokenizer(str(model))
    plain, penalised = load_model(str(model)), load_model(str(model))
    penalised.generation_config.repetition_penalty = 1.8
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    likeliest: list[int] = []
    while len(likeliest) < 12 and tokenizer.eos_token_id not in likeliest:
        with torch.inference_mode():
            likeliest.append(int(plain(torch.tensor([ids + likeliest])).logits[0, -1].argmax()))

    def answer(harness: Any) -> str:
        task = {"until": ["<never>"], "max_gen_toks": 12, "do_sample": False}
        return harness.generate_until([Instance("generate_until", {}, (question, task), 0)])[0]

    theirs = HFLM(pretrained=penalised, tokenizer=tokenizer, device="cpu", add_bos_token=False)
    assert answer(theirs) != tokenizer.decode(likeliest, skip_special_tokens=True)
    ours = asked_with(penalised, tokenizer)
    assert answer(ours) == tokenizer.decode(likeliest, skip_special_tokens=True)
    assert ours.model.generation_config.eos_token_id == plain.generation_config.eos_token_id


def test_a_beginning_of_text_that_the_template_writes_is_not_written_twice(model, tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path / "begins"
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(str(folder))
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    ours = asked(folder)
    text = ours.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert ours._encode_pair(text, "pear")[0].count(begin) == 1
    assert ours.tok_batch_encode([text])[0].tolist()[0].count(begin) == 1
    # without a template the text has none of its own, and the tokenizer writes it
    assert asked(folder, by_template=False).tok_encode("Hi")[0] == begin


def test_prompts_that_are_not_those_of_training_are_refused(model):
    from handbook_utils.benchmarks.chat_lm import check_asked_as_trained

    lm, other = asked(model), load_tokenizer(str(model))
    assert check_asked_as_trained(lm, other) > 5
    other.chat_template = CHAT_TEMPLATE
    with pytest.raises(ModelError, match="would be of another model"):
        check_asked_as_trained(lm, other)


def test_a_finished_task_is_not_run_again_and_other_settings_are_refused(model, tasks, result, monkeypatch):
    def run_again(*_: Any) -> None:
        raise AssertionError("it was finished")

    monkeypatch.setattr(benchmark_run, "_evaluate", run_again)
    again = run_benchmarks(str(model), tasks, result.folder, allow_code=True)
    assert [score.to_json() for score in again.scores] == [score.to_json() for score in result.scores]
    with pytest.raises(RunFolderError, match="limit: None -> 3"):
        run_benchmarks(str(model), tasks, result.folder, BenchmarkSettings(limit=3), allow_code=True)


def test_a_killed_evaluation_keeps_what_was_finished(model, tasks, tmp_path, monkeypatch):
    evaluate = benchmark_run._evaluate

    def killed(lm: Any, name: str, *given: Any) -> Any:
        if name == "local_say":
            raise KeyboardInterrupt
        return evaluate(lm, name, *given)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_run, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_benchmarks(str(model), tasks, tmp_path / "out", allow_code=True)
    assert [score.task for score in read_benchmarks(tmp_path / "out").scores] == ["local_choose"] * 2
    done = []
    run_benchmarks(str(model), tasks, tmp_path / "out", allow_code=True, announce=done.append)
    assert done == ["local_say", "local_read"]


def test_a_task_that_does_not_exist_names_the_nearest(model, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'hellaswag'"):
        run_benchmarks(str(model), ["hellaswagg"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_task_whose_data_are_not_here_is_told(model, tasks, tmp_path):
    lost = tmp_path / "lost.yaml"
    text = Path(tasks[0]).read_text(encoding="utf-8").replace("questions.jsonl", "gone.jsonl")
    lost.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="cannot read the task's data"):
        run_benchmarks(str(model), [str(lost)], tmp_path / "out", allow_code=True)


def test_prompts_that_are_cut_are_counted(model, tasks, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 24}), encoding="utf-8"
    )
    cut = run_benchmarks(str(folder), tasks[:1], tmp_path / "out", allow_code=True)
    assert any("12 prompts were longer than the model takes" in caution for caution in cut.cautions)


def test_an_adapter_and_the_model_it_is_merged_into_score_alike(model, tasks, tmp_path):
    import torch

    from handbook_utils.data.quiet import quiet_libraries
    from handbook_utils.models.adapters import AdapterBase, new_adapter, save_adapter
    from handbook_utils.models.merge import merge_adapter
    from handbook_utils.schema.sections import LoraSection

    with quiet_libraries():
        adapted = new_adapter(
            load_model(str(model)), LoraSection(rank=2, alpha=2, targets=["q_proj"]), "causal"
        )
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.5)
        save_adapter(adapted, tmp_path / "adapter", AdapterBase(str(model)), final=tmp_path / "adapter")
    merged = merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged").folder
    found = [
        run_benchmarks(str(folder), tasks[:1], tmp_path / f"of-{folder.name}", allow_code=True).scores
        for folder in (model, tmp_path / "adapter", merged)
    ]
    base, of_adapter, of_merged = ([score.values for score in scores] for scores in found)
    assert of_adapter == of_merged
    assert of_adapter != base, "the adapter changes what is chosen, or this test shows nothing"


def test_a_task_file_runs_only_where_code_is_allowed(model, tasks, tmp_path):
    with pytest.raises(RecipeError, match="--allow-code"):
        run_benchmarks(str(model), tasks, tmp_path / "out")
