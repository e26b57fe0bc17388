"""Merging an adapter into what it was trained on, with a check that the model is still the same one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AutoConfig, GenerationConfig

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import ModelError
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.models.adapters import adapter_head, merged, read_base
from handbook_utils.models.generation_settings import settle_generation
from handbook_utils.models.load import adapter_base, load_model, load_on_base, load_tokenizer
from handbook_utils.models.merge_shards import MergePlan, check_merged, plan_merge, write_merged
from handbook_utils.models.multimodal import copy_processor
from handbook_utils.models.places import is_adapter, local_folder, not_found, resolve_model
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
# tokens of a greedy answer; fewer where each weight is compared as well, for they cost most of a check
PROBE_TOKENS, SHORT_PROBE_TOKENS = 24, 8


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; differences are shares of the largest output (logits, or scores of a reward model).

    Attributes:
        folder: of the merged model.
        weights: compared one by one with the base's and the adapter's update, as read back from the files;
            None where the adapter could only be merged in memory, which is compared by outputs alone.
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
    weights: int | None
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

    A plain LoRA on a base that is not quantised is merged from file to file, and each weight is read back and
    compared. Other adapters are merged in memory. Either way the model is loaded again as anybody would, and
    its outputs are compared with the adapter's.

    A quantised base is dequantised first, never rounded again: the adapter has learned to make up for the
    rounding it was trained on, so the base's original weights would be the wrong ones to add it to.

    Args:
        name: a run folder, an adapter's folder or a name on the hub.
        out: folder for the merged model; it appears only when the check has passed.
        dtype: of the merged weights; "auto": that of the base's files.
        device: where to compute; None for this process's GPU, or else the CPU.
    Raises:
        ModelError: no adapter, `out` is not empty, a merged weight is another one, or the merged model's
            outputs differ by more than the tolerance.
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
        plan = _plan(model, place)
        tokens = PROBE_TOKENS if plan is None else SHORT_PROBE_TOKENS
        before = _Outputs.of(model, how, _rows(model, tokenizer, how.head, tokens))
        settle_generation(model.get_base_model(), tokenizer, name=name)
        if plan is None:
            model = merged(model)
            model.save_pretrained(folder)
        else:
            _save_settings(model.get_base_model(), folder)
        tokenizer.save_pretrained(folder)
        copy_processor(place, folder)
        del model  # one model at a time
        weights = None if plan is None else _written(plan, folder, place)
        report = _compared(before, folder, how, place)
    return MergeReport(**{**vars(report), "folder": out, "weights": weights})


def _plan(model: Any, place: str) -> MergePlan | None:
    """How to merge from file to file, where that is the same as in memory."""
    base = adapter_base(place)
    base_place = resolve_model(base.name, revision=base.revision)
    if base.quantization != "none" or is_adapter(base_place):
        return None
    folder = local_folder(base_place, base.revision)
    return None if folder is None else plan_merge(model, folder)


def _written(plan: MergePlan, folder: Path, place: str) -> int:
    try:
        write_merged(plan, folder)
        return check_merged(plan, folder)
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error


def _save_settings(model: Any, folder: Path) -> None:
    """What `save_pretrained` writes beside the weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def stored_dtype(place: str) -> str:
    """Number format of the files of a model, or of what an adapter stands on."""
    while is_adapter(place):
        base = read_base(place)
        place = resolve_model(base.name, revision=base.revision)
    dtype = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config().dtype
    return next((name for name, known in DTYPES.items() if known == dtype), "float32")


@dataclass(frozen=True)
class _Row:
    """A prompt with the greedy answer of the model that was asked first.

    Attributes:
        ids: (tokens,) of the prompt, then of the answer.
        prompt: tokens of the prompt.
    """

    ids: torch.Tensor
    prompt: int


@dataclass(frozen=True)
class _Outputs:
    """What a model says to the probes.

    Attributes:
        rows: the probes.
        values: logits (tokens, vocabulary) of each row, or its score (1,); float32, on the CPU.
    """

    rows: list[_Row]
    values: list[torch.Tensor]

    @classmethod
    def of(cls, model: Any, how: Loading, rows: list[_Row]) -> _Outputs:
        with torch.inference_mode():
            values = [model(input_ids=row.ids[None].to(how.target)).logits[0].float().cpu() for row in rows]
        return cls(rows, values)


def _compared(before: _Outputs, folder: Path, how: Loading, place: str) -> MergeReport:
    merged = load_model(str(folder), head=how.head, dtype=how.dtype, device=how.device)
    after = _Outputs.of(merged, how, before.rows)
    del merged
    largest = max(float(value.abs().max()) for value in before.values)
    tolerance = TOLERANCES[how.dtype]
    difference = _difference(before, after) / largest
    answers = [] if how.head == "reward" else [_stray(before, after, n) for n in range(len(before.rows))]
    strayed = sum(by is not None and by > tolerance * largest for by in answers)
    if not difference <= tolerance or strayed:  # a NaN is no pass
        raise ModelError(
            f"{place}: the merged model is another one: outputs differ by {difference:.2g} of the largest "
            f"(allowed: {tolerance:.2g}), {strayed} of {len(PROBES)} greedy answers stray. Nothing written."
        )
    rounding, quantization = None, adapter_base(place).quantization
    if quantization != "none":
        trained = load_on_base(place, how.replace(quantization="auto"))
        rounding = _difference(_Outputs.of(trained, how, before.rows), after) / largest
    return MergeReport(
        folder=folder,
        weights=None,
        head=how.head,
        dtype=how.dtype,
        difference=difference,
        tolerance=tolerance,
        same_generations=None if how.head == "reward" else answers.count(None),
        probes=len(PROBES),
        quantization=quantization,
        quantized_difference=rounding,
    )


def _difference(left: _Outputs, right: _Outputs) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left.values, right.values, strict=True))


def _stray(before: _Outputs, after: _Outputs, probe: int) -> float | None:
    """How much likelier, in logits, the first token of an answer is that the other model would not write.

    Two models write the same greedy answer if and only if, given that answer, each of its tokens is the
    likeliest of both: so the second model need not write at all. None where the answers are the same.
    """
    first = before.rows[probe].prompt - 1
    ours, theirs = (outputs.values[probe][first:-1] for outputs in (before, after))
    differing = torch.nonzero(ours.argmax(1) != theirs.argmax(1))
    if len(differing) == 0:
        return None
    likeliest = ours[int(differing[0])].topk(2).values
    return float(likeliest[0] - likeliest[1])


def _probe_ids(tokenizer: Any, text: str) -> torch.Tensor:
    if not tokenizer.chat_template:
        return torch.tensor(tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return torch.tensor(rendered["input_ids"])


def _rows(model: Any, tokenizer: Any, head: str, tokens: int) -> list[_Row]:
    """Each probe with the likeliest continuation, all written together; nothing is added for rewards."""
    prompts = [_probe_ids(tokenizer, text) for text in PROBES]
    if head == "reward":
        return [_Row(ids, len(ids)) for ids in prompts]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    longest = max(map(len, prompts))
    padding = [longest - len(ids) for ids in prompts]
    rows = torch.stack(
        [pad(ids, (n, 0), value=tokenizer.pad_token_id) for ids, n in zip(prompts, padding, strict=True)]
    )
    mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
    rows, mask = rows.to(model.device), mask.to(model.device)
    written = model.generate(input_ids=rows, attention_mask=mask, generation_config=settings).cpu()
    return [
        _Row(torch.cat([ids, _up_to_end(row[longest:], tokenizer.eos_token_id)]), len(ids))
        for ids, row in zip(prompts, written, strict=True)
    ]


def _up_to_end(answer: torch.Tensor, end: int) -> torch.Tensor:
    ends = torch.nonzero(answer == end)
    return answer[: int(ends[0]) + 1] if len(ends) else answer
