"""Names under which tools of any year log the same thing, and what kind of run such names belong to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

# what a run may be said to train, where its log does not say it
KINDS = ("sft", "dpo", "kto", "orpo", "reward", "grpo", "ppo")
# our name: theirs, the best first. TRL, transformers, LLaMA-Factory, ms-swift, verl, OpenRLHF, notebooks
NAMES: Mapping[str, tuple[str, ...]] = {
    "step": (
        "global_step",
        "step",
        "current_steps",
        "global_step/max_steps",
        "_step",
        "training/global_step",
        "iteration",
        "iter",
        "steps",
        "total_steps",
        "episode",
    ),
    "epoch": ("epoch", "epochs"),
    "loss": (
        *("loss", "training_loss", "train_loss", "train_loss_step", "loss_step", "lm_loss"),
        *("reduced_train_loss", "actor/pg_loss", "loss/policy_avg", "policy_loss", "train_loss_epoch"),
    ),
    "eval_loss": ("eval_loss", "validation_loss", "val_loss", "valid_loss", "test_loss", "dev_loss"),
    "learning_rate": ("learning_rate", "lr", "actor/lr", "actor_lr"),
    "grad_norm": ("grad_norm", "gradient_norm", "actor/grad_norm", "actor_grad_norm"),
    "nll_loss": ("nll_loss",),
    "token_accuracy": ("mean_token_accuracy", "token_acc"),
    "accuracy": ("rewards/accuracies", "accuracy", "acc"),
    "eval_accuracy": ("eval_rewards/accuracies", "eval_accuracy"),
    "eval_chosen": ("eval_rewards/chosen",),
    "eval_rejected": ("eval_rewards/rejected",),
    "margin": ("rewards/margins", "margin", "margins"),
    "chosen": ("rewards/chosen", "chosen_reward"),
    "rejected": ("rewards/rejected", "rejected_reward", "reject_reward"),
    "logps_chosen": ("logps/chosen",),
    "logps_rejected": ("logps/rejected",),
    "log_odds": ("log_odds_ratio", "log_odds_chosen"),
    "reward": (
        "reward",
        "objective/scores",
        "reward_avg",
        "env/reward_mean",
        "critic/score/mean",
        "critic/rewards/mean",
        "reward/mean",
        "objective/rlhf_reward",
    ),
    "reward_std": ("reward_std", "env/reward_std"),
    "zero_variance": ("frac_reward_zero_std",),
    "kl": ("kl", "objective/kl", "actor/kl_loss", "kl_loss"),
    "entropy": ("entropy", "policy/entropy_avg", "entropy_avg", "actor/entropy", "actor/entropy_loss"),
    "length": (
        "completions/mean_length",
        "completion_length",
        "avg_response_len",
        "response_length/mean",
        "response_length",
    ),
    "clipped": ("completions/clipped_ratio", "response_length/clip_ratio", "truncated_rate"),
    # looks at held-out prompts, as this package logs them
    "look_score": ("held_out/score",),
    "look_low": ("held_out/low",),
    "look_high": ("held_out/high",),
    "look_gain": ("held_out/gain",),
    "look_gain_high": ("held_out/gain_high",),
    "look_cut": ("held_out/cut",),
}
# held-out scores of online runs: what is not trained on, as far as a name can say
HELD_OUT = re.compile(r"^(eval|val|valid|validation|test|held_?out)[_/-](?!loss|runtime|samples|steps)(.+)$")
HELD_OUT_SCORES = re.compile(r"(acc|accuracy|score|reward|pass|correct|win)", re.IGNORECASE)
# of our own online runs: any scorer's name, beside what is no score
OUR_SCORE = re.compile(r"^held_out/(?!(?:kl|words|truncated)$)")
# rewards/NAME and rewards/NAME/mean of GRPO; these belong to preference training
NO_PARTS = {"chosen", "rejected", "margins", "accuracies"}
PART = re.compile(r"^rewards/([^/]+?)(?:/mean)?$")
PART_STD = re.compile(r"^rewards/([^/]+?)/std$")
PART_AVERAGE = re.compile(r"^(.+_reward)_avg$")
# what a summary at the end of training holds: no step of it
SUMMARY = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
# what a tracker writes beside every record, of training and of evaluation alike
CLOCKS = {
    *("_step", "_runtime", "_timestamp", "timestamp", "runtime", "relative_time", "wall_time", "time"),
    *("epoch", "global_step", "step", "trainer/global_step"),
}
# names that runs of other models log: nothing here is known of their curves
OTHER_TASKS = re.compile(
    r"^(?:eval_|val_|test_|train_)?(mse|mae|rmse|r2|map|map_?50.*|iou|miou|box_loss|cls_loss|dfl_loss|psnr|"
    r"ssim|fid|wer|cer|f1|f1_score|auc|roc_auc|precision|recall|top-?[15](?:_acc)?|mrr|ndcg.*|matthews.*|"
    r"[dg]_loss|rollout/ep_.*|ep_(?:rew|len)_mean|episodic_return|episode_reward)$",
    re.IGNORECASE,
)
LANGUAGE = ("token_accuracy", "nll_loss", "length", "clipped", "logps_chosen", "log_odds", "chosen")


def plain_name(name: str) -> str:
    """A name without what trackers, notebooks and prefixes put around it.

    >>> plain_name("train/Training Loss"), plain_name("rewards / chosen"), plain_name("eval/loss")
    ('training_loss', 'rewards/chosen', 'eval_loss')
    """
    found = re.sub(r"\s*/\s*", "/", name.strip())
    found = re.sub(r"\s+", "_", found)
    lowered = found.lower()
    for prefix in ("train/", "training/", "metrics/"):
        if lowered.startswith(prefix) and lowered != "training/global_step":
            found = found[len(prefix) :]
    if re.match(r"(eval|val|valid|validation|test)/(?!ratio|num_eos|clipfrac)", found, re.IGNORECASE):
        head, _, rest = found.partition("/")
        found = f"{'eval' if head.lower().startswith('eval') else 'val'}_{rest}"
    # Lightning names the optimiser beside the rate
    renamed = re.sub(r"^lr-\w+$", "lr", found.lower())
    return renamed if renamed in _ALL else found


_ALL = {theirs for names in NAMES.values() for theirs in names} | SUMMARY


def known_as(names: Iterable[str]) -> dict[str, str]:
    """Which logged name holds what: our name -> the name in the log, the best where several do.

    >>> known_as(["lr", "train/loss", "eval/loss"])
    {'loss': 'train/loss', 'eval_loss': 'eval/loss', 'learning_rate': 'lr'}
    """
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(plain_name(name), name)
    found = {}
    for ours, theirs in NAMES.items():
        hit = next((plain[name] for name in theirs if name in plain), None)
        if hit is not None:
            found[ours] = hit
    return found


def reward_parts(names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Parts of a reward: the part's name -> (name of its mean, name of its spread).

    >>> reward_parts(["rewards/format/mean", "rewards/format/std", "rewards/chosen"])
    {'format': ('rewards/format/mean', 'rewards/format/std')}
    """
    plain = {plain_name(name): name for name in names}
    spreads = {found[1]: name for key, name in plain.items() if (found := PART_STD.match(key))}
    parts = {}
    for key, name in plain.items():
        found = PART.match(key) or PART_AVERAGE.match(key)
        if found and found[1] not in NO_PARTS:
            parts[found[1]] = (name, spreads.get(found[1]))
    return parts


def held_out_scores(names: Iterable[str]) -> list[str]:
    """Names of scores on rows that are not trained on."""
    return [
        name
        for name in names
        if (found := HELD_OUT.match(plain_name(name)))
        and (HELD_OUT_SCORES.search(found[2]) or OUR_SCORE.match(name))
        if not any(word in found[2] for word in ("chosen", "rejected", "margin"))
    ]


def kind_of(names: Collection[str]) -> str:
    """What a run trains, by what it logs: sft, dpo, kto, orpo, reward, grpo, ppo, or other.

    >>> kind_of(["loss", "rewards/chosen", "rewards/accuracies"]), kind_of(["loss", "reward", "reward_std"])
    ('dpo', 'grpo')
    >>> kind_of(["loss", "learning_rate"]), kind_of(["loss", "mse"])
    ('sft', 'other')
    """
    ours, plain = known_as(names), {plain_name(name) for name in names}
    if any(name.startswith(("policy/", "objective/", "ppo/", "critic/vf")) for name in plain):
        return "ppo"
    if "reward" in ours and ours["reward"] and _is_online(ours, plain):
        return "grpo"
    if "log_odds" in ours:
        return "orpo"
    if "chosen" in ours or "eval_chosen" in ours:
        has_kl = "kl" in ours or "eval_kl" in plain
        return "kto" if has_kl and not {"accuracy", "eval_accuracy"} & ours.keys() else "dpo"
    if {"accuracy", "val_accuracy"} <= plain and "step" not in ours:  # Keras, once an epoch
        return "other"
    if any(OTHER_TASKS.match(name) for name in plain) and not any(name in ours for name in LANGUAGE):
        return "other"
    if "margin" in ours or {"min_reward", "max_reward", "mean_reward"} & plain:
        return "reward"
    if "accuracy" in ours or "eval_accuracy" in ours:
        return "preference"
    return "sft" if "loss" in ours or "eval_loss" in ours else "other"


def _is_online(ours: Mapping[str, str], plain: Collection[str]) -> bool:
    signs = ("reward_std", "zero_variance", "length", "clipped", "kl", "entropy")
    parts = reward_parts(plain)
    return any(name in ours for name in signs) or bool(parts) or "chosen" not in ours
