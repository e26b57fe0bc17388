"""A model card from a run's records: what it was made of, its figures, and what nobody has measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from handbook_utils.export.lineage import LearnedFrom, Step, is_repository
from handbook_utils.records import Estimate
from handbook_utils.redaction import redacted

# what acts in Markdown or in the HTML that a hub makes of it
_ACTS = re.compile(r"([\\`*_\[\]<>|#~!&$])")
_PATH = re.compile(r"(?<![\w.])(?:~|\.{1,2})?/(?:[\w.@ -]+/)*([\w.@-]+)")
# fields of a recipe that say how it was trained; the others are in the run
TRAINING = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "max_length"),
    *("optim", "adam_beta2", "weight_decay", "beta", "loss_type", "packing"),
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says, gathered from records.

    Attributes:
        name: of the model.
        manifest: of its run.
        metrics: of the run, on held-out rows.
        cautions: of the run.
        evaluations: metrics of evaluations of this model, by the name of each run.
        steps: the runs that made it, the first one first.
        licence: of the model, as the hub names it; "unknown" where nobody said.
        dtype: of its weights.
        ends: texts of the tokens that end an answer.
        checked: what the export compared, in words.
        has_template: whether it answers conversations.
        fingerprint: of what the run made.
    """

    name: str
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Estimate]
    cautions: Sequence[str]
    steps: Sequence[Step]
    licence: str
    dtype: str
    ends: Sequence[str]
    checked: str
    fingerprint: str
    has_template: bool = True
    evaluations: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


def escaped(text: object) -> str:
    """A text of anybody's as Markdown that shows it and does nothing else; line breaks become spaces.

    >>> escaped("a|b <script>")
    'a\\\\|b \\\\<script\\\\>'
    """
    flat = " ".join(redacted(str(text)).split())
    return _ACTS.sub(r"\\\1", flat)


def without_paths(text: str) -> str:
    """A text in which a path is only its last part: the others say where somebody works.

    >>> without_paths("from /home/ann/data/rows.jsonl")
    'from rows.jsonl'
    """
    return _PATH.sub(r"\1", text)


def model_card(facts: CardFacts) -> str:
    """The card: YAML front matter as the hub reads it, then Markdown.

    Args:
        facts: of the run and the export.
    """
    parts = [
        f"# {escaped(facts.name)}",
        "Written by `handbook export` from the records of the run that trained this model.",
        *_what(facts),
        *_data(facts),
        *_training(facts),
        *_figures(facts),
        *_unmeasured(facts),
        *_licences(facts),
        *_use(facts),
        *_made_with(facts),
    ]
    return _front_matter(facts) + "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    first = facts.steps[0]
    content: dict[str, Any] = {"license": facts.licence, "library_name": "transformers"}
    content["pipeline_tag"] = "text-generation"
    if first.start_on_hub and is_repository(first.start):
        content |= {"base_model": [first.start], "base_model_relation": "finetune"}
    named = [data.name for step in facts.steps for data in step.data if data.on_hub]
    datasets = dict.fromkeys(name for name in named if is_repository(name))
    if datasets:
        content["datasets"] = list(datasets)
    stages = dict.fromkeys(step.stage for step in facts.steps)
    content["tags"] = ["alignment-handbook", *stages, *(["conversational"] if facts.has_template else [])]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _what(facts: CardFacts) -> list[str]:
    recipe = facts.manifest["recipe"]
    rows = [
        ["trained by", " → ".join(step.stage for step in facts.steps)],
        [
            "started from",
            facts.steps[0].start or f"the run {facts.steps[0].missing}, which was not there to read",
        ],
        ["weights", facts.dtype + (", merged from an adapter" if _has_adapter(facts.steps) else "")],
        ["an answer ends with", ", ".join(facts.ends)],
        ["compared with the run's model", facts.checked],
    ]
    said = without_paths(str(recipe.get("description") or ""))
    return ["## What it is", *([escaped(said)] if said else []), table(["", ""], rows)]


def _has_adapter(steps: Sequence[Step]) -> bool:
    return any(step.adapter is not None for step in steps)


def _data(facts: CardFacts) -> list[str]:
    rows = [
        [step.stage, data.name, data.split, _count(data), data.licence]
        for step in facts.steps
        for data in step.data
    ]
    lost = [step.missing for step in facts.steps if step.missing is not None]
    note = [
        f"What the earlier run {escaped(name)} learned from is not listed: it was not there." for name in lost
    ]
    left_out = facts.manifest.get("notes", {}).get("test_rows_left_out")
    if left_out:
        note.append(f"{left_out:,} rows were left out, because they are also in what it was tested on.")
    head = ["stage", "data", "split", "rows used", "licence its card states"]
    return ["## What it learned from", table(head, rows), *note]


def _count(data: LearnedFrom) -> str:
    return "not noted" if data.rows is None else f"{data.rows:,}"


def _training(facts: CardFacts) -> list[str]:
    recipe, notes = facts.manifest["recipe"], facts.manifest.get("notes", {})
    given = recipe.get("training", {})
    plan = notes.get("plan") or {}
    rows = [[name, given[name]] for name in TRAINING if name in given]
    rows += [
        [f"lora.{name}", value] for name, value in (recipe.get("lora") or {}).items() if value is not None
    ]
    rows += [
        [name.replace("_", " "), f"{plan[name]:,}"]
        for name in ("effective_batch", "steps", "tokens")
        if plan.get(name)
    ]
    return [
        "## How it was trained last",
        table(["setting", "value"], [[name, without_paths(str(value))] for name, value in rows]),
        f"Seed {facts.manifest['seed']}. The run's `recipe.yaml` holds every value.",
    ]


def _figures(facts: CardFacts) -> list[str]:
    tables = [("on the held-out rows of its last stage", facts.metrics), *facts.evaluations.items()]
    rows = [
        [name, of, f"{figure.value:.4g}", _interval(figure), figure.unit, figure.n]
        for of, metrics in tables
        for name, figure in metrics.items()
    ]
    if not rows:
        return ["## Figures", "None: the run measured nothing on held-out rows."]
    head = ["figure", "measured", "value", "interval", "unit", "n"]
    return ["## Figures", table(head, rows)]


def _interval(figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return "none"
    return f"{figure.low:.4g} to {figure.high:.4g} ({figure.level:.0%})"


def _unmeasured(facts: CardFacts) -> list[str]:
    said = []
    if not facts.evaluations:
        said.append(
            "Its answers: no evaluation was given to the export, so nothing here says that they are better "
            "than those of the model it started from."
        )
    said += [
        "Another seed: the intervals are over rows; one training run does not say how far the next differs.",
        "Safety: whether it refuses harmful requests, what it says of people, and what it has memorised.",
        "Languages, subjects and lengths of conversation that are not in its data.",
        "A server: `handbook check-served` compares one with the run.",
    ]
    if facts.dtype != "float32":
        said.append(f"What rounding the weights to {facts.dtype} changes in the figures above.")
    said += [f"Caution of the run: {escaped(without_paths(caution))}" for caution in facts.cautions]
    return ["## What was not measured", "\n".join(f"- {line}" for line in said)]


def _licences(facts: CardFacts) -> list[str]:
    first = facts.steps[0]
    licence = (
        "nobody said, so it is given as unknown; until then assume that it may not be shared"
        if facts.licence == "unknown"
        else facts.licence
    )
    rows = [["this model", licence], [f"its base, {first.start}", first.start_licence]]
    rows += [[f"data: {data.name}", data.licence] for step in facts.steps for data in step.data]
    return [
        "## Licences",
        table(["of", "licence"], rows),
        "Licences of base and data are those that their own cards on the training machine state. Nobody has "
        "checked whether they allow what is done with this model.",
    ]


def _use(facts: CardFacts) -> list[str]:
    commands = use_commands(".", facts.dtype)
    lines = [command for name, command in commands.items() if name != "check"]
    version = facts.manifest["versions"].get("transformers", "of its run")
    return [
        "## How to use it",
        "In this folder, one of these:",
        "```bash\n" + "\n".join(lines) + "\n```",
        f"It was saved with transformers {escaped(version)}; a server needs that version or a newer one.",
        "What it was not made for, and who should not use it, is for whoever shares it to write here.",
    ]


def use_commands(folder: str, dtype: str) -> dict[str, str]:
    """Commands that put an exported folder to use, by what takes it."""
    place, out = shlex.quote(folder), {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
    return {
        "vllm": f"vllm serve {place} --dtype {dtype}",
        "transformers": f"transformers serve {place}",
        "llama.cpp": f"python convert_hf_to_gguf.py {place} --outfile model-{out}.gguf --outtype {out}",
        "llama-server": f"llama-server -m model-{out}.gguf --jinja",
        "ollama": f"ollama create my-model -f {shlex.quote(folder.rstrip('/') + '/Modelfile')}",
    }


def _made_with(facts: CardFacts) -> list[str]:
    manifest = facts.manifest
    versions = [f"{name} {version}" for name, version in manifest["versions"].items()]
    rows = [
        ["finished", str(manifest.get("finished", "not noted"))[:10]],
        ["versions", ", ".join(versions)],
        ["hardware", ", ".join(f"{key}: {value}" for key, value in manifest["hardware"].items())],
        ["fingerprint of the run's files", facts.fingerprint],
    ]
    return ["## Made with", table(["", ""], rows)]
