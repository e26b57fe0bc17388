"""Merging an adapter into what it was trained on, with a check that the model is still the same one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import ModelError
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.models.adapters import adapter_head, merged, read_base
from handbook_utils.models.generation_settings import settle_generation
from handbook_utils.models.load import adapter_base, load_model, load_on_base, load_tokenizer
from handbook_utils.models.multimodal import copy_processor
from handbook_utils.models.places import is_adapter, not_found, resolve_model
from handbook_utils.models.precision import DTYPES, Loading
from handbook_utils.runs.atomic import atomic_folder

# how far an output may move, as a share of the largest one: rounding of each format, summed up over layers
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
PROBES = (
    "Name three uses of a pencil.",
    "Why is the sky blue?",
    "Write a short poem about rain.",
    "What is 12 times 7?",
    "Give me advice for a first job interview.",
)
PROBE_TOKENS = 24


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; differences are shares of the largest output (logits, or scores of a reward model).

    Attributes:
        folder: of the merged model.
        head: "causal" or "reward".
        dtype: of the weights written.
        difference: largest one between the adapter on its dequantised base and the merged model as reloaded.
        tolerance: what was allowed.
        same_generations: of `probes` greedy generations, how many are equal token by token; None for rewards.
            A first difference where the two likeliest tokens are closer than the tolerance is allowed.
        probes: prompts compared.
        quantization: of the base in training.
        quantized_difference: largest one between the adapter on its quantised base, as trained, and the
            merged model: the rounding of computing with quantised weights. None where it was not quantised.
    """

    folder: Path
    head: str
    dtype: str
    difference: float
    tolerance: float
    same_generations: int | None
    probes: int
    quantization: str
    quantized_difference: float | None


@naming_untested_versions
def merge_adapter(
    name: str, out: str | Path, *, dtype: str = "auto", device: str | None = None
) -> MergeReport:
    """Merge an adapter into what it was trained on and save the whole model with its tokenizer.

    A quantised base is dequantised first, never rounded again: the adapter has learned to make up for the
    rounding it was trained on, so the base's original weights would be the wrong ones to add it to.

    Args:
        name: a run folder, an adapter's folder or a name on the hub.
        out: folder for the merged model; it appears only when the check has passed.
        dtype: of the merged weights; "auto": that of the base's files.
        device: where to compute; None for this process's GPU, or else the CPU.
    Raises:
        ModelError: no adapter, `out` is not empty, or the merged model's outputs differ by more than the
            tolerance.
    Book: chapter "LoRA and QLoRA".
    """
    out, place = Path(out), resolve_model(name)
    if not is_adapter(place):
        if not Path(place).is_dir():
            raise not_found(name, "no adapter that could be merged")
        raise ModelError(f"{name}: a whole model, so there is nothing to merge.")
    if out.is_file() or (out.exists() and any(out.iterdir())):
        what = "a file" if out.is_file() else "not empty"
        raise ModelError(f"{out}: {what}. Choose another --out; nothing was touched.")
    how = Loading(
        adapter_head(place), stored_dtype(place) if dtype == "auto" else dtype, "none", device=device
    )
    tokenizer = load_tokenizer(place, for_chat=False)
    with atomic_folder(out) as folder, quiet_libraries():
        model = load_on_base(place, how)
        before = _Outputs.of(model, tokenizer, how)
        model = merged(model)
        settle_generation(model, tokenizer, name=name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        copy_processor(place, folder)
        del model  # one model at a time
        report = _compared(before, folder, how, adapter_base(place).quantization, place)
    return MergeReport(**{**vars(report), "folder": out})


def stored_dtype(place: str) -> str:
    """Number format of the files of a model, or of what an adapter stands on."""
    while is_adapter(place):
        base = read_base(place)
        place = resolve_model(base.name, revision=base.revision)
    dtype = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config().dtype
    return next((name for name, known in DTYPES.items() if known == dtype), "float32")


@dataclass(frozen=True)
class _Outputs:
    """What a model says to the probes.

    Attributes:
        rows: token ids of each probe, with the greedy answer of the model that was asked first.
        values: logits (tokens, vocabulary) of each row, or its score (1,); float32, on the CPU.
        answers: the model's own greedy answers; empty for a reward model.
    """

    rows: list[torch.Tensor]
    values: list[torch.Tensor]
    answers: list[torch.Tensor]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, how: Loading, rows: list[torch.Tensor] | None = None) -> _Outputs:
        prompts = [_probe_ids(tokenizer, text) for text in PROBES]
        answers = [] if how.head == "reward" else [_greedy(model, ids, tokenizer) for ids in prompts]
        if rows is None:
            rows = answers or prompts
        with torch.inference_mode():
            values = [model(input_ids=row[None].to(how.target)).logits[0].float().cpu() for row in rows]
        return cls(rows, values, answers)


def _compared(before: _Outputs, folder: Path, how: Loading, quantization: str, place: str) -> MergeReport:
    tokenizer = load_tokenizer(str(folder), for_chat=False)
    merged = load_model(str(folder), head=how.head, dtype=how.dtype, device=how.device)
    after = _Outputs.of(merged, tokenizer, how, before.rows)
    del merged
    largest = max(float(value.abs().max()) for value in before.values)
    tolerance = TOLERANCES[how.dtype]
    difference = _difference(before, after) / largest
    same = sum(torch.equal(a, b) for a, b in zip(before.answers, after.answers, strict=True))
    strayed = sum(_strays(before, after, probe, tolerance * largest) for probe in range(len(before.answers)))
    if not difference <= tolerance or strayed:  # a NaN is no pass
        raise ModelError(
            f"{place}: the merged model is another one: outputs differ by {difference:.2g} of the largest "
            f"(allowed: {tolerance:.2g}), {strayed} of {len(PROBES)} greedy answers stray. Nothing written."
        )
    rounding = None
    if quantization != "none":
        trained = load_on_base(place, how.replace(quantization="auto"))
        rounding = _difference(_Outputs.of(trained, tokenizer, how, before.rows), after) / largest
    return MergeReport(
        folder=folder,
        head=how.head,
        dtype=how.dtype,
        difference=difference,
        tolerance=tolerance,
        same_generations=same if before.answers else None,
        probes=len(PROBES),
        quantization=quantization,
        quantized_difference=rounding,
    )


def _difference(left: _Outputs, right: _Outputs) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left.values, right.values, strict=True))


def _strays(before: _Outputs, after: _Outputs, probe: int, tolerance: float) -> bool:
    """Whether a greedy answer differs where it was no toss-up."""
    ours, theirs = before.answers[probe], after.answers[probe]
    length = min(len(ours), len(theirs))
    differing = torch.nonzero(ours[:length] != theirs[:length])
    if len(differing) == 0:
        return len(ours) != len(theirs)
    first = int(differing[0])
    likeliest = before.values[probe][first - 1].topk(2).values
    return float(likeliest[0] - likeliest[1]) > tolerance


def _probe_ids(tokenizer: Any, text: str) -> torch.Tensor:
    if not tokenizer.chat_template:
        return torch.tensor(tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return torch.tensor(rendered["input_ids"])


def _greedy(model: Any, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """A prompt's ids with the likeliest continuation."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=PROBE_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    row = ids[None].to(model.device)
    written = model.generate(input_ids=row, attention_mask=torch.ones_like(row), generation_config=settings)
    answer: torch.Tensor = written[0].cpu()
    return answer
