"""From a recipe to the run whose memory is asked for: model, precision, batch, lengths of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig

from handbook_utils.chat.loss_masks import TokenRow, tokenize_turns
from handbook_utils.data.load import Locator
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import TrainingData, load_training_data
from handbook_utils.errors import DataError, HandbookError, ModelError
from handbook_utils.libraries.transformers_internals import set_attention
from handbook_utils.models.load import read_config
from handbook_utils.models.places import is_adapter
from handbook_utils.models.precision import DTYPES
from handbook_utils.planning.changes import Run
from handbook_utils.planning.gpus import Gpu
from handbook_utils.planning.lengths import Lengths
from handbook_utils.planning.memory import OPTIMISERS, Reference, Setup
from handbook_utils.planning.skeleton import Step, skeleton
from handbook_utils.schema.sections import WITHOUT_REFERENCE
from handbook_utils.schema.training import (
    BatchedRecipe,
    DpoRecipe,
    OnlineRecipe,
    PairRecipe,
    TrainingRecipe,
)
from handbook_utils.shared_prefix.decoder import why_not_shared
from handbook_utils.training.arguments import RENAMED
from handbook_utils.training.initial_model import start_tokenizer
from handbook_utils.training.plan import LARGEST_CPU_BATCH, LARGEST_GPU_BATCH, setting, split_batch
from handbook_utils.training.rows.tokenized import turn_of

# rows whose tokens are counted where not all are asked for
SAMPLE = 2000


@dataclass(frozen=True)
class Measured:
    """Tokens of a recipe's rows.

    Attributes:
        lengths: of the rows that were counted.
        rows: that there are; None: not known.
        said: how they were counted.
    """

    lengths: Lengths
    rows: int | None
    said: str


def model_config(recipe: TrainingRecipe, source: str) -> Any:
    """The configuration of the start model; a folder that holds nothing but a config.json is enough.

    Raises:
        ModelError: there is none, or it names a model that transformers does not know.
    """
    return config_at(source, revision=recipe.model.revision, attention=recipe.model.attention)


def config_at(source: str, *, revision: str | None = None, attention: str = "auto") -> Any:
    """As `model_config`, of a model that is no start model.

    Raises:
        ModelError: as `model_config`.
    """
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file() and not is_adapter(str(folder)):
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder}/config.json is no configuration that transformers reads: {error}"
            ) from None
    else:
        config = read_config(source, revision=revision)
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(config.get_text_config(), name, None)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{source}: its configuration has no '{name}', so its memory cannot be planned.")
    if attention != "auto":
        set_attention(config, attention)
    return config


def setup_of(recipe: TrainingRecipe, config: Any, *, processes: int, on_cpu: bool) -> Setup:
    """How a recipe trains, on a GPU or on a CPU."""
    half = _mixed(recipe, on_cpu=on_cpu)
    held = DTYPES.get(recipe.model.dtype)
    if held is None:
        trains_all = recipe.lora is None and recipe.model.adapter != "continue"
        held = torch.float32 if on_cpu or trains_all else torch.bfloat16
    return Setup(
        config=config,
        trainer=recipe.trainer,
        held_in=held,
        half=None if half == held and recipe.lora is None else half,
        checkpointing=_checkpoints(recipe, on_cpu=on_cpu),
        lora=recipe.lora,
        quantization="none" if recipe.model.quantization == "auto" else recipe.model.quantization,
        reference=_reference(recipe, half, on_cpu=on_cpu),
        second_pass=_has_reference(recipe),
        optimiser=str(setting(recipe, "optim")),
        # a policy that drops would not be the one that samples
        dropout=not (isinstance(recipe, OnlineRecipe) or setting(recipe, "disable_dropout")),
        strategy=recipe.launch.strategy,
        processes=processes,
        on_cpu=on_cpu,
    )


def planned_on_cpu(recipe: TrainingRecipe, gpu: Gpu | None) -> bool:
    """Whether a plan is of training on a CPU: the recipe says so, and no GPU is named that overrides it."""
    return gpu is None and bool(recipe.training.get("use_cpu"))


def planned_split(recipe: TrainingRecipe, processes: int, *, on_cpu: bool) -> tuple[int, int, int]:
    """(rows per device, passes, processes) of the planned device, which may not be the one here.

    Raises:
        RecipeError: as `split_batch`.
    """
    return split_batch(recipe, processes, LARGEST_CPU_BATCH if on_cpu else LARGEST_GPU_BATCH)


def run_of(recipe: TrainingRecipe, setup: Setup, rows: Lengths) -> Run:
    """A recipe's run, its batch split over the processes as `train` splits it.

    Raises:
        RecipeError: as `split_batch`.
    """
    per_device, accumulation, _ = planned_split(recipe, setup.processes, on_cpu=setup.on_cpu)
    by_length = isinstance(recipe, BatchedRecipe) and recipe.length_batching
    return Run(
        setup,
        rows,
        per_device,
        accumulation,
        max_length=setting(recipe, "max_length"),
        by_length=by_length,
        max_tokens=getattr(recipe, "max_tokens_per_batch", None),
        shares=_shares(recipe, setup),
        seed=recipe.seed,
        packs=bool(setting(recipe, "packing")) if recipe.trainer == "sft" else False,
    )


def measure_lengths(recipe: TrainingRecipe, located: Locator, *, all_rows: bool = False) -> Measured:
    """Tokens of a recipe's rows, as its tokenizer makes them.

    More than 2,000 rows are drawn from, by the recipe's seed, unless all are asked for. Where data or
    tokenizer cannot be read here, each row is taken to be `max_length` tokens long.

    Raises:
        DataError: there are no rows, or neither their lengths nor a `max_length` are known.
    """
    limit = setting(recipe, "max_length")
    try:
        with quiet_libraries():
            tokenizer = start_tokenizer(recipe, located.locate(recipe.model))
            data = load_training_data(recipe, located)
    except HandbookError as error:
        if not is_elsewhere(recipe) or not limit:
            raise
        said = (
            f"rows could not be read here, so each is taken to be training.max_length = {limit} tokens long"
        )
        return Measured(rows_alike(recipe, int(limit)), None, f"{said} ({str(error)[:200]})")
    return lengths_of(recipe, tokenizer, data, all_rows=all_rows)


def lengths_of(
    recipe: TrainingRecipe, tokenizer: Any, data: TrainingData, *, all_rows: bool = False
) -> Measured:
    """As `measure_lengths`, of rows that were read already."""
    train, there = data.train, data.rows
    if not isinstance(train, Dataset):
        rows = list(train.take(SAMPLE))
        said = f"the first {len(rows):,} rows of the stream"
    elif all_rows or len(train) <= SAMPLE:
        rows, said = list(train), f"all {len(train):,} rows"
    else:
        drawn = np.random.default_rng(recipe.seed).choice(len(train), SAMPLE, replace=False)
        rows = list(train.select(np.sort(drawn)))
        said = f"{SAMPLE:,} of {len(train):,} rows, drawn by seed {recipe.seed}; --all-rows counts all"
    if not rows:
        raise DataError("there are no rows to train on: look at `data` of the recipe, its `split` first.")
    with quiet_libraries():
        return Measured(_lengths(recipe, tokenizer, rows), there, said)


def _lengths(recipe: TrainingRecipe, tokenizer: Any, rows: Sequence[Any]) -> Lengths:
    if "text" in rows[0]:
        counts = [len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
        return Lengths(np.zeros(len(rows), np.int64), np.array(counts, np.int64)[:, None])
    sides = [name for name in ("completion", "chosen", "rejected") if name in rows[0]]
    each = [tokenize_turns(tokenizer, [turn_of(row, side) for row in rows]) for side in sides]
    prompts = [min(_prompt(turn) for turn in turns) for turns in zip(*each, strict=True)]
    answers = [
        [len(turn.ids) - prompt for turn in turns]
        for prompt, turns in zip(prompts, zip(*each, strict=True), strict=True)
    ]
    return Lengths(np.array(prompts, np.int64), np.array(answers, np.int64))


def _prompt(row: TokenRow) -> int:
    return min(row.start, row.prompt_tokens)


def rows_alike(recipe: TrainingRecipe, length: int) -> Lengths:
    """Rows that are all so long, half of each a prompt."""
    answers = 2 if isinstance(recipe, PairRecipe) else 1
    prompt = 0 if recipe.stage == "pretrain" else length // 2
    rows = recipe.global_batch_size
    return Lengths(np.full(rows, prompt), np.full((rows, answers), length - prompt))


def assumptions(run: Run, measured: Measured, *, skips_padding: bool) -> list[str]:
    """What a plan takes for granted, in sentences."""
    setup = run.setup
    said = [f"Lengths: {measured.said}."]
    if run.batch.shared is not None:
        said.append("A pair's prompt is computed once for both its answers.")
    if setup.trainer not in ("reward", *WITHOUT_REFERENCE):
        said.append("The loss head projects answer tokens only, a tile of logits at a time.")
    if skips_padding:
        said.append("Padding is counted as if it were computed: this run leaves it out, and takes less.")
    if setup.optimiser not in OPTIMISERS:
        said.append(f"Optimiser {setup.optimiser}: taken to hold two numbers per trained weight.")
    if run.setup.trainer == "dpo" and setup.second_pass and setup.lora is not None:
        said.append("The reference is the base without its adapter: no second copy is held.")
    if not setup.on_cpu:
        said.append("The margin stands for what only a GPU shows: workspaces, fragmentation. Not measured.")
    if setup.processes > 1 and setup.strategy != "none":
        said.append(
            f"What {setup.processes} processes share under {setup.strategy} is arithmetic: not measured."
        )
    return said


def is_elsewhere(recipe: TrainingRecipe) -> bool:
    """Whether data or model are named by the hub, so that they may be missing here."""
    from handbook_utils.models.places import is_hub_name

    names = [recipe.model.name, *(source.name for source in recipe.data)]
    if recipe.model.name and Path(recipe.model.name).is_dir():
        return not list(Path(recipe.model.name).glob("tokenizer*")) or any(map(_is_hub, names[1:]))
    return any(name is not None and is_hub_name(name) for name in names)


def _is_hub(name: str | None) -> bool:
    from handbook_utils.models.places import is_hub_name

    return name is not None and is_hub_name(name)


def _mixed(recipe: TrainingRecipe, *, on_cpu: bool) -> torch.dtype | None:
    """What TRL computes in: bfloat16 unless told otherwise, and on a CPU as the weights are held."""
    if recipe.training.get("fp16"):
        return torch.float16
    is_bf16 = recipe.training.get("bf16")
    return torch.bfloat16 if is_bf16 or (is_bf16 is None and not on_cpu) else None


def _checkpoints(recipe: TrainingRecipe, *, on_cpu: bool) -> bool:
    given = {RENAMED.get(key, key): value for key, value in recipe.training.items()}
    return bool(given.get("activation_checkpointing", not on_cpu))


def _has_reference(recipe: TrainingRecipe) -> bool:
    precomputed = isinstance(recipe, DpoRecipe) and recipe.precomputes_reference
    return recipe.trainer in ("dpo", "kto") and not precomputed


def _reference(recipe: TrainingRecipe, half: torch.dtype | None, *, on_cpu: bool) -> Reference:
    keeps_start = isinstance(recipe, OnlineRecipe) and (
        bool(setting(recipe, "beta")) or recipe.held_out is not None
    )
    if (
        not (_has_reference(recipe) or keeps_start)
        or recipe.lora is not None
        or recipe.model.adapter == "continue"
    ):
        return "none"
    return "bfloat16 copy" if half is torch.bfloat16 and not on_cpu else "copy"


def _shares(recipe: TrainingRecipe, setup: Setup) -> bool:
    if not isinstance(recipe, PairRecipe) or recipe.shared_prefix == "off":
        return False
    return why_not_shared(skeleton(Step(setup.config, setup.trainer), 1)) is None
