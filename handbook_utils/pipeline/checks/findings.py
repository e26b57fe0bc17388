"""What any check before training is made of: findings, what was not checked, versions, memory, disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from handbook_utils.chat.checks import check_chat_template
from handbook_utils.errors import HandbookError
from handbook_utils.libraries.versions import untested_versions
from handbook_utils.pipeline.inputs import check_inputs, resolve_inputs
from handbook_utils.planning.gpus import GIB, room_text
from handbook_utils.planning.report import Plan, plan_record, size_text
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.plan import setting

Light = Literal["green", "amber", "red"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        light: green: as it should be; amber: it runs, but look at it; red: it fails or learns nothing.
        says: what was found.
        remedy: what to do; "" where nothing is to be done.
    """

    check: str
    light: Light
    says: str
    remedy: str = ""


@dataclass(frozen=True)
class Preflight:
    """All findings about a recipe.

    Attributes:
        findings: in the order in which a run would meet them.
        plan: of its memory and time; None where it could not be made.
    """

    findings: tuple[Finding, ...]
    plan: Plan | None = None

    @property
    def light(self) -> Light:
        """The worst of all."""
        lights = {finding.light for finding in self.findings}
        return "red" if "red" in lights else "amber" if "amber" in lights else "green"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "light": self.light,
            "findings": [asdict(finding) for finding in self.findings],
            "plan": None if self.plan is None else plan_record(self.plan),
        }


class Findings(list[Finding]):
    """Findings, in the order in which a run would meet them."""

    def tried(self, check: str, work: Callable[[], Any]) -> Any:
        """What some work gives; None where it is refused, which is a finding."""
        try:
            return work()
        except HandbookError as error:
            self.append(Finding(check, "red", str(error), "Mend what it says; `train` refuses the same."))
            return None


def existing_folder(out: Path) -> Path:
    """The nearest folder above a place that is there already."""
    return next(folder for folder in (out, *out.resolve().parents) if folder.exists())


def split_text(recipe: TrainingRecipe, split: tuple[int, int, int], *, on_cpu: bool) -> str:
    """How a step's rows are split, in words."""
    rows, passes, processes = split
    said = (
        f"{rows} per device x {passes} {'pass' if passes == 1 else 'passes'} x "
        f"{processes} {'process' if processes == 1 else 'processes'} = {recipe.global_batch_size}"
    )
    if recipe.training.get("use_cpu") and not on_cpu:
        said += "; on a GPU: --gpu overrides the recipe's training.use_cpu: true"
    return said


def unchecked(needs: Mapping[str, Sequence[str]], findings: Sequence[Finding]) -> Iterator[Finding]:
    """What was not checked, because a check that it builds on is red.

    Args:
        needs: by the name of a check, the checks that have to pass before.
        findings: so far.
    """
    found = {finding.check for finding in findings}
    red = {finding.check for finding in findings if finding.light == "red"}
    by_cause: dict[str, list[str]] = {}
    for check, before in needs.items():
        cause = next((need for need in before if need in red), None)
        if check not in found and cause is not None:
            by_cause.setdefault(cause, []).append(check)
    for cause, checks in by_cause.items():
        says = f"not checked: {', '.join(checks)}; because '{cause}' is red"
        yield Finding("not checked", "amber", says, f"Mend '{cause}', then look again.")


def version_findings() -> Iterator[Finding]:
    """Whether the libraries are of releases that were tested."""
    untested = untested_versions()
    for sentence in untested:
        yield Finding("versions", "amber", sentence, "Install a tested release, or check the results.")
    if not untested:
        yield Finding("versions", "green", "all libraries are of tested releases")


def resolved_inputs(recipe: TrainingRecipe, out: Path) -> Mapping[str, Path]:
    """The earlier runs that a recipe reads, looked at."""
    inputs = resolve_inputs(recipe, out)
    check_inputs(recipe, inputs)
    return inputs


def template_findings(tokenizer: Any) -> Iterator[Finding]:
    """Whether the chat template renders what training relies on."""
    report = check_chat_template(tokenizer)
    levels: tuple[tuple[Light, Literal["error", "warning"]], ...] = (("red", "error"), ("amber", "warning"))
    for light, level in levels:
        for check in report.failed(level):
            yield Finding(f"template, {check.name}", light, check.message, check.remedy)
    if report.ok and not report.failed("warning"):
        yield Finding("template", "green", "all checks of the chat template pass")


def memory_findings(plan: Plan) -> Iterator[Finding]:
    """Whether the run fits, and roughly how long it takes."""
    size = f"{size_text(plan.memory.total)} on each device"
    size += ", a margin included that is not measured" if plan.memory.margin else ""
    if plan.gpu is None:
        yield Finding("memory", "green", f"{size}; no GPU named to compare with")
    elif plan.fits:
        yield Finding("memory", "green", f"{size}; fits {room_text(plan.gpu)}")
    else:
        ways = (change.how for change in plan.changes)
        written = " ".join(way if way.startswith("--") else f"--set {way}" for way in ways)
        remedy = written if plan.changes_fit else "See `handbook plan`: no change here makes it fit."
        yield Finding("memory", "red", f"{size}; more than {room_text(plan.gpu)}", remedy)
    if plan.duration.hours is not None:
        fastest, slowest = plan.duration.hours
        yield Finding("time", "green", f"very roughly {fastest:.2g} to {slowest:.2g} hours")


def disk_findings(recipe: TrainingRecipe, plan: Plan, out: Path) -> Iterator[Finding]:
    """Room for the checkpoints that are kept, one that is being written, and the model."""
    free = shutil.disk_usage(existing_folder(out)).free
    memory, processes = plan.memory, plan.run.setup.processes
    is_split = plan.run.setup.strategy in ("fsdp2", "zero3")
    optimiser = memory.optimiser * (processes if is_split or plan.run.setup.strategy == "zero2" else 1)
    weights = (memory.adapters or memory.weights) * (processes if is_split else 1)
    kept = setting(recipe, "save_total_limit") or 2
    saves = setting(recipe, "save_strategy") != "no"
    need = weights + ((kept + 1) * (weights + optimiser) if saves else 0)
    says = f"checkpoints and the model take up to {need / GIB:.2f} GiB, and {free / GIB:.1f} GiB are free"
    if need > free:
        remedy = (
            "Free some, write elsewhere (--out), or set `training.save_only_model` or `save_total_limit: 1`."
        )
        yield Finding("disk", "red", says, remedy)
    else:
        yield Finding("disk", "amber" if need > free / 2 else "green", says)
