"""A LoRA merged into a random model of 1 GB, its check included: against commit eed40be, both in this run.

Each side is a process of its own, one thread: CPU seconds, and the peak of its memory over what importing the
libraries takes, as a share of the model's bytes. `bench_merge.py [float32|bfloat16] [layers]`.

    bench_merge.py --side ADAPTER OUT      what measures one side
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

GOAL, PEAK_GOAL = 1.5, 1.3
# of the vocabulary, layers and rank: 1 GB in float32 by 7 layers
VOCABULARY, HIDDEN, INNER, HEADS, LAYERS, RANK = 16_000, 1536, 4096, 12, 7, 16


def main(dtype: str = "float32", layers: str = str(LAYERS)) -> None:
    """Measure both sides and record."""
    from _before import figures_of, package_before
    from _record import record

    with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
        scratch = Path(folder)
        size = write_model(scratch, dtype, int(layers))
        before = package_before(scratch)
        figures_of(
            __file__, "--side", scratch / "adapter", scratch / "warm-up"
        )  # the files are in memory now
        old_s, old_peak = figures_of(__file__, "--side", scratch / "adapter", scratch / "old", path=before)
        new_s, new_peak = figures_of(__file__, "--side", scratch / "adapter", scratch / "new")
    suffix = "" if dtype == "float32" else f"_{dtype}"
    peer = {"name": f"commit eed40be: {old_s:.1f} s, now {new_s:.1f} s", "value": 1.0}
    record(
        name=f"merge_1gb_speedup{suffix}",
        value=old_s / new_s,
        unit="x",
        goal=GOAL,
        better="higher",
        peer=peer,
    )
    record(
        name=f"merge_1gb_peak{suffix}",
        value=new_peak / size,
        unit="models",
        goal=PEAK_GOAL,
        peer={"name": "commit eed40be", "value": old_peak / size},
    )
    print(f"{dtype}, {size / 1e9:.2f} GB: {old_s:.1f} s before, {new_s:.1f} s now; ", end="")
    print(f"peak over imports {old_peak / 1e9:.2f} and {new_peak / 1e9:.2f} GB")


def write_model(folder: Path, dtype: str, layers: int) -> int:
    """A random Llama and an adapter on all its linear layers; returns the bytes of its weights."""
    import torch
    from bench_data import train_tokenizer
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = 0.01 * torch.randn_like(weight)
    adapted.save_pretrained(folder / "adapter")
    settings = folder / "adapter" / "adapter_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = str(folder / "base")
    settings.write_text(json.dumps(content), encoding="utf-8")
    for place in ("base", "adapter"):
        tokenizer.save_pretrained(folder / place)
    return sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))


def measure_side(adapter: str, out: str) -> None:
    """Merge, and print CPU seconds and peak bytes over imports."""
    import peft  # noqa: F401 - what both sides import
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from handbook_utils.models.merge import merge_adapter

    torch.set_num_threads(1)
    held = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    began = time.process_time()
    merge_adapter(adapter, out, device="cpu")
    print(time.process_time() - began, _status("VmHWM") - held)


def _status(name: str) -> int:
    """Bytes that Linux says of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        measure_side(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
