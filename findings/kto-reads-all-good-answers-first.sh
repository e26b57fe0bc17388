#!/usr/bin/env bash
# trl 1.16.0 (the newest on 2026-11-30), transformers 5.24.0, torch 2.13.0.
# KTOTrainer takes preference pairs and makes marked answers of them, a thousand pairs at a time: first all chosen
# answers, marked good, then all rejected ones, marked bad. It then reads its rows in this order, without a shuffle, in
# every epoch. So it learns from good answers only, then from bad ones only: of up to a thousand pairs all good ones
# come first, and at most one batch holds both kinds.
# One would guess that a trainer shuffles its rows, as TRL's others do, or that the two answers of a pair stay close.
# The setting `train_sampling_strategy` must stay "sequential" for this loss; `dataset.shuffle` on marked answers
# (after trl.unpair_preference_dataset) mixes them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON' | { grep -v "^{" || true; }  # without the records of each step
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer, unpair_preference_dataset

PAIRS, BATCH = 100, 10
words = {word: place for place, word in enumerate(["<pad>", "<eos>", "red", "blue", "sky", "sea", "is"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_list(
    [{"prompt": f"{'sky' if row % 2 else 'sea'} is", "chosen": " blue", "rejected": " red"} for row in range(PAIRS)]
)


class Noting(KTOTrainer):
    """Notes how many answers of each batch are marked good."""

    def compute_loss(self, model, inputs, *arguments, **options):
        self.good.append(int(sum(inputs["label"])))
        return super().compute_loss(model, inputs, *arguments, **options)


def good_in_each_batch(rows: Dataset) -> list[int]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1,
    )
    arguments = KTOConfig(
        "out", use_cpu=True, bf16=False, num_train_epochs=1, report_to="none", save_strategy="no",
        per_device_train_batch_size=BATCH, disable_tqdm=True,
    )
    trainer = Noting(
        LlamaForCausalLM(config), ref_model=LlamaForCausalLM(config), args=arguments, processing_class=tokenizer,
        train_dataset=rows,
    )
    trainer.good = []
    trainer.train()
    return trainer.good


given = good_in_each_batch(pairs)
mixed = good_in_each_batch(unpair_preference_dataset(pairs).shuffle(seed=0))
print(f"good answers of {BATCH} in each batch, from pairs:    ", *given)
print(f"good answers of {BATCH} in each batch, after a shuffle:", *mixed)
half = len(given) // 2
alike = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 1500)
many = unpair_preference_dataset(alike)["label"][:]
changes = [row for row in range(1, len(many)) if many[row] != many[row - 1]]
print("of 1500 pairs, marked answers change from good to bad, or back, at rows", *changes)
assert given == [BATCH] * half + [0] * half and changes == [1000, 2000, 2500], "changed"
assert all(0 < good < BATCH for good in mixed), "changed: a shuffle does not mix them"
PYTHON
