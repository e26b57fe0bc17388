#!/usr/bin/env bash
# transformers 5.24.0 with peft 0.21.2 (the newest of both on 2026-11-30), torch 2.13.0.
# An adapter folder loads through AutoModelForCausalLM.from_pretrained, computes, and takes gradients. Saving the
# same model is refused: "The version of PEFT you are using is not compatible, please use a version >= 0.22.0",
# a release that does not exist yet. Training such a model ends at its first checkpoint.
# One would guess that what loads can be saved, or that loading names the version.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("base")
base = LlamaForCausalLM.from_pretrained("base")
get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained("adapter")

model = AutoModelForCausalLM.from_pretrained("adapter")
ids = torch.tensor([[1, 2, 3]])
print("loads, and computes a loss of", round(float(model(ids, labels=ids).loss), 3))
try:
    model.save_pretrained("again")
except ValueError as error:
    print("save_pretrained:", error)
    assert ">= 0.22.0" in str(error), "another reason than the one described"
else:
    raise SystemExit("changed: the adapter is saved")
PYTHON
