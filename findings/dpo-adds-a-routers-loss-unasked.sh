#!/usr/bin/env bash
# trl 1.16.0, transformers 5.24.0, torch 2.13.0.
# A Mixtral configuration says output_router_logits=False, so the model itself adds no auxiliary loss of the
# router. DPOTrainer adds it all the same, with the configuration's router_aux_loss_coef (0.001): before
# anything is learned the loss is not ln 2, and an "aux_loss" is logged. SFTTrainer does likewise.
# One would guess that the model's own switch decides. What turns it off is router_aux_loss_coef=0.0 in DPOConfig.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import math

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = {word: place for place, word in enumerate(["<pad>", "<eos>", "red", "blue", "sky", "sea", "is"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_list([{"prompt": "sky is", "chosen": " blue", "rejected": " red"}] * 4)


def first_record(coefficient: float | None) -> dict[str, float]:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, pad_token_id=0, eos_token_id=1,
    )
    assert config.output_router_logits is False
    arguments = DPOConfig(
        "out", use_cpu=True, bf16=False, max_steps=1, logging_steps=1, report_to="none", save_strategy="no",
        per_device_train_batch_size=4, router_aux_loss_coef=coefficient, disable_tqdm=True,
    )
    trainer = DPOTrainer(
        MixtralForCausalLM(config), ref_model=MixtralForCausalLM(config), args=arguments,
        processing_class=tokenizer, train_dataset=pairs,
    )
    trainer.ref_model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    return trainer.state.log_history[0]


left, off = first_record(None), first_record(0.0)
print(f"ln 2 is {math.log(2):.6f}")
print(f"left to the model: loss {left['loss']:.6f}, aux_loss {left.get('aux_loss')}")
print(f"router_aux_loss_coef=0.0: loss {off['loss']:.6f}, aux_loss {off.get('aux_loss')}")
assert left.get("aux_loss", 0) > 0 and left["loss"] - math.log(2) > 5e-4, "changed: no auxiliary loss is added"
assert abs(off["loss"] - math.log(2)) < 1e-4 and "aux_loss" not in off, "changed: 0.0 does not turn it off"
PYTHON
