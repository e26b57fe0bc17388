"""From a recipe to the engine it names; only that one's libraries are loaded."""

from __future__ import annotations

from handbook_utils.data.load import Locator
from handbook_utils.errors import RecipeError
from handbook_utils.sampling.generation.engines.interface import Engine
from handbook_utils.sampling.generation.speculative import Speculation
from handbook_utils.schema.engines import EndpointSection, VllmSection
from handbook_utils.schema.stages import GenerateRecipe, SamplingRecipe


def load_engine(recipe: SamplingRecipe, location: str, run: Locator | None = None) -> Engine:
    """The engine of a recipe, its model loaded.

    Args:
        recipe: says which engine, and how it is to load the model.
        location: the model: run folder, path, hub or `pocket:` name; for an endpoint its name there.
        run: finds the scorer of `speculative`.
    Raises:
        RecipeError: an endpoint's key is not in the environment, or `speculative` without a `run`.
        ModelError: no such model, or one that the engine cannot load.
        MissingDependencyError: vLLM is not installed.
    """
    section = recipe.engine
    if isinstance(section, EndpointSection):
        from handbook_utils.sampling.generation.engines.endpoint import EndpointEngine

        skip = recipe.long_prompts == "skip" or recipe.bad_prompts == "skip"
        return EndpointEngine(section, location, skip_refused=skip)
    if isinstance(section, VllmSection):
        from handbook_utils.sampling.generation.engines.vllm import load_vllm

        return load_vllm(section, recipe.model, location, long_prompts=recipe.long_prompts)
    from handbook_utils.models.load import load_pair, options_of
    from handbook_utils.sampling.generation.generate import TransformersEngine

    speculation = _speculation(recipe, run)
    model, tokenizer = load_pair(location, **options_of(recipe.model))
    return TransformersEngine(model, tokenizer, recipe.long_prompts, speculation)


def _speculation(recipe: SamplingRecipe, run: Locator | None) -> Speculation | None:
    section = recipe.speculative if isinstance(recipe, GenerateRecipe) else None
    if section is None:
        return None
    if run is None:
        raise RecipeError("`speculative` does not work in several processes. Leave `executor` out.")
    from handbook_utils.sampling.scoring.scorers.load import load_scorers

    [scorer] = load_scorers({"beginning": section.scorer}, run, rows_per_batch=recipe.rows_per_batch)
    return Speculation(scorer, "beginning", section.after, section.alpha)
