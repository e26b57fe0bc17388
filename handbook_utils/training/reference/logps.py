"""DPO's reference, computed once before training: which model it is, and a pass over the rows that lack it.

The model that is about to be trained is the reference as it stands. So no second one is held, and each answer
of the data is computed once, like lengths together and a pair's prompt once, instead of once per epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handbook_utils.errors import TrainingError
from handbook_utils.models.fingerprint import model_fingerprint
from handbook_utils.models.logprobs import Floats, Sequenced, sequence_logprob_sums
from handbook_utils.models.places import INIT
from handbook_utils.models.precision import Loading
from handbook_utils.processes import rank, world_size
from handbook_utils.schema.training import DpoRecipe, TrainingRecipe
from handbook_utils.training.distributed import decided_by_main, wait_for_all
from handbook_utils.training.initial_model import held_quantization, load_options
from handbook_utils.training.plan import trains_on_cpu
from handbook_utils.training.reference.models import Pairs, prepared_pairs, with_reference_columns
from handbook_utils.training.reference.store import Reference, ReferenceStore, answer_key

LOGGER = logging.getLogger("handbook_utils")
# rows whose log-probabilities are stored together: what a kill loses at most
ROWS_PER_FILE = 1000
FOLDER = "reference_logps"
# the key of a sequence whose answer was cut off whole: nothing is summed
NOTHING = b""
ADAPTERS = {"continue": "on its base", "stack": "merged", "merge": "merged"}

Measure = Callable[[Sequence[Sequenced]], Floats]


def reference_store(recipe: TrainingRecipe, source: str, run: Path) -> ReferenceStore | None:
    """Where a run keeps its reference's log-probabilities; None where it computes none in advance.

    Args:
        recipe: of a training stage.
        source: where its start model is.
        run: the run folder; the store is there unless the recipe names another place.
    Raises:
        ModelError, DataError: the folder belongs to another reference, is none, or is damaged.
    """
    if not (isinstance(recipe, DpoRecipe) and recipe.precomputes_reference):
        return None
    named = recipe.reference_logps
    folder = run / FOLDER if named is None else Path(named).expanduser()
    store = ReferenceStore(folder, reference_of(recipe, source))
    store.check()
    return store


def reference_of(recipe: TrainingRecipe, source: str) -> Reference:
    """The reference of a recipe; a new adapter on it makes no difference, for it changes nothing yet."""
    section = recipe.model
    held_in = Loading("causal", **load_options(recipe)).torch_dtype
    drawn = f"{INIT}, seed {recipe.seed}"
    return Reference(
        model=Path(source).name if Path(source).exists() else source,
        weights=drawn if source == INIT else model_fingerprint(source, revision=section.revision),
        adapter=ADAPTERS.get(section.adapter or ""),
        quantization=held_quantization(recipe, source),
        held_in=_name(held_in),
        computed_in=_name(_mixed_precision(recipe) or held_in),
    )


def _mixed_precision(recipe: TrainingRecipe) -> torch.dtype | None:
    """What TRL computes in: bfloat16 unless told otherwise, and on a CPU as `trainer_arguments` says."""
    is_fp16 = bool(recipe.training.get("fp16"))
    is_bf16 = recipe.training.get("bf16")
    if is_bf16 is None:
        is_bf16 = not is_fp16 and not trains_on_cpu(recipe)
    return torch.float16 if is_fp16 else torch.bfloat16 if is_bf16 else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def add_reference_logps(trainer: Any, store: ReferenceStore) -> dict[str, int]:
    """Give a DPO trainer that has not trained yet the columns its reference would compute.

    Several processes compute a share each; all have to call this.

    Args:
        trainer: with rows it has prepared; its model is the reference, adapter included.
        store: read first, and extended by what it lacks.
    Returns:
        `answers` of all rows, and how many of them were `computed`, over all processes.
    Raises:
        TrainingError: a log-probability is not a number.
        DataError, ModelError: the store is damaged, or belongs to another reference.
    """
    counts = {"answers": 0, "computed": 0}

    def measure(sequences: Sequence[Sequenced]) -> Floats:
        return _measured(trainer, sequences)

    for split in ("train_dataset", "eval_dataset"):
        rows = getattr(trainer, split)
        pairs = None if rows is None else prepared_pairs(trainer, rows)
        if pairs is not None:
            logps, computed = pair_logps(pairs, store, measure)
            setattr(trainer, split, with_reference_columns(rows, logps))
            counts["answers"] += logps.size
            counts["computed"] += computed
    return counts


def _measured(trainer: Any, sequences: Sequence[Sequenced]) -> Floats:
    model, arguments = trainer.model, trainer.args
    pairs = arguments.precompute_ref_batch_size or arguments.per_device_eval_batch_size
    half = torch.float16 if arguments.fp16 else torch.bfloat16
    was_training = model.training
    model.eval()
    for layer in model.modules():
        if type(layer).__module__.startswith("bitsandbytes"):
            layer.train()  # on a CPU int8 layers round their input, too, when they are not trained
    with torch.autocast(model.device.type, half, enabled=arguments.fp16 or arguments.bf16):
        sums, _ = sequence_logprob_sums(
            model, sequences, pad_token_id=trainer.processing_class.pad_token_id, batch_size=2 * pairs
        )
    model.train(was_training)
    return sums


def pair_logps(pairs: Pairs, store: ReferenceStore, measure: Measure) -> tuple[Floats, int]:
    """Log-probabilities of the answers of many pairs, read from a store or computed into it.

    Args:
        pairs: rows as the trainer has prepared them.
        store: of the model that `measure` asks.
        measure: (sequences,) to (sequences,) log-probabilities of their answers, natural log.
    Returns:
        ((rows, 2) of chosen and rejected, how many sequences all processes together had to compute).
    """
    keys, sizes = [], []
    for sequences in pairs:
        keys.append([_key(sequence) for sequence in sequences])
        sizes.append(sum(len(ids) for ids, _ in sequences))
    wanted = {key for row in keys for key in row} - {NOTHING}
    known = store.read(decided_by_main(store.open), wanted)
    missing = wanted - known.keys()
    if missing:
        LOGGER.info("reference log-probabilities: %d of %d answers to compute", len(missing), len(wanted))
        # longest first: what does not fit into memory fails at once, and processes get like shares
        todo = sorted(_unclaimed(keys, missing), key=lambda item: -sizes[item[0]])
        _compute(todo[rank() :: world_size()], pairs, store, measure)
        wait_for_all()
        known = store.read(decided_by_main(store.files), wanted)
    known[NOTHING] = 0.0
    return pairs.summed(np.array([[known[key] for key in row] for row in keys])), len(missing)


def _key(sequence: Sequenced) -> bytes:
    ids, start = sequence
    return answer_key(sequence) if len(ids) > max(start, 1) else NOTHING


def _unclaimed(keys: Sequence[Sequence[bytes]], missing: set[bytes]) -> Iterator[tuple[int, list[int]]]:
    """(row, places in it) of what is missing, each key at the first place that has it."""
    left = set(missing)
    for row, row_keys in enumerate(keys):
        places = []
        for place, key in enumerate(row_keys):
            if key in left:
                left.remove(key)
                places.append(place)
        if places:
            yield row, places


def _compute(
    todo: Sequence[tuple[int, list[int]]], pairs: Pairs, store: ReferenceStore, measure: Measure
) -> None:
    """Compute and store this process's share, a file at a time."""
    for first in range(0, len(todo), ROWS_PER_FILE):
        some = todo[first : first + ROWS_PER_FILE]
        rows = zip(pairs.select([row for row, _ in some]), some, strict=True)
        sequences = [row[place] for row, (_, places) in rows for place in places]
        logps = measure(sequences)
        if not np.isfinite(logps).all():
            raise TrainingError(
                "the reference gives an answer a log-probability that is not a number, so no loss could be "
                "one. The start model's weights are broken, or overflow in half precision: take bf16."
            )
        store.add([_key(sequence) for sequence in sequences], logps)
        LOGGER.info("reference log-probabilities: %d of %d pairs here", first + len(some), len(todo))
