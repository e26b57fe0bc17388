#!/usr/bin/env bash
# transformers 5.24.0 (the newest on 2026-11-30), torch 2.13.0.
# A folder holds a model in one file. A later state of the model is saved to the same folder in shards, because of
# another `max_shard_size`. save_pretrained writes the shards and their index and leaves the old file beside them;
# from_pretrained prefers the one file, and gives back the older weights. Nothing is said.
# One would guess that what was saved last is what loads: of older shards save_pretrained does remove those that it
# does not write again, and the other way round, one file over shards, the newer weights load.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
SHARDS = {"max_shard_size": "20KB"}


def loaded_after(first: dict[str, str], second: dict[str, str], folder: str) -> str:
    """Which of two states loads, when one is saved after the other."""
    model = LlamaForCausalLM(config)
    older = model.lm_head.weight.detach().clone()
    model.save_pretrained(folder, **first)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(folder, **second)
    found = LlamaForCausalLM.from_pretrained(folder).lm_head.weight
    return {(True, False): "older", (False, True): "newer"}[
        torch.equal(found, older), torch.equal(found, model.lm_head.weight)
    ]


seen = {
    "one file, then one file": loaded_after({}, {}, "a"),
    "shards, then one file": loaded_after(SHARDS, {}, "b"),
    "shards, then shards": loaded_after(SHARDS, SHARDS, "c"),
    "one file, then shards": loaded_after({}, SHARDS, "d"),
}
for what, weights in seen.items():
    print(f"{what:24} the {weights} weights load")
left = [file.name for file in Path("d").glob("*.safetensors")]
print(f"the last folder holds model.safetensors: {'model.safetensors' in left}, and {len(left) - 1} shards")
assert list(seen.values()) == ["newer", "newer", "newer", "older"], "changed"
PYTHON
