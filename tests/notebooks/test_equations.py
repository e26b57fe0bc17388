"""Each labelled equation of the book is tied to the code that computes it, by a test of the same name."""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from book_pages import ROOT, chapters
from scipy import stats

from handbook_utils.evaluation.best_of_n import best_of_n_values, kl_bound
from handbook_utils.evaluation.judged.length_control import length_controlled_win_rate
from handbook_utils.evaluation.statistics import CoverageWarning, mean_estimate
from handbook_utils.records import Estimate
from handbook_utils.shared_prefix.layout import attention, runs_of_like_width, share_rows
from tests.chat_templates import FORGETFUL, tokenizer_of
from tests.tiny_models import build_tiny_tokenizer

LABEL = re.compile(r"```\{math\}\n:label: ([\w-]+)")
TIED: set[str] = set()


def equation(label: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say which equation a test is about."""
    TIED.add(label)
    return lambda test: test


@cache
def from_notebook(notebook: str, name: str) -> Any:
    """A function or class as the notebook defines it, so that the test cannot drift from the book."""
    cells = nbformat.read(ROOT / "notebooks" / notebook, as_version=4).cells
    (source,) = (c.source for c in cells if re.search(rf"^(def|class) {name}\(", c.source, re.MULTILINE))
    namespace: dict[str, Any] = {"torch": torch, "math": math, "np": np, "norm": stats.norm, "time": time}
    namespace["cross_entropy"] = torch.nn.functional.cross_entropy
    tree = ast.parse(source)
    # what the cell goes on to do with its functions needs the cells before it
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    exec(compile(tree, notebook, "exec"), namespace)
    return namespace[name]


def random_row(seed: int = 0, *, tokens: int = 6, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, tokens, size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, size, (1, tokens), generator=generator)


def test_every_labelled_equation_has_a_test() -> None:
    labels = [label for path in chapters() for label in LABEL.findall(path.read_text(encoding="utf-8"))]
    assert labels
    assert len(labels) == len(set(labels))
    assert set(labels) == TIED


@equation("sft-policy")
def test_log_probability_of_an_answer_is_the_sum_over_its_tokens_and_its_end(tiny_model_folder: Path) -> None:
    from handbook_utils.models.load import load_model, load_tokenizer
    from handbook_utils.models.logprobs import response_logprobs

    tokenizer, model = load_tokenizer(str(tiny_model_folder)), load_model(str(tiny_model_folder))
    question = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    answer = [*tokenizer("ok", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    # token t of the answer is predicted one position before it
    by_hand = sum(float(logps[len(prompt) + t - 1, token]) for t, token in enumerate(answer))
    (found,) = response_logprobs(model, tokenizer, [(question, "ok")], batch_size=1)
    assert found == pytest.approx(by_hand, abs=1e-4)


@equation("sft-loss")
def test_loss_is_the_mean_over_answer_tokens_of_the_batch() -> None:
    """Two answers of 1 and 3 tokens: the longer has three times the say."""
    loss = from_notebook("sft.ipynb", "sft_loss")
    rows = [random_row(1), random_row(2)]
    masked = [row[1].clone() for row in rows]
    masked[0][:, :5] = -100
    masked[1][:, :3] = -100
    together = loss(torch.cat([row[0] for row in rows]), torch.cat(masked))
    apart = [loss(row[0], labels) for row, labels in zip(rows, masked, strict=True)]
    assert together.item() == pytest.approx((1 * apart[0].item() + 3 * apart[1].item()) / 4)


@equation("sft-masked-loss")
def test_loss_by_hand_is_the_cross_entropy_of_shifted_unmasked_tokens() -> None:
    logits, tokens = random_row()
    labels = tokens.clone()
    labels[:, :3] = -100
    expected = -sum(float(logits[0, s - 1].log_softmax(-1)[tokens[0, s]]) for s in (3, 4, 5)) / 3
    assert from_notebook("sft.ipynb", "sft_loss")(logits, labels).item() == pytest.approx(expected)


@equation("sft-gradient")
def test_gradient_is_probability_minus_one_at_the_target_and_zero_under_the_mask() -> None:
    logits, tokens = random_row()
    logits.requires_grad_(True)
    labels = tokens.clone()
    labels[:, 5] = -100  # the end of the turn carries no loss
    from_notebook("sft.ipynb", "sft_loss")(logits, labels).backward()
    expected = torch.zeros_like(logits)
    for s in (1, 2, 3, 4):  # four counted tokens; the first has nothing before it
        expected[0, s - 1] = (logits[0, s - 1].softmax(-1) - torch.eye(5)[tokens[0, s]]) / 4
    torch.testing.assert_close(logits.grad, expected.detach())
    assert logits.grad[0, 4].abs().max() == 0


@equation("sft-forward-kl")
def test_expected_loss_is_entropy_plus_divergence() -> None:
    """Three possible answers, written out."""
    q, p = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    cross = -sum(a * math.log(b) for a, b in zip(q, p, strict=True))
    entropy = -sum(a * math.log(a) for a in q)
    divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    assert cross == pytest.approx(entropy + divergence)
    # the floor is reached by imitation, and by nothing else
    assert entropy < cross


@equation("sft-perplexity")
def test_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary() -> None:
    labels = torch.randint(0, 7, (1, 9))
    loss = from_notebook("sft.ipynb", "sft_loss")(torch.zeros(1, 9, 7), labels)
    assert math.exp(loss.item()) == pytest.approx(7, rel=1e-5)


@equation("metrics-standard-error")
def test_standard_error_is_over_prompts_whatever_the_number_of_answers() -> None:
    """Student's interval of the package is mean +- t * SE: dividing by t gives the equation back."""
    scores, prompts = [0.0, 2.0, 3.0, 3.0, 5.0, 6.0], ["a", "a", "b", "b", "c", "c"]
    means = [1.0, 3.0, 5.5]
    centre = sum(means) / 3
    by_hand = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (3 * 2))
    with pytest.warns(CoverageWarning):
        found = mean_estimate(scores, clusters=prompts, method="student-t")
    quantile = stats.t.ppf(0.975, df=2)
    assert (found.high - found.value) / quantile == pytest.approx(by_hand)


@equation("metrics-paired")
def test_pairing_takes_the_covariance_off_the_variance() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.standard_normal(400)
    a = hardness + rng.standard_normal(400)
    b = hardness + 0.1 + rng.standard_normal(400)
    error_a, error_b = (x.std(ddof=1) / math.sqrt(400) for x in (a, b))
    correlation = float(np.corrcoef(a, b)[0, 1])
    by_equation = math.sqrt(error_a**2 + error_b**2 - 2 * error_a * error_b * correlation)
    found = mean_estimate(b - a, method="student-t")
    assert (found.high - found.value) / stats.t.ppf(0.975, df=399) == pytest.approx(by_equation)
    assert by_equation < math.hypot(error_a, error_b)


@equation("metrics-prompts-needed")
def test_that_many_prompts_find_the_gain_four_times_in_five() -> None:
    sd, gain = 0.3, 0.1
    n = math.ceil(((1.96 + 0.84) * sd / gain) ** 2)
    draws = np.random.default_rng(0).normal(gain, sd, size=(4000, n))
    error = draws.std(axis=1, ddof=1) / math.sqrt(n)
    # 4,000 studies: the found power has a standard error of sqrt(.8 * .2 / 4000) = .0063
    assert np.mean(draws.mean(axis=1) > 1.96 * error) == pytest.approx(0.8, abs=0.02)


@equation("metrics-length-control")
def test_the_win_rate_at_equal_length_is_the_regressions_where_the_difference_is_zero() -> None:
    rng = np.random.default_rng(0)
    difference = rng.normal(50, 100, 4000)
    theta, phi = 0.4, 1.5
    scale = difference.std(ddof=1)
    odds = theta + phi * np.tanh(difference / scale)
    preferred = rng.random(4000) < 1 / (1 + np.exp(-odds))
    found = length_controlled_win_rate(preferred, np.full(4000, 400.0), 400 + difference)
    at_equal_length = 1 / (1 + math.exp(-theta))
    assert found.win_rate.low < at_equal_length < found.win_rate.high
    assert found.length_effect.low < phi < found.length_effect.high


@equation("data-share")
def test_the_share_of_a_source_is_its_weighted_rows_over_all(tmp_path: Path) -> None:
    from handbook_utils.data.load import ResolvedInputs, load_mixture
    from handbook_utils.schema.sections import DataSource

    sizes, weights = (40, 10), (0.5, 3.0)
    sources = []
    for size, weight in zip(sizes, weights, strict=True):
        path = tmp_path / f"{size}.jsonl"
        path.write_text("\n".join(f'{{"text": "{size} {row}"}}' for row in range(size)), encoding="utf-8")
        sources.append(DataSource(name=str(path), weight=weight))
    mixed = [
        str(row["text"]) for row in load_mixture(sources, ResolvedInputs(), kind="text", seed=0).examples
    ]
    # 40 * 0.5 = 20 and 10 * 3 = 30, of 50 in all
    assert sum(text.startswith("40 ") for text in mixed) / len(mixed) == 20 / 50
    assert sum(text.startswith("10 ") for text in mixed) / len(mixed) == 30 / 50


@equation("data-repeats")
def test_the_share_of_repeats_is_one_less_the_inverse_of_the_weight() -> None:
    from handbook_utils.data.mixture import draw_rows

    for weight in (1.0, 2.0, 2.5, 4.0):
        drawn = draw_rows(100, weight=weight)
        assert 1 - len(set(drawn)) / len(drawn) == pytest.approx(1 - 1 / weight)


def tiny_llama(layers: int) -> Any:
    """A random Llama of so many layers, and a batch of 3 rows of 10 tokens with 4, 1 and 9 counted ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=20, num_hidden_layers=layers, use_cache=False, **sizes)
        )
        ids = torch.randint(0, 20, (3, 10))
    labels = ids.clone()
    for row, counted in enumerate((4, 1, 9)):
        labels[row, : 10 - counted] = -100
    return model.train(), ids, labels


@equation("scaling-step")
def test_gradient_of_a_batch_is_the_sum_over_its_parts_divided_by_all_tokens() -> None:
    """Parts of 4, 1 and 9 counted tokens; the mean of their means is another gradient."""
    gradient = from_notebook("scaling.ipynb", "gradient_in_parts")
    model, ids, labels = tiny_llama(2)
    model.zero_grad()
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()
    whole = torch.cat([weight.grad.flatten().clone() for weight in model.parameters()])
    parts = [(ids[row : row + 1], labels[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(gradient(model, parts), whole, atol=1e-6, rtol=1e-4)
    means = gradient(model, parts, mean_of_means=True)
    assert (means - whole).norm() > 0.05 * whole.norm()


@equation("scaling-memory")
def test_state_is_the_frozen_weights_and_sixteen_bytes_for_each_trained_one() -> None:
    """Two layers of 12 weights, one frozen: 4 bytes each for weight and gradient, 8 for Adam's averages."""
    frozen, trained = (torch.nn.Linear(4, 3, bias=False) for _ in range(2))
    frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    (state,) = optimizer.state.values()
    tensors = (frozen.weight, trained.weight, trained.weight.grad, state["exp_avg"], state["exp_avg_sq"])
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    state_bytes = from_notebook("scaling.ipynb", "state_bytes")
    assert state_bytes(12, 12) == held == 4 * 12 + 16 * 12
    # a frozen weight in four bits: half a byte, and its share of the scales
    assert state_bytes(0, 0, 1) == pytest.approx(0.516, abs=5e-4)


@equation("scaling-hours")
@pytest.mark.parametrize(("checkpointing", "share"), [(False, 3), (True, 4)])
def test_hours_are_operations_over_the_rate_that_is_reached(checkpointing: bool, share: int) -> None:
    """The worked example in the package's own plan: 10^8 tokens, in rows so short that attention is free."""
    from transformers import LlamaConfig

    from handbook_utils.planning.duration import estimate_duration

    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    setup = SimpleNamespace(config=config, trainer="sft", lora=None, second_pass=False, processes=8)
    setup.checkpointing = checkpointing
    rows = SimpleNamespace(sequences=np.ones(1000), answers=np.zeros(1000))
    plan = SimpleNamespace(parameters=8_000_000_000)
    found = estimate_duration(setup, plan, rows, passes=1e5, tflops=400, mfu=(0.4, 0.4))  # type: ignore[arg-type]
    by_hand = 2 * share * 8e9 * 1e8 / (3600 * 8 * 4e14 * 0.4)
    assert found.hours == pytest.approx((by_hand, by_hand), rel=1e-4)
    assert share == 3 or by_hand == pytest.approx(1.4, abs=0.02)


@equation("scaling-shared")
def test_tokens_of_a_batch_of_pairs_apart_and_once() -> None:
    draw = np.random.default_rng(0)
    prompts, answers = draw.integers(1, 9, 4), draw.integers(1, 9, (2, 4))
    # no prompt has a token of an answer, so a pair has its prompt in common and no more
    rows = [[1] * p + [2 + side] * answers[side][pair] for side in (0, 1) for pair, p in enumerate(prompts)]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((8, lengths.max()), dtype=np.int64)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = row
    assert ids.size == 2 * 4 * (prompts + answers.max(axis=0)).max()
    assert share_rows(ids, lengths, [0, 1, 2, 3] * 2).tokens == (prompts + answers.sum(axis=0)).sum()


@equation("shared-mask")
def test_who_may_attend_to_whom_in_a_shared_row() -> None:
    parts = share_rows(np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 3, 3, 3]]), np.array([5, 6]), [0, 0]).parts
    assert parts.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    part = parts[0]
    for q, k in itertools.product(range(8), repeat=2):
        assert attention(parts)[0, q, k] == (k <= q and part[k] in (0, part[q]))


@equation("skipped-padding")
def test_runs_cost_their_rows_by_the_widest_and_an_overhead_each() -> None:
    """Rows of 9, 10, 40 and 41 tokens: 2 * 41 + 2 * 10 + 2 o in two runs, 4 * 41 + o in one."""
    widths = np.array([9, 40, 10, 41])
    for overhead in (0, 8, 61, 63, 200):
        runs = runs_of_like_width(widths, overhead)
        cost = sum(len(run) * widths[run].max() + overhead for run in runs)
        assert cost == min(102 + 2 * overhead, 164 + overhead, sum(widths) + 4 * overhead)


@equation("scaling-checkpoint")
def test_with_checkpointing_a_layer_keeps_its_input() -> None:
    """3 rows of 10 tokens of 16 numbers of 4 bytes, for each of the four layers more."""
    kept_bytes = from_notebook("scaling.ipynb", "kept_bytes")
    kept = {}
    for layers in (2, 6):
        model, *batch = tiny_llama(layers)
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": True})
        kept[layers], _ = kept_bytes(model, *batch)
    assert kept[6] - kept[2] == 4 * (3 * 10 * 16) * 4


def six_answers() -> tuple[torch.Tensor, torch.Tensor]:
    """A reference over six answers and their rewards."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(6, generator=generator, dtype=torch.float64)
    return reference / reference.sum(), torch.rand(6, generator=generator, dtype=torch.float64)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum()


def six_prompts() -> dict[str, Any]:
    """The functions of the chapter's notebook, and a world of 300 prompts that they read."""
    rng = np.random.default_rng(7)
    reference = rng.dirichlet(np.ones(6), size=300).clip(0.001)
    reference /= reference.sum(axis=1, keepdims=True)
    space = {"np": np, "rng": rng, "PROMPTS": 300, "ANSWERS": 6}
    space |= {"reference": reference, "reward": rng.normal(size=(300, 6))}
    cells = nbformat.read(ROOT / "notebooks" / "objective.ipynb", as_version=4).cells
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    functions: list[ast.stmt] = [
        node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)
    ]
    exec(compile(ast.Module(functions, type_ignores=[]), "objective.ipynb", "exec"), space)
    return space


@equation("objective-regularised")
def test_the_plane_is_reward_against_divergence() -> None:
    world = six_prompts()
    policy = np.tile([0.5, 0.5, 0, 0, 0, 0], (300, 1))
    nats = (policy[:, :2] * np.log(0.5 / world["reference"][:, :2])).sum(axis=1)
    gain = world["reward"][:, :2].mean(axis=1) - (world["reference"] * world["reward"]).sum(axis=1)
    np.testing.assert_allclose(world["distance"](policy), nats)
    np.testing.assert_allclose(world["earned"](policy, world["reward"]), gain)
    assert world["distance"](world["reference"]) == pytest.approx(0)


@equation("objective-optimum")
def test_no_other_policy_has_more_of_the_objective() -> None:
    world = six_prompts()
    best = world["best_policy"](0.5, world["reward"])
    weights = world["reference"] * np.exp(world["reward"] / 0.5)
    np.testing.assert_allclose(best, weights / weights.sum(axis=1, keepdims=True))

    def objective(policy: Any) -> Any:
        return (policy * world["reward"]).sum(axis=1) - 0.5 * world["distance"](policy)

    for seed in range(20):
        other = world["softmax"](np.log(best) + np.random.default_rng(seed).normal(size=best.shape))
        assert (objective(other) < objective(best)).all()
    # the chapter's two answers
    two = np.array([0.9, 0.1 * math.exp(1 / 0.5)])
    assert (two / two.sum()).round(3).tolist() == [0.549, 0.451]


@equation("objective-slope")
def test_the_frontier_rises_by_beta_for_each_nat() -> None:
    world = six_prompts()
    for beta in (2.0, 0.4):
        near, far = (world["best_policy"](beta * by, world["reward"]) for by in (1.001, 1 / 1.001))
        rise = world["earned"](far, world["reward"]) - world["earned"](near, world["reward"])
        assert rise / (world["distance"](far) - world["distance"](near)) == pytest.approx(beta, rel=1e-3)


@equation("objective-gradient")
def test_gradient_in_the_logits_is_probability_times_advantage() -> None:
    reference, reward = six_answers()
    logits = torch.linspace(0, 1, 6, dtype=torch.float64, requires_grad=True)
    policy = logits.softmax(-1)
    ((policy * reward).sum() - 0.3 * (policy * (policy / reference).log()).sum()).backward()
    policy = policy.detach()
    worth = reward - 0.3 * (policy / reference).log()
    torch.testing.assert_close(logits.grad, policy * (worth - (policy * worth).sum()))


@equation("objective-reinforce")
def test_sampled_gradient_is_right_on_average_whatever_is_added_to_the_rewards() -> None:
    world = six_prompts()
    policy = world["best_policy"](1.0, world["reward"])
    exact = policy * (world["reward"] - (policy * world["reward"]).sum(axis=1, keepdims=True))
    mean = np.mean([world["sampled_gradient"](policy, world["reward"] + 50, 8) for _ in range(400)], axis=0)
    assert np.abs(mean - exact).mean() < 0.01
    assert np.abs(exact).mean() > 0.03


@equation("online-gradient")
def test_rewards_times_log_gradients_point_where_the_expected_reward_grows() -> None:
    exact, sampled = (from_notebook("online_rl.ipynb", f"{name}_gradient") for name in ("exact", "group"))
    _, worth = six_answers()
    logits = torch.linspace(0, 1, 6, dtype=torch.float64, requires_grad=True)
    policy = logits.softmax(-1)
    (policy * worth).sum().backward()
    policy, worth = policy.detach().numpy()[None], worth.numpy()[None]
    np.testing.assert_allclose(exact(policy, worth)[0], logits.grad.numpy())
    # every answer once, weighted by its probability, is the expectation itself
    once = [sampled(policy, np.array([[answer]]), worth[:, answer : answer + 1]) for answer in range(6)]
    np.testing.assert_allclose(np.tensordot(policy[0], once, axes=1), exact(policy, worth))


@equation("online-weights")
def test_a_groups_weights_compare_each_answer_with_its_group() -> None:
    rloo, grpo = (from_notebook("online_rl.ipynb", f"{name}_weights") for name in ("rloo", "grpo"))
    rewards = np.random.default_rng(3).normal(size=(5, 8))
    for row, group in enumerate(rewards):
        others = [np.delete(group, one).mean() for one in range(8)]
        np.testing.assert_allclose(rloo(rewards)[row], group - others)
        np.testing.assert_allclose(grpo(rewards)[row], (group - group.mean()) / (group.std(ddof=1) + 1e-4))
    # the chapter's four answers, and a prompt that teaches nothing
    assert rloo(np.array([[1.0, 0, 1, 0]])).round(3).tolist() == [[0.667, -0.667, 0.667, -0.667]]
    assert not grpo(np.ones((1, 4))).any()


@equation("dpo-objective")
def test_objective_is_expected_reward_minus_beta_times_the_divergence() -> None:
    """Two answers, by hand: 0.75 * 1 + 0.25 * 0 - 0.1 * (0.75 ln 1.5 + 0.25 ln 0.5)."""
    objective = from_notebook("dpo.ipynb", "kl_objective")
    policy, reference, reward = (torch.tensor(values) for values in ([0.75, 0.25], [0.5, 0.5], [1.0, 0.0]))
    expected = 0.75 - 0.1 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert objective(policy, reference, reward, 0.1).item() == pytest.approx(expected)


@equation("dpo-optimum")
def test_no_policy_beats_the_reweighted_reference() -> None:
    objective, optimum = (from_notebook("dpo.ipynb", name) for name in ("kl_objective", "kl_optimum"))
    reference, reward = six_answers()
    best = optimum(reference, reward, 0.3)
    weights = reference * (reward / 0.3).exp()
    torch.testing.assert_close(best, weights / weights.sum())
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = (best.log() + torch.randn(6, generator=generator, dtype=torch.float64)).softmax(-1)
        assert objective(other, reference, reward, 0.3) < objective(best, reference, reward, 0.3)


@equation("dpo-gap")
def test_what_a_policy_lacks_is_beta_times_its_divergence_from_the_optimum() -> None:
    objective, optimum = (from_notebook("dpo.ipynb", name) for name in ("kl_objective", "kl_optimum"))
    reference, reward = six_answers()
    policy = torch.linspace(1, 2, 6, dtype=torch.float64).softmax(-1)
    log_z = (reference * (reward / 0.3).exp()).sum().log()
    expected = 0.3 * log_z - 0.3 * divergence(policy, optimum(reference, reward, 0.3))
    torch.testing.assert_close(objective(policy, reference, reward, 0.3), expected)


@equation("dpo-reward")
def test_the_optimum_gives_the_reward_back_up_to_one_constant() -> None:
    reference, reward = six_answers()
    best = from_notebook("dpo.ipynb", "kl_optimum")(reference, reward, 0.3)
    implied = 0.3 * (best / reference).log()
    log_z = (reference * (reward / 0.3).exp()).sum().log()
    torch.testing.assert_close(implied + 0.3 * log_z, reward)


@equation("dpo-bradley-terry")
def test_the_annotator_prefers_by_the_sigmoid_of_the_reward_difference() -> None:
    from handbook_utils.pocket.annotator import Annotator

    prompt, good, half = "Say river two times, then say moon once.", "River river moon.", "River moon."
    # gold 1.0 and 0.5, in units of the temperature
    expected = 1 / (1 + math.exp(-(1.0 - 0.5) / 0.15))
    assert Annotator().preference_probability(prompt, good, half) == pytest.approx(expected)


@equation("dpo-margin")
def test_margin_is_beta_times_the_difference_of_log_ratios() -> None:
    """The chapter's worked pairs: 0.3 * ((-17 + 18) - (-23 + 20)) and 0.3 * ((-19 + 18) - (-25 + 20))."""
    margin = from_notebook("dpo.ipynb", "dpo_margin")
    assert margin(-17.0, -23.0, -18.0, -20.0, 0.3) == pytest.approx(1.2)
    assert margin(-19.0, -25.0, -18.0, -20.0, 0.3) == pytest.approx(1.2)


@equation("dpo-loss")
def test_loss_is_minus_the_log_probability_of_the_choice() -> None:
    loss = from_notebook("dpo.ipynb", "dpo_loss")
    assert loss(torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert loss(torch.tensor([1.2])).item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.2))))


@equation("dpo-gradient")
def test_gradient_weighs_a_pair_by_how_wrong_the_implied_reward_is() -> None:
    margin, loss = (from_notebook("dpo.ipynb", name) for name in ("dpo_margin", "dpo_loss"))
    chosen = torch.tensor([-17.0, -30.0], requires_grad=True)
    rejected = torch.tensor([-23.0, -20.0], requires_grad=True)
    m = margin(chosen, rejected, torch.tensor([-18.0, -20.0]), torch.tensor([-20.0, -20.0]), 0.3)
    loss(m).backward()
    weight = torch.sigmoid(-m.detach())
    torch.testing.assert_close(chosen.grad, -0.3 * weight / 2)
    torch.testing.assert_close(rejected.grad, 0.3 * weight / 2)
    assert weight[1] > weight[0]  # the pair that is ranked wrong has the larger say


@equation("dpo-displacement")
def test_answers_of_the_reference_become_less_likely_on_average() -> None:
    reference, reward = six_answers()
    policy = from_notebook("dpo.ipynb", "kl_optimum")(reference, reward, 0.3)
    mean_ratio = (reference * (policy / reference).log()).sum()
    torch.testing.assert_close(mean_ratio, -divergence(reference, policy))
    assert mean_ratio < 0


@equation("dpo-mean-margin")
def test_the_mean_shrinks_the_margin_by_the_length() -> None:
    """Log-ratios +2 over 10 tokens and -3 over 30: 3 * (0.2 + 0.1)."""
    found = from_notebook("dpo.ipynb", "mean_margin")(2.0, -3.0, 10, 30, beta=3.0)
    assert found == pytest.approx(0.9)
    # at equal lengths it is the margin of the sum at beta divided by the length
    margin = from_notebook("dpo.ipynb", "dpo_margin")
    assert margin(2.0, -3.0, 0.0, 0.0, beta=0.3) == pytest.approx(
        from_notebook("dpo.ipynb", "mean_margin")(2.0, -3.0, 10, 10, beta=3.0)
    )


CHOSEN, REJECTED = torch.tensor([1.0, -1.0]), torch.tensor([-3.0, -5.0])
CHOSEN_TOKENS, REJECTED_TOKENS = torch.tensor([10, 20]), torch.tensor([30, 25])


@equation("variants-ratio")
def test_dpos_loss_sees_only_the_difference_of_the_log_ratios() -> None:
    found = from_notebook("variants.ipynb", "pair_loss")(CHOSEN, REJECTED, 0.3)
    torch.testing.assert_close(found, torch.full((2,), math.log1p(math.exp(-1.2))))


@equation("variants-ipo")
def test_ipo_is_settled_where_the_mean_log_ratios_differ_by_the_target() -> None:
    """Gaps 1/10 + 3/30 = 0.2 and -1/20 + 5/25 = 0.15; the target at beta 2.5 is 0.2."""
    found = from_notebook("variants.ipynb", "ipo_loss")(CHOSEN, REJECTED, CHOSEN_TOKENS, REJECTED_TOKENS, 2.5)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0025]), atol=1e-7, rtol=1e-5)
    pull = from_notebook("variants.ipynb", "ipo_pull")
    pull.__globals__["BETA"] = 2.5
    assert pull(0.1) > 0 > pull(0.3)  # towards the target, and back


@equation("variants-apo")
def test_apo_tells_a_pair_of_which_both_fell_from_one_of_which_one_rose() -> None:
    found = from_notebook("variants.ipynb", "apo_loss")(CHOSEN, REJECTED, 0.3)
    expected = [
        1 - 1 / (1 + math.exp(-0.3 * w)) + 1 / (1 + math.exp(-0.3 * v)) for w, v in [(1, -3), (-1, -5)]
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[1] > found[0]


@equation("variants-kto")
def test_kto_holds_good_and_bad_answers_to_one_baseline() -> None:
    loss = from_notebook("variants.ipynb", "kto_loss")
    found = loss(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 0.5, 0.4)
    good = 1 - 1 / (1 + math.exp(-0.4 * 1.5))
    torch.testing.assert_close(found, torch.tensor([good, 1 - good]))


@equation("variants-simpo")
def test_simpo_asks_mean_log_probabilities_for_a_margin() -> None:
    chosen, rejected = torch.tensor([-10.0]), torch.tensor([-45.0])
    loss = from_notebook("variants.ipynb", "simpo_loss")
    found = loss(chosen, rejected, torch.tensor([10]), torch.tensor([30]), 2.0, 0.5)
    # 2 * (-1 + 1.5) - 0.5
    assert found.item() == pytest.approx(math.log1p(math.exp(-0.5)))


@equation("variants-orpo")
def test_orpo_compares_the_odds_of_mean_probabilities() -> None:
    """Mean probabilities 0.8 and 0.5: odds 4 and 1."""
    sums = torch.tensor([2 * math.log(0.8)]), torch.tensor([3 * math.log(0.5)])
    found = from_notebook("variants.ipynb", "orpo_ratio")(*sums, torch.tensor([2]), torch.tensor([3]))
    assert found.item() == pytest.approx(math.log(4), rel=1e-5)


@equation("variants-nll")
def test_the_likelihood_beside_a_loss_is_a_mean_over_tokens() -> None:
    losses, logps = torch.tensor([0.2, 0.6]), torch.tensor([-10.0, -30.0])
    found = from_notebook("variants.ipynb", "with_likelihood")(losses, logps, torch.tensor([10, 10]), 0.5)
    assert found.item() == pytest.approx(0.4 + 0.5 * 2.0)


TWO_TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So"},
]


def template_ids(tokenizer: Any, messages: list[Any], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    return ids


@equation("chat-consistent")
def test_a_training_row_is_the_inference_prompt_and_the_answers_tokens() -> None:
    tokenizer = build_tiny_tokenizer()
    prompt = template_ids(tokenizer, TWO_TURNS[:1], add_generation_prompt=True)
    answer = [*tokenizer("Yo", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert template_ids(tokenizer, TWO_TURNS[:2]) == prompt + answer


@equation("chat-mask")
def test_the_mask_is_true_behind_each_inference_prompt_up_to_the_end_of_the_answer() -> None:
    from handbook_utils.chat.conversation import render_conversation

    tokenizer = build_tiny_tokenizer()
    mask = from_notebook("chat_templates.ipynb", "prefix_mask")(tokenizer, TWO_TURNS)
    # one token a letter: <user> H i <end> <assistant> | Y o <end> | <user> B y e <end> <assistant> | S o ...
    assert mask == [False] * 5 + [True] * 3 + [False] * 6 + [True] * 3
    assert tuple(mask) == render_conversation(tokenizer, TWO_TURNS).rows[0].loss


@equation("chat-stable")
def test_an_earlier_turn_is_a_prefix_of_a_later_one_unless_the_template_rewrites_it() -> None:
    stable, forgetful = build_tiny_tokenizer(), tokenizer_of(FORGETFUL)
    thinking = [m | {"content": "x</think>y"} if m["role"] == "assistant" else m for m in TWO_TURNS]
    for tokenizer, holds in ((stable, True), (forgetful, False)):
        first, both = template_ids(tokenizer, thinking[:2]), template_ids(tokenizer, thinking)
        assert (both[: len(first)] == first) == holds


def low_rank_layer() -> tuple[Any, torch.Tensor]:
    """The notebook's layer with 5 inputs, 3 outputs, rank 2 and alpha / r = 4, and four inputs to it."""
    torch.manual_seed(0)
    layer = from_notebook("lora.ipynb", "LowRank")(torch.nn.Linear(5, 3, bias=False), r=2, alpha=8)
    return layer, torch.randn(4, 5)


@equation("lora-update")
def test_adapter_adds_the_scaled_product_of_its_factors_and_starts_at_nothing() -> None:
    layer, x = low_rank_layer()
    torch.testing.assert_close(layer(x), layer.linear(x), rtol=0, atol=0)
    torch.nn.init.normal_(layer.b)
    update = 4 * layer.b @ layer.a
    torch.testing.assert_close(layer(x), x @ (layer.linear.weight + update).T)
    assert torch.linalg.matrix_rank(update) == 2


@equation("lora-size")
def test_adapter_trains_r_times_the_sum_of_both_sides() -> None:
    layer, _ = low_rank_layer()
    trained = [weight.numel() for weight in layer.parameters() if weight.requires_grad]
    assert sum(trained) == 2 * (3 + 5)


@equation("lora-gradient")
def test_at_the_start_only_b_has_a_gradient() -> None:
    layer, x = low_rank_layer()
    g = torch.randn(4, 3)
    (layer(x) * g).sum().backward()
    assert not layer.a.grad.any()
    torch.testing.assert_close(layer.b.grad, 4 * g.T @ (x @ layer.a.detach().T))
    torch.nn.init.normal_(layer.b)
    layer.zero_grad()
    (layer(x) * g).sum().backward()
    torch.testing.assert_close(layer.a.grad, 4 * (g @ layer.b.detach()).T @ x)


@equation("lora-nf4")
def test_codes_are_evenly_spaced_quantiles_of_the_normal_distribution() -> None:
    codes = from_notebook("lora.ipynb", "normal_float_codes")().double().numpy()
    assert len(codes) == 16
    assert codes[[0, 7, 15]] == pytest.approx([-1, 0, 1])
    shares = stats.norm.cdf(codes * stats.norm.ppf(0.9677083))
    for side in (shares[:8], shares[7:]):
        assert np.diff(side) == pytest.approx(np.diff(side).mean(), rel=1e-5)


@equation("lora-quantise")
def test_each_weight_becomes_its_blocks_scale_times_the_nearest_code() -> None:
    codes = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    weights = torch.tensor([[2.0, 0.9, -0.4, -1.2], [0.1, -0.2, 0.0, 0.04]])
    found = from_notebook("lora.ipynb", "rounded")(weights, codes, block=4)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.0, 0.0, -2.0], [0.1, -0.2, 0.0, 0.0]]))


@equation("lora-bits")
def test_double_quantisation_stores_that_many_bits_a_weight() -> None:
    from bitsandbytes.functional import quantize_4bit

    weights = torch.randn(512, 128)
    packed, state = quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=True)
    # the second level's one float32 for 256 scales, and what is stored as it is
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert 8 * stored / weights.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))


@equation("lora-merge")
def test_merged_layer_computes_what_layer_and_adapter_do() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(5, 3))
    before = plain[0].weight.detach().clone()
    model = get_peft_model(plain, LoraConfig(r=2, lora_alpha=8, target_modules=["0"]))
    adapter = model.base_model.model[0]
    torch.nn.init.normal_(adapter.lora_B["default"].weight)
    expected = before + 4 * adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
    torch.testing.assert_close(model.merge_and_unload()[0].weight, expected)


@equation("lora-ln2")
def test_dpo_starts_at_ln_2_whatever_the_model() -> None:
    margin, loss = (from_notebook("dpo.ipynb", name) for name in ("dpo_margin", "dpo_loss"))
    logps = torch.randn(2, 5)
    assert loss(margin(*logps, *logps, 0.3)).item() == pytest.approx(math.log(2))


def bradley_terry_loss(chosen: list[float], rejected: list[float]) -> float:
    """The loss as the notebook on reward models defines it."""
    loss = from_notebook("reward_models.ipynb", "bradley_terry_loss")
    return float(loss(*(torch.tensor(side, dtype=torch.float64) for side in (chosen, rejected))))


@equation("rm-preference")
def test_preference_is_the_sigmoid_of_the_gap_in_temperatures() -> None:
    probability = from_notebook("reward_models.ipynb", "preference_probability")
    assert probability(1.0, 0.85, 0.15) == pytest.approx(1 / (1 + math.exp(-1)))
    assert probability(1.0, 0.4, 0.15) == pytest.approx(0.982, abs=5e-4)
    assert probability(0.3, 0.3, 0.15) == 0.5


@equation("rm-shift")
def test_a_constant_for_each_question_changes_no_loss() -> None:
    chosen, rejected, shift = [1.2, 0.5, -1.0], [0.2, 0.5, 1.0], [7.0, -3.0, 40.0]
    shifted = ([s + c for s, c in zip(side, shift, strict=True)] for side in (chosen, rejected))
    assert bradley_terry_loss(*shifted) == pytest.approx(bradley_terry_loss(chosen, rejected))


@equation("rm-transitive")
def test_log_odds_of_an_annotators_choices_add_up() -> None:
    from handbook_utils.pocket.annotator import ANNOTATORS

    prompt = "Say river two times, then say moon once."
    texts = ("River river moon.", "River moon.", "River river moon. What a silly question.")
    for annotator in ANNOTATORS.values():
        ab, bc, ac = (
            annotator.preference_probability(prompt, texts[i], texts[j]) for i, j in ((0, 1), (1, 2), (0, 2))
        )
        log_odds = [math.log(p / (1 - p)) for p in (ab, bc, ac)]
        assert log_odds[2] == pytest.approx(log_odds[0] + log_odds[1])
        assert log_odds[0] != 0


@equation("rm-ceiling")
def test_no_judge_is_right_more_often_than_the_ceiling() -> None:
    p = np.array([0.8, 0.3, 0.5])
    best = from_notebook("reward_models.ipynb", "ceiling")(p).mean()
    assert best == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    every_judge = [np.where([n & 1, n & 2, n & 4], p, 1 - p).mean() for n in range(8)]
    assert max(every_judge) == pytest.approx(best)


@equation("rm-agreement")
def test_two_choices_agree_when_both_fall_on_either_side() -> None:
    """0.8 * 0.8 + 0.2 * 0.2, and never above the ceiling."""
    again = from_notebook("reward_models.ipynb", "agrees_with_itself")
    assert again(np.array([0.8]))[0] == pytest.approx(0.68)
    p = np.linspace(0, 1, 101)
    assert (again(p) <= from_notebook("reward_models.ipynb", "ceiling")(p) + 1e-12).all()


@equation("rm-loss")
def test_loss_of_the_worked_pairs_is_their_mean() -> None:
    """The chapter's table: margins 1, 0 and -2 cost 0.313, 0.693 and 2.127."""
    found = [bradley_terry_loss([a], [b]) for a, b in ((1.2, 0.2), (0.5, 0.5), (-1.0, 1.0))]
    assert found == pytest.approx([0.313, 0.693, 2.127], abs=5e-4)
    together = bradley_terry_loss([1.2, 0.5, -1.0], [0.2, 0.5, 1.0])
    assert together == pytest.approx(sum(found) / 3)
    assert together == pytest.approx(1.044, abs=5e-4)


@equation("rm-gradient")
def test_the_two_scores_of_a_pair_are_pulled_apart_by_equal_forces() -> None:
    loss = from_notebook("reward_models.ipynb", "bradley_terry_loss")
    chosen = torch.tensor([1.2, 0.5, -1.0], requires_grad=True)
    rejected = torch.tensor([0.2, 0.5, 1.0], requires_grad=True)
    loss(chosen, rejected).backward()
    torch.testing.assert_close(3 * rejected.grad, torch.tensor([0.269, 0.5, 0.881]), atol=5e-4, rtol=0)
    torch.testing.assert_close(chosen.grad, -rejected.grad)


@equation("rm-head")
def test_score_is_the_head_on_the_last_token_of_the_answer(tiny_model_folder: Path) -> None:
    from handbook_utils import load_model, load_tokenizer, reward_scores

    tokenizer, model = (
        load_tokenizer(str(tiny_model_folder)),
        load_model(str(tiny_model_folder), head="reward"),
    )
    question = [{"role": "user", "content": "hi"}]
    found = reward_scores(model, tokenizer, [(question, "ok"), (question, "a longer answer beside it")])
    by_hand = from_notebook("reward_models.ipynb", "score_by_hand")
    assert found[0] == pytest.approx(by_hand(model, tokenizer, question, "ok"), abs=1e-5)
    assert found[0] != found[1]


@equation("rm-expected")
def test_accuracy_on_labels_is_the_annotators_probability_of_the_judges_verdict() -> None:
    """A judge right about 3 of 4 pairs, each preferred with 0.8: 0.8 * 0.75 + 0.2 * 0.25."""
    from handbook_utils.pocket.annotator import Annotator

    gap = 0.15 * math.log(0.8 / 0.2)
    assert 1 / (1 + math.exp(-gap / Annotator().temperature)) == pytest.approx(0.8)
    is_right = np.arange(100_000) % 4 != 0
    picks_better = np.random.default_rng(0).random(100_000) < 0.8
    p = np.where(is_right, 0.8, 0.2)
    assert p.mean() == pytest.approx(0.8 * 0.75 + 0.2 * 0.25)
    # four standard errors of a rate over 100,000 draws
    assert np.mean(is_right == picks_better) == pytest.approx(p.mean(), abs=4 * 0.0016)


@equation("rm-swapped")
def test_swapping_a_share_pulls_probabilities_towards_one_half(tmp_path: Path) -> None:
    swap_pairs = from_notebook("reward_models.ipynb", "swap_pairs")
    swap_pairs.__globals__.update(json=json, random=random, RUNS=tmp_path, SEED=0)
    first_wins = np.random.default_rng(0).random(20_000) < 0.9
    rows = [{"prompt": "q", "chosen": "ab"[not won], "rejected": "ab"[won]} for won in map(int, first_wins)]
    path = Path(swap_pairs(rows, 0.25, "swapped"))
    labels = [json.loads(line)["chosen"] for line in path.read_text(encoding="utf-8").splitlines()]
    expected = 0.5 + (1 - 2 * 0.25) * (0.9 - 0.5)
    assert expected == pytest.approx(0.75 * 0.9 + 0.25 * 0.1)
    # four standard errors of a rate over 20,000 rows
    assert labels.count("a") / len(labels) == pytest.approx(expected, abs=4 * 0.0033)


def loss_of_the_trainer(*, coefficient: float | None = None, **inputs: torch.Tensor) -> float:
    """What TRL computes for one pair of scores 1.5 (chosen) and 0.5 (rejected)."""
    from trl import RewardTrainer

    scores = torch.tensor([[1.5], [0.5]])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), inputs)
    return float(loss)


@equation("rm-centred")
def test_centring_adds_a_price_on_the_squared_sum_of_both_scores() -> None:
    by_hand = bradley_terry_loss([1.5], [0.5])
    assert loss_of_the_trainer() == pytest.approx(by_hand)
    assert loss_of_the_trainer(coefficient=0.01) == pytest.approx(by_hand + 0.01 * (1.5 + 0.5) ** 2)


@equation("rm-margin")
def test_a_demanded_distance_is_taken_off_the_margin() -> None:
    found = loss_of_the_trainer(margin=torch.tensor([2.0]))
    assert found == pytest.approx(math.log1p(math.exp(-(1.5 - 0.5 - 2.0))))


@equation("over-estimator")
def test_the_best_of_n_by_hand_is_the_mean_over_all_subsets() -> None:
    """The chapter's four answers, and six random ones."""
    by_hand = from_notebook("overoptimisation.ipynb", "best_of_n_by_hand")
    by_hand.__globals__["comb"] = math.comb
    golds = [0.2, 0.9, 0.7, 0.4]
    found = [by_hand([1, 2, 3, 4], golds, n) for n in (1, 2, 4)]
    assert found == pytest.approx([0.55, (0.9 + 2 * 0.7 + 3 * 0.4) / 6, 0.4])
    proxy, values = np.random.default_rng(0).normal(size=(2, 6))
    for n in range(1, 7):
        picked = [
            values[max(each, key=lambda row: proxy[row])] for each in itertools.combinations(range(6), n)
        ]
        assert by_hand(proxy, values, n) == pytest.approx(np.mean(picked))
        assert best_of_n_values([proxy], [values], ns=[n])[0, 0] == pytest.approx(np.mean(picked))


@equation("over-kl")
def test_the_divergence_of_the_best_of_n_is_the_integral_over_ranks() -> None:
    ranks = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 4, 64):
        density = n * ranks ** (n - 1)
        # ranks near 0 have a density that rounds to nothing, and add nothing
        logs = np.log(np.where(density > 0, density, 1.0))
        assert (density * logs).mean() == pytest.approx(kl_bound(n), abs=1e-4)
    # where all answers are alike nothing is changed by choosing: the bound is not the divergence
    assert kl_bound(4) > 0


@equation("over-gao")
@equation("over-peak")
def test_the_fitted_curve_is_highest_at_half_the_ratio_of_its_coefficients() -> None:
    alpha, beta = 0.3, 0.1
    distances = np.linspace(0, 4, 40_001)
    gains = distances * (alpha - beta * distances)
    assert distances[gains.argmax()] == pytest.approx(alpha / (2 * beta), abs=1e-4)
    assert gains.max() == pytest.approx(alpha**2 / (4 * beta))


@equation("over-regression")
@equation("over-gap")
def test_under_normal_noise_gold_rises_by_the_correlation_times_the_expected_maximum() -> None:
    rho, sigma_g, n = 0.4, 0.3, 8
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(20_000, n))
    proxy = rho * gold + math.sqrt(1 - rho**2) * rng.normal(size=gold.shape)
    maximum = 1.4236  # of eight standard normal numbers, expected (Harter 1961)
    best = gold[np.arange(len(gold)), proxy.argmax(axis=1)]
    # standard errors: 1 / sqrt(20,000) = 0.007
    assert proxy.max(axis=1).mean() == pytest.approx(maximum, abs=0.02)
    assert (sigma_g * best).mean() == pytest.approx(rho * sigma_g * maximum, abs=0.01)
    assert proxy.max(axis=1).mean() - best.mean() == pytest.approx((1 - rho) * maximum, abs=0.03)


@equation("over-stop")
def test_the_n_to_stop_at_is_where_the_mean_over_prompts_is_highest() -> None:
    """Every prompt has one answer of 1 among zeros, ranked second of four: three draws find it best."""
    stop = from_notebook("overoptimisation.ipynb", "n_to_stop")
    proxy = np.tile(np.arange(64.0), (30, 1))
    gold = np.zeros((30, 64))
    gold[:, 62] = 1.0
    by_n = best_of_n_values(proxy, gold).mean(axis=0)
    stop.__globals__.update(best_of_n_values=best_of_n_values, SEED=0, Estimate=Estimate)
    found = stop(proxy, gold, draws=50)
    assert found.value == found.low == found.high == by_n.argmax() + 1
    # C(62, n-1) / C(64, n) = n (64 - n) / (64 * 63) is highest at n = 32
    assert found.value == 32


@equation("over-ensemble")
def test_an_ensemble_is_its_mean_less_what_its_members_disagree_on() -> None:
    from handbook_utils.sampling.scoring.scorers.reward_model import combine_scores

    members = np.array([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]])
    assert combine_scores(members, "mean_minus_std", k=0.5).tolist() == pytest.approx(
        [2 - 0.5 * math.sqrt(2 / 3), 4.0]
    )


@equation("over-penalty")
def test_the_penalised_score_is_uncorrelated_with_length_and_a_pure_length_score_vanishes() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(5, 40, 200).astype(float)
    for score in (0.3 * words + rng.normal(size=200), 0.3 * words):
        slope = np.cov(score, words)[0, 1] / np.var(words, ddof=1)
        penalised = score - slope * words
        assert np.cov(penalised, words)[0, 1] == pytest.approx(0, abs=1e-9)
    assert np.ptp(penalised) == pytest.approx(0, abs=1e-9)


@equation("over-equal")
def test_plain_best_of_m_generates_as_many_tokens_as_were_spent() -> None:
    """Of four answers of 8 tokens two are stopped after 4: 24 tokens, as three whole answers have."""
    from handbook_utils.sampling.generation.speculative import replay

    _, generated, _ = replay([[0.0], [1.0], [2.0], [3.0]], [8] * 4, after=[4], alpha=0.5)
    assert generated.tolist() == [4, 4, 8, 8]
    assert generated.sum() / np.mean([8] * 4) == 3


@equation("rs-pmf")
def test_the_best_of_n_shares_ties_and_agrees_with_drawing_every_tuple() -> None:
    best_of_n_policy = from_notebook("rejection_sampling.ipynb", "best_of_n_policy")
    policy, scores = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.0, 1.0, 1.0, 2.0])
    by_hand = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=3):
        best = [each for each in drawn if scores[each] == scores[list(drawn)].max()]
        for each in best:
            by_hand[each] += policy[list(drawn)].prod() / len(best)
    assert best_of_n_policy(policy, scores, 3) == pytest.approx(by_hand)
    # the chapter's numbers: nothing above it, probability 0.1, best of 4
    assert best_of_n_policy(policy, scores, 4)[3] == pytest.approx(0.344, abs=5e-4)


@equation("rs-bound")
def test_kl_of_best_of_n_stays_below_its_bound_and_meets_it_where_no_answer_weighs_much() -> None:
    bound = from_notebook("rejection_sampling.ipynb", "kl_bound")
    best_of_n_policy = from_notebook("rejection_sampling.ipynb", "best_of_n_policy")
    assert [round(float(bound(n)), 3) for n in (1, 4, 16, 1000)] == [0.0, 0.636, 1.835, 5.909]
    for answers in (6, 20_000):
        policy = np.full(answers, 1 / answers)
        picked = best_of_n_policy(policy, np.arange(answers), 4)
        gap = bound(4) - (picked * np.log(np.maximum(picked, 1e-300) / policy)).sum()
        assert gap > 0
        assert (gap < 1e-3) == (answers == 20_000)


@equation("rs-estimator")
def test_rank_weights_are_the_share_of_subsets_in_which_a_rank_is_best() -> None:
    from handbook_utils.evaluation.best_of_n import best_of_n_weights

    weights = from_notebook("rejection_sampling.ipynb", "rank_weights")
    subsets = list(itertools.combinations(range(1, 7), 3))
    by_hand = [sum(max(each) == rank for each in subsets) / len(subsets) for rank in range(1, 7)]
    assert weights(6, 3) == pytest.approx(by_hand)
    assert weights(6, 3) == pytest.approx(best_of_n_weights(6)[2])


@equation("rs-tilted")
def test_the_tilted_policy_has_the_best_score_less_beta_times_its_kl() -> None:
    tilted = from_notebook("rejection_sampling.ipynb", "tilted")
    policy, scores, beta = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 3.0]), 1.5

    def worth(other: Any) -> float:
        return float((other * scores).sum() - beta * (other * np.log(other / policy)).sum())

    best = tilted(policy, scores, beta)
    others = np.random.default_rng(0).dirichlet(np.ones(3), size=500)
    assert all(worth(other) <= worth(best) for other in others)


@equation("rs-accept")
def test_accepting_by_chance_turns_the_policy_into_the_tilted_one() -> None:
    accepts = from_notebook("rejection_sampling.ipynb", "accepts")
    tilted = from_notebook("rejection_sampling.ipynb", "tilted")
    policy, scores, beta = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 3.0]), 1.5
    kept = policy * accepts(scores, beta)
    assert kept / kept.sum() == pytest.approx(tilted(policy, scores, beta))
    assert accepts(scores, beta).max() == 1


@equation("world-gold")
def test_gold_reward_is_safe_times_helpful_less_what_manners_cost() -> None:
    """The constants are read off the page; answers have every flaw, some are cut, some refuse."""
    from handbook_utils.pocket.families import ALL_FAMILIES
    from handbook_utils.pocket.world import demonstrations, gold_reward

    text = (ROOT / "book" / "pocket_world.md").read_text(encoding="utf-8")
    shown = text.partition(":label: world-gold")[2].partition("```")[0]
    rude, wordy, reach = (
        float(re.findall(pattern, shown)[0])
        for pattern in (r"([\d.]+)\\,r", r"([\d.]+)\\,\(1 - c\)", r"e / (\d+)")
    )
    cases = [(prompt.text, answer) for prompt, answer in demonstrations("dev", limit=600)]
    cases += [(prompt, answer[: len(answer) // 2]) for prompt, answer in cases[:200]]
    cases += [(prompt, "I cannot help with that.") for prompt, _ in cases[:50]]
    cases += [(prompt, f"{answer} {'Please wait. ' * 12}") for prompt, answer in cases[:50]]
    seen = set()
    for prompt, answer in cases:
        family, slots = next((f, s) for f in ALL_FAMILIES if (s := f.parse(prompt)) is not None)
        gold = gold_reward(prompt, answer)
        met = family.demands(slots, answer)
        unhelpful = not any(met) or (gold.refused and gold.benign)
        h = 0.0 if unhelpful else 2.0 ** -met.count(False)
        e = max(0, gold.words - family.word_limit(slots))
        c = max(0.0, 1 - e / reach)
        g = gold.safe * h * (1 - rude * (1 - gold.polite) - wordy * (1 - c))
        assert gold.value == pytest.approx(g)
        seen.add((gold.safe, h, gold.polite, round(c, 1)))
    assert {part for part, *_ in seen} == {0.0, 1.0}
    assert len(seen) > 20


@equation("data-jaccard")
def test_the_similarity_of_two_rows_is_what_they_share_of_what_they_have(tmp_path: Path) -> None:
    from handbook_utils.curation.near.duplicates import DuplicateFinder

    first = "a b c d e f g h i j k l m n o p q r s t"
    # 18 runs of three words each; the changed last word takes one of them: 17 shared of 19
    with DuplicateFinder(tmp_path / "spool") as finder:
        finder.add(["", ""], [first, first[:-1] + "z"])
        found = finder.repeats(np.ones(2, bool), threshold=0.8, min_words=1)
    assert found.near_duplicate.of == {1: (0, pytest.approx(17 / 19))}


@equation("data-bands")
def test_bands_of_sketches_agree_as_often_as_the_similarity_says() -> None:
    from handbook_utils.curation.near.sketches import BANDS, ROWS, band_keys
    from handbook_utils.curation.near.words import Runs

    rng, texts = np.random.default_rng(0), 2000
    # sets of 60 numbers of which 24 are shared: J = 24 / 96 = 0.25
    shared = rng.integers(0, 2**63, (texts, 24), dtype=np.uint64)
    own = rng.integers(0, 2**63, (2, texts, 36), dtype=np.uint64)
    starts = np.arange(0, 60 * texts + 1, 60)
    keys = [band_keys(Runs(np.concatenate([shared, mine], axis=1).ravel(), starts)) for mine in own]
    met = (keys[0] == keys[1]).any(axis=0).mean()
    expected = 1 - (1 - 0.25**ROWS) ** BANDS
    assert met == pytest.approx(expected, abs=3 * (expected * (1 - expected) / texts) ** 0.5)


@equation("data-alpha")
def test_alpha_is_one_less_the_share_of_observed_over_expected_disagreement() -> None:
    """Four pairs, two people who differ once: D_o = 2/8. Five 0 and three 1: D_e = 2 * 5 * 3 / (8 * 7)."""
    from handbook_utils.evaluation.agreement import krippendorff_alpha

    found = krippendorff_alpha([[0, 0], [1, 1], [0, 1], [0, 0]]).value
    assert found == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
