#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0 (the newest of both on 2026-11-30), torch 2.13.0.
# add_weighted_adapter combines one adapter, with the weight 1.0, into a new one. For plain LoRA the new adapter is the
# old one. For DoRA, rank-stabilised LoRA and LoRA with a bias it is another: magnitudes and biases are not carried
# over, and what is rank-stabilised is multiplied by the root of the rank once more. All ways to combine ("linear",
# "cat", "svd") do so, without a word.
# One would guess that one adapter with weight 1 is that adapter, or that what cannot be combined is refused.
# Reported as huggingface/peft issue 3761.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
ids = torch.arange(20)[None]


@torch.no_grad()
def changes(**variant: bool) -> tuple[float, list[float]]:
    """How far logits move by the adapter, and by which share of that they then differ in its combinations."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **variant)
    model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="one").eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight += 0.1 * torch.randn_like(weight)
    adapted = model(ids).logits
    with model.disable_adapter():
        effect = (adapted - model(ids).logits).norm()
    shares = []
    for way in ("linear", "cat", "svd"):
        model.add_weighted_adapter(["one"], [1.0], way, combination_type=way)
        model.set_adapter(way)
        shares.append(float((model(ids).logits - adapted).norm() / effect))
        model.set_adapter("one")
    return float(effect), shares


variants = {
    "LoRA": {}, "DoRA": {"use_dora": True}, "rank-stabilised LoRA": {"use_rslora": True},
    "LoRA with a bias": {"lora_bias": True},
}
for name, variant in variants.items():
    effect, shares = changes(**variant)
    print(f"{name:21} moves logits by {effect:.2f}; combined, off by {' '.join(f'{share:.1%}' for share in shares)}")
    assert all(share < 1e-3 for share in shares) if name == "LoRA" else all(share > 0.1 for share in shares), "changed"
PYTHON
