"""What the pocket recipes give with other seeds, and which results of a run lie outside of that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from handbook_utils.pipeline.run import resolve_pipeline
from handbook_utils.records import Estimate
from handbook_utils.reporting.runs import RunView
from handbook_utils.schema.recipe import find_recipe, read_recipe_file, recipe_to_dict
from handbook_utils.schema.sections import PipelineStage

FILE: Final = Path(str(files("handbook_utils"))) / "recipes" / "pocket" / "expected.json"
PIPELINE: Final = "pocket/pipeline"
# what a card's `measured` calls its results
RESULTS: Final = "demo"
# of what a stage measures, what tells whether it went as it should
HEADLINES: Final = ("eval_loss", "accuracy", "agreement_with_gold", "gold")
# a pipeline has about twenty such figures: at 95 % one of them would lie outside in every run
LEVEL: Final = 0.99


@dataclass(frozen=True)
class Expected:
    """One figure of a stage, on seeds on which no setting was chosen.

    Attributes:
        value: mean over seeds.
        low: lower end of where one more run with another seed lies, with probability `LEVEL`.
        high: its upper end.
        n: seeds.
        unit: unit of the figure.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.3f} ({LEVEL:.0%} of runs with another seed: {self.low:.3f} to {self.high:.3f})"


def expect(figures: Sequence[Estimate]) -> Expected:
    """Student's t prediction interval for one more run, from the same figure of several runs.

    Args:
        figures: of at least two runs, each with a seed of its own.
    Source: Hahn & Meeker 1991, Statistical Intervals, section 4.7.

    >>> str(expect([Estimate(v, v, v, 0.95, 9, "score", "percentile") for v in (0.4, 0.5, 0.6)]))
    '0.500 (99% of runs with another seed: -0.646 to 1.646)'
    """
    values = np.array([figure.value for figure in figures])
    n = len(values)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n))
    mean = float(values.mean())
    return Expected(mean, mean - reach, mean + reach, n, figures[0].unit)


def expected_of(seeds: Sequence[Mapping[str, RunView]]) -> dict[str, Any]:
    """The file's content, from the pipeline's stages with several seeds."""
    settings = pipeline_settings()
    return {
        stage: {
            "settings": settings[stage],
            "figures": {
                name: asdict(expect([each[stage].final_metrics[name] for each in seeds]))
                for name in HEADLINES
                if name in view.final_metrics
            },
        }
        for stage, view in seeds[0].items()
    }


def pipeline_settings() -> dict[str, str]:
    """A fingerprint of what each stage's recipe sets; a field that a release adds does not change it."""
    pipeline, _ = resolve_pipeline(PIPELINE)
    return {name: _fingerprint(stage) for name, stage in pipeline.stages.items()}


def _fingerprint(stage: PipelineStage) -> str:
    written = [_settings(read_recipe_file(find_recipe(stage.recipe))), stage.changes]
    return blake2b(json.dumps(written, sort_keys=True).encode(), digest_size=8).hexdigest()


def expected_results(place: str) -> Mapping[str, Expected]:
    """What a stage of `pocket/pipeline` gives, by figure; {} where it has none, or none was measured.

    Args:
        place: as the `measured` of a recipe's card names it, such as "demo:sft".
    """
    results, _, stage = place.partition(":")
    return _stored().get(stage, {}) if results == RESULTS else {}


def unexpected(recipe: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> list[str]:
    """A line for each figure that lies where hardly any run of this recipe does; [] for other recipes.

    Args:
        recipe: as it was resolved, from the run's manifest; its seed does not matter.
        metrics: what the run measured.
    """
    if not metrics.keys() & set(HEADLINES):
        return []
    settings = _settings(recipe)
    stages = (stage for stage, known in _resolved().items() if known == settings)
    return [
        f"{name} is {metrics[name].value:.3f}; {LEVEL:.0%} of runs with another seed give {each.low:.3f} to "
        f'{each.high:.3f}. What can be wrong: chapter "Troubleshooting"'
        for stage in stages
        for name, each in _stored().get(stage, {}).items()
        if name in metrics and not each.low <= metrics[name].value <= each.high
    ]


@cache
def _resolved() -> dict[str, dict[str, Any]]:
    return {
        stage: _settings(recipe_to_dict(recipe)) for stage, recipe in resolve_pipeline(PIPELINE)[1].items()
    }


@cache
def _stored() -> dict[str, dict[str, Expected]]:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        stage: {name: Expected(**each) for name, each in found["figures"].items()}
        for stage, found in content.items()
    }


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the outcome, whatever the seed."""
    return {key: value for key, value in recipe.items() if key not in ("seed", "description")}
