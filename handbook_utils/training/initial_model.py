"""The model that a training stage starts from: whole, with a new adapter, or with an earlier stage's.

An earlier adapter is trained on (`continue`), merged in memory and built upon (`stack`), or merged first for
good (`merge`). In each case the policy at step 0 and the reference of DPO are the earlier stage's model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from handbook_utils.errors import LaunchError, ModelError, RecipeError, suggest
from handbook_utils.models.adapters import AdapterBase, check_adapter, new_adapter, read_lora, router_weights
from handbook_utils.models.generation_settings import settle_generation
from handbook_utils.models.load import (
    adapter_base,
    check_numbers,
    load_merged,
    load_model,
    load_on_base,
    load_tokenizer,
    options_of,
    stored_as,
)
from handbook_utils.models.multimodal import copy_processor, freeze_towers
from handbook_utils.models.places import INIT, is_adapter, resolve_model, weights_fingerprint
from handbook_utils.models.precision import (
    DEQUANTIZED_WHILE_LOADED,
    QUANTIZATIONS,
    Head,
    Loading,
    LoadOptions,
    quantized,
    quantized_share,
)
from handbook_utils.runs.atomic import atomic_folder
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import LOGGER, warn_and_log
from handbook_utils.schema.sections import ADAPTER_MODES, ZERO3_QUANTIZED
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.distributed import wait_for_all
from handbook_utils.training.plan import trains_on_cpu

MERGED = "base"
DEQUANTIZED = (*QUANTIZATIONS, *DEQUANTIZED_WHILE_LOADED)


class RouterWarning(UserWarning):
    """An adapter trains the router of a mixture of experts, and nobody said so."""


@dataclass(frozen=True)
class Start:
    """A model to train, and what an adapter that is saved of it stands on (None: a whole model is saved)."""

    model: Any
    base: AdapterBase | None

    def facts(self, mode: str | None) -> dict[str, Any]:
        """What the manifest says of it."""
        weights = list(self.model.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        facts: dict[str, Any] = {"trained_weights": trained}
        if self.base is not None:
            facts |= {
                "adapter": mode or "new",
                "adapter_base": self.base.name,
                "quantization": self.base.quantization,
                "quantized_share": round(quantized_share(self.model), 4),
            }
        return facts


def check_start(recipe: TrainingRecipe, source: str) -> None:
    """Refuse a start model that the recipe does not say what to do with, before anything is loaded.

    Raises:
        RecipeError: the start model is an adapter and `model.adapter` is missing, or the other way round, or
            `lora` differs from the adapter that is to be trained on.
        LaunchError: the adapter's base is quantised, and would have to be split between processes.
    """
    mode = recipe.model.adapter
    if source == INIT and recipe.lora is not None:
        raise RecipeError(
            f"{INIT} is re-initialised on each load, so its adapter could not be reloaded. Drop `lora:`."
        )
    try:
        place = None if source == INIT else resolve_model(source, revision=recipe.model.revision)
    except ModelError:
        return  # loading tells what is wrong, after the data has been looked at
    if place is None or not is_adapter(place):
        if mode is not None:
            raise RecipeError(
                f"{source} is a whole model, no adapter: take `adapter: {mode}` out of `model`."
            )
        if place is not None:
            _check_stored(recipe, source)
        return
    if mode is None:
        ways = "\n".join(f"  {name}: {meaning}" for name, meaning in ADAPTER_MODES.items())
        raise RecipeError(
            f"{source} is an adapter, so the recipe has to say what becomes of it. "
            f"Set `model.adapter` to one of\n{ways}"
        )
    check_adapter(place)
    if mode == "continue":
        _check_continued(recipe, source, place)
    held, wanted = adapter_base(place).quantization, recipe.model.quantization
    # "auto" holds the base as it was in training, which only the adapter's folder tells
    if recipe.launch.strategy == "zero3" and mode != "merge" and wanted == "auto" and held != "none":
        raise LaunchError(f"{source} was trained on a base in {held}. {ZERO3_QUANTIZED}")


def _check_stored(recipe: TrainingRecipe, source: str) -> None:
    """Refuse a whole model whose own files are quantised, where it cannot be trained so."""
    try:
        stored = stored_as(source, revision=recipe.model.revision)
    except ModelError:
        return  # loading tells what is wrong
    wanted = recipe.model.quantization
    if stored == "none" or (wanted == "none" and stored in DEQUANTIZED):
        return
    if stored not in QUANTIZATIONS:
        way = "Set `model.quantization: none`, which makes them plain weights"
        raise RecipeError(
            f"{source}: its files hold weights in {stored}, on which nothing can be trained here. "
            f"{way if stored in DEQUANTIZED else 'Take the model whose weights are not quantised'}."
        )
    if wanted == "auto" and recipe.lora is None:
        raise RecipeError(
            f"{source}: its files hold weights in {stored}, which cannot be trained themselves. Add a "
            "`lora:` section to train an adapter on them, or set `model.quantization: none` to dequantise "
            "them first and train all weights."
        )
    if wanted == "auto" and recipe.launch.strategy == "zero3":
        raise LaunchError(f"{source}: its files hold weights in {stored}. {ZERO3_QUANTIZED}")


def _check_continued(recipe: TrainingRecipe, source: str, place: str) -> None:
    """An adapter is trained on as it is: its settings and the rounding of its base cannot change."""
    earlier = read_lora(place)
    if earlier["bias"] != "none" and recipe.trainer in ("dpo", "kto"):
        raise RecipeError(
            f"the adapter of {source} trains biases of its base as well (bias: {earlier['bias']}), which the "
            f"reference of {recipe.trainer} would share with it. Set `model.adapter` to stack or merge."
        )
    changed = [
        f"lora.{key} is {earlier[key]!r} there and {value!r} here"
        for key, value in (recipe.lora.model_dump() if recipe.lora else {}).items()
        if key != "router"
        and value != "all-linear"
        and earlier[key] != (sorted(value) if isinstance(value, list) else value)
    ]
    held, wanted = adapter_base(place).quantization, recipe.model.quantization
    if held != "none" and wanted not in ("auto", "none", held):
        changed.append(f"model.quantization is {held!r} there and {wanted!r} here")
    if changed:
        raise RecipeError(
            f"`adapter: continue` trains the adapter of {source} on as it is, but {'; '.join(changed)}. "
            "Take that out, or stack a new adapter."
        )


def start_tokenizer(recipe: TrainingRecipe, source: str) -> Any:
    """The tokenizer that a recipe trains with, its chat template and its end of an answer as the recipe says.

    Raises:
        RecipeError: `training.eos_token` is no token of it.
        ModelError, TemplateError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(
        source,
        revision=recipe.model.revision,
        for_chat=recipe.stage != "pretrain",
        chat_template=recipe.model.chat_template,
    )
    end = recipe.training.get("eos_token")
    if end is not None:
        if end not in tokenizer.get_vocab():
            raise RecipeError(
                f"training.eos_token: '{end}' is no token of {source}. "
                f"{suggest(end, tokenizer.all_special_tokens)}"
            )
        tokenizer.eos_token = end
    return tokenizer


def start_model(recipe: TrainingRecipe, run: RunFolder, head: Head) -> Start:
    """The model to train, with its adapter where there is one; what is new is drawn from torch's seed."""
    start = start_base(recipe, run, head)
    check_numbers(start.model, run.locate(recipe.model))
    if recipe.model.adapter != "continue":
        freeze_towers(start.model)
    if recipe.lora is not None and recipe.model.adapter != "continue":
        start = Start(new_adapter(start.model, recipe.lora, head), start.base)
    if start.base is not None:
        _settle_router(start.model, trains=recipe.lora is None or recipe.lora.router)
    return start


def _settle_router(model: Any, *, trains: bool) -> None:
    """Say that an adapter moves the router of a mixture of experts, or keep it from doing so."""
    weights = [weight for weight in router_weights(model) if weight.requires_grad]
    if weights and trains:
        warn_and_log(
            "the adapter trains the router of the mixture of experts as well, which changes the experts that "
            "answer. To leave it as it is, set `lora.router: false`.",
            RouterWarning,
        )
    elif weights:
        LOGGER.info("the router of the mixture of experts is left as it is")
        for weight in weights:
            weight.requires_grad_(False)


def load_reference(recipe: TrainingRecipe, run: RunFolder) -> Any:
    """The model that DPO and KTO measure against, loaded again, in the number format of the trained one."""
    return start_base(recipe, run, "causal", dtype=recipe.model.dtype).model.eval()


def start_base(recipe: TrainingRecipe, run: RunFolder, head: Head, *, dtype: str | None = None) -> Start:
    """The model to train before a new adapter is put on it: the policy at step 0, and the reference of DPO.

    Args:
        recipe: the stage's recipe.
        run: the open run folder; `adapter: merge` with `lora:` keeps the merged model there.
        head: "causal" or "reward".
        dtype: instead of the one to train in.
    """
    source, section = run.locate(recipe.model), recipe.model
    options = load_options(recipe)
    if dtype is not None:
        options["dtype"] = dtype
    how = Loading(head, **options)
    if section.adapter is None:
        model = load_model(source, head=head, **options)
        return Start(model, None if recipe.lora is None else _base(source, how))
    place = resolve_model(source, revision=section.revision)
    earlier = adapter_base(place)
    if section.adapter != "merge":
        how = how.replace(quantization=held_quantization(recipe, source))
    if section.adapter == "continue":
        # what the earlier stage rounded stays rounded, however it is held here
        base = replace(earlier, quantization=how.quantization) if earlier.quantization == "none" else earlier
        return Start(load_on_base(place, how, is_trainable=True), base)
    if section.adapter == "stack":
        return Start(quantized(load_merged(place, how), how), _base(source, how))
    if recipe.lora is None:
        return Start(load_merged(place, how), None)
    merged, how = _merged_folder(run, place, how), how.replace(revision=None)
    return Start(load_model(merged, head=head, **options), _base(merged, how))


def _merged_folder(run: RunFolder, place: str, how: Loading) -> str:
    """Where the run keeps the merged model that its own adapter stands on."""
    folder = run.path / MERGED
    if run.is_main and not folder.exists():
        with atomic_folder(folder) as temporary:
            model, tokenizer = load_merged(place, how), load_tokenizer(place, for_chat=False)
            settle_generation(model, tokenizer, name=place)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            copy_processor(place, temporary)
    wait_for_all()
    return str(folder)


def _base(source: str, how: Loading) -> AdapterBase:
    place = resolve_model(source, revision=how.revision)
    quantization = how.quantization
    if quantization == "auto":
        quantization = stored_as(source, revision=how.revision)
    return AdapterBase(source, how.revision, quantization, weights_fingerprint(place))


def held_quantization(recipe: TrainingRecipe, source: str) -> str:
    """How the start model's weights are quantised while it is trained: as `model.quantization` says."""
    section = recipe.model
    if section.quantization != "auto":
        return section.quantization
    if section.adapter in ("continue", "stack"):
        return adapter_base(resolve_model(source, revision=section.revision)).quantization
    return "none" if section.adapter == "merge" else stored_as(source, revision=section.revision)


def load_options(recipe: TrainingRecipe) -> LoadOptions:
    """How the start model is loaded, for `load_model`."""
    options = options_of(recipe.model)
    options["device"] = "cpu" if trains_on_cpu(recipe) else None
    if options["dtype"] == "auto" and recipe.lora is None and recipe.model.adapter != "continue":
        # full fine-tuning keeps float32 weights: in bfloat16 a small learning rate changes nothing
        options["dtype"] = "float32"
    return options
