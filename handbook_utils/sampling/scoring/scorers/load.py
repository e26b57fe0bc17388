"""The scorers that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from handbook_utils.data.load import Locator, ResolvedInputs, normaliser_of, origin_of
from handbook_utils.data.sources import read_rows
from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.records import Message
from handbook_utils.sampling.scoring.score import Scorer
from handbook_utils.sampling.scoring.scorers.gold import GoldScorer
from handbook_utils.sampling.scoring.scorers.instructions import instructions_on_record
from handbook_utils.sampling.scoring.scorers.verifiers import (
    Check,
    UnreadableAnswerError,
    VerifierScorer,
    answer_scorer,
    bounded_function,
    function_check,
    json_scorer,
    length_check,
    regex_check,
)
from handbook_utils.sampling.tables import samples_at
from handbook_utils.schema.sampling import (
    AnswerSection,
    EnsembleSection,
    FunctionSection,
    InstructionsSection,
    JsonSection,
    JudgeSection,
    LengthSection,
    RegexSection,
    ScorerSection,
    ScoringModelSection,
)
from handbook_utils.schema.sections import ModelSection

POCKET_SCORERS = ("pocket:gold",)


def load_scorers(
    sections: Mapping[str, ScorerSection], run: Locator | None = None, *, rows_per_batch: int = 256
) -> list[Scorer]:
    """All scorers of a recipe, in its order; what can be wrong is found before a model is loaded.

    Args:
        sections: by the name of their column, as a recipe's `scorers` or from `scorer_sections`.
        run: finds the earlier runs that sections read; None: they read none.
        rows_per_batch: answers per forward pass of a reward model.
    Raises:
        RecipeError: an unknown `pocket:` scorer, or a verifier that cannot be made.
        ModelError: no such model, or one that gives no score.
    """
    run = run or ResolvedInputs()
    cheap = check_scorers(sections, run)
    return [
        cheap[name] if name in cheap else _of_models(name, section, run, rows_per_batch)
        for name, section in sections.items()
    ]


def check_scorers(sections: Mapping[str, ScorerSection], run: Locator) -> dict[str, Scorer]:
    """Check what a recipe scores by, and make what of it needs no model; raises as `load_scorers`."""
    for name, section in sections.items():
        _check_models(name, section, run)
    return {
        name: verifier(name, section, run) for name, section in sections.items() if not models_of(section)
    }


def verifier(name: str, section: ScorerSection, run: Locator) -> Scorer:
    """A verifier or judge by its section.

    Raises:
        RecipeError: the schema or function is wrong, or a judge's key is not set.
        DataError: answers that cannot be read.
    """
    if isinstance(section, JudgeSection):
        return judge(name, section, run)
    if isinstance(section, JsonSection):
        return json_scorer(section, name=name)
    if isinstance(section, AnswerSection):
        return answers_on_record(name, section, run)
    if isinstance(section, InstructionsSection):
        return instructions_on_record(name, section, run)
    if isinstance(section, FunctionSection) and section.timeout_s is not None:
        return bounded_function(section.function, name=name, seconds=section.timeout_s)
    return VerifierScorer(name, _check_of(name, section, run))


def judge(name: str, section: JudgeSection, run: Locator) -> Scorer:
    """A judge that asks its endpoint, each question once.

    Raises:
        RecipeError: the variable of its key is not set.
        DataError: the samples to compare with cannot be read, or the cache is of another version of the
            prompt.
    """
    from handbook_utils.sampling.asking import Asker
    from handbook_utils.sampling.chat_endpoint import ChatEndpoint
    from handbook_utils.sampling.endpoint_client import EndpointClient, key_from
    from handbook_utils.sampling.judging import PROMPT_VERSION
    from handbook_utils.sampling.ledger import Bound, BoundReachedError, Ledger
    from handbook_utils.sampling.scoring.scorers.judge import JudgeScorer, first_samples

    key = key_from(section.key_env, where=f"scorers.{name}")
    client = EndpointClient(section.url, key, section.timeout_s, section.attempts)
    # hosted reasoning models take no temperature
    endpoint = ChatEndpoint(client, may_drop=frozenset({"temperature"}))
    ledger = Ledger(section.cache, Bound(requests=section.max_requests), version=PROMPT_VERSION)
    opponents = None
    if section.against is not None:
        opponents = first_samples(samples_at(run.locate(section.against)))

    asker = Asker(endpoint, ledger, section.model, section.max_tokens, section.extra_body)

    def ask(messages: Sequence[Message]) -> str:
        try:
            return asker(messages)
        except BoundReachedError:
            raise _bound_error(section, ledger.spent.requests) from None

    return JudgeScorer(name, ask, section.criterion, opponents, section.parallel)


def _bound_error(section: JudgeSection, asked: int) -> DataError:
    return DataError(
        f"{section.cache}: {asked} replies were asked for, and `max_requests` is {section.max_requests}. "
        "What was judged is kept there and costs nothing again: raise the bound to go on."
    )


def _check_of(name: str, section: ScorerSection, run: Locator) -> Check:
    if isinstance(section, RegexSection):
        return regex_check(section.pattern, whole=section.whole)
    if isinstance(section, LengthSection):
        return length_check(section)
    assert isinstance(section, FunctionSection)  # what is left
    return function_check(section.function, name=name)


def answers_on_record(name: str, section: AnswerSection, run: Locator) -> Scorer:
    """The scorer `answer`: each prompt's right answer read, and all of them understood.

    Raises:
        DataError: a row without an answer, with two answers to one prompt, or with one that nothing can be
            compared with.
    """
    answers = read_answers(section, run)
    try:
        texts = {prompt_id: text for prompt_id, (_, text) in answers.items()}
        return answer_scorer(texts, name=name, pattern=section.pattern)
    except UnreadableAnswerError as error:
        place = f"{section.answers.label}: row {answers[error.prompt_id][0]}"
        raise DataError(
            f"{place}: '{section.column}' cannot be read as an answer: {error.why}. "
            "Write a number, words, or LaTeX; of a worked solution the end, as \\boxed{...} or after '####'. "
            "What is no such answer is checked by `kind: regex` or `kind: function`."
        ) from None


def read_answers(section: AnswerSection, run: Locator) -> dict[str, tuple[int, str]]:
    """The right answer of each prompt with the number of its row, by prompt id.

    Raises:
        DataError: a row without an answer, one that holds several, or two answers to one prompt.
    """
    first, rows = read_rows(origin_of(section.answers, run, seed=0))
    normalise = normaliser_of(section.answers, run, kind="prompt")
    answers: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, start=first):
        place = f"{section.answers.label}: row {number}"
        found = row.get(section.column)
        if found is None:
            raise DataError(f"{place} has no '{section.column}'. {suggest(section.column, map(str, row))}")
        if isinstance(found, list | dict):
            kind = type(found).__name__
            raise DataError(f"{place}: '{section.column}' is a {kind}. Write one answer as text there.")
        prompt_id = normalise(number, row)[0]["prompt_id"]
        if answers.setdefault(prompt_id, (number, str(found)))[1] != str(found):
            raise DataError(f"{place} has another answer to a prompt than an earlier row. Keep one.")
    return answers


def _check_models(name: str, section: ScorerSection, run: Locator) -> None:
    for model in models_of(section):
        location = run.locate(model)
        if location in POCKET_SCORERS:
            continue
        if location.startswith("pocket:"):
            hint = suggest(location, POCKET_SCORERS)
            raise RecipeError(f"scorers.{name}: unknown scorer '{location}'. {hint}")
        # imported where it is needed: verifiers alone load no torch
        from handbook_utils.sampling.scoring.scorers.reward_model import check_reward_model

        check_reward_model(location, revision=model.revision)


def models_of(section: ScorerSection) -> list[ModelSection]:
    """The models that a scorer loads; none for a verifier or a judge."""
    if isinstance(section, EnsembleSection):
        return list(section.models)
    return [section] if isinstance(section, ModelSection) else []


def _of_models(name: str, section: ScorerSection, run: Locator, rows_per_batch: int) -> Scorer:
    if isinstance(section, ScoringModelSection) and run.locate(section) in POCKET_SCORERS:
        return GoldScorer(name)
    from handbook_utils.sampling.scoring.scorers import reward_model

    models = [
        reward_model.load_reward_model(model, run.locate(model), name=name, rows_per_batch=rows_per_batch)
        for model in models_of(section)
    ]
    if isinstance(section, EnsembleSection):
        return reward_model.EnsembleScorer(models, section.combine, section.k, name)
    return models[0]
