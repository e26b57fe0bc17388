#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2 (the newest of both on 2026-11-30), transformers 5.24.0, torch 2.13.0.
# DPOTrainer gets an adapter that was begun with OLoRA or PiSSA and copies it, to have a reference. PEFT initialises the
# copy by the same method, which takes another part out of the base weights. From then on policy and reference both
# stand on a base that neither was trained on. The loss starts at ln 2 all the same, for the two are equal. Saved and
# loaded again, the adapter is back on the true base, where it was never optimised.
# One would guess that the model in the trainer is the model that was given, as it is for a plain LoRA adapter.
# KTOTrainer copies in the same way. What helps is init_lora_weights = True in the loaded adapter's peft_config.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON' | { grep -v "^{" || true; }  # without the records of each step
import math

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = {word: place for place, word in enumerate(["<pad>", "<eos>", "red", "blue", "sky", "sea", "is"])}
fast = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")
pairs = Dataset.from_list([{"prompt": "sky is", "chosen": " blue", "rejected": " red"}] * 4)
ids = torch.tensor([[words[word] for word in ("sky", "is", "blue", "<eos>")]])
torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, initializer_range=0.3,
    )
).save_pretrained("base")


def on_base(adapter: str):
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base"), adapter, is_trainable=True)


def loss_of(model) -> float:
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def losses(init: bool | str, mended: bool = False) -> tuple[float, float, float, float]:
    """Of the adapter as loaded, in the trainer, and saved and loaded again; and DPO's first loss, at rate 0."""
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained("base"), lora)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained("adapter")
    given = on_base("adapter")
    loaded = loss_of(given)
    if mended:
        given.peft_config["default"].init_lora_weights = True
    arguments = DPOConfig(
        "out", use_cpu=True, bf16=False, max_steps=1, learning_rate=0.0, logging_steps=1, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )
    trainer = DPOTrainer(given, args=arguments, processing_class=tokenizer, train_dataset=pairs)
    trainer.train()
    inside = loss_of(trainer.model.eval())
    trainer.model.peft_config["default"].init_lora_weights = init
    trainer.save_model("again")
    return loaded, inside, loss_of(on_base("again")), trainer.state.log_history[0]["loss"]


seen = {
    "plain LoRA": losses(True), "PiSSA": losses("pissa"), "OLoRA": losses("olora"),
    "OLoRA, config set to True": losses("olora", mended=True),
}
for name, (loaded, inside, again, dpo) in seen.items():
    print(f"{name:26} as loaded {loaded:.4f}, in the trainer {inside:.4f}, saved and loaded {again:.4f}, DPO {dpo:.6f}")
    assert abs(again - loaded) < 1e-4, "changed: the saved adapter is another one"
    assert abs(dpo - math.log(2)) < 1e-5, "changed: the first loss is not ln 2"
moved = {name: abs(inside - loaded) > 1e-3 for name, (loaded, inside, _, _) in seen.items()}
assert list(moved.values()) == [False, True, True, False], "changed"
PYTHON
