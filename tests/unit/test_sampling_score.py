"""Scoring and annotating: gold parts, reward models, NaN scores, and noise that is named by the prompt."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.logprobs import reward_scores
from handbook_utils.pocket.annotator import Annotator
from handbook_utils.pocket.world import PocketPrompt, demonstrate, gold_reward, prompts
from handbook_utils.records import Completion, ScoredCompletion
from handbook_utils.sampling.scoring.score import prompt_text, score
from handbook_utils.sampling.scoring.scorers.gold import GoldScorer
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.sampling.scoring.scorers.reward_model import RewardModelScorer
from handbook_utils.sampling.selection.annotate import annotate, load_annotator
from handbook_utils.schema.sampling import ScoringModelSection

PROMPT = "Say river two times, then say moon once."


def sample(text: str, *, prompt_id: str = "p", index: int = 0, prompt: str = PROMPT) -> Completion:
    messages = [{"role": "user", "content": prompt}]
    return Completion(prompt_id, index, messages, text, 3, "stop", -1.0)


def answers(count: int, *, seed: int = 0) -> list[tuple[PocketPrompt, str]]:
    return [
        (prompt, demonstrate(prompt.text, rng=random.Random(f"{seed} {prompt.prompt_id}")))
        for prompt in prompts("train", limit=count)
    ]


def sample_pairs(count: int) -> list[Completion]:
    """Two demonstrations for each prompt."""
    return [
        sample(answer, prompt_id=prompt.prompt_id, index=index, prompt=prompt.text)
        for index in range(2)
        for prompt, answer in answers(count, seed=index)
    ]


def test_gold_scores_are_the_gold_reward_and_its_parts():
    scored = score([sample("River river moon."), sample("River moon moon you fool.", index=1)], GoldScorer())
    for row in scored:
        gold = gold_reward(PROMPT, row.completion)
        assert row.scores["gold"] == gold.value
        assert row.scores["gold.helpful"] == gold.helpful
        assert row.scores["words"] == gold.words == len(row.completion.split())
    parts = {"helpful", "safe", "polite", "concise", "refused", "benign", "advice"}
    assert set(scored[0].scores) == {"gold", "words"} | {f"gold.{part}" for part in parts}
    assert scored[0].scores["gold"] == 1.0 > scored[1].scores["gold"]


def test_words_are_counted_as_the_pocket_world_counts_them():
    for prompt, answer in answers(200):
        assert len(answer.split()) == gold_reward(prompt.text, answer).words


def test_scoring_keeps_earlier_scores_and_changes_no_record():
    first = score([sample("River river moon.")], GoldScorer("gold"))
    before = dict(first[0].scores)
    second = score(first, GoldScorer("again"))
    assert second[0].scores["gold"] == second[0].scores["again"] == 1.0
    assert dict(first[0].scores) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_a_number_names_prompt_sample_and_column(value):
    rows = [sample("a"), sample("b", prompt_id="q", index=3)]
    with pytest.raises(DataError, match=r"prompt 'q', sample 3: the score 'proxy' is (nan|inf)"):
        score(rows, lambda rows: {"proxy": np.array([0.0, value])})


def test_the_pocket_world_reads_the_last_user_message():
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": PROMPT},
    ]
    assert prompt_text(conversation) == PROMPT
    with pytest.raises(DataError, match="no message of role 'user'"):
        prompt_text([{"role": "system", "content": "Be brief."}])


def test_a_prompt_of_another_world_cannot_have_a_gold_reward():
    with pytest.raises(DataError):
        score([sample("Paris.", prompt="What is the capital of France?")], GoldScorer())


def test_a_reward_model_scores_the_rendered_conversation(tiny_model_folder, tmp_path):
    load_model(str(tiny_model_folder), head="reward").save_pretrained(tmp_path)
    load_tokenizer(str(tiny_model_folder)).save_pretrained(tmp_path)
    section = ScoringModelSection(name=str(tmp_path))
    (scorer,) = load_scorers({"proxy": section}, ResolvedInputs(), rows_per_batch=2)
    assert isinstance(scorer, RewardModelScorer)
    rows = [sample("River river moon."), sample("River.", index=1), sample("Moon moon moon.", index=2)]
    expected = [
        reward_scores(scorer.model, scorer.tokenizer, [(row.prompt, row.completion)])[0] for row in rows
    ]
    assert [row.scores["proxy"] for row in score(rows, scorer)] == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_whose_weights_are_not_numbers_is_stopped(tiny_model_folder):
    model = load_model(str(tiny_model_folder), head="reward")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    scorer = RewardModelScorer(model, load_tokenizer(str(tiny_model_folder)), "proxy")
    with pytest.raises(DataError, match="prompt 'p', sample 0: the score 'proxy' is nan"):
        score([sample("River.")], scorer)


def test_unknown_pocket_scorers_and_annotators_are_errors_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"scorers.gold: unknown scorer .* Did you mean 'pocket:gold'"):
        load_scorers({"gold": ScoringModelSection(name="pocket:golden")}, ResolvedInputs())
    with pytest.raises(RecipeError, match=r"unknown annotator .* Did you mean 'pocket:annotator'"):
        load_annotator("pocket:anotator")


def test_pairs_hold_the_first_two_distinct_samples_and_their_gold_reward():
    rows = [
        sample("River river moon.", index=0),
        sample("River river moon.", index=1),
        sample("Moon.", index=2),
        sample("River.", index=3),
    ]
    (pair,) = annotate(rows, Annotator(temperature=1e-6)).pairs
    assert (pair.chosen, pair.rejected) == ("River river moon.", "Moon.")
    assert pair.gold_chosen == 1.0
    assert pair.gold_rejected == gold_reward(PROMPT, "Moon.").value


def test_prompts_with_one_distinct_sample_are_skipped_and_told():
    rows = [sample("Same.", index=0), sample("Same.", index=1), sample("Moon.", prompt_id="q")]
    made = annotate(rows, load_annotator("pocket:annotator"))
    assert made.pairs == []
    assert made.skipped == ["p", "q"]


def test_a_judgement_depends_on_seed_and_prompt_and_on_nothing_else():
    rows = sample_pairs(60)
    annotator = Annotator(temperature=100.0)  # a coin for every pair, so that only the noise decides
    whole = {pair.prompt_id: pair.chosen for pair in annotate(rows, annotator, seed=1).pairs}
    backwards = {pair.prompt_id: pair.chosen for pair in annotate(rows[::-1], annotator, seed=1).pairs}
    assert whole == backwards
    one = next(iter(whole))
    alone = annotate([row for row in rows if row.prompt_id == one], annotator, seed=1).pairs[0]
    assert alone.chosen == whole[one]
    other = {pair.prompt_id: pair.chosen for pair in annotate(rows, annotator, seed=2).pairs}
    changed = np.mean([other[name] != whole[name] for name in whole])
    assert 0.2 < changed < 0.8


def test_the_unbiased_annotator_agrees_with_gold_more_often_than_not():
    pairs = annotate(sample_pairs(200), load_annotator("pocket:unbiased-annotator")).pairs
    told_apart = [pair for pair in pairs if pair.gold_chosen != pair.gold_rejected]
    assert np.mean([pair.gold_chosen > pair.gold_rejected for pair in told_apart]) > 0.7


def test_a_scored_completion_can_be_annotated_too():
    rows = [
        ScoredCompletion(**vars(sample(text, index=i)), scores={})
        for i, text in enumerate(["River.", "Moon."])
    ]
    assert len(annotate(rows, load_annotator("pocket:annotator")).pairs) == 1
