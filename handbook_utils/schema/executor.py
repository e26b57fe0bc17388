"""The section `executor` of recipes that sample or score: by whom it is done. It changes no result."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from handbook_utils.schema.sampling import JudgeSection
from handbook_utils.schema.sections import Section


def checked_ray_address(address: str | None) -> str | None:
    """The address of a Ray cluster, if this process can be part of what is there.

    Raises:
        ValueError: written otherwise, or that of a Ray client.
    """
    if address is None or address in ("auto", "local") or re.fullmatch(r"[^\s/:]+:\d+", address):
        return address
    if address.startswith("ray://"):
        raise ValueError(
            f"'{address}' is for a client outside the cluster. Run the command on a machine of the cluster, "
            "where `address: auto` finds it."
        )
    raise ValueError(f"'{address}' is no address of a Ray cluster. Write HOST:PORT, auto or local.")


class ProcessesSection(Section):
    """Several processes of this machine; on GPUs each takes one, in turns."""

    kind: Literal["processes"]
    workers: PositiveInt = 2


class RaySection(Section):
    """Workers on a Ray cluster (extra `ray`); each holds the model and makes one file after the other."""

    kind: Literal["ray"]
    address: str | None = Field(
        None,
        description="HOST:PORT; auto: the cluster this machine is part of; local: one of this run's own, on "
        "this machine; absent: RAY_ADDRESS, and without that local",
    )
    workers: Literal["auto"] | PositiveInt = Field("auto", description="auto: as many as have room")
    gpus_per_worker: Literal["auto"] | NonNegativeInt = Field(
        "auto", description="auto: where the cluster has any, 1, or engine.tensor_parallel"
    )

    _is_address = field_validator("address")(checked_ray_address)


ExecutorSection = Annotated[ProcessesSection | RaySection, Field(discriminator="kind")]


def check_executor(recipe: Any) -> Any:
    """Raise ValueError for a recipe that workers elsewhere could not follow."""
    if not isinstance(recipe.executor, RaySection):
        return recipe
    evaluated = getattr(getattr(recipe, "evaluate", None), "scorers", {})  # of rounds
    found = {f"scorers.{name}": section for name, section in getattr(recipe, "scorers", {}).items()}
    found |= {f"evaluate.scorers.{name}": section for name, section in evaluated.items()}
    for name, section in found.items():
        if isinstance(section, JudgeSection):
            raise ValueError(
                f"{name}: a judge is asked from one process, for its replies and the bound on them "
                "are one file. Score by it in a run without `executor`."
            )
    return recipe
