"""`handbook export`: what it writes, what it refuses, and that a killed one goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from export_fakes import finished_run, recipe_of

from handbook_utils.errors import DataError, ModelError, RecipeError, RunFolderError
from handbook_utils.export import folder as export_folder
from handbook_utils.export import push, weights
from handbook_utils.export.card import CardFacts, model_card
from handbook_utils.export.folder import export_run, read_record
from handbook_utils.export.licences import stated_licence
from handbook_utils.export.lineage import LearnedFrom, Step, lineage
from handbook_utils.export.ollama import TurnMarks, go_template, modelfile, turn_marks
from handbook_utils.export.talks import TALKS, prompts_of
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import open_run
from handbook_utils.schema.recipe import check_recipe
from tests.tiny_models import build_tiny_tokenizer


@pytest.fixture(scope="module")
def run(tiny_model_folder, tmp_path_factory) -> Path:
    """A finished run of sft with a whole model; tests leave it alone."""

    def fill(folder: Path) -> None:
        shutil.copytree(tiny_model_folder, folder, dirs_exist_ok=True)

    path = tmp_path_factory.mktemp("runs") / "sft"
    return finished_run(path, recipe_of("sft", {"name": str(tiny_model_folder)}), fill)


@pytest.fixture(scope="module")
def adapter_run(run) -> Path:
    """A finished run beside it, of an adapter on the model of that run."""
    import torch

    from handbook_utils.data.quiet import quiet_libraries
    from handbook_utils.models.adapters import AdapterBase, new_adapter, save_adapter
    from handbook_utils.models.load import load_model, load_tokenizer
    from handbook_utils.schema.sections import LoraSection

    def fill(folder: Path) -> None:
        section = LoraSection(rank=2, alpha=2, targets=["q_proj"])
        with quiet_libraries():
            adapted = new_adapter(load_model(str(run)), section, "causal")
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.05)
        save_adapter(adapted, folder, AdapterBase(str(run)), final=run.parent / "adapter" / "model")
        load_tokenizer(str(run)).save_pretrained(folder)

    recipe = recipe_of("dpo", {"from": "sft"}, lora={"rank": 2, "alpha": 2})
    return finished_run(run.parent / "adapter", recipe, fill, {"sft": run})


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """That run, exported; tests leave it alone."""
    out = tmp_path_factory.mktemp("exports") / "model"
    export_run(run, out, licence="apache-2.0")
    return out


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    content: dict[str, Any] = yaml.safe_load(front)
    return content


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_the_folder_loads_as_anybody_loads_it_and_is_the_model_of_the_run(run, exported):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(exported)("some text")["input_ids"]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits
        for folder in (exported, run / "model")
    )
    assert torch.equal(ours, theirs)


def test_an_adapter_is_merged_and_written_in_the_number_format_asked_for(adapter_run, run, tmp_path):
    from safetensors.torch import load_file

    made = export_run(adapter_run, tmp_path / "merged", dtype="bfloat16")
    assert made.dtype == "bfloat16"
    assert not (made.folder / "adapter_config.json").exists()
    new = load_file(made.folder / "model.safetensors")
    old = load_file(run / "model" / "model.safetensors")
    assert {str(weight.dtype) for weight in new.values()} == {"torch.bfloat16"}
    changed = {name for name in old if not new[name].equal(old[name].bfloat16())}
    assert changed == {name for name in old if "q_proj" in name}
    assert read(made.folder / "config.json")["dtype"] == "bfloat16"


def test_a_whole_model_is_rounded_to_the_number_format_asked_for(run, tmp_path):
    from safetensors.torch import load_file

    made = export_run(run, tmp_path / "half", dtype="float16")
    new, old = (load_file(f / "model.safetensors") for f in (made.folder, run / "model"))
    assert new.keys() == old.keys()
    assert all(new[name].equal(old[name].half()) for name in old)


def test_weights_too_large_for_the_format_are_refused_before_anything_appears(run, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    def fill(folder: Path) -> None:
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1e6)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    large = finished_run(tmp_path / "large", recipe_of("sft", {"name": "pocket:base"}), fill)
    with pytest.raises(ModelError, match="too large for float16"):
        export_run(large, tmp_path / "out", dtype="float16")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large"]


def test_the_end_that_was_learned_is_the_tokenizers_and_the_settings_end(run, tmp_path):
    """The base model ended texts by another token than the one that its chat template ends answers with."""

    def fill(folder: Path) -> None:
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)
        tokenizer = build_tiny_tokenizer()
        tokenizer.eos_token = "<|pad|>"
        tokenizer.save_pretrained(folder)

    other = finished_run(tmp_path / "other", recipe_of("sft", {"name": "pocket:base"}), fill)
    made = export_run(other, tmp_path / "out")
    end = build_tiny_tokenizer().convert_tokens_to_ids("<|end|>")
    assert read(made.folder / "tokenizer_config.json")["eos_token"] == "<|end|>"
    assert read(made.folder / "config.json")["eos_token_id"] == end
    settings = read(made.folder / "generation_config.json")["eos_token_id"]
    assert (settings if isinstance(settings, int) else settings[0]) == end
    assert 'PARAMETER stop "<|end|>"' in (made.folder / "Modelfile").read_text(encoding="utf-8")


def test_an_end_token_that_the_template_writes_elsewhere_is_left_as_it_is():
    from handbook_utils.export.texts import settle_end

    tokenizer = build_tiny_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    tokenizer.chat_template = "{{ eos_token }}" + tokenizer.chat_template
    assert settle_end(tokenizer) == "<|pad|>"
    assert tokenizer.eos_token == "<|pad|>"


def test_a_template_that_is_read_back_otherwise_is_refused(run, tmp_path, monkeypatch):
    write = export_folder.write_texts

    def write_another(folder: Path, *given: Any, **named: Any) -> Any:
        ids = write(folder, *given, **named)
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text(encoding="utf-8") + "\n{{ '' }}\n.", encoding="utf-8")
        return ids

    monkeypatch.setattr(export_folder, "write_texts", write_another)
    with pytest.raises(ModelError, match="other tokens of 10 conversations"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# what is refused


def test_a_run_that_is_not_finished_is_refused(run, tmp_path):
    copy = tmp_path / "sft"
    shutil.copytree(run, copy)
    manifest = read(copy / "manifest.json")
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}), encoding="utf-8")
    with pytest.raises(RunFolderError, match="the run is running, not finished"):
        export_run(copy, tmp_path / "out")


def test_a_run_that_was_altered_since_is_refused(run, tmp_path):
    copy = tmp_path / "sft"
    shutil.copytree(run, copy)
    with (copy / "model" / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    with pytest.raises(RunFolderError, match=r"model.safetensors is missing or was altered"):
        export_run(copy, tmp_path / "out")


def test_a_reward_model_is_refused_and_told_what_it_is_for(run, tmp_path):
    reward = finished_run(
        tmp_path / "reward", recipe_of("reward", {"name": "pocket:base"}), lambda folder: None
    )
    with pytest.raises(ModelError, match="handbook score ANSWERS"):
        export_run(reward, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sfk", "Did you mean 'sft'"),
        ("", "folder of a pipeline, not of one run"),
        ("empty", "not a run folder"),
    ],
)
def test_what_is_no_run_is_refused_with_the_runs_that_are_there(run, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    place = tmp_path / "empty" if name == "empty" else run.parent / name
    with pytest.raises(RunFolderError, match=words):
        export_run(place, tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="not empty"):
        export_run(run, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_number_format_or_licence_names_the_nearest(run, tmp_path):
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        export_run(run, tmp_path / "out", dtype="bfloat61")
    with pytest.raises(RecipeError, match=r"Did you mean 'apache-2.0'"):
        export_run(run, tmp_path / "out", licence="apache2.0")


def test_a_disk_without_room_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    with pytest.raises(RunFolderError, match=r"0\.00 GiB are free there"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights.shutil, "copyfile", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_goes_on_from_its_weights(run, tmp_path, monkeypatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_folder, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, tmp_path / "out")
    monkeypatch.setattr(export_folder, "write_weights", killed)
    assert export_run(run, tmp_path / "out").made
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_finished_export_is_not_made_again_and_one_that_was_altered_is_refused(run, exported, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(exported, copy)
    assert not export_run(run, copy, licence="apache-2.0").made
    with pytest.raises(RunFolderError, match="with other options"):
        export_run(run, copy, licence="mit")
    (copy / "Modelfile").write_text("FROM elsewhere\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match="altered"):
        export_run(run, copy, licence="apache-2.0")


# the card


def test_the_card_has_the_runs_figures_data_and_what_was_not_measured(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "| 2.495 | 2.242 to 2.783 (95%) | nats per token | 200 |" in card
    assert "| sft | pocket:demonstrations | train\\[:64\\] | 64 | apache-2.0 |" in card
    assert "no evaluation was given to the export" in card
    assert "the \\| of a caution in rows.jsonl" in card
    assert "/home/ann" not in card
    assert str(exported.parent) not in card


def test_the_front_matter_is_what_the_hub_reads(exported):
    from huggingface_hub import ModelCard

    text = (exported / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert data == front_matter(text)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )


def facts(**changes: Any) -> CardFacts:
    step = Step("sft", [LearnedFrom("org/rows", True, "train", 10, "mit")], "org/base", True, "llama3")
    given: dict[str, Any] = {
        "name": "name",
        "manifest": {
            "recipe": {},
            "seed": 0,
            "versions": {"transformers": "5.24.0"},
            "hardware": {"cpu": "a cpu"},
        },
        "metrics": {},
        "cautions": [],
        "steps": [step],
        "licence": "unknown",
        "dtype": "float32",
        "ends": ["<|end|>"],
        "checked": "everything",
        "fingerprint": "0" * 8,
    }
    return CardFacts(**{**given, **changes})


def test_base_and_data_of_the_hub_are_named_in_the_front_matter_with_their_licences_below():
    card = model_card(facts())
    front = front_matter(card)
    assert (front["base_model"], front["base_model_relation"], front["datasets"]) == (
        ["org/base"],
        "finetune",
        ["org/rows"],
    )
    assert "| its base, org/base | llama3 |" in card
    assert "| data: org/rows | mit |" in card
    assert "assume that it may not be shared" in card


def test_what_anybody_wrote_acts_neither_as_markdown_nor_as_html_nor_as_yaml(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    evil = '<script>alert(1)</script> | [x](javascript:y) `code` "\n---\nlicense: mit hf_secret_of_the_test'
    manifest = {**facts().manifest, "recipe": {"description": evil, "training": {"optim": evil}}}
    step = Step("sft", [LearnedFrom(evil, True, evil, None, evil)], evil, True, evil)
    card = model_card(facts(name=evil, manifest=manifest, steps=[step], cautions=[evil]))
    body = card.split("---\n", 2)[2]
    assert front_matter(card)["license"] == "unknown"
    assert "<script" not in body.replace("\\<script", "")
    assert "[x]" not in body
    assert "hf_secret_of_the_test" not in body
    assert "datasets" not in front_matter(card)  # no name that the hub could have
    rows = [line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("|")]
    assert {*rows} <= {3, 6, 7}, "a bar in a cell opens no other cell"


def test_an_evaluation_of_this_model_goes_into_the_card_and_one_of_another_is_refused(run, tmp_path):
    content = {
        "stage": "evaluate",
        "data": [{"name": "pocket:prompts"}],
        "scorers": {"gold": {"name": "pocket:gold"}},
    }
    recipe = check_recipe({**content, "model": {"name": str(run)}}, "test")
    from handbook_utils.pipeline.inputs import fingerprint_inputs

    prints = fingerprint_inputs(recipe, {})
    figure = Estimate(0.8134, 0.79, 0.84, 0.95, 200, "gold reward", "bootstrap-t", 0)
    with open_run(tmp_path / "good", recipe, fingerprints=prints, progress=False) as folder:
        folder.finish({"gold": figure})
    made = export_run(run, tmp_path / "out", evaluations=[tmp_path / "good"])
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "| gold | good | 0.8134 | 0.79 to 0.84 (95%) | gold reward | 200 |" in card
    assert "no evaluation was given" not in card
    other = check_recipe({**content, "model": {"name": "pocket:base"}}, "test")
    with open_run(
        tmp_path / "bad", other, fingerprints=fingerprint_inputs(other, {}), progress=False
    ) as folder:
        folder.finish({"gold": figure})
    with pytest.raises(DataError, match="not the model of"):
        export_run(run, tmp_path / "out2", evaluations=[tmp_path / "bad"])
    with pytest.raises(DataError, match="two folders are called 'good'"):
        export_run(run, tmp_path / "out2", evaluations=[tmp_path / "good", tmp_path / "x" / "good"])
    with pytest.raises(DataError, match="not of 'evaluate'"):
        export_run(run, tmp_path / "out2", evaluations=[run])


def test_the_runs_that_made_a_model_are_listed_from_the_first_on(adapter_run, run, tiny_model_folder):
    steps = lineage(adapter_run)
    assert [step.stage for step in steps] == ["sft", "dpo"]
    assert (steps[0].start, steps[0].start_on_hub) == (tiny_model_folder.name, False)
    assert steps[1].adapter is not None


def test_an_earlier_run_that_is_gone_is_said_to_be(adapter_run, tmp_path):
    shutil.copytree(adapter_run, tmp_path / "adapter")
    (step,) = lineage(tmp_path / "adapter")
    assert (step.missing, step.start) == ("sft", None)


def test_the_licence_of_a_base_is_what_its_own_card_states(tmp_path):
    assert stated_licence(str(tmp_path), kind="model") == "not stated"
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n# A card\n", encoding="utf-8")
    assert stated_licence(str(tmp_path), kind="model") == "gemma"
    (tmp_path / "README.md").write_text("---\nlicense: [: broken\n---\n", encoding="utf-8")
    assert stated_licence(str(tmp_path), kind="model") == "not stated"


# Ollama


def render_with(template: str) -> Any:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    from handbook_utils.chat.render import render_conversations

    return lambda messages, opened: render_conversations(tokenizer, [messages], add_generation_prompt=opened)[
        0
    ][0]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"


def test_a_template_of_marks_around_messages_is_written_in_ollamas_notation():
    marks = turn_marks(render_with(CHATML))
    assert marks is not None
    assert go_template(marks) == (
        "{{ range .Messages }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_default_system_message_becomes_ollamas():
    marks = turn_marks(render_with(DEFAULT + CHATML))
    assert marks is not None
    assert marks.default_system == "Be kind."
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = DEFAULT + CHATML
    assert 'SYSTEM """Be kind."""' in modelfile(tokenizer, {}, ends=["<|im_end|>"], positions=None)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m.content", "m.content | trim"),
        CHATML.replace(
            "{{ '<|im_start|>' + m.role", "{{ ('' if loop.first else ' ') + '<|im_start|>' + m.role"
        ),
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_does_more_is_left_out_and_said_to_be(template):
    assert turn_marks(render_with(template)) is None
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    text = modelfile(tokenizer, {}, ends=["<|end|>"], positions=None)
    assert 'TEMPLATE "' not in text
    assert text.startswith("# This model's chat template does more")


def test_marks_that_would_end_ollamas_template_are_not_written():
    marks = TurnMarks("", ("{{", "}}"), ("u", "."), ("a", "."), "a")
    assert go_template(marks) is None


def test_a_start_that_the_tokenizer_adds_itself_is_not_written_twice():
    marks = TurnMarks("<s>", ("[", "]"), ("(", ")"), ("", "."), "")
    text = go_template(marks, without="<s>")
    assert text is not None
    assert text.startswith("{{ range")


def test_settings_of_sampling_become_parameters():
    text = modelfile(
        build_tiny_tokenizer(),
        {"temperature": 0.6, "repetition_penalty": 1.1},
        ends=["<|end|>"],
        positions=192,
    )
    assert "PARAMETER temperature 0.6\nPARAMETER repeat_penalty 1.1\nPARAMETER num_ctx 192\n" in text


# the hub


class Hub:
    """A stand-in for the hub's client that notes what it is asked."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def create_repo(self, repo: str, **options: Any) -> str:
        self.calls.append(("create", self.token, repo, options))
        return f"https://hub/{repo}"

    def upload_folder(self, **options: Any) -> None:
        if options["repo_id"].endswith("broken"):
            raise OSError(f"refused for token {self.token}")
        self.calls.append(("upload", options["folder_path"]))


@pytest.fixture
def hub(monkeypatch) -> type[Hub]:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(push, "is_offline", lambda: False)
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_this_test")
    return Hub


def test_nothing_is_sent_unless_asked_and_then_to_a_private_repository(hub, handbook, run, tmp_path):
    code, _, _ = handbook("export", run, "--out", tmp_path / "out")
    assert (code, hub.calls) == (0, [])
    code, out, err = handbook("export", run, "--out", tmp_path / "out", "--push", "me/model")
    assert code == 0
    assert "uploaded: https://hub/me/model" in out
    create, upload = hub.calls
    assert create[:3] == ("create", "hf_token_of_this_test", "me/model")
    assert create[3]["private"] is True
    assert upload == ("upload", tmp_path / "out")
    assert "hf_token_of_this_test" not in out + err


def test_an_upload_that_fails_keeps_the_export_and_shows_no_token(hub, handbook, run, tmp_path):
    code, out, err = handbook("export", run, "--out", tmp_path / "out", "--push", "me/broken")
    assert code == 2
    assert "the hub did not take it" in err
    assert "hf_token_of_this_test" not in out + err
    assert read_record(tmp_path / "out") is not None


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [("no owner", "t" * 9, "--push"), ("model", "t" * 9, "names no owner"), ("me/model", "", "no token")],
)
def test_an_upload_that_cannot_succeed_is_refused_before_any_work(
    hub, handbook, run, tmp_path, monkeypatch, repo, token, words
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    code, _, err = handbook("export", run, "--out", tmp_path / "out", "--push", repo)
    assert (code, words in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_to_serve_the_folder_and_what_to_do_next(handbook, exported, run):
    code, out, _ = handbook("export", run, "--out", exported, "--license", "apache-2.0")
    assert code == 0
    assert "there already" in out
    for command in (
        "vllm serve",
        "transformers serve",
        "convert_hf_to_gguf.py",
        "ollama create",
        "check-served",
    ):
        assert command in out
    code, out, _ = handbook("export", run, "--out", exported, "--license", "apache-2.0", "--json")
    assert json.loads(out)["conversations"] == len(TALKS)


def test_every_conversation_tells_something_of_its_own():
    ids = prompts_of(build_tiny_tokenizer()).ids
    assert len(ids) == len(TALKS) == len({tuple(row) for row in ids.values()})
