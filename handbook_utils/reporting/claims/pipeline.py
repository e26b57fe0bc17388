"""What the packaged pipeline is claimed to show, and for each claim how it must break: data, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from handbook_utils.errors import ClaimError, RunFolderError
from handbook_utils.reporting.claims import breaks
from handbook_utils.reporting.claims.claim import ClaimRecord, Relation, make_claim, show_claim, write_claim
from handbook_utils.reporting.runs import RunView, get_run

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Sabotage:
    """A way to break the pipeline under which a claim has to fail.

    Attributes:
        stage: the stage whose tables or recipe are broken.
        says: what is broken, in words.
        table: changes each table that the stage wrote; the stage itself is not run again.
        changes: overrides of the stage's recipe, by dotted key; the stage is run again.
    """

    stage: str
    says: str
    table: Callable[[pa.Table], pa.Table] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (self.table is None) == bool(self.changes), "a sabotage breaks either the tables or the recipe"

    @property
    def key(self) -> tuple[str, str]:
        """Sabotages with the same key need one rerun between them."""
        return self.stage, self.says


@dataclass(frozen=True)
class Claim:
    """A sentence about the pipeline that its figures have to carry.

    Attributes:
        id: name of the claim and of its record.
        says: the sentence.
        run: the stage that measures the figure.
        figure: the figure's name in that stage's result.
        relation: ">" or "<".
        bound: what the interval has to clear.
        sabotages: at least one way to break the pipeline under which the claim must fail.
        wording: "observation" where the margin over fresh seeds is too small for more (`margins.wording`);
            a test holds it to the stored calibration.
    """

    id: str
    says: str
    run: str
    figure: str
    relation: Relation
    bound: float
    sabotages: tuple[Sabotage, ...]
    wording: Literal["claim", "observation"] = "observation"

    def record(self, views: Mapping[str, RunView]) -> ClaimRecord:
        """What these runs measured for the claim; nothing is asserted.

        Raises:
            RunFolderError: the stage or the figure is missing, or the stage is unfinished.
        """
        view = get_run(views, self.run)
        if self.figure not in view.final_metrics:
            raise RunFolderError(
                f"claim '{self.id}': the {view.status} run {view.path} has no figure '{self.figure}'; "
                f"it has {', '.join(sorted(view.final_metrics)) or 'none'}."
            )
        return make_claim(self.id, view.final_metrics[self.figure], self.relation, self.bound, says=self.says)


def _untrained(stage: str) -> Sabotage:
    return Sabotage(stage, "one step with learning rate 0", changes=_NO_TRAINING)


_NO_TRAINING = {"training.max_steps": 1, "training.learning_rate": 0.0}
_WORST_BEST = Sabotage("scores", "the proxy with the wrong sign", breaks.negate("proxy"))
_SWAPPED = Sabotage("preferences", "chosen and rejected swapped", breaks.swap_chosen_and_rejected)
_SWAPPED_CONTROL = Sabotage(
    "preferences-control", "chosen and rejected swapped", breaks.swap_chosen_and_rejected
)
_NO_DPO = Sabotage(
    "evaluate-dpo", "the SFT model evaluated in place of the DPO model", changes={"model.from": "sft"}
)
_WORST_RFT = Sabotage("rft-scores", "the proxy with the wrong sign", breaks.negate("proxy"))
_NO_RFT = Sabotage(
    "evaluate-rft", "the SFT model evaluated in place of the fine-tuned one", changes={"model.from": "sft"}
)

PIPELINE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "sft-beats-base",
        "Supervised fine-tuning raises gold reward over the pre-trained base",
        "evaluate-sft",
        "gold_gain_vs_evaluate-base",
        ">",
        0.0,
        (_untrained("sft"),),
        wording="claim",
    ),
    Claim(
        "reward-agrees-with-gold",
        "The reward model ranks held-out pairs as the gold reward does more often than a coin would",
        "reward",
        "accuracy_gold",
        ">",
        0.5,
        (_untrained("reward"), _SWAPPED),
    ),
    Claim(
        "unbiased-reward-agrees-with-gold",
        "Learned from an unbiased annotator, it does so in more than 65 % of cases",
        "reward-control",
        "accuracy_gold",
        ">",
        0.65,
        (_untrained("reward-control"), _SWAPPED_CONTROL),
    ),
    Claim(
        "best-of-4-beats-one",
        "The best of four samples by the reward model has a higher gold reward than a single sample",
        "best-of-n",
        "proxy.gold_gain@4",
        ">",
        0.0,
        (_WORST_BEST, Sabotage("scores", "one constant proxy for all samples", breaks.constant("proxy"))),
    ),
    Claim(
        "proxy-keeps-rising",
        "From best-of-4 to best-of-64 the selecting reward goes on rising",
        "best-of-n",
        "proxy.score_late_gain@64",
        ">",
        0.0,
        (Sabotage("scores", "one constant proxy for all samples", breaks.constant("proxy")),),
    ),
    Claim(
        "gold-turns-down",
        "From best-of-4 to best-of-64 the gold reward falls: the reward model is over-optimised",
        "best-of-n",
        "proxy.gold_late_gain@64",
        "<",
        0.0,
        (Sabotage("scores", "the gold reward itself as the proxy", breaks.replace("proxy", "gold")),),
    ),
    Claim(
        "rft-beats-sft",
        "Fine-tuning on the best of several samples raises gold reward over SFT",
        "evaluate-rft",
        "gold_gain_vs_evaluate-sft",
        ">",
        0.0,
        (_NO_RFT, _WORST_RFT),
    ),
    Claim(
        "rft-beats-random-control",
        "Selection makes that gain: as many samples chosen at random give less",
        "evaluate-rft",
        "gold_gain_vs_evaluate-rft-control",
        ">",
        0.0,
        (
            Sabotage(
                "evaluate-rft",
                "the control's model evaluated in place of the selected one",
                changes={"model.from": "rft-control"},
            ),
            _WORST_RFT,
        ),
    ),
    Claim(
        "dpo-beats-sft",
        "DPO raises gold reward over SFT on the same held-out prompts",
        "evaluate-dpo",
        "gold_gain_vs_evaluate-sft",
        ">",
        0.0,
        (_NO_DPO, _SWAPPED),
        wording="claim",
    ),
    Claim(
        "dpo-wins",
        "An answer of the DPO model beats an answer of the SFT model to the same prompt more often than not",
        "evaluate-dpo",
        "win_rate_vs_evaluate-sft",
        ">",
        0.5,
        (_NO_DPO, _SWAPPED),
        wording="claim",
    ),
)


def check_pipeline_claims(views: Mapping[str, RunView]) -> list[ClaimRecord]:
    """Draw and record every claim of the pipeline.

    Raises:
        ClaimError: names all that do not hold, after all were drawn and recorded.
        RunFolderError: a figure is missing.
    """
    records = [each.record(views) for each in PIPELINE_CLAIMS]
    for record in records:
        show_claim(record)
        write_claim(record)
    failed = [record.id for record in records if not record.holds]
    if failed:
        raise ClaimError(f"{len(failed)} of {len(records)} claims do not hold: {', '.join(failed)}.")
    return records
