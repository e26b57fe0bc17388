"""What the packaged pipeline is claimed to show, and for each claim how it must break: data, in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handbook_utils.errors import ClaimError, RunFolderError
from handbook_utils.reporting.claims import breaks
from handbook_utils.reporting.claims.claim import ClaimRecord, Relation, make_claim, show_claim, write_claim
from handbook_utils.reporting.claims.line_breaks import check_mechanism
from handbook_utils.reporting.runs import RunView, get_run

if TYPE_CHECKING:
    import pyarrow as pa

# of `book/results/calibration.json` what is about the pipeline, written by `calibrate`
FRESH_SEEDS = Path(__file__).with_name("fresh_seeds.json")


@dataclass(frozen=True)
class Sabotage:
    """A way to break the pipeline under which a claim has to fail: its tables, a recipe, or a line of code.

    Attributes:
        name: lower-case words joined by hyphens, unique; sabotages of one name need one rerun between them.
        stage: the stage whose tables, recipe or code are broken.
        mechanism: what is broken, one of `notebook_breaks.MECHANISMS`.
        says: how it is broken, in words.
        table: changes each table that the stage wrote; the stage itself is not run again.
        changes: overrides of the stage's recipe, by dotted key; the stage is run again.
        code: (function, old, new) as `line_breaks.break_package` takes them; the stage is run again by it.
    """

    name: str
    stage: str
    mechanism: str
    says: str
    table: Callable[[pa.Table], pa.Table] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    code: tuple[str, str, str] | None = None

    def __post_init__(self) -> None:
        given = [self.table is not None, bool(self.changes), self.code is not None]
        assert sum(given) == 1, "a sabotage breaks tables, a recipe, or code"
        check_mechanism(str([*self.changes.items(), *(self.code or ())]), f"sabotage '{self.name}'")

    @property
    def line(self) -> str:
        """What is changed, for a reader."""
        if self.code is not None:
            function, old, new = self.code
            return f"{function}: {old} -> {new}"
        if self.table is not None:
            return f"tables of {self.stage}: {self.says}"
        return f"{self.stage}: " + ", ".join(f"{key} = {value}" for key, value in self.changes.items())


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
        sabotages: ways to break the pipeline under which the claim must fail, of two mechanisms at least.
    """

    id: str
    says: str
    run: str
    figure: str
    relation: Relation
    bound: float
    sabotages: tuple[Sabotage, ...]

    @property
    def fresh(self) -> Mapping[str, Any] | None:
        """The figure over fresh seeds of the packaged pipeline; None where nobody has tried."""
        return _fresh_seeds().get(self.id)

    @property
    def wording(self) -> str:
        """What the margin over fresh seeds allows (`margins.wording`)."""
        return str(self.fresh["wording"]) if self.fresh else "observation"

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


@cache
def _fresh_seeds() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FRESH_SEEDS.read_text(encoding="utf-8"))
    return found


_BASE_FOR_SFT = Sabotage(
    "base-for-sft",
    "evaluate-sft",
    "model",
    "the base is evaluated in place of the SFT model",
    changes={"model": {"name": "pocket:base"}},
)
_ANSWERS_OF_OTHERS = Sabotage(
    "answers-of-others",
    "sft",
    "data",
    "SFT learns from answers to other questions",
    code=(
        "data.pocket_rows:_demonstrations",
        "for prompt, answer in made]",
        "for (prompt, _), (_, answer) in zip(made, made[1:] + made[:1])]",
    ),
)
_SWAPPED = Sabotage(
    "swapped-pairs",
    "preferences",
    "labels",
    "chosen and rejected swapped",
    breaks.swap_chosen_and_rejected,
)
_SWAPPED_CONTROL = Sabotage(
    "swapped-control-pairs",
    "preferences-control",
    "labels",
    "the control's chosen and rejected swapped",
    breaks.swap_chosen_and_rejected,
)
_OTHERS_GOLD = Sabotage(
    "gold-of-the-other",
    "heldout-preferences",
    "measure",
    "each held-out answer has the gold reward of the other",
    breaks.swap("gold_chosen", "gold_rejected"),
)
_OTHERS_GOLD_CONTROL = Sabotage(
    "gold-of-the-other-control",
    "heldout-preferences-control",
    "measure",
    "each of the control's held-out answers has the gold reward of the other",
    breaks.swap("gold_chosen", "gold_rejected"),
)
_WORST_BEST = Sabotage(
    "worst-of-n", "scores", "judge", "the proxy with the wrong sign", breaks.negate("proxy")
)
_NEXT_ROW = Sabotage(
    "proxy-of-the-next",
    "scores",
    "data",
    "each sample has the proxy of the sample before it",
    breaks.shift("proxy"),
)
_CONSTANT = Sabotage(
    "constant-proxy", "scores", "judge", "one constant proxy for all samples", breaks.constant("proxy")
)
_GOLD_PROXY = Sabotage(
    "gold-as-proxy",
    "scores",
    "judge",
    "the gold reward itself as the proxy",
    breaks.replace("proxy", "gold"),
)
_GREEDY = Sabotage(
    "greedy-samples",
    "heldout",
    "sampling",
    "all samples of a prompt are the likeliest answer",
    changes={"temperature": 0.0},
)
_NO_DPO = Sabotage(
    "sft-for-dpo",
    "evaluate-dpo",
    "model",
    "the SFT model evaluated in place of the DPO model",
    changes={"model.from": "sft"},
)
_WORST_RFT = Sabotage(
    "worst-for-rft", "rft-scores", "judge", "the proxy with the wrong sign", breaks.negate("proxy")
)
_NO_RFT = Sabotage(
    "sft-for-rft",
    "evaluate-rft",
    "model",
    "the SFT model evaluated in place of the fine-tuned one",
    changes={"model.from": "sft"},
)
_CONTROL_FOR_RFT = Sabotage(
    "control-for-rft",
    "evaluate-rft",
    "control",
    "the control's model evaluated in place of the selected one",
    changes={"model.from": "rft-control"},
)

PIPELINE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "sft-beats-base",
        "Supervised fine-tuning raises gold reward over the pre-trained base",
        "evaluate-sft",
        "gold_gain_vs_evaluate-base",
        ">",
        0.0,
        (_BASE_FOR_SFT, _ANSWERS_OF_OTHERS),
    ),
    Claim(
        "reward-agrees-with-gold",
        "The reward model ranks held-out pairs as the gold reward does more often than a coin would",
        "reward",
        "accuracy_gold",
        ">",
        0.5,
        (_SWAPPED, _OTHERS_GOLD),
    ),
    Claim(
        "unbiased-reward-agrees-with-gold",
        "Learned from an unbiased annotator, it does so in more than 65 % of cases",
        "reward-control",
        "accuracy_gold",
        ">",
        0.65,
        (_SWAPPED_CONTROL, _OTHERS_GOLD_CONTROL),
    ),
    Claim(
        "best-of-4-beats-one",
        "The best of four samples by the reward model has a higher gold reward than a single sample",
        "best-of-n",
        "proxy.gold_gain@4",
        ">",
        0.0,
        (_WORST_BEST, _NEXT_ROW),
    ),
    Claim(
        "proxy-keeps-rising",
        "From best-of-4 to best-of-64 the selecting reward goes on rising",
        "best-of-n",
        "proxy.score_late_gain@64",
        ">",
        0.0,
        (_CONSTANT, _GREEDY),
    ),
    Claim(
        "gold-turns-down",
        "From best-of-4 to best-of-64 the gold reward falls: the reward model is over-optimised",
        "best-of-n",
        "proxy.gold_late_gain@64",
        "<",
        0.0,
        (_GOLD_PROXY, _GREEDY),
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
        (_CONTROL_FOR_RFT, _WORST_RFT),
    ),
    Claim(
        "dpo-beats-sft",
        "DPO raises gold reward over SFT on the same held-out prompts",
        "evaluate-dpo",
        "gold_gain_vs_evaluate-sft",
        ">",
        0.0,
        (_NO_DPO, _SWAPPED),
    ),
    Claim(
        "dpo-wins",
        "An answer of the DPO model beats an answer of the SFT model to the same prompt more often than not",
        "evaluate-dpo",
        "win_rate_vs_evaluate-sft",
        ">",
        0.5,
        (_NO_DPO, _SWAPPED),
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
