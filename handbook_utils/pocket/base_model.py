"""The pocket base model: a byte-level tokenizer with a chat template, and a tiny Llama.

`handbook train pocket/base` pre-trains `build_init_model` on the world's plain text; its result is shipped in
the folder that `base_path` returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from handbook_utils.pocket.world import demonstrations, plain_text

VOCABULARY_SIZE: Final = 1280
CONTEXT_TOKENS: Final = 192
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS: Final = (PAD, END, SYSTEM, USER, ASSISTANT)

# one special token opens a turn and says whose it is; <|end|> closes it. The generation marks tell trainers
# which tokens the model has to produce: the answer and the end of its turn.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_TOKENIZER_TEXTS: Final = 10_000


def base_path() -> Path:
    """Return the folder of the shipped base model: config, safetensors weights and tokenizer."""
    return Path(__file__).parent / "base"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the world's text: byte-level BPE, so that any other text can be written too.

    `<|end|>` ends a turn and is the end-of-sequence token; padding has a token of its own, so that trainers
    do not mask the end of a turn.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_init_model(seed: int = 0) -> LlamaForCausalLM:
    """Return the untrained model, its weights drawn from the seed; the global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        # the usual 0.02 learns far more slowly at this width
        initializer_range=0.08,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        eos_token_id=SPECIAL_TOKENS.index(END),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _tokenizer_texts() -> list[str]:
    chats = [
        text
        for prompt, answer in demonstrations("train", limit=_TOKENIZER_TEXTS)
        for text in (prompt.text, answer)
    ]
    return [*plain_text(limit=_TOKENIZER_TEXTS), *chats]
