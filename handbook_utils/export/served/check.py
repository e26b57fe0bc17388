"""Compare a server with a run: its prompts token by token, or by counts, and its likeliest answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_utils.chat.loss_masks import encode_conversations
from handbook_utils.errors import DataError, ModelError, TemplateError
from handbook_utils.export.served.likeliest import likeliest_answers
from handbook_utils.export.served.replies import OPTIONAL, Reply, ask, client_for, served_model
from handbook_utils.export.served.verdicts import (
    AnswerCheck,
    PromptCheck,
    check_answer,
    check_prompt,
    problems,
    template_guess,
    to_json,
)
from handbook_utils.export.source import export_source
from handbook_utils.export.talks import TALKS, Messages, Prompts, prompts_of
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.sampling.chat_endpoint import ChatEndpoint
from handbook_utils.sampling.endpoint_client import RefusedError, key_from

ANSWER_TOKENS = 24
FEWEST = 6  # conversations that a comparison rests on


@dataclass(frozen=True)
class Server:
    """A server to be compared, and how it is asked.

    Attributes:
        url: up to /v1.
        model: its name there; None: the only one that it lists.
        key_env: environment variable that holds its key; None: none is sent.
        timeout_s: for one try of one answer.
        attempts: tries of one answer.
    """

    url: str
    model: str | None = None
    key_env: str | None = None
    timeout_s: float = 120.0
    attempts: int = 3


@dataclass(frozen=True)
class ServedReport:
    """What a comparison of a server with a run found.

    Attributes:
        url: of the server.
        model: its name there.
        prompts: one check per conversation that the template takes.
        answers: likewise; [] where the model was not loaded.
        by: what of the prompts was compared: "ids" or "counts".
        has_logprobs: whether answers were also compared by log-probabilities.
        problems: what is wrong, one line each.
        refused: conversations that the trained template refuses, with the reason; they were not asked.
    """

    url: str
    model: str
    prompts: Sequence[PromptCheck]
    answers: Sequence[AnswerCheck]
    by: str
    has_logprobs: bool
    problems: Sequence[str]
    refused: dict[str, str]

    @property
    def is_same(self) -> bool:
        """Whether nothing was found that tells the server's model from the run's."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        checks = {"prompts": to_json(self.prompts), "answers": to_json(self.answers)}
        return {**vars(self), **checks, "problems": list(self.problems), "same": self.is_same}


def check_served(
    name: str | Path,
    server: Server,
    *,
    prompts_only: bool = False,
    device: str | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> ServedReport:
    """Compare a server with the model that was trained.

    Each conversation is sent as messages, so the server applies its own template. Its tokens, or their number
    where the server says no more, are compared with those of training; then its likeliest answer with the
    trained model's, which is loaded only when every conversation was answered.

    Args:
        name: a finished run, an export of it, or any model as `load_model` takes it.
        server: what to ask, and how.
        prompts_only: compare the prompts alone; no model is loaded.
        device: where the trained model computes; None for this process's GPU, or else the CPU.
        advance: told (tokens, answers) as replies come in.
    Raises:
        RunFolderError: a run that is not finished, or was altered.
        ModelError: no such model, or the server cannot be reached.
        TemplateError: the model has no chat template.
        RecipeError: the address, the key or the name of the model.
        DataError: the server refuses a conversation.
    Book: chapter "Using what was trained".
    """
    key = key_from(server.key_env, where="check-served")
    client = client_for(server.url, key=key, timeout_s=server.timeout_s, attempts=server.attempts)
    place = _place(name)
    tokenizer = load_tokenizer(place)
    prompts = prompts_of(tokenizer)
    if len(prompts.ids) < FEWEST:
        raise ModelError(
            f"{name}: its chat template takes only {len(prompts.ids)} of {len(TALKS)} conversations."
        )
    with closing(client):
        model_name = served_model(client, server.model)
        endpoint = ChatEndpoint(client, may_drop=OPTIONAL)
        replies = {
            talk: _asked(endpoint, model_name, talk, advance, tokens=1 if prompts_only else ANSWER_TOKENS)
            for talk in prompts.ids
        }
    checks = [check_prompt(talk, prompts.ids[talk], reply) for talk, reply in replies.items()]
    answers = [] if prompts_only else _answers(place, tokenizer, prompts, replies, device)
    guess = template_guess(checks, lambda talk, messages: _count(tokenizer, messages))
    return ServedReport(
        url=client.url,
        model=model_name,
        prompts=checks,
        answers=answers,
        by="ids" if all(check.same_ids is not None for check in checks) else "counts",
        has_logprobs=any(check.logprob_difference is not None for check in answers),
        problems=problems(checks, answers, guess),
        refused=dict(prompts.refused),
    )


def _place(name: str | Path) -> str:
    """A model's name; of a run after a look at whether it is finished and as it was written."""
    folder = Path(name).expanduser()
    return str(export_source(folder).run) if (folder / "manifest.json").exists() else str(name)


def _asked(
    endpoint: ChatEndpoint,
    model: str,
    talk: str,
    advance: Callable[[int, int], None] | None,
    *,
    tokens: int,
) -> Reply:
    try:
        reply = ask(endpoint, model, TALKS[talk], tokens=tokens)
    except RefusedError as error:
        raise DataError(
            f"the server refuses the conversation '{talk}', which the trained template takes: {error}"
        ) from None
    if advance is not None:
        advance(reply.prompt_tokens, 1)
    return reply


def _answers(
    place: str, tokenizer: Any, prompts: Prompts, replies: dict[str, Reply], device: str | None
) -> list[AnswerCheck]:
    model = load_model(place, device=device)
    trained = likeliest_answers(model, tokenizer, prompts.ids, tokens=ANSWER_TOKENS)
    return [check_answer(talk, trained[talk], reply) for talk, reply in replies.items()]


def _count(tokenizer: Any, messages: Messages) -> int | None:
    try:
        return len(encode_conversations(tokenizer, [messages], add_generation_prompt=True)[0])
    except TemplateError:
        return None
