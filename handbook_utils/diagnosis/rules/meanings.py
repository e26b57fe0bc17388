"""What each rule's finding commonly means, the one thing to try, and the source that the rule rests on."""

from __future__ import annotations

from dataclasses import dataclass

from handbook_utils.diagnosis.curves import Curve
from handbook_utils.diagnosis.finding import Confidence, Finding, Severity, sparkline
from handbook_utils.diagnosis.signals import span


@dataclass(frozen=True)
class Meaning:
    """What a finding means: commonly, what to try first, and who says so."""

    means: str
    remedy: str
    source: str


MEANINGS: dict[str, Meaning] = {
    "nan": Meaning(
        "An overflow, a division by zero, or a batch without a token that carries loss. What is trained "
        "after the first NaN is worthless.",
        "start again from a checkpoint before it, with a tenth of learning_rate and bf16 instead of fp16",
        "PyTorch, Automatic mixed precision; transformers, TrainingArguments.logging_nan_inf_filter",
    ),
    "now_and_then": Meaning(
        "Finite values follow, so training goes on and the weights hold no NaN. A batch without a token that "
        "carries loss does this, a mean over nothing, or a step whose gradients overflow in fp16.",
        "look at the rows of these batches: does a token of each carry loss? With fp16, use bf16 instead",
        "PyTorch, cross_entropy: the mean over no target is not a number; Automatic mixed precision",
    ),
    "zero_loss": Meaning(
        "The Trainer leaves NaN losses out of its mean, so a loss of exactly 0.0 stands for NaN.",
        "set logging_nan_inf_filter=False to see it; then a tenth of learning_rate, and bf16 instead of fp16",
        "transformers, TrainingArguments.logging_nan_inf_filter",
    ),
    "everything_masked": Meaning(
        "No token carries loss: the marks of the answer are not found, or max_length cuts every answer off.",
        "handbook template MODEL --data FILE shows which tokens carry loss",
        "PyTorch, cross_entropy: the mean over no target is not a number, the sum is 0",
    ),
    "lr_zero": Meaning(
        "The schedule never left 0 or has ended, so the optimiser changes nothing.",
        "check warmup_steps against the number of steps, and that the scheduler takes one step per update",
        "transformers, Optimizer schedules",
    ),
    "diverged": Meaning(
        "The updates are too large, or the optimiser's state was lost. What was learned is gone.",
        "go back to the best checkpoint and use a third of learning_rate, with warm-up and max_grad_norm=1",
        "Chowdhery et al. 2022 (PaLM), section 5.1",
    ),
    "unstable": Meaning(
        "Single batches throw the model off: learning_rate is high for this batch, or rows are broken.",
        "halve learning_rate or set max_grad_norm=1; look at the rows of the batches at these steps",
        "Chowdhery et al. 2022 (PaLM), section 5.1",
    ),
    "jumped": Meaning(
        "The first steps threw away what the model knew, and the rest of the run learned it again.",
        "a tenth of learning_rate, or more warmup_steps",
        "measured: pocket runs at 30 and at 300 times the packaged recipe's learning rate",
    ),
    "overfitting": Meaning(
        "The model goes on learning its training rows and gets worse on others.",
        "load_best_model_at_end=True with an eval every few steps, or fewer epochs",
        "Prechelt 1998, Early stopping - but when? (generalisation loss above 5 %)",
    ),
    "worse_than_start": Meaning(
        "Training has made the answers worse by the score that they are sampled for: a learning rate that is "
        "too high, rows of another kind than the prompts, or a template that differs.",
        "read held_out/step-*.parquet, first against last; then a third of the learning rate",
        "paired by prompt, on the same noise: Owen 2013, Monte Carlo theory (common random numbers)",
    ),
    "held_out_score_fell": Meaning(
        "The model goes on learning something else than what the score measures.",
        "`held_out_samples: {keep: best}`, or fewer steps",
        "Gao et al. 2022, Scaling laws for reward model overoptimization; Prechelt 1998, Early stopping",
    ),
    "memorised": Meaning(
        "The rows repeat, the answer stands in the prompt, or the model knows them word for word. Without a "
        "held-out loss this cannot be told from data that is easy.",
        "hold out 5 % of the rows (eval_strategy=steps) and look for duplicates; train for one epoch",
        "Howard and Whitaker 2023, Can LLMs learn from a single example?; Carlini et al. 2022",
    ),
    "not_learning": Meaning(
        "The weights do not change: the adapter is not attached or frozen, or learning_rate is too small.",
        "print the number of trainable parameters; then ten times learning_rate for a few steps",
        "PEFT, troubleshooting; Rafailov et al. 2023, equation 7 (equal models: the loss is ln 2)",
    ),
    "learns_little": Meaning(
        "Hardly anything is learned: learning_rate is too small, so large that steps undo each other, or "
        "too few weights are trained. Rows that contradict each other look the same.",
        "three times learning_rate for a few steps, then a third of it; keep the one whose loss falls",
        "Rafailov et al. 2023, equation 7 (weights that do not change keep DPO's loss at ln 2)",
    ),
    "reward_flat": Meaning(
        "The policy finds no answer that earns more: the task is too hard, or answers get equal rewards.",
        "sample 8 answers to each of 20 prompts and score them: if all are equal, use easier prompts",
        "Yu et al. 2025 (DAPO), section 3.2",
    ),
    "displacement": Meaning(
        "The model makes the chosen answers unlikely too: probability moves to answers that nobody wrote.",
        "raise beta, lower learning_rate, or add the SFT loss (rpo_alpha, or loss_type sft beside sigmoid)",
        "Razin et al. 2024, arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228",
    ),
    "saturated_accuracy": Meaning(
        "Something cheap tells chosen from rejected: length, a format, another model's style.",
        "score the pairs by length alone: if that is right as often, mend the pairs",
        "Singhal et al. 2023, arXiv 2310.03716",
    ),
    "wrong_reference": Meaning(
        "Policy and reference differ before the first step: another model, adapter, dtype or dropout.",
        "let the reference be the model that training starts from (merge the SFT adapter first)",
        "Rafailov et al. 2023, equation 7: at equal models every reward is 0",
    ),
    "reward_hacking_suspected": Meaning(
        "The reward is earned in a way that does not help what it stands for.",
        "read 20 answers of before and after; stop where the held-out score was best, or raise beta",
        "Gao et al. 2023, arXiv 2210.10760",
    ),
    "entropy_collapse": Meaning(
        "The policy says nearly the same each time, so there is nothing left to choose from.",
        "raise epsilon_high (0.28) or temperature (1.0), or lower learning_rate",
        "Yu et al. 2025 (DAPO); Cui et al. 2025, arXiv 2505.22617",
    ),
    "entropy_explosion": Meaning(
        "The policy drifts into noise.",
        "lower learning_rate to a third; drop an entropy bonus; set beta above 0",
        "Cui et al. 2025, arXiv 2505.22617",
    ),
    "zero_variance": Meaning(
        "Answers to a prompt get equal rewards, so their advantages are 0 and nothing is learned from them.",
        "choose prompts that are solved sometimes, sample more answers per prompt, or give partial reward",
        "Yu et al. 2025 (DAPO), section 3.2 (dynamic sampling)",
    ),
    "length_growth": Meaning(
        "Longer answers pay: the reward, or the loss's mean over tokens, favours length.",
        "plot reward against length; penalise length, or use loss_type=dr_grpo",
        "Liu et al. 2025, arXiv 2503.20783; Singhal et al. 2023, arXiv 2310.03716",
    ),
    "truncated": Meaning(
        "Answers are cut before they end: the limit is too small, or the end of the turn is not learned.",
        "double max_completion_length; then check that the end-of-turn token carries loss in SFT",
        "Yu et al. 2025 (DAPO), section 3.4 (overlong answers)",
    ),
    "constant_reward_part": Meaning(
        "A part of the reward is never earned, or always: it teaches nothing.",
        "call that reward function on one right and one wrong answer",
        "advantages subtract the group's mean: what is constant cancels (Shao et al. 2024, arXiv 2402.03300)",
    ),
    "kl_runaway": Meaning(
        "The policy has left the reference: what it says is no longer what the reference could say.",
        "raise beta, lower learning_rate, or stop at an earlier checkpoint",
        "Stiennon et al. 2020, figure 5; Gao et al. 2023",
    ),
    "resumed": Meaning(
        "The log holds a restart: steps were done twice, or a run began anew in the same file.",
        "give every run its own folder; check that resume_from_checkpoint found a checkpoint",
        "transformers, Trainer.train(resume_from_checkpoint)",
    ),
    "resumed_out_of_phase": Meaning(
        "After the restart the same steps have another loss: the optimiser, the order of the rows or the "
        "weights are not those of before.",
        "resume from a whole checkpoint (optimizer.pt, scheduler.pt, rng_state.pth), not from weights alone",
        "transformers, Trainer.train(resume_from_checkpoint)",
    ),
    "high_initial_loss": Meaning(
        "The first loss is near that of guessing: new embeddings, a wrong template, or a sum of losses.",
        "handbook template MODEL shows what the model sees",
        "a uniform guess over V tokens has the loss ln V",
    ),
    "loss_summed_over_accumulation": Meaning(
        "The training loss is a sum over the passes of a step; its level means nothing, its shape does.",
        "update transformers, or divide by gradient_accumulation_steps",
        "transformers, pull request 35207",
    ),
}


def found(
    rule: str,
    severity: Severity,
    curve: Curve,
    evidence: str,
    confidence: Confidence = "medium",
    *,
    steps: tuple[float, float] | None = None,
    means: str | None = None,
) -> Finding:
    """A finding, with what its rule means.

    Args:
        rule: the name under which it is reported.
        severity: how bad it is.
        curve: what the evidence is from, and the picture shows.
        evidence: what was seen.
        confidence: how sure the cause is.
        steps: where it was seen; by default the whole curve.
        means: the entry of `MEANINGS`, where it is not the rule's own.
    """
    meaning = MEANINGS[means or rule]
    return Finding(
        rule=rule,
        severity=severity,
        steps=steps or span(curve),
        evidence=evidence,
        confidence=confidence,
        means=meaning.means,
        remedy=meaning.remedy,
        source=meaning.source,
        picture=sparkline(curve),
        unit=curve.unit,
    )
