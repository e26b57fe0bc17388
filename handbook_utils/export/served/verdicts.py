"""What a server's replies say of its template and its model; pure functions of what was asked and replied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from handbook_utils.export.served.likeliest import Likeliest
from handbook_utils.export.served.replies import Reply
from handbook_utils.export.talks import TALKS, Messages

Verdict = Literal["same", "other", "undecided"]
# mean difference of log-probabilities per token, in nats: above it, no rounding explains it
LOGPROB_TOLERANCE = 0.15
REPLACED = "\ufffd"  # half a character, which the next token completes


@dataclass(frozen=True)
class PromptCheck:
    """A conversation's prompt at the server and in training.

    Attributes:
        name: of the conversation.
        trained: tokens as in training.
        served: tokens that the server counted.
        same_ids: whether they are the same, one by one; None where the server does not send them.
        first_other: place of the first other token, counted from 1; None: there is none, or it is not known.
    """

    name: str
    trained: int
    served: int
    same_ids: bool | None
    first_other: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the server made of the conversation what training did, as far as it says."""
        is_same = self.trained == self.served if self.same_ids is None else self.same_ids
        return "same" if is_same else "other"


@dataclass(frozen=True)
class AnswerCheck:
    """A conversation's likeliest answer at the server and here.

    Attributes:
        name: of the conversation.
        verdict: "undecided" where the answers part at a token of which this model was not sure.
        trained: the answer here.
        served: the answer there.
        logprob_difference: mean per token that both wrote, in nats; None where the server has none.
        goes_on: whether the server went on where the trained model ends its answer.
    """

    name: str
    verdict: Verdict
    trained: str
    served: str
    logprob_difference: float | None = None
    goes_on: bool = False


def check_prompt(name: str, trained: Sequence[int], reply: Reply) -> PromptCheck:
    """Compare the tokens of one prompt."""
    if reply.prompt_ids is None:
        return PromptCheck(name, len(trained), reply.prompt_tokens, None)
    served = list(reply.prompt_ids)
    pairs = zip(trained, served, strict=False)
    other = next((place for place, (a, b) in enumerate(pairs, 1) if a != b), None)
    if other is None and len(served) != len(trained):
        other = min(len(served), len(trained)) + 1
    return PromptCheck(name, len(trained), len(served), other is None, other)


def check_answer(name: str, trained: Likeliest, reply: Reply) -> AnswerCheck:
    """Compare one answer with the likeliest one of the trained model.

    Answers that part are the same model's where this one was not sure of the token at which they part: a
    server rounds otherwise. From there on nothing can be compared.
    """
    shared = _shared_tokens(trained, reply)
    is_whole = shared == len(trained.ids)
    goes_on = is_whole and trained.ended and _goes_on(trained, reply)
    parting = trained.margins[-1 if goes_on else min(shared, len(trained.ids) - 1)]
    verdict: Verdict = "same"
    if goes_on or not is_whole:
        verdict = "undecided" if parting <= trained.tolerance else "other"
    difference = _logprob_difference(trained, reply, shared)
    if difference is not None and difference > LOGPROB_TOLERANCE:
        verdict = "other"
    return AnswerCheck(name, verdict, trained.text, reply.text, difference, goes_on and verdict == "other")


def _logprob_difference(trained: Likeliest, reply: Reply, shared: int) -> float | None:
    """Mean difference over the tokens that both wrote; None where there is nothing to compare."""
    if reply.logprobs is None or (n := min(shared, len(reply.logprobs))) == 0:
        return None
    pairs = zip(trained.logprobs[:n], reply.logprobs[:n], strict=True)
    return fmean(abs(ours - theirs) for ours, theirs in pairs)


def _shared_tokens(trained: Likeliest, reply: Reply) -> int:
    """How many tokens both answers begin with: by ids, or where the server sends none by its text."""
    if reply.ids is None:
        parts = (n for n, text in enumerate(trained.beginnings) if not _begins(reply.text, text))
        return next(parts, len(trained.ids))
    if trained.ended and reply.ended and list(reply.ids) == list(trained.ids)[:-1]:
        return len(trained.ids)  # some servers leave out the token that ends an answer
    pairs = zip(trained.ids, reply.ids, strict=False)
    parts = (n for n, (ours, theirs) in enumerate(pairs) if ours != theirs)
    return next(parts, min(len(trained.ids), len(reply.ids)))


def _begins(said: str, text: str) -> bool:
    """Whether what was said begins with a text; white space at both ends does not count, servers cut it."""
    text = text.rstrip(REPLACED)
    return said.startswith(text) or said.strip().startswith(text.strip())


def _goes_on(trained: Likeliest, reply: Reply) -> bool:
    """Whether an answer that begins with all of the trained one has more."""
    if reply.ids is not None:
        return len(reply.ids) > len(trained.ids)
    return reply.text.strip() != trained.text.strip()


def template_guess(checks: Sequence[PromptCheck], count: Callable[[str, Messages], int | None]) -> str | None:
    """What the server's counts are the counts of, in words; None where nothing known here fits.

    Args:
        checks: of the prompts.
        count: of a conversation's name and changed messages, how many tokens training would make of them.
    """
    if all(check.verdict == "same" for check in checks):
        return None
    differences = {check.served - check.trained for check in checks}
    if len(differences) == 1 and differences != {0}:
        (difference,) = differences
        tokens = f"{abs(difference)} token{'' if abs(difference) == 1 else 's'}"
        which = "more" if difference > 0 else "fewer"
        return (
            f"each prompt has {tokens} {which}: such as a line break at the end of the template, the tokens "
            "that open the answer, or a beginning-of-text token given twice"
        )
    for words, change in _CHANGES.items():
        counted = {check.name: count(check.name, change(TALKS[check.name])) for check in checks}
        if all(counted[check.name] == check.served for check in checks):
            return words
    return None


def _without_system(messages: Messages) -> Messages:
    return [message for message in messages if message["role"] != "system"]


def _stripped(messages: Messages) -> Messages:
    return [{**message, "content": message["content"].strip()} for message in messages]


def _last(messages: Messages) -> Messages:
    return messages[-1:]


_CHANGES: Mapping[str, Callable[[Messages], Messages]] = {
    "the counts are those without the system message: the server's template drops it": _without_system,
    "the counts are those without white space around messages: the server's template cuts it": _stripped,
    "the counts are those of the last message alone: the server drops what came before": _last,
}


def problems(prompts: Sequence[PromptCheck], answers: Sequence[AnswerCheck], guess: str | None) -> list[str]:
    """What is wrong with the server, one line each; [] where nothing was found."""
    found = []
    others = [check for check in prompts if check.verdict == "other"]
    if others:
        found.append(
            f"template: {len(others)} of {len(prompts)} prompts have other tokens than in training"
            + (f"; {guess}" if guess else "")
        )
    going_on = [check for check in answers if check.goes_on]
    if going_on:
        found.append(
            f"end: {len(going_on)} of {len(answers)} answers go on where the trained model ends them: the "
            "server does not know the end token. Serve an export, whose generation_config.json names it"
        )
    strange = [check for check in answers if check.verdict == "other" and not check.goes_on]
    if strange and not others:
        found.append(
            f"model: {len(strange)} of {len(answers)} answers are not those of this model: the server serves "
            "another one, one that is quantised, or draws answers although the likeliest was asked for"
        )
    elif strange:
        found.append(
            f"answers: {len(strange)} of {len(answers)} are not this model's; the template may explain it"
        )
    return found


def to_json(checks: Sequence[PromptCheck | AnswerCheck]) -> list[dict[str, Any]]:
    """Checks as plain values."""
    return [{**vars(check), "verdict": check.verdict} for check in checks]
