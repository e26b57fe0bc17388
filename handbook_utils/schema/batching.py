"""What a recipe says of which rows are computed together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

# losses that compare the rows of a batch, or keep a running mean of them: what a batch holds changes them
OF_A_BATCH = ("aot", "aot_unpaired", "bco_pair")


def _spelled_out(value: Any) -> Any:
    # YAML 1.1 reads a bare on or off as true or false
    return ("on" if value else "off") if isinstance(value, bool) else value


OnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_spelled_out)]


def check_batching(recipe: Any) -> Any:
    """Raise ValueError for a training recipe whose batches cannot be made as it says."""
    asked = [
        name
        for name, value in {
            "length_batching": recipe.length_batching,
            "max_tokens_per_batch": recipe.max_tokens_per_batch,
        }.items()
        if value
    ]
    if not asked:
        return recipe
    training = recipe.training
    losses = training.get("loss_type", ())
    unfit = set([losses] if isinstance(losses, str) else losses) & set(OF_A_BATCH)
    problems = {
        "`{}` puts rows in order, and a stream has none: no `streaming`.": recipe.streaming,
        "`{}` is for rows of unlike length, and packing makes them alike: drop one of the two.": training.get(
            "packing"
        ),
        "`{}` and `training.train_sampling_strategy` both say which rows stand together: drop one.": (
            "train_sampling_strategy" in training
        ),
        f"`{{}}` changes which rows are compared by the loss {', '.join(sorted(unfit))}: drop one.": unfit,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem.format(asked[0]))
    if recipe.max_tokens_per_batch:
        _check_budget(recipe)
    return recipe


def _check_budget(recipe: Any) -> None:
    if recipe.trainer == "orpo":
        raise ValueError(
            "`max_tokens_per_batch` cuts a step into passes of unlike size, and a part of ORPO's loss is a "
            "mean over the tokens of each: take `length_batching`."
        )
    if "per_device_train_batch_size" in recipe.training:
        raise ValueError(
            "`max_tokens_per_batch` says how much a device takes at once, and so does "
            "`training.per_device_train_batch_size`: drop one."
        )
    if recipe.launch.strategy in ("zero2", "zero3"):
        raise ValueError(
            "`max_tokens_per_batch` counts the passes of a step when the rows are known, and DeepSpeed has "
            "to know before: take `launch.strategy` ddp or fsdp2."
        )
