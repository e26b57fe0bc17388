#!/usr/bin/env bash
# trl 1.16.0 (the newest on 2026-11-30), transformers 5.24.0, torch 2.13.0.
# DPOConfig(label_smoothing=0.2) with the default loss, "sigmoid", trains what label_smoothing=0.0 trains, to the last
# bit, and the logged loss is not that of the smoothed (conservative) DPO. Nothing is said. The losses "robust",
# "exo_pair", "aot" and "aot_unpaired" do read the setting.
# One would guess that a share of wrong labels is heeded by the loss that the paper states it for: releases of 2024
# did so, and their documentation named this setting as the way to conservative DPO.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON' | { grep -v "^{" || true; }  # without the records of each step
import math

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

BETA, SHARE, STEPS = 0.5, 0.2, 10
words = {word: place for place, word in enumerate(["<pad>", "<eos>", "red", "blue", "sky", "sea", "is"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_list([{"prompt": "sky is", "chosen": " blue", "rejected": " red"}] * 4)


def trained(loss: str, share: float):
    """The weights after some steps, and the last record, in which all rows of the batch are alike."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            pad_token_id=0, eos_token_id=1,
        )
    )
    model.save_pretrained("start")
    arguments = DPOConfig(
        "out", use_cpu=True, bf16=False, max_steps=STEPS, logging_steps=1, learning_rate=0.02, report_to="none",
        save_strategy="no", per_device_train_batch_size=4, disable_tqdm=True, beta=BETA, loss_type=loss,
        label_smoothing=share,
    )
    trainer = DPOTrainer(
        model, ref_model=LlamaForCausalLM.from_pretrained("start"), args=arguments, processing_class=tokenizer,
        train_dataset=pairs,
    )
    trainer.train()
    last = [record for record in trainer.state.log_history if "loss" in record][-1]
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]), last


def expected(margin: float, share: float) -> float:
    """The smoothed loss of one pair, whose margin holds beta already."""
    return (1 - share) * math.log1p(math.exp(-margin)) + share * math.log1p(math.exp(margin))


same = {}
for loss in ("sigmoid", "robust", "aot"):
    plain, smoothed = trained(loss, 0.0), trained(loss, SHARE)
    same[loss] = torch.equal(plain[0], smoothed[0])
    print(f"{loss}: {'the same weights' if same[loss] else 'other weights'} with label_smoothing 0 and {SHARE}")
    if loss == "sigmoid":
        margin, value = smoothed[1]["rewards/margins"], smoothed[1]["loss"]
print(f"sigmoid with {SHARE}: margin {margin:.4f}, logged loss {value:.4f}, by hand "
      f"{expected(margin, SHARE):.4f} with the smoothing and {expected(margin, 0):.4f} without")
assert same == {"sigmoid": True, "robust": False, "aot": False}, "changed: another loss reads label_smoothing"
assert abs(value - expected(margin, 0)) < 1e-3 < abs(value - expected(margin, SHARE)), "changed: the loss is smoothed"
PYTHON
