"""What we need of transformers beyond its public names is there, and does what we take it to do."""

from __future__ import annotations

import warnings
from pathlib import Path

import jinja2
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaModel,
    Qwen2Config,
    TrainingArguments,
)
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from handbook_utils.libraries import transformers_internals as internals
from handbook_utils.sampling.generation.engines.cache import RoomyLayer
from handbook_utils.shared_prefix.prompt_attention import prompts_of, reading

SHAPE = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
LLAMA = LlamaConfig(**SHAPE, num_attention_heads=2)
STATES = torch.arange(24.0).reshape(3, 1, 4, 2)


def test_a_decoder_takes_and_returns_its_cache_by_the_name_found_without_a_warning() -> None:
    model, ids = LlamaForCausalLM(LLAMA), torch.tensor([[1, 2, 3]])
    name = internals.cache_name(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = getattr(model(ids, use_cache=True), name)
        second = getattr(model(ids, **{name: first}), name)
    assert second.get_seq_length() == 6
    assert internals.given_cache({name: first, "use_cache": True}) is first
    assert internals.given_cache({"use_cache": True}) is None


def test_the_resolved_attention_of_a_configuration_is_read_and_set() -> None:
    config = LlamaConfig(**SHAPE, num_attention_heads=2)
    assert internals.attention_of(LlamaForCausalLM(config).config) == "sdpa"
    internals.set_attention(config, "eager")
    assert internals.attention_of(LlamaForCausalLM(config).config) == "eager"


def test_a_state_space_model_is_recurrent_and_a_transformer_is_not() -> None:
    mamba = MambaModel(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    assert internals.is_recurrent(mamba)
    assert not internals.is_recurrent(LlamaForCausalLM(LLAMA).model)


def test_flash_attention_is_known_to_be_supported_or_not() -> None:
    assert internals.takes_flash_attention(AutoModelForCausalLM, LLAMA)
    assert not internals.takes_flash_attention(AutoModelForCausalLM, MambaConfig())


def test_a_compiled_template_runs_in_the_sandbox_with_transformers_own_helpers() -> None:
    template = internals.compile_template("{{ messages[0] | tojson }}{% generation %}x{% endgeneration %}")
    assert template.render(messages=["ü<"]) == '"ü<"x'
    with pytest.raises(jinja2.exceptions.SecurityError):
        internals.compile_template("{{ messages.append(1) }}").render(messages=[])


def test_a_process_that_sees_several_gpus_can_be_told_to_use_one(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 4
    internals.use_one_device(arguments)
    assert arguments.n_gpu == 1


def test_an_attention_registered_by_name_is_given_what_the_cache_holds_and_changes_no_logit() -> None:
    """Two rows, one padded, so that the mask made under our name has to be that of `sdpa`."""
    model, ids = LlamaForCausalLM(LLAMA).eval(), torch.tensor([[0, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    name = internals.cache_name(model)
    with torch.inference_mode():
        plain = model(ids, attention_mask=mask, use_cache=True)
        with reading(model) as seen:
            read = model(ids, attention_mask=mask, use_cache=True)
    assert torch.equal(read.logits, plain.logits)
    assert seen.unknown == set()
    [(keys, values)] = prompts_of(getattr(read, name), seen, tokens=3, new_tokens=1)
    assert keys.shape == values.shape == (2, 2, 3, 4)
    assert internals.attention_of(model.config) == "sdpa"


def test_a_cache_made_for_a_configuration_has_the_windows_of_its_layers() -> None:
    kinds = ["sliding_attention", "full_attention"]
    shape = {**SHAPE, "num_hidden_layers": 2, "num_attention_heads": 2, "layer_types": kinds}
    sliding, full = DynamicCache(
        config=Qwen2Config(**shape, use_sliding_window=True, sliding_window=7)
    ).layers
    assert type(full) is DynamicLayer
    assert type(sliding) is DynamicSlidingWindowLayer
    assert sliding.sliding_window == 7


def test_our_cache_layer_has_every_public_name_of_theirs() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(CacheLayerMixin) | public(DynamicLayer) <= public(RoomyLayer)


def filled(kind: type) -> CacheLayerMixin:
    layer = kind()
    layer.update(STATES[..., :1, :], STATES[..., :1, :])
    layer.update(STATES[..., 1:, :], STATES[..., 1:, :])
    return layer


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.crop(-3),
        lambda layer: (layer.offload(), layer.prefetch()),
        lambda layer: (layer.crop(-1), layer.reset()),
    ],
    ids=["reorder", "select", "repeat", "crop", "offload", "reset"],
)
def test_our_cache_layer_does_what_theirs_does(change: object) -> None:
    theirs, ours = filled(DynamicLayer), filled(RoomyLayer)
    for layer in (theirs, ours):
        change(layer)  # type: ignore[operator]
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(2) == theirs.get_mask_sizes(2)
    assert ours.get_max_length() == theirs.get_max_length()
    assert (ours.keys is None) == (theirs.keys is None)
    if theirs.keys is not None:
        assert torch.equal(ours.keys, theirs.keys)
    rows = 1 if theirs.keys is None else len(theirs.keys)
    more = torch.ones(rows, 1, 1, 2)
    for wanted, got in zip(theirs.update(more, more), ours.update(more, more), strict=True):
        assert torch.equal(got, wanted)
