"""The stored snapshot of TRL's fields is that of the installed TRL, and its defaults are as known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata

import pytest

from handbook_utils.errors import RecipeError
from handbook_utils.schema.fields import trainer_fields
from handbook_utils.training.snapshot_fields import SNAPSHOT, changes, render_snapshot


def test_the_stored_fields_are_those_of_the_releases_they_were_read_from() -> None:
    made_with = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["made_with"]
    installed = {name: metadata.version(name) for name in made_with}
    if installed != made_with:
        pytest.skip(f"the snapshot is of {made_with}, installed are {installed}")
    assert SNAPSHOT.read_text(encoding="utf-8") == render_snapshot(), (
        "trainer_fields.json is stale: run `python -m handbook_utils.training.snapshot_fields`"
    )


def test_the_losses_that_only_a_help_text_lists_are_found() -> None:
    losses = trainer_fields("dpo")["loss_type"]["choices"]
    assert {"sigmoid", "hinge", "ipo", "robust", "apo_zero", "sft"} <= set(losses)
    assert trainer_fields("sft")["loss_type"]["choices"] == ["chunked_nll", "dft", "nll"]


@pytest.mark.parametrize(("trainer", "learning_rate"), [("sft", 2e-5), ("reward", 1e-4), ("dpo", 1e-6)])
def test_defaults_that_surprise_are_still_what_our_recipes_override(
    trainer: str, learning_rate: float
) -> None:
    fields = trainer_fields(trainer)
    assert fields["learning_rate"]["default"] == learning_rate
    assert fields["gradient_checkpointing"]["default"] is True
    assert fields["logging_nan_inf_filter"]["default"] is True
    assert fields["max_length"]["default"] == 1024


def test_bf16_is_on_by_default_even_on_a_cpu(tmp_path: object) -> None:
    from handbook_utils.training.trl_bridge import CONFIGS, installed_names

    # activation_checkpointing: by its old name the default would warn
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "activation_checkpointing": False}
    config = CONFIGS["dpo"](**installed_names(CONFIGS["dpo"], arguments))
    assert config.bf16 is True


def test_a_field_goes_by_the_name_that_the_installed_release_gives_it() -> None:
    from handbook_utils.training.trl_bridge import installed_names

    @dataclass
    class Before:
        gradient_checkpointing: bool = True

    @dataclass
    class After(Before):
        activation_checkpointing: bool | None = None

    asked = {"activation_checkpointing": False}
    assert installed_names(Before, asked) == {"gradient_checkpointing": False}
    assert installed_names(After, asked) == asked


def test_a_field_that_the_installed_release_lacks_is_named() -> None:
    from handbook_utils.training.trl_bridge import CONFIGS, installed_names

    with pytest.raises(RecipeError, match=r"training\.of_tomorrow: SFTConfig of the installed trl"):
        installed_names(CONFIGS["sft"], {"of_tomorrow": 1})


def test_what_a_release_changes_is_told_field_by_field_with_the_recipes_it_touches() -> None:
    before = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    after = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert changes(before, after) == []
    del after["dpo"]["beta"]
    after["sft"]["packing"]["default"] = not after["sft"]["packing"]["default"]
    after["kto"]["brand_new"] = {"types": ["int"], "choices": None, "default": 3}
    gone, new, default = changes(before, after)
    assert gone.startswith("dpo.beta: gone; set by ")
    assert "pocket/dpo" in gone
    assert new == "kto.brand_new: new"
    assert default.startswith("sft.packing: default ")
    assert "tulu3/sft" in default
