"""The rules: each fault in the smallest log that shows it, beside a healthy log that looks much like it."""

# ruff: noqa: E501
from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from handbook_utils.diagnosis.diagnose import RULES, diagnose
from handbook_utils.diagnosis.finding import Diagnosis
from handbook_utils.diagnosis.rules.meanings import MEANINGS
from handbook_utils.errors import DataError

Records = list[dict[str, Any]]
LN2 = math.log(2)


def noise(n: int, spread: float, seed: int = 0) -> list[float]:
    drawn = random.Random(seed)
    return [drawn.gauss(0, spread) for _ in range(n)]


def sft(losses: Iterable[float], **columns: Iterable[float]) -> Records:
    """Records of an SFT run with the learning rate of a warm-up and decay."""
    losses = list(losses)
    columns = {"learning_rate": [1e-5 * (1 - i / len(losses)) for i in range(len(losses))]} | columns
    rows = zip(losses, *columns.values(), strict=True)
    return [
        {"step": n, "loss": loss, **dict(zip(columns, others, strict=True))}
        for n, (loss, *others) in enumerate(rows, 1)
    ]


def falling(n: int = 60, start: float = 2.0, end: float = 1.0, spread: float = 0.05) -> list[float]:
    return [end + (start - end) * math.exp(-4 * i / n) + e for i, e in enumerate(noise(n, spread))]


def dpo(n: int = 40, *, chosen: float = 0.5, rejected: float = -1.0, accuracy: float = 0.85) -> Records:
    records = []
    for i, e in enumerate(noise(n, 0.02)):
        done = i / n
        margin = (chosen - rejected) * done
        records.append(
            {
                "step": i + 1,
                "loss": math.log1p(math.exp(-margin)) + e * (i > 0),
                "rewards/chosen": chosen * done,
                "rewards/rejected": rejected * done,
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, 0.5 + (accuracy - 0.5) * min(1, 4 * done)),
                "learning_rate": 1e-6 * (1 - done),
            }
        )
    return records


def grpo(n: int = 60, *, start: float = 0.2, end: float = 0.8, **columns: Any) -> Records:
    """Records of a GRPO run; a column is a value or a function of the share that is done."""
    plain = {"reward_std": 0.3, "frac_reward_zero_std": 0.2, "kl": 0.05, "entropy": 0.4, "grad_norm": 0.3}
    columns = plain | {"completions/mean_length": 100.0, "completions/clipped_ratio": 0.05} | columns
    records = []
    for i, e in enumerate(noise(n, 0.05)):
        done = i / (n - 1)
        row = {key: value(done) if callable(value) else value for key, value in columns.items()}
        records.append({"step": i + 1, "loss": 0.0, "reward": start + (end - start) * done + e, **row})
    return records


def with_evals(records: Records, losses: list[float]) -> Records:
    every = len(records) // len(losses)
    found = []
    for n, record in enumerate(records, 1):
        found.append(record)
        if n % every == 0 and n // every <= len(losses):
            found.append({"step": record["step"], "eval_loss": losses[n // every - 1], "eval_runtime": 1.0})
    return found


def seen(diagnosis: Diagnosis, severity: str | None = None) -> set[str]:
    return {f.rule for f in diagnosis.findings if severity in (None, f.severity)}


HEALTHY = {
    "sft": sft(falling()),
    "sft, held-out loss still falling near 0": with_evals(sft(falling(end=0.03, spread=0.005)), [0.2, 0.1, 0.06, 0.05]),
    "sft, a plateau after learning": sft([2.0 - 0.1 * min(i, 10) + e for i, e in enumerate(noise(80, 0.02))]),
    "sft, a bump while warming up": sft([2.3, 2.3, 2.3, *[4.0] * 12, *falling(85)]),
    "sft, a first batch that is easy": sft([1.2, *falling(80, spread=0.3)]),
    "sft, a single spike": sft([loss + 4.0 * (i == 30) for i, loss in enumerate(falling())]),
    "sft, the first learning rate is 0": sft(falling(60), learning_rate=[0.0, *[1e-5] * 59]),
    "sft, tiny rises of a tiny held-out loss": with_evals(sft(falling(end=0.5)), [0.0040, 0.0028, 0.0031]),
    "dpo": dpo(),
    "dpo, accuracy 1 in single batches": [r | {"rewards/accuracies": float(i % 3 > 0)} for i, r in enumerate(dpo())],
    "grpo, loss is 0 as it is": grpo(),
    "grpo, half of the groups equal": grpo(frac_reward_zero_std=0.6),
    "grpo, one step of high kl": grpo(kl=lambda done: 30.0 if 0.5 < done < 0.515 else 0.1),
    "grpo, answers cut at first": grpo(**{"completions/clipped_ratio": lambda done: 0.7 - 0.65 * done}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_healthy(name: str) -> None:
    assert diagnose(HEALTHY[name]).verdict == "healthy", str(diagnose(HEALTHY[name]))


FAULTS: dict[str, tuple[str, str, Records]] = {
    "a loss that is no number": ("nan", "fault", sft([*falling(20), *[math.nan] * 10])),
    "a loss of 0 that hides it": ("nan", "fault", sft([2.1, 1.9, *[0.0] * 20])),
    "all labels masked": ("everything_masked", "fault", sft([0.0] * 20)),
    "a gradient that is no number to the end": ("nan", "fault", sft(falling(20), grad_norm=[1.0] * 10 + [math.nan] * 10)),
    "a learning rate of 0": ("lr_zero", "fault", sft(falling(20), learning_rate=[0.0] * 20)),
    "a schedule that ends early": ("lr_zero", "caution", sft(falling(40), learning_rate=[1e-5] * 30 + [0.0] * 10)),
    "a loss that ends above its start": ("diverged", "fault", sft([*falling(30), *[4.0 + e for e in noise(30, 0.1)]])),
    "a loss that jumps at once and stays": ("diverged", "fault", sft([2.3, 2.3, 2.4, *[9.0 - i / 20 + e for i, e in enumerate(noise(77, 1.5))]])),
    "a loss that jumps at once and comes back late": ("unstable", "caution", sft([2.3, 2.3, 2.4, *[3.9 - i / 40 + e for i, e in enumerate(noise(77, 0.1))]])),
    "a loss beyond guessing": ("diverged", "fault", sft([2.0, 3.9e14, 2e5])),
    "repeated spikes": ("unstable", "caution", sft([x + 5.0 * (i in (20, 31, 42, 55)) for i, x in enumerate(falling())])),
    "a held-out loss that rises": ("overfitting", "caution", with_evals(sft(falling()), [1.2, 1.0, 1.05, 1.15])),
    "a held-out loss worse than at first": ("overfitting", "fault", with_evals(sft(falling()), [1.0, 0.9, 1.1, 1.4])),
    "a loss near 0": ("memorised", "caution", sft(falling(end=0.01, spread=0.002))),
    "a gradient of 0": ("not_learning", "fault", sft([2.0 + e for e in noise(20, 0.1)], grad_norm=[0.0] * 20)),
    "a loss that never changes": ("not_learning", "fault", sft([1.7345] * 20)),
    "a loss that noise alone moves": ("not_learning", "caution", sft([2.3 + 0.06 * (i > 50) + e for i, e in enumerate(noise(100, 0.25))])),
    "dpo stuck at ln 2": ("not_learning", "caution", dpo(chosen=0.0, rejected=0.0)),
    "another reference": ("wrong_reference", "fault", [r | {"rewards/chosen": 3.0, "loss": 0.2} for r in dpo()]),
    "chosen answers pushed away": ("displacement", "caution", dpo(chosen=-4.0, rejected=-7.0)),
    "accuracy at 1 early": ("saturated_accuracy", "caution", [r | {"rewards/accuracies": 1.0} for r in dpo()]),
    "a reward that never moves": ("not_learning", "fault", [r | {"reward": 0.0} for r in grpo()]),
    "no gradient though rewards differ": ("not_learning", "fault", grpo(grad_norm=0.0)),
    "a flat reward": ("not_learning", "caution", grpo(start=0.3, end=0.3)),
    "a reward that collapses": ("diverged", "fault", grpo(start=0.8, end=0.1)),
    "groups without spread": ("zero_variance", "fault", grpo(start=0.1, end=0.1, frac_reward_zero_std=0.9)),
    "answers that grow": ("length_growth", "caution", grpo(**{"completions/mean_length": lambda done: 100 + 200 * done})),
    "answers that are cut": ("truncated", "fault", grpo(**{"completions/clipped_ratio": lambda done: 0.2 + 0.6 * done})),
    "entropy that vanishes": ("entropy_collapse", "caution", grpo(entropy=lambda done: 0.5 * math.exp(-20 * done))),
    "entropy that explodes": ("entropy_explosion", "fault", grpo(start=0.5, end=0.4, entropy=lambda done: 0.2 + 5 * done)),
    "kl that runs away": ("kl_runaway", "fault", grpo(kl=lambda done: 0.05 * math.exp(7 * done))),
    "a part that is never earned": (
        "constant_reward_part",
        "caution",
        grpo(**{"rewards/right/mean": 0.0, "rewards/format/mean": lambda done: done}),
    ),
    "a reward that rises while a held-out score falls": (
        "reward_hacking_suspected",
        "fault",
        grpo(eval_accuracy=lambda done: 0.6 - 0.4 * done),
    ),
    "a reward that rises while our second opinion falls": (
        "reward_hacking_suspected",
        "fault",
        grpo(**{"held_out/gold": lambda done: 0.6 - 0.4 * done, "held_out/kl": lambda done: 2 * done}),
    ),
}  # fmt: skip


def test_what_is_no_score_of_held_out_answers_may_fall() -> None:
    words = grpo(
        **{"held_out/gold": lambda done: 0.5 + 0.1 * done, "held_out/words": lambda done: 30 - 20 * done}
    )
    assert seen(diagnose(words)) == seen(diagnose(grpo()))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    rule, severity, records = FAULTS[name]
    found = diagnose(records)
    assert rule in seen(found, severity), str(found)
    assert found.verdict == {"fault": "faulty", "caution": found.verdict}[severity]
    assert found.verdict != "healthy"


def test_every_rule_and_meaning_is_tried_here_or_in_the_test_of_restarts() -> None:
    elsewhere = {"resumed", "resumed_out_of_phase", "high_initial_loss", "loss_summed_over_accumulation"}
    elsewhere |= {"worse_than_start", "held_out_score_fell"}  # of looks at held-out prompts
    under_another_name = {"zero_loss", "reward_flat", "now_and_then", "learns_little", "jumped"}
    assert {rule for rule, _, _ in FAULTS.values()} | elsewhere | under_another_name == MEANINGS.keys()
    assert len(RULES) == len(set(RULES))


def test_a_reward_model_at_chance_is_told_by_two_evaluations() -> None:
    records = [
        {"step": s, "eval_loss": 0.694, "eval_accuracy": 0.51, "eval_margin": 0.01} for s in (100, 200)
    ]
    found = diagnose(records)
    assert (found.kind, found.verdict, seen(found)) == ("reward", "faulty", {"not_learning"})


def test_a_gradient_that_overflows_now_and_then_is_a_note() -> None:
    gradients = [math.inf if i in (3, 40) else 1.0 for i in range(60)]
    found = diagnose(sft(falling(), grad_norm=gradients))
    assert found.verdict == "healthy"
    assert seen(found, "note") == {"nan"}
    assert "training goes on" in found.findings[0].means


def test_losses_summed_over_accumulation_are_noted() -> None:
    found = diagnose(with_evals(sft([2 * x for x in falling(spread=0.01)]), [1.3, 1.1, 1.02]))
    assert "loss_summed_over_accumulation" in seen(found, "note")


def test_a_first_loss_near_guessing_is_noted() -> None:
    assert "high_initial_loss" in seen(diagnose(sft(falling(start=10.5))), "note")


def test_nan_now_and_then_is_no_reason_to_start_again() -> None:
    losses = [math.nan if i % 5 in (1, 3) else loss for i, loss in enumerate(falling(100))]
    (finding,) = diagnose(sft(losses)).findings
    assert (finding.rule, finding.severity, finding.confidence) == ("nan", "caution", "medium")
    assert "40 of 100 values are no finite numbers, now and then from step 2 on" in finding.evidence
    assert "training goes on" in finding.means
    assert "checkpoint" not in finding.remedy
    assert "×" not in finding.picture


def test_nan_to_the_end_is_a_fault_though_one_came_before() -> None:
    losses = [*falling(10), math.nan, *falling(10), *[math.nan] * 30]
    (finding,) = diagnose(sft(losses)).findings
    assert (finding.severity, finding.confidence) == ("fault", "high")
    assert "worthless" in finding.means
    assert finding.picture.endswith("×××")


def test_one_nan_at_the_very_end_is_less_sure_than_two() -> None:
    confidences = [diagnose(sft([*falling(20), *[math.nan] * n])).findings[0].confidence for n in (1, 2)]
    assert confidences == ["medium", "high"]


def test_a_dpo_loss_that_varies_around_ln_2_has_weights_that_change() -> None:
    losses = [LN2, LN2, *[LN2 + e for e in noise(80, 0.01)]]
    (varies,) = diagnose(sft(losses), kind="dpo").findings
    assert (varies.severity, varies.confidence) == ("caution", "medium")
    assert varies.means.startswith("Hardly anything is learned")
    assert "learning_rate" in varies.remedy
    (still,) = diagnose(sft([LN2] * 82), kind="dpo").findings
    assert (still.severity, still.confidence) == ("fault", "high")
    assert still.means.startswith("The weights do not change")


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"grad_norm": 0.0}, "not_learning"),
        ({"frac_reward_zero_std": 0.8}, "zero_variance"),
        ({"completions/clipped_ratio": 0.8}, "truncated"),
    ],
)
def test_fewer_records_than_a_verdict_needs_are_a_first_sign_and_no_fault(
    columns: Records, rule: str
) -> None:
    few = diagnose(grpo(6, start=0.5, end=0.5, **columns))
    enough = diagnose(grpo(12, start=0.5, end=0.5, **columns))
    (sign,) = (one for one in few.findings if one.rule == rule)
    assert (few.verdict, sign.severity, sign.confidence) == ("too_short", "caution", "low")
    assert "late in the run" not in sign.evidence
    (fault,) = (one for one in enough.findings if one.rule == rule)
    assert (fault.severity, fault.confidence) == ("fault", "high")


def test_a_schedule_that_is_0_in_three_records_may_be_warm_up() -> None:
    confidences = [diagnose(sft(falling(n), learning_rate=[0.0] * n)).findings[0].confidence for n in (3, 20)]
    assert confidences == ["medium", "high"]


def test_a_log_of_epochs_is_told_in_epochs() -> None:
    records = [{"epoch": n / 10, "loss": x} for n, x in enumerate([*falling(20), *[math.nan] * 5])]
    found = diagnose(records)
    assert "first at epoch 2" in found.findings[0].evidence
    assert (found.unit, found.findings[0].unit) == ("epoch", "epoch")
    assert found.findings[0].to_json()["unit"] == "epoch"
    spoken = diagnose([{"loss": record["loss"]} for record in records])
    assert "first at record 21" in spoken.findings[0].evidence


def test_a_kind_is_a_guess_where_only_a_loss_is_logged() -> None:
    guessed = diagnose(sft(falling()))
    assert (guessed.kind, guessed.guess) == ("sft", "only a loss is logged")
    assert guessed.to_json()["guess"] == guessed.guess
    told = diagnose(sft(falling()), kind="kto")
    assert (told.kind, told.guess) == ("kto", "")
    assert diagnose(dpo()).guess == diagnose(grpo()).guess == ""
    assert diagnose(sft(falling(), mean_token_accuracy=[0.6] * 60)).guess == ""


def test_a_kind_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'dpoo' is no kind of run\. Did you mean 'dpo'"):
        diagnose(sft(falling()), kind="dpoo")


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_a_few_records_are_too_short(n: int) -> None:
    assert diagnose(sft(falling())[:n]).verdict == "too_short"


def test_a_run_of_another_task_gets_no_verdict() -> None:
    records = [{"step": n, "loss": 3.0, "box_loss": 1.0, "mAP50": 0.3} for n in range(40)]
    found = diagnose(records)
    assert (found.kind, found.verdict, found.findings) == ("unknown", "unknown", ())


def test_a_finding_says_all_that_is_promised() -> None:
    found = diagnose(FAULTS["another reference"][2])
    assert found.to_json().keys() == {"kind", "verdict", "findings"}
    for finding in found.findings:
        assert set(finding.to_json()) == {"rule", "severity", "steps", "evidence", "confidence", "try"}
        assert all((finding.evidence, finding.means, finding.remedy, finding.source, finding.picture))
    worst = [finding.severity for finding in found.findings]
    assert worst == sorted(worst, key=["fault", "caution", "note"].index)


def noisy(seed: int, *, n: int = 200, lost: float = 0.0) -> Records:
    """A run that logs each of its small batches; it may lose again what it had gained, in its second half."""
    drawn = noise(n, 0.35, seed)
    back = [max(0.0, (i - n / 2) / (n / 2)) * lost for i in range(n)]
    return sft(1.0 + math.exp(-6 * i / n) + up + e for i, (e, up) in enumerate(zip(drawn, back, strict=True)))


def test_noise_alone_is_no_divergence_however_long_the_log() -> None:
    assert [diagnose(noisy(seed)).verdict for seed in range(20)] == ["healthy"] * 20
    lost = [{finding.rule for finding in diagnose(noisy(seed, lost=1.2)).findings} for seed in range(20)]
    assert sum("diverged" in rules for rules in lost) >= 18


def test_noisy_evaluations_are_no_overfitting_and_a_rise_beyond_their_noise_is() -> None:
    def evaluated(rise: float, seed: int) -> Records:
        held_out = [1.2 + rise * max(0, i - 20) / 20 + e for i, e in enumerate(noise(40, 0.04, seed))]
        return [*sft(falling(400)), *({"step": 10 * i + 10, "eval_loss": x} for i, x in enumerate(held_out))]

    def cautioned(rise: float) -> int:
        found = (diagnose(sorted(evaluated(rise, seed), key=lambda r: r["step"])) for seed in range(20))
        return sum("overfitting" in {finding.rule for finding in one.findings} for one in found)

    assert (cautioned(0.0), cautioned(0.4)) == (0, 20)
