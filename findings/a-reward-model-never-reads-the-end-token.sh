#!/usr/bin/env bash
# trl 1.16.0 with transformers 5.24.0 (the newest of both on 2026-11-30), torch 2.13.0.
# A tokenizer has an end token and no padding token. RewardTrainer ends every answer with the end token, and pads with
# it too. The model reads its score at the last token that is not padding, which it tells by the token's number and
# not by the attention mask: so the score is read before the end token. A complete answer and the same answer cut off
# get the same reward, in training and ever after. With a padding token of its own the score is read at the end token.
# For the same reason a row that is padded by another token than the model's configuration names is read in its padding.
# One would guess that the end token, once added, is seen, or that the attention mask says what is padding.
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
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

words = {word: place for place, word in enumerate(["<unk>", "<eos>", "<pad>", "red", "blue", "sky", "is"])}
pairs = Dataset.from_list([{"prompt": "sky is", "chosen": " blue", "rejected": " red"}] * 16)


def rewards(**padding: str) -> tuple[float, float, float]:
    """After training: of the complete answer, of it without its end, and of it in a row that is padded otherwise."""
    fast = Tokenizer(models.WordLevel(dict(words), unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<eos>", **padding)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_labels=1,
        )
    )
    arguments = RewardConfig(
        "out", use_cpu=True, bf16=False, max_steps=10, learning_rate=0.01, report_to="none", save_strategy="no",
        per_device_train_batch_size=4, disable_tqdm=True,
    )
    trainer = RewardTrainer(model, args=arguments, processing_class=tokenizer, train_dataset=pairs)
    assert trainer.train_dataset[0]["chosen_ids"][-1] == words["<eos>"]
    trainer.train()
    model.eval()
    with torch.no_grad():
        whole, cut = (
            model(ids, attention_mask=torch.ones_like(ids)).logits.item()
            for text in ("sky is blue <eos>", "sky is blue")
            for ids in [torch.tensor([[words[word] for word in text.split()]])]
        )
        row = torch.tensor([[words[word] for word in ("sky", "is", "blue", "<eos>", "<unk>", "<unk>")]])
        otherwise = model(row, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]])).logits.item()
    return whole, cut, otherwise


apart, shared = rewards(pad_token="<pad>"), rewards()
print(f"padded by another token than training knew, and masked: {apart[2]:.4f} where it was {apart[0]:.4f}")
print(f"with a padding token:    complete {apart[0]:.4f}, cut {apart[1]:.4f}")
print(f"padded by the end token: complete {shared[0]:.4f}, cut {shared[1]:.4f}")
assert abs(apart[0] - apart[1]) > 0.01, "changed: the end token is not read with a padding token either"
assert abs(shared[0] - shared[1]) < 1e-5, "changed: the end token is read"
assert abs(apart[2] - apart[0]) > 0.01, "changed: the attention mask says what is padding"
PYTHON
