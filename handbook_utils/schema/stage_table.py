"""The one list of stages: what each is, which command runs it, what it reads, leaves and logs.

To add a stage, add its recipe type to `training.py` or `stages.py` of this folder, its function where the
work is done, and one row to `STAGES`. Everything else follows: commands, messages, reports, JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from handbook_utils.schema.stages import (
    AnnotateRecipe,
    BestOfNRecipe,
    EvaluateRecipe,
    GenerateRecipe,
    PipelineRecipe,
    RejectionRecipe,
    ScoreRecipe,
    SelectRecipe,
)
from handbook_utils.schema.training import (
    CpoRecipe,
    DpoRecipe,
    GrpoRecipe,
    KtoRecipe,
    OrpoRecipe,
    PretrainRecipe,
    RewardRecipe,
    RlooRecipe,
    SftRecipe,
    StageRecipe,
    TrainingRecipe,
)

Kind = Literal["text", "conversation", "preference", "feedback", "prompt"]


@dataclass(frozen=True)
class Curves:
    """What a training run logs over its steps, by the keys of metrics.jsonl.

    Attributes:
        loss: what the loss is, as the label of its axis.
        rewards: label of each reward that is logged; {}: none is.
        accuracy: how often the chosen answer has the higher reward; None: not logged.
        moves: label of each figure that says how far a policy went; {}: none is logged.
    """

    loss: str = "loss"
    rewards: Mapping[str, str] = field(default_factory=dict)
    accuracy: str | None = None
    moves: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as recipes write it.
        recipe: its recipe's type.
        entry_point: "module:function" below `handbook_utils`, so that its libraries load only when it runs;
            `pipeline` alone resolves it. "": a pipeline, which is run stage by stage.
        command: of `handbook`, which runs its recipes.
        kind: what its rows are made into; None: it reads tables of earlier runs.
        table: what its run is for, and another stage reads; None: no rows.
        other_tables: further ones, read by `subset`.
        next_step: what the command line advises once a run is done; {run} is its folder.
        curves: what it logs while it trains; None: it trains nothing.
    """

    name: str
    recipe: type[StageRecipe]
    entry_point: str
    command: str
    kind: Kind | None = None
    table: str | None = None
    other_tables: tuple[str, ...] = ()
    curves: Curves | None = None
    next_step: str = ""

    @property
    def trains(self) -> bool:
        """Whether it leaves a trained model."""
        return issubclass(self.recipe, TrainingRecipe)


_PER_TOKEN = Curves("loss, nats per token")
_REWARDS = {"rewards/chosen": "chosen", "rewards/rejected": "rejected", "rewards/margins": "margin"}
_PAIRS = Curves(rewards=_REWARDS, accuracy="rewards/accuracies")
_ONLINE = Curves(
    rewards={"reward": "reward, trained on"},
    moves={"held_out/kl": "KL to the start model, held out, nats per answer", "entropy": "entropy per token"},
)
_REWARD_MODEL = Curves(rewards={"margin": "margin"}, accuracy="accuracy")

_CHAT = "talk to the model: handbook chat {run}"
_REPORT = "see its curves and figures: handbook report {run}"
_TRAIN_ON = "train on the {rows}: write data: [{{{{name: {{run}}}}}}] in a recipe of stage {stages}"

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "pretrain",
            PretrainRecipe,
            "training.stages:run_pretrain",
            "train",
            "text",
            curves=_PER_TOKEN,
            next_step=_REPORT,
        ),
        Stage(
            "sft",
            SftRecipe,
            "training.stages:run_sft",
            "train",
            "conversation",
            curves=_PER_TOKEN,
            next_step=_CHAT,
        ),
        Stage(
            "reward",
            RewardRecipe,
            "training.stages:run_reward",
            "train",
            "preference",
            curves=_REWARD_MODEL,
            next_step="score answers with it: handbook score ANSWERS.jsonl --scorer proxy={run}",
        ),
        Stage(
            "dpo", DpoRecipe, "training.stages:run_dpo", "train", "preference", curves=_PAIRS, next_step=_CHAT
        ),
        Stage(
            "orpo",
            OrpoRecipe,
            "training.stages:run_orpo",
            "train",
            "preference",
            curves=_PAIRS,
            next_step=_CHAT,
        ),
        Stage(
            "cpo", CpoRecipe, "training.stages:run_cpo", "train", "preference", curves=_PAIRS, next_step=_CHAT
        ),
        Stage(
            "kto",
            KtoRecipe,
            "training.stages:run_kto",
            "train",
            "feedback",
            curves=Curves(rewards=_REWARDS),
            next_step=_CHAT,
        ),
        Stage(
            "grpo", GrpoRecipe, "online.stage:run_grpo", "train", "prompt", curves=_ONLINE, next_step=_CHAT
        ),
        Stage(
            "rloo", RlooRecipe, "online.stage:run_rloo", "train", "prompt", curves=_ONLINE, next_step=_CHAT
        ),
        Stage(
            "generate",
            GenerateRecipe,
            "sampling.stages:run_generate",
            "generate",
            "prompt",
            "samples",
            next_step="score the answers: handbook score {run} --scorer NAME=MODEL",
        ),
        Stage(
            "annotate",
            AnnotateRecipe,
            "sampling.stages:run_annotate",
            "annotate",
            table="pairs",
            next_step=_TRAIN_ON.format(rows="pairs", stages="dpo or reward"),
        ),
        Stage(
            "score",
            ScoreRecipe,
            "sampling.scoring.stage:run_score",
            "score",
            table="scores",
            next_step="choose among the answers: handbook select {run} --by SCORE",
        ),
        Stage(
            "select",
            SelectRecipe,
            "sampling.selection.stage:run_select",
            "select",
            table="selected",
            other_tables=("control",),
            next_step=_TRAIN_ON.format(rows="answers", stages="sft"),
        ),
        Stage("best_of_n", BestOfNRecipe, "pipeline.best_of_n:run_best_of_n", "evaluate", next_step=_REPORT),
        Stage(
            "evaluate",
            EvaluateRecipe,
            "pipeline.evaluate:run_evaluate",
            "evaluate",
            "prompt",
            table="samples",
            next_step="compare it with another evaluation: handbook compare BASELINE {run}",
        ),
        Stage(
            "rejection",
            RejectionRecipe,
            "pipeline.rounds:run_rejection",
            "rejection-sample",
            "prompt",
            next_step=_CHAT,
        ),
        Stage("pipeline", PipelineRecipe, "", "run", next_step="open the report in a browser"),
    )
}


def stages_of(command: str) -> list[str]:
    """The stages whose recipes a command runs.

    >>> stages_of("evaluate")
    ['best_of_n', 'evaluate']
    """
    return [name for name, stage in STAGES.items() if stage.command == command]


def training_stages() -> list[str]:
    """The stages that leave a trained model."""
    return [name for name, stage in STAGES.items() if stage.trains]
