"""Reading runs for reports: one stage, or all stages of a pipeline and which of them feeds which."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from handbook_utils.errors import RunFolderError, suggest
from handbook_utils.pipeline.run import PIPELINE_FILE, resolve_pipeline
from handbook_utils.records import Estimate, RunResult
from handbook_utils.runs.folder import MANIFEST, read_result
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.schema.recipe import recipe_to_dict
from handbook_utils.schema.stage_table import STAGES, Curves

STATUSES = ("finished", "running", "failed", "planned")


@dataclass(frozen=True)
class RunView:
    """One stage's run folder as a report sees it, finished or not.

    Attributes:
        name: the stage's name in its pipeline, or the folder's name.
        path: the run folder; it need not exist for a planned stage.
        stage: the kind of stage ("sft", "evaluate", ...).
        status: one of `STATUSES`; a killed run still says "running".
        recipe: the resolved recipe's content.
        manifest: the whole manifest; empty for a planned stage.
        result: the final figures; None unless finished.
    """

    name: str
    path: Path
    stage: str
    status: str
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    result: RunResult | None = None

    @property
    def final_metrics(self) -> Mapping[str, Estimate]:
        """What was measured at the end, by name; empty unless finished."""
        return self.result.final_metrics if self.result else {}

    @property
    def curves(self) -> Curves | None:
        """What it logs while it trains; None: its stage trains nothing."""
        known = STAGES.get(self.stage)
        return known.curves if known else None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the runs that the recipe reads, in its order, each once."""
        return tuple(dict.fromkeys(sources_in(self.recipe)))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, by step."""
        return read_metrics(self.path)


def read_run(run: RunView | RunResult | Path | str) -> RunView:
    """Read one run folder.

    Raises:
        RunFolderError: it is no run folder, or its manifest is damaged.
    """
    if isinstance(run, RunView):
        return run
    path = Path(run.path if isinstance(run, RunResult) else run)
    manifest = read_manifest(path)
    status = str(manifest["status"])
    try:
        result = read_result(path) if status == "finished" else None
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}/result.json: damaged or missing. Run the stage again.") from error
    return RunView(path.resolve().name, path, manifest["stage"], status, manifest["recipe"], manifest, result)


def read_pipeline(out: Path | str) -> dict[str, RunView]:
    """Read every stage below a pipeline's folder, in an order in which they can run.

    Stages that the pipeline names and that have not begun appear as planned.

    Raises:
        RunFolderError: the folder holds no run.
    """
    folder = Path(out)
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    views = {view.name: view for view in map(read_run, found)}
    for name, recipe in _planned(folder).items():
        views.setdefault(name, RunView(name, folder / name, str(recipe["stage"]), "planned", recipe))
    if not views:
        problem = "holds no run" if folder.is_dir() else "no such folder"
        raise RunFolderError(
            f"{folder}: {problem}. Give a run folder, or the folder that `handbook run` wrote (--out)."
        )
    return in_order(views)


def read_runs(runs: Path | str | Sequence[Path | str]) -> dict[str, RunView]:
    """Read what a user names: run folders, a pipeline's folder, or several of either.

    Raises:
        RunFolderError: something named is neither.
    """
    views: dict[str, RunView] = {}
    for path in [runs] if isinstance(runs, Path | str) else runs:
        folder = Path(path)
        found = [read_run(folder)] if (folder / MANIFEST).exists() else []
        if not found or found[0].stage == "rejection":  # its rounds are runs inside
            found += read_pipeline(folder).values()
        for view in found:
            # runs of two pipelines may share names: the parent's name keeps them apart
            name = view.name if view.name not in views else f"{view.path.resolve().parent.name}/{view.name}"
            views[name] = view
    return in_order(views)


def get_run(views: Mapping[str, RunView], name: str) -> RunView:
    """The stage of that name.

    Raises:
        RunFolderError: there is none; the nearest name is given.
    """
    if name not in views:
        raise RunFolderError(f"no stage '{name}' among these runs. {suggest(name, views)}")
    return views[name]


def sources_in(recipe: Any) -> list[str]:
    """All `from` names in a recipe's content.

    >>> sources_in({"model": {"from": "sft"}, "data": [{"from": "pairs"}]})
    ['sft', 'pairs']
    """
    if isinstance(recipe, Mapping):
        own = [recipe["from"]] if isinstance(recipe.get("from"), str) else []
        return own + [
            name for key, value in recipe.items() if key != "training" for name in sources_in(value)
        ]
    if isinstance(recipe, list):
        return [name for item in recipe for name in sources_in(item)]
    return []


def edges(views: Mapping[str, RunView]) -> list[tuple[str, str]]:
    """(earlier, later) for every stage that reads another of these."""
    return [(source, name) for name, view in views.items() for source in view.inputs if source in views]


def descendants(views: Mapping[str, RunView], name: str) -> set[str]:
    """Stages that read `name`, directly or through others; not `name` itself."""
    return _reached(name, edges(views))


def ancestors(views: Mapping[str, RunView], name: str) -> set[str]:
    """Stages that `name` reads, directly or through others; not `name` itself."""
    return _reached(name, [(later, earlier) for earlier, later in edges(views)])


def in_order(views: Mapping[str, RunView]) -> dict[str, RunView]:
    """The same stages, each after all it reads; otherwise in order of their start, planned ones last."""
    waiting = sorted(views, key=lambda name: (str(views[name].manifest.get("started") or "~"), name))
    ordered: dict[str, RunView] = {}
    while waiting:
        ready = [name for name in waiting if all(s in ordered for s in views[name].inputs if s in views)]
        if not ready:
            raise RunFolderError(f"these stages read each other in a circle: {', '.join(waiting)}.")
        ordered[ready[0]] = views[ready[0]]
        waiting.remove(ready[0])
    return ordered


def _reached(start: str, arrows: Iterable[tuple[str, str]]) -> set[str]:
    arrows = list(arrows)
    reached: set[str] = set()
    frontier = {start}
    while frontier:
        frontier = {to for source, to in arrows if source in frontier} - reached
        reached |= frontier
    return reached - {start}


def _planned(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Recipes of all stages that the pipeline in this folder names."""
    if not (folder / PIPELINE_FILE).is_file():
        return {}
    _, stages = resolve_pipeline(folder / PIPELINE_FILE)
    return {name: recipe_to_dict(recipe) for name, recipe in stages.items()}
