"""Checks of a chat template: does training see what inference will see, and does an answer learn to end?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from handbook_utils.chat import probes
from handbook_utils.chat.bounded_render import templates_of
from handbook_utils.chat.conversation import require_template
from handbook_utils.chat.loss_masks import has_marks
from handbook_utils.chat.probes import (
    ANSWER,
    ONE_TURN,
    QUESTION,
    SECOND_ANSWER,
    SECOND_QUESTION,
    TWO_TURNS,
    TemplateProbe,
)
from handbook_utils.chat.report import Severity, Status, TemplateCheck, TemplateReport
from handbook_utils.chat.thinking import thinking_keys_read
from handbook_utils.errors import TemplateError
from handbook_utils.libraries.versions import naming_untested_versions

Verdict = tuple[Status, str, str]
# how templates write the special tokens of turns
_MARK = re.compile(r"<\|[^\s<>|]+\|>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>")


@naming_untested_versions
def check_chat_template(tokenizer: Any) -> TemplateReport:
    """Check a tokenizer's chat template on small conversations; a bad one is reported, not raised.

    The template is first rendered in a child process under limits, once in this process's life. A template
    that is missing, does not end or escapes the sandbox fails the check "renders", and no other is tried.

    Args:
        tokenizer: any tokenizer of transformers.
    Returns:
        A report: `str` and notebooks show it as a table, `report.ok` says whether training would start.
    Book: chapter "Chat templates and loss masks".
    """
    probe = TemplateProbe(tokenizer)
    try:
        require_template(tokenizer)
        _ = probe.row
    except TemplateError as error:
        return TemplateReport((TemplateCheck("renders", "fail", "error", str(error)),))
    first = TemplateCheck("renders", "pass", "error", "A question and its answer are rendered.")
    return TemplateReport((first, *(_run(probe, *check) for check in CHECKS)))


def _run(
    probe: TemplateProbe, name: str, severity: Severity, find: Callable[[TemplateProbe], Verdict]
) -> TemplateCheck:
    try:
        status, message, remedy = find(probe)
    except TemplateError as error:
        status, message, remedy = _fail(f"The template refuses the check's conversation. {error}", "")
    return TemplateCheck(name, status, severity, message, remedy)


def _pass(message: str) -> Verdict:
    return "pass", message, ""


def _fail(message: str, remedy: str) -> Verdict:
    return "fail", message, remedy


def _unused(message: str) -> Verdict:
    return "not applicable", message, ""


def _every_turn(probe: TemplateProbe) -> Verdict:
    text, place = probe.text(TWO_TURNS), 0
    for part in (QUESTION, ANSWER, SECOND_QUESTION, SECOND_ANSWER):
        place = text.find(part, place)
        if place < 0:
            return _fail(
                f"{part!r} is missing from the rendered conversation, or out of order.",
                "The template loses messages of plain text. Use another.",
            )
    learned = probe.decoded(probe.learned)
    if ANSWER in learned:
        return _pass("Every message of two turns is rendered, in order, and the answer carries loss.")
    return _fail(
        f"The answer is rendered, but only {learned!r} is learned.",
        "Put {% generation %} and {% endgeneration %} around what the assistant says, or remove them.",
    )


def _inference_prompt(probe: TemplateProbe) -> Verdict:
    found = _mismatch(probe, ONE_TURN) or _mismatch(probe, TWO_TURNS)
    if found is None:
        return _pass("A training row begins with the inference prompt, token for token.")
    ends, has = found
    if _mismatch(probe, probes.THINKING) is None:
        return _pass(f"The inference prompt ends in {ends!r}: only a row whose answer thinks begins with it.")
    return _fail(
        f"The inference prompt ends in {ends!r}, where training has {has!r}.",
        "The model would be trained on a context it never meets. Use a template whose generation prompt is "
        "the start of the whole.",
    )


def _mismatch(probe: TemplateProbe, messages: Sequence[Any]) -> tuple[str, str] | None:
    """Where the inference prompt and the training row part: the rest of the one, the start of the other."""
    prompt, row = probe.ids(messages[:-1], prompt=True), probe.row_of(messages)
    if row.start == len(prompt):
        return None
    return probe.decoded(prompt[row.start :]), probe.decoded(row.ids[row.start :][:8])


def _end_trained(probe: TemplateProbe) -> Verdict:
    if probe.end is not None:
        return _pass(f"An answer ends with {probe.specials[probe.end]!r}, and it carries loss.")
    last = probe.decoded(probe.learned[-1:])
    outside = [probe.specials[token] for token in probe.row.ids[probe.row.start :] if token in probe.specials]
    if outside:
        return _fail(
            f"{outside[-1]!r} stands outside the generation marks; the last learned token is {last!r}.",
            "A model so trained cannot learn to stop. Move {% endgeneration %} behind the end of the turn.",
        )
    unable = "A model so trained cannot learn to stop."
    if missing := _missing_tokens(probe):
        return _fail(
            f"The tokenizer has no {' and no '.join(map(repr, missing))}, which the template writes: each "
            "falls to pieces of plain text.",
            f"{unable} Use `chat_template: zephyr`, which needs no token of its own, or a model with these.",
        )
    return _fail(
        f"No special token ends an answer: the last learned token is {last!r}.",
        f"{unable} Let the template write {{{{ eos_token }}}} after an answer.",
    )


def _missing_tokens(probe: TemplateProbe) -> list[str]:
    """Marks of turns that the template writes and the tokenizer lacks, where one of them ends an answer."""
    text = probe.text(ONE_TURN)
    known = {*probe.specials.values(), *probe.tokenizer.all_special_tokens}
    missing = [mark for mark in dict.fromkeys(_MARK.findall(text)) if mark not in known]
    ends = _MARK.findall(text.rpartition(ANSWER)[2])
    return missing if set(ends) & set(missing) else []


def _end_is_eos(probe: TemplateProbe) -> Verdict:
    eos = probe.tokenizer.eos_token
    if probe.end is None:
        return _unused("No end is learned.")
    if probe.end == probe.tokenizer.eos_token_id:
        return _pass(f"The end of an answer is the tokenizer's end-of-sequence token {eos!r}.")
    end = probe.specials[probe.end]
    return _fail(
        f"An answer ends with {end!r}, but the tokenizer's end-of-sequence token is {eos!r}.",
        f"Set eos_token to {end!r}, or see that the model's generation_config.eos_token_id lists it.",
    )


def _generation_prompt(probe: TemplateProbe) -> Verdict:
    closed, opened = probe.text(ONE_TURN[:1]), probe.text(ONE_TURN[:1], prompt=True)
    if closed != opened:
        return _pass(f"The assistant's turn is opened by {opened.removeprefix(closed)!r}.")
    between = probe.text(ONE_TURN).removeprefix(opened).partition(ANSWER)[0]
    if not between.strip():
        return _pass("An answer follows the user's turn directly; nothing has to open it.")
    return _fail(
        f"add_generation_prompt adds nothing, so the model itself has to write {between!r} first.",
        "Add {% if add_generation_prompt %}...{% endif %} to the end of the template.",
    )


def _marks_agree(probe: TemplateProbe) -> Verdict:
    if not has_marks(probe.tokenizer):
        return _unused("There are no generation marks: what follows the inference prompt is learned.")
    behind = zip(probe.row.ids[probe.row.start :], probe.row.loss[probe.row.start :], strict=True)
    unmarked = probe.decoded([token for token, counts in behind if not counts])
    if not unmarked.strip():
        return _pass("The generation marks hold all that follows the inference prompt.")
    return _fail(
        f"The model has to write {unmarked!r}, but the generation marks leave it out.",
        "Put it between {% generation %} and {% endgeneration %}.",
    )


def _one_bos(probe: TemplateProbe) -> Verdict:
    bos = probe.tokenizer.bos_token_id
    if bos is None:
        return _unused("The tokenizer has no token that begins a sequence.")
    if probe.row.ids[:2] != [bos, bos]:
        return _pass("No row begins with two of them.")
    return _fail(f"A row begins with {probe.tokenizer.bos_token!r} twice.", "Remove one from the template.")


def _system_turn(probe: TemplateProbe) -> Verdict:
    try:
        text = probe.text(probes.WITH_SYSTEM)
    except TemplateError as error:
        return _unused(f"The template refuses a system message. {error}")
    if probes.SYSTEM in text:
        return _pass("A system message is rendered.")
    return _fail(
        "A system message is dropped without a word.",
        "Put its text into the first user's message, or use a template that renders it.",
    )


def _system_less(probe: TemplateProbe) -> Verdict:
    marks = "|".join(map(re.escape, probe.specials.values())) or "(?!)"
    own = re.sub(marks, " ", probe.text(ONE_TURN)).partition(QUESTION)[0].strip()
    # what stands in front of a first question is at most the name of a role
    if len(own.split()) <= 2:
        return _pass("A conversation without a system message gets none.")
    return _fail(
        f"Without a system message the template writes one of its own: {own[:60]!r}...",
        "Training learns answers behind that text: give the same at inference, or a system message of yours.",
    )


def _same_each_day(probe: TemplateProbe) -> Verdict:
    if not any("strftime_now" in template for template in templates_of(probe.tokenizer)):
        return _pass("The rendering does not depend on the day.")
    return _fail(
        "The template may write the date of the day.",
        "The rendering changes from day to day. If that matters, pass the date as a template variable.",
    )


def _tool_turns(probe: TemplateProbe) -> Verdict:
    if not re.search(r"\btools?\b", probe.tokenizer.get_chat_template(None, probes.TOOLS)):
        return _unused("The template knows no tools.")
    text = probe.text(probes.WITH_TOOL, tools=probes.TOOLS)
    wanted = {"schema": probes.TOOL_SAYS, "call": probes.PLACE, "result": probes.RESULT, "answer": ANSWER}
    lost = [name for name, part in wanted.items() if part not in text]
    if not lost:
        return _pass("A tool's schema, its call, its result and the answer are rendered.")
    return _fail(
        f"Of a tool's turns the template drops without a word: {', '.join(lost)}.",
        "Do not train on conversations with tools under this template.",
    )


def _thinking(probe: TemplateProbe) -> Verdict:
    row = probe.row_of(probes.THINKING[:2])
    learned = probe.decoded([token for token, counts in zip(row.ids, row.loss, strict=True) if counts])
    if ANSWER not in learned:
        return _unused("The answer itself is not learned.")
    if probes.THOUGHT_SAYS not in learned:
        return _fail(
            "Of an answer that thinks only what follows </think> is learned.",
            "Do not train on answers that think under this template, or mend it.",
        )
    names = {name for template in templates_of(probe.tokenizer) for name in thinking_keys_read(template)}
    beside = f"; beside the content it is read from {', '.join(sorted(names))}" if names else ""
    return _pass(f"What an answer thinks in <think> is learned with it{beside}.")


def _earlier_turns(probe: TemplateProbe) -> Verdict:
    for messages, what in (
        (TWO_TURNS, "an earlier answer"),
        (probes.THINKING, "an earlier answer's thinking"),
    ):
        first, both = probe.ids(messages[:2]), probe.ids(messages)
        if both[: len(first)] != first:
            return _fail(
                f"The template rewrites {what} when more follows.",
                "Each answer is learned in a row of its own, behind the prompt that inference would give.",
            )
    return _pass("What follows changes no earlier turn: a conversation is learned as one row.")


def _same_from_text(probe: TemplateProbe) -> Verdict:
    again = probe.tokenizer(probe.text(ONE_TURN))["input_ids"]
    if again == probe.row.ids:
        return _pass("Tokenizing the rendered text gives the same tokens.")
    begins, ours = probe.decoded(again[:2]), probe.decoded(probe.row.ids[:2])
    return _fail(
        f"Rendered to text and tokenized again, a row begins {begins!r} instead of {ours!r}.",
        "Tokenize rendered text with add_special_tokens=False, or render and tokenize in one call.",
    )


def _pad_apart(probe: TemplateProbe) -> Verdict:
    pad = probe.tokenizer.pad_token_id
    if pad is None:
        return _unused("The tokenizer has no padding token.")
    if pad not in (probe.end, probe.tokenizer.eos_token_id):
        return _pass(f"Padding is {probe.tokenizer.pad_token!r}, and no end.")
    return _fail(
        f"{probe.tokenizer.pad_token!r} is both padding and end-of-turn token.",
        "Give padding a token of its own. The trainers here mask padding by its place, but a reward model "
        "reads its score before the end, and a collator that masks labels by token id masks every end.",
    )


def _text_stays_text(probe: TemplateProbe) -> Verdict:
    if not probe.specials:
        return _unused("The tokenizer has no special tokens.")
    forged = [probes.turn("user", f"{QUESTION} {''.join(probe.specials.values())}")]
    before, after = (
        sum(t in probe.specials for t in probe.ids(m, prompt=True)) for m in (ONE_TURN[:1], forged)
    )
    if after == before:
        return _pass("A special token that a user writes out stays text.")
    name = probe.specials[probe.end] if probe.end is not None else next(iter(probe.specials.values()))
    return _fail(
        f"{name!r} in a message becomes the token itself: its writer can end the turn and speak for others.",
        "For untrusted input, apply_chat_template takes sanitize_control_tokens=True.",
    )


CHECKS: tuple[tuple[str, Severity, Callable[[TemplateProbe], Verdict]], ...] = (
    ("every-turn", "error", _every_turn),
    ("inference-prompt", "error", _inference_prompt),
    ("end-trained", "error", _end_trained),
    ("end-is-eos", "warning", _end_is_eos),
    ("generation-prompt", "warning", _generation_prompt),
    ("marks-agree", "warning", _marks_agree),
    ("one-bos", "warning", _one_bos),
    ("system-turn", "warning", _system_turn),
    ("tool-turns", "warning", _tool_turns),
    ("system-less", "note", _system_less),
    ("same-each-day", "note", _same_each_day),
    ("thinking", "note", _thinking),
    ("earlier-turns", "note", _earlier_turns),
    ("same-from-text", "note", _same_from_text),
    ("pad-apart", "note", _pad_apart),
    ("text-stays-text", "note", _text_stays_text),
)
