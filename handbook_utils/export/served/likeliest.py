"""The likeliest answers of a model in this process, and how sure it was of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.models.generation_settings import end_tokens

# what a token must be likelier by than the next, as a share of the largest logit, for a server that computes
# in bfloat16 to choose it as well; as a merge allows it
TOLERANCE = 5e-2
# settings of a model's own that change its likeliest answer, at a server as here
KEPT = ("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "bad_words_ids")


@dataclass(frozen=True)
class Likeliest:
    """A model's likeliest answer to one prompt.

    Attributes:
        ids: its tokens, with the one that ends it.
        text: of the answer.
        beginnings: text of the first n tokens, for n of 1, 2, ...
        margins: by how much each token is likelier than the next, in logits.
        logprobs: of each token, natural log.
        tolerance: a margin below it may turn where numbers are rounded otherwise.
        ended: whether the model ended it, and not the limit.
    """

    ids: Sequence[int]
    text: str
    beginnings: Sequence[str]
    margins: Sequence[float]
    logprobs: Sequence[float]
    tolerance: float
    ended: bool


def likeliest_answers(
    model: Any, tokenizer: Any, prompts: Mapping[str, Sequence[int]], *, tokens: int
) -> dict[str, Likeliest]:
    """The likeliest answer to each prompt, one after the other.

    Args:
        model: a language model.
        tokenizer: of it.
        prompts: token ids, by name.
        tokens: of an answer, at most.
    """
    own = model.generation_config
    ends = end_tokens(own.eos_token_id, tokenizer)
    kept = {name: value for name in KEPT if (value := getattr(own, name, None)) is not None}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **kept,
    )
    known = {ends} if isinstance(ends, int) else {*ends}
    with quiet_libraries(), torch.inference_mode():
        return {name: _one(model, tokenizer, ids, settings, known) for name, ids in prompts.items()}


def _one(
    model: Any, tokenizer: Any, prompt: Sequence[int], settings: GenerationConfig, ends: set[int]
) -> Likeliest:
    rows = torch.tensor([list(prompt)], device=model.device)
    made = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), generation_config=settings)
    ids = made.sequences[0, len(prompt) :].tolist()
    scores = torch.stack(made.scores)[: len(ids), 0].float().cpu()
    first, second = scores.topk(2, dim=-1).values.T
    # servers give the model's own, without what a penalty for repeating takes off
    logits = torch.stack(made.logits)[: len(ids), 0].float().cpu()
    chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    finite = scores[scores.isfinite()]
    beginnings = [tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
    return Likeliest(
        ids=ids,
        text=beginnings[-1],
        beginnings=beginnings,
        margins=(first - second).tolist(),
        logprobs=(chosen - logits.logsumexp(dim=-1)).tolist(),
        tolerance=TOLERANCE * float(finite.abs().max()),
        ended=ids[-1] in ends,
    )
