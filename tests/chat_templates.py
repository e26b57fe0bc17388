"""Tokenizers for chat templates: bytes and the template's own special tokens; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from handbook_utils.chat import bounded_render
from tests.tiny_models import CHAT_TEMPLATE

PAD, BOS = "<|pad|>", "<|bos|>"
# what is a special token in the model of some template; plain tags such as <think> are text to us
SPECIAL = re.compile(
    r"<\|[^\s<>|{}'\"]+\|>|<｜[^\s｜]+｜>|<\|turn>|<turn\|>|<(?:start|end)_of_turn>|<end_of_utterance>|</s>|<sop>"
)
# the token that ends an answer, by the start of the template's file name; the longest start counts
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}


def build_tokenizer(
    template: str | None, *, eos: str = "<|end|>", trusted: bool = True, **options: Any
) -> Any:
    """A byte-level tokenizer with the special tokens that a template writes.

    A template of ours is trusted: trying each in a child process first would take more time than the tests.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = dict.fromkeys([PAD, BOS, eos, *SPECIAL.findall(template or "")])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*special, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    names = {"pad_token": PAD, "bos_token": BOS, "eos_token": eos} | options
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    fast.chat_template = template
    if template and trusted:
        bounded_render._harmless.add(template)
    return fast


def trl_templates() -> dict[str, Path]:
    """The templates that the installed TRL ships, by name; TRL is not imported."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "chat_templates"
    return {path.stem: path for path in sorted(folder.glob("*.jinja"))}


def trl_tokenizer(name: str, *, trusted: bool = False) -> Any:
    """A tokenizer for one of TRL's templates; a trusted one is not tried in a child process first."""
    (start,) = sorted((start for start in ENDS if name.startswith(start)), key=len)[-1:]
    return build_tokenizer(
        trl_templates()[name].read_text(encoding="utf-8"), eos=ENDS[start], trusted=trusted
    )


# two turns of a few letters, and templates for them
TWO = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So"},
]
UNMARKED = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# what is thought in an answer is shown only in the last one, as Qwen3's template does
FORGETFUL = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer_of(template: str) -> Any:
    """A tokenizer whose role marks are single tokens."""
    return build_tokenizer(template + "{# <|user|><|assistant|><|system|><|tool|> #}")
