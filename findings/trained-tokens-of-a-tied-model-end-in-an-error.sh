#!/usr/bin/env bash
# trl 1.16.0, peft 0.21.2, transformers 5.24.0, torch 2.13.0.
# SFTTrainer ends in an AttributeError at its first step where LoRA trains single tokens (trainable_token_indices)
# of a model whose output head is tied to its embeddings: PEFT wraps the head, and TRL asks the wrapper for `bias`.
# The same model trains where head and embeddings are apart, and computes its loss alone where they are tied.
# One would guess that what both libraries document, each for itself, works together for the smaller models, most
# of which are tied.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

words = {word: place for place, word in enumerate(["<pad>", "<eos>", "red", "blue", "sky", "sea", "is"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
rows = Dataset.from_list([{"prompt": "sky is", "completion": " blue"}] * 4)


def trained(tied: bool) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, pad_token_id=0, eos_token_id=1,
    )
    arguments = SFTConfig(
        "out", use_cpu=True, bf16=False, max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
    )
    lora = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[2, 3], task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        LlamaForCausalLM(config), args=arguments, processing_class=tokenizer, train_dataset=rows,
        peft_config=lora,
    )
    ids = torch.tensor([[4, 6, 3, 1]])
    assert torch.isfinite(trainer.model(input_ids=ids, labels=ids).loss)
    try:
        trainer.train()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "trained"


apart, tied = trained(False), trained(True)
print("head apart:", apart)
print("head tied: ", tied)
assert apart == "trained" and tied.startswith("AttributeError") and "bias" in tied, "changed"
PYTHON
