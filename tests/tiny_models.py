"""Tiny random models of the architectures that recipes name, with a byte tokenizer; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# as transformers calls them (`model_type`); a contract test trains each of them
ARCHITECTURES = (
    *("llama", "mistral", "qwen3", "gemma3_text", "smollm3", "starcoder2", "mixtral"),
    *("gemma", "qwen2"),
)

# one special token a role; `generation` marks what an assistant says, its end of turn included
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# 64 is the number of weights that share a scale in NF4: every row of a linear layer is whole blocks
HIDDEN_SIZE = 64
MIXTURE_OF_EXPERTS = {"mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}}


def build_tiny_tokenizer() -> Any:
    """A tokenizer of 256 bytes and seven special tokens: any text is possible, nothing is learned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(architecture: str, tokenizer: Any, **changes: Any) -> Any:
    """The architecture's own configuration, every size shrunk; what is not a size keeps its default."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[architecture](
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": HIDDEN_SIZE // 2,
            "max_position_embeddings": 512,
            # the usual 0.02 leaves so small a model all but constant, and nothing could be told apart
            "initializer_range": 0.1,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **MIXTURE_OF_EXPERTS.get(architecture, {}),
            **changes,
        }
    )


def tiny_model(architecture: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random two-layer model of an architecture, with its tokenizer and chat template, to a folder.

    Args:
        architecture: transformers' `model_type`, such as "llama" or "gemma3_text".
        folder: where to; returned.
        seed: of the weights; the global generator is left as it was.
        changes: fields of the configuration, such as `tie_word_embeddings=True`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, tokenizer, **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_weights(folder: Path, name: str = "model.safetensors") -> None:
    """A whole weights file with next to nothing in it, for what looks at a model's files and loads none."""
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, folder / name)
