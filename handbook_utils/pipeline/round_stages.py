"""A recipe of stage `rejection` as the ordinary stages that its rounds are made of; nothing is run here.

Each stage has a run folder of its own inside the run: `start-evaluate`, and for each round N
`round-N-samples`, `-scores`, `-selected`, `-model`, `-evaluate`, `-control` and `-evaluate-control`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel

from handbook_utils.schema.executor import RaySection
from handbook_utils.schema.sections import DataSource, ModelSection, Source, TrainedModelSection
from handbook_utils.schema.stages import (
    EvaluateRecipe,
    GenerateRecipe,
    RejectionRecipe,
    SamplingRecipe,
    ScoreRecipe,
    SelectRecipe,
)
from handbook_utils.schema.training import DpoRecipe, SftRecipe, StageRecipe

Part = TypeVar("Part")
Model = TypeVar("Model", bound=ModelSection)
TRAINED: dict[str, type[SftRecipe | DpoRecipe]] = {"sft": SftRecipe, "dpo": DpoRecipe}
# of a recipe that samples: what each stage of a round says for itself
OWN_FIELDS = {"stage", "description", "seed", "model", "data", "samples"}


def all_stages(recipe: RejectionRecipe) -> dict[str, StageRecipe]:
    """Every stage of every round by the name of its folder, in the order in which they run.

    Args:
        recipe: its `from` names are those that a run folder inside the run's can be given.
    """
    stages: dict[str, StageRecipe] = {
        "start-evaluate": _evaluation(recipe, _first_model(recipe), reference=None)
    }
    for number in range(1, recipe.rounds + 1):
        stages |= {f"round-{number}-{what}": stage for what, stage in round_stages(recipe, number).items()}
    return stages


def round_stages(recipe: RejectionRecipe, number: int) -> dict[str, StageRecipe]:
    """The stages of one round, by what they make."""
    seed, here = round_seed(recipe.seed, number), f"round-{number}"
    stages: dict[str, StageRecipe] = {
        "samples": _samples(recipe, number),
        "scores": ScoreRecipe(
            stage="score",
            seed=seed,
            data=[_rows(f"{here}-samples")],
            scorers=recipe.scorers,
            rows_per_batch=recipe.rows_per_batch,
            executor=recipe.executor if isinstance(recipe.executor, RaySection) else None,
        ),
        "selected": SelectRecipe(
            stage="select", seed=seed, data=[_rows(f"{here}-scores")], **dict(recipe.select)
        ),
        "model": _training(recipe, number, table=None),
        "evaluate": _evaluation(recipe, _model_of(recipe, f"{here}-model"), _first_model(recipe)),
    }
    if recipe.control:
        stages["control"] = _training(recipe, number, table="control")
        control = _model_of(recipe, f"{here}-control")
        stages["evaluate-control"] = _evaluation(recipe, control, _first_model(recipe))
    return stages


def round_seed(seed: int, number: int) -> int:
    """The seed of a round: that of the recipe for the first, drawn from it for later ones.

    Seeds in a row would give round 2 of one run the noise of round 1 of the run beside it.

    >>> round_seed(7, 1), round_seed(7, 2) == round_seed(8, 1)
    (7, False)
    """
    if number == 1:
        return seed
    digest = hashlib.blake2b(f"{seed} round {number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 2**31


def relocated(part: Part, place: Callable[[Source], str]) -> Part:
    """The same recipe or section, every `from` in it replaced by what `place` gives for it."""

    def moved(value: object) -> object:
        if isinstance(value, Source) and value.from_ is not None:
            value = value.model_copy(update={"from_": place(value)})
        if isinstance(value, BaseModel):
            return value.model_copy(
                update={name: moved(getattr(value, name)) for name in type(value).model_fields}
            )
        if isinstance(value, list):
            return [moved(item) for item in value]
        return {name: moved(item) for name, item in value.items()} if isinstance(value, Mapping) else value

    return moved(part)  # type: ignore[return-value]  # of the same type: only names in it are others


def _samples(recipe: RejectionRecipe, number: int) -> GenerateRecipe:
    """Another seed gives other answers, and would draw the prompts anew too: later rounds read the same ones
    from where round 1 answered them."""
    fresh, model = recipe.prompts == "fresh", _latest_model(recipe, number)
    data = recipe.data
    if fresh:
        data = [recipe.data[number - 1]]
    elif number > 1:
        data = [_rows("round-1-samples")]
    # for fresh ones no other seed is needed: noise is drawn by seed and prompt
    seed = recipe.seed if fresh else round_seed(recipe.seed, number)
    return GenerateRecipe(
        stage="generate", seed=seed, model=model, data=data, samples=recipe.samples, **_sampling(recipe)
    )


def _training(recipe: RejectionRecipe, number: int, *, table: str | None) -> StageRecipe:
    """SFT or DPO on what the rounds of the pool selected, or on its control."""
    pool = range(1, number + 1) if recipe.pool == "all_rounds" else [number]
    is_later = recipe.start == "previous" and number > 1
    return TRAINED[recipe.train.stage](
        **{
            **dict(recipe.train),
            "seed": round_seed(recipe.seed, number),
            "model": _trained_on(recipe, number) if is_later else recipe.model,
            "data": [_rows(f"round-{each}-selected", table) for each in pool],
        }
    )


def _trained_on(recipe: RejectionRecipe, number: int) -> TrainedModelSection:
    """The model of the round before, to be trained on; where that is an adapter, the same one."""
    is_adapter = recipe.train.lora is not None or recipe.model.adapter == "continue"
    changes = {"chat_template": None, "adapter": "continue" if is_adapter else None}
    return _from_run(recipe.model, f"round-{number - 1}-model").model_copy(update=changes)


def _evaluation(
    recipe: RejectionRecipe, model: ModelSection, reference: ModelSection | None
) -> EvaluateRecipe:
    return EvaluateRecipe(
        stage="evaluate",
        seed=recipe.seed,
        model=model,
        data=recipe.evaluate.data,
        samples=recipe.evaluate.samples,
        reference=reference,
        scorers={**recipe.scorers, **recipe.evaluate.scorers},
        **_sampling(recipe),
    )


def _sampling(recipe: RejectionRecipe) -> dict[str, object]:
    return {name: getattr(recipe, name) for name in SamplingRecipe.model_fields if name not in OWN_FIELDS}


def _latest_model(recipe: RejectionRecipe, number: int) -> ModelSection:
    return _first_model(recipe) if number == 1 else _model_of(recipe, f"round-{number - 1}-model")


def _first_model(recipe: RejectionRecipe) -> ModelSection:
    # what only training asks of a model is left out
    return ModelSection(**{name: getattr(recipe.model, name) for name in ModelSection.model_fields})


def _model_of(recipe: RejectionRecipe, run: str) -> ModelSection:
    return _from_run(_first_model(recipe), run)


def _from_run(section: Model, run: str) -> Model:
    return section.model_copy(update={"name": None, "revision": None, "from_": run})


def _rows(run: str, table: str | None = None) -> DataSource:
    return DataSource(from_=run, subset=table)
