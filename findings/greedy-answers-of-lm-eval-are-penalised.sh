#!/usr/bin/env bash
# lm-eval 0.4.13 with transformers 5.24.0 (the newest of both on 2026-11-30), torch 2.13.0.
# A task asks for greedy answers ("do_sample": false, "temperature": 0). Where the model's generation_config.json has a
# repetition_penalty, as Qwen2.5's instruction-tuned models have, the harness's `hf` model applies it: the answers are
# not the likeliest tokens, and the penalty falls on the words of the question and of its examples too.
# Sampling settings of the same file, temperature and top_k, are switched off by the task, as one would guess of all.
# The results file records the task's settings, and no penalty.
# What turns it off is "repetition_penalty": 1.0 among the task's generation_kwargs, or --gen_kwargs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 "lm-eval[hf]==0.4.13"
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - 2>"$work/said" <<'PYTHON' || { tail -5 "$work/said"; exit 1; }
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = {word: place for place, word in enumerate(["<pad>", "<eos>", *(f"w{n}" for n in range(62))])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1,
    )
).eval()
with torch.no_grad():
    model.lm_head.weight *= 5
QUESTION, GREEDY = "w52 w5 w11", {"until": ["\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}


def answer(task=GREEDY, **of_the_model):
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, **of_the_model)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    return harness.generate_until([Instance("generate_until", {}, (QUESTION, dict(task)), 0)], disable_tqdm=True)[0]


def likeliest():
    ids = tokenizer(QUESTION, return_tensors="pt").input_ids
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, -8:])


seen = {
    "the likeliest token, eight times": likeliest(),
    "lm-eval, no settings of the model": answer(),
    "temperature and top_k of the model": answer(do_sample=True, temperature=2.0, top_k=20),
    "repetition_penalty 1.3 of the model": answer(repetition_penalty=1.3),
    "the same, 1.0 given by the task": answer({**GREEDY, "repetition_penalty": 1.0}, repetition_penalty=1.3),
}
for what, text in seen.items():
    print(f"{what:38} {text}")
greedy, plain, sampling, penalised, told = seen.values()
assert plain == sampling == told == greedy, "changed: an answer without the penalty is not the likeliest"
assert penalised != greedy, "changed: the model's penalty is not applied"
PYTHON
