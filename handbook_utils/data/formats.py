"""Rows of any known format, turned into the five forms the stages read. Pure functions, no files.

Every error names the row (counted from 1) and the column, and says what was found there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence

from handbook_utils.chat.thinking import thinking_of
from handbook_utils.data.keys import columns as others
from handbook_utils.data.keys.hints import answer_beside
from handbook_utils.data.keys.unread import IgnoredColumnWarning, UnreadKeys
from handbook_utils.data.known_formats import FORMATS, Row
from handbook_utils.data.recognise import KINDS, Recognised, describe_format, fitting_formats
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS, RowReader
from handbook_utils.data.shapes.messages import out_of_order
from handbook_utils.data.shapes.pairs import RATED, as_pairs, gather_answers
from handbook_utils.data.shapes.ratings import COMPARED, is_even
from handbook_utils.data.shapes.transcripts import is_transcript
from handbook_utils.data.shapes.whole_rows import VOTES, rewritten
from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Message
from handbook_utils.schema.sections import PairsSection
from handbook_utils.schema.stage_table import Kind

LOGGER = logging.getLogger("handbook_utils")
# the annotator's and the gold reward's view of a pair, where the pairs come from the pocket world
GOLD_COLUMNS = ("gold_chosen", "gold_rejected")
# columns read under our names where those are missing: LLaMA-Factory's label of KTO, Argilla's votes
ALIASES = {"kto_tag": "label", "preference.responses": "preference"}
# what pairs of texts call their prompt: Intel's and Argilla's
PROMPTS = ("question", "input")


def normalise_rows(
    rows: Iterable[Row],
    *,
    kind: Kind,
    format: str = "auto",
    name: str = "data",
    pairs: PairsSection | None = None,
) -> list[Row]:
    """Bring rows into the form of `kind`.

    Args:
        rows: mappings, all in one format.
        kind: "text" -> `{"text"}`; "conversation" -> `{"prompt", "completion"}`, one row an assistant turn;
            "preference" -> `{"prompt", "chosen", "rejected"}` and gold columns where given;
            "feedback" -> `{"prompt", "completion", "label"}`, label a bool; "prompt" -> `{"prompt_id",
            "prompt"}`. All but "text" hold lists of messages, and all but "prompt" the rows' `tools` and
            `chat_template_kwargs` where there are any.
        format: the rows' format, a key of `recognise.FORMATS`; "auto" goes by the first row.
        name: what the rows came from; opens every error message.
        pairs: how a pair is chosen where rows hold rated answers; ties give none.
    Raises:
        DataError: empty, of mixed formats, a column missing, or a value that is not what its column needs.

    >>> normalise_rows([{"prompt": "Hi", "completion": "Hello."}], kind="conversation")[0]["completion"]
    [{'role': 'assistant', 'content': 'Hello.'}]
    """
    normalise = Normaliser(kind=kind, format=format, name=name, pairs=pairs)
    numbers, gathered = normalise.gathered(1, list(rows))
    made = [
        example for number, row in zip(numbers, gathered, strict=True) for example in normalise(number, row)
    ]
    if not made:
        raise DataError(f"{name}: no rows. Check the file, or the split if one was given.")
    return made


class Normaliser:
    """Turns rows of one source into examples, one row at a time; the first row decides on the format.

    Attributes:
        found: the format and why; None before the first row.
        ties: rows that gave no pair, as their answers are rated alike.
        even: pairs whose chosen answer is rated no better than the rejected one, kept as they are.
        unread: what the rows say and nobody has read.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        format: str = "auto",
        name: str = "data",
        columns: Mapping[str, str] | None = None,
        pairs: PairsSection | None = None,
    ) -> None:
        if kind not in KINDS:
            raise DataError(f"{name}: unknown kind '{kind}'. {suggest(kind, KINDS)}")
        self._kind, self._format, self._name = kind, format, name
        if pairs is not None and kind in ("text", "conversation"):
            raise DataError(f"{name}: `pairs` is said of {kind} data, which has none. Leave it out.")
        self._renamed, self._pairs = dict(columns or {}), pairs
        self.ties = self.even = 0
        self._columns: frozenset[str] = frozenset()
        self.found: Recognised | None = None
        self.unread = UnreadKeys(name)

    def __call__(self, number: int, row: Row) -> list[Row]:
        """Examples of one row; `number` is its place in the source, from 1."""
        reader = RowReader(row, f"{self._name}: row {number}")
        if self._renamed:
            _check_names(reader, self._renamed)
            reader.rename(self._renamed)
        reader.rename({a: b for a, b in ALIASES.items() if a in reader.row and b not in reader.row})
        if self.found is None or reader.row.keys() != self._columns:
            self._recognise(reader)
        assert self.found is not None
        made = convert(reader, self._kind, self.found.format, self._pairs)
        is_left_out = not made and bool(reader.skipped)
        self.unread.note(reader, self.found.format, is_left_out=is_left_out)
        if self._kind in ("preference", "feedback"):
            self.ties += not (made or is_left_out)
            self.even += self._pairs is None and is_even(reader.row)
        return made

    def gathered(self, first: int, rows: Sequence[Row]) -> tuple[Sequence[int], Sequence[Row]]:
        """Numbers and rows to go through: where each row holds one rated answer, one for each prompt."""
        if self._kind in ("preference", "feedback") and len(rows) and isinstance(rows[0], Mapping):
            renamed = {self._renamed.get(column, column): value for column, value in rows[0].items()}
            if self._format == "rated_rows" or "rated_rows" in fitting_formats(renamed):
                return gather_answers(first, rows, self._renamed, name=self._name)
        return range(first, first + len(rows)), rows

    def _recognise(self, reader: RowReader) -> None:
        columns = () if self.found is None else FORMATS[self.found.format].columns
        missing = [column for column in columns if column not in reader.row]
        if missing:
            there = ", ".join(repr(column) for column in reader.row) or "none"
            raise DataError(
                f"{reader.place} lacks the column '{missing[0]}'; found {there}. The rows before it are "
                f"{self.found}, and one source holds one format: split the file, or mend the row."
            )
        found = describe_format(reader.row, kind=self._kind, format=self._format, place=reader.place)
        if self.found is None:
            self.found, self._columns = found, frozenset(reader.row)
            LOGGER.info("%s: read as %s", self._name, found)
            if self._kind == "prompt" and TEMPLATE_OPTIONS in reader.row:
                message = (
                    f"{self._name}: the column '{TEMPLATE_OPTIONS}' is ignored: prompts are sampled, and "
                    "their answers scored, with the chat template's own defaults."
                )
                warnings.warn(message, IgnoredColumnWarning, stacklevel=2)
        elif found.format != self.found.format:
            raise DataError(
                f"{reader.place} is {found}, and the rows before it are {self.found}. One source holds one "
                "format: split the file, or say which is meant by `format`."
            )


def convert(reader: RowReader, kind: Kind, format: str, pairs: PairsSection | None = None) -> list[Row]:
    """Examples of one row whose format is known."""
    if not others.is_row_learned(reader, kind):
        return []
    if kind == "text":
        return [{"text": reader.text("text")}]
    reader.refuse_media()
    reader.rename({theirs: ours for theirs, ours in FORMATS[format].names.items() if theirs in reader.row})
    reader = rewritten(reader, format)
    if kind == "conversation":
        rows = _conversations(reader, format)
    elif kind == "preference":
        rows = [_preference(pair, format) for pair in as_pairs(reader, format, pairs)]
    elif kind == "feedback":
        rows = _feedback(reader, format, pairs)
    else:
        return [_prompt(reader, format)]
    return reader.with_tools(rows)


def prompt_hash(prompt: list[Message]) -> str:
    """A prompt's name where none was given: 16 hex digits of its content, the same in every process."""
    plain = [
        [
            m["role"],
            m["content"],
            *m.get("tool_calls", []),
            *([thought] if (thought := thinking_of(m)) else []),
        ]
        for m in prompt
    ]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()[:16]


def _check_names(reader: RowReader, renamed: Mapping[str, str]) -> None:
    """Refuse names of columns that are missing, or taken."""
    for theirs, ours in renamed.items():
        reader.value(theirs)
        if ours in reader.row and ours not in renamed:
            raise reader.error(ours, f"is there already, so `columns` cannot give '{theirs}' its name.")
    others.refuse_verdict(reader, renamed)


def _conversations(reader: RowReader, format: str) -> list[Row]:
    """One example an assistant turn: the model learns each answer given all that precedes it."""
    if format in ("prompt_completion", "alpaca"):
        prompt, answer = _answered(reader, format)
        taught = others.earlier_answers(reader, prompt)
        turns = [{"prompt": prompt[:place], "completion": [prompt[place]]} for place in taught]
        return [*turns, *([{"prompt": prompt, "completion": [answer]}] if reader.is_learned(answer) else [])]
    column = CONVERSATION_COLUMNS[format]
    messages = _conversation(reader, column, format)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        hint = answer_beside(reader.row, column)
        raise reader.error(
            column, f"no message of the assistant, so there is nothing to learn. {hint}".strip()
        )
    others.add_thinking_column(reader, *(messages[index] for index in answers))
    learned = [index for index in answers if reader.is_learned(messages[index])]
    return [{"prompt": messages[:index], "completion": [messages[index]]} for index in learned]


def _preference(reader: RowReader, format: str) -> Row:
    prompt, chosen, rejected = _compared(reader, format)
    row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    return row | {column: reader.number(column) for column in GOLD_COLUMNS if column in reader.row}


def _feedback(reader: RowReader, format: str, pairs: PairsSection | None) -> list[Row]:
    """One answer and whether it is wanted; a pair gives one of each."""
    if "label" in FORMATS[format].columns:
        prompt, answer = _answered(reader, format)
        others.refuse_marks(reader, answer)
        return [{"prompt": prompt, "completion": [answer], "label": reader.flag("label")}]
    made: list[Row] = []
    for pair in as_pairs(reader, format, pairs):
        prompt, chosen, rejected = _compared(pair, format)
        made += [
            {"prompt": prompt, "completion": [answer], "label": label}
            for answer, label in ((chosen, True), (rejected, False))
        ]
    return made


def _compared(reader: RowReader, format: str) -> tuple[list[Message], Message, Message]:
    """A pair both of whose answers are learned from."""
    prompt, chosen, rejected = _pair(reader, format)
    others.refuse_thinking_column(reader, "the row has two answers")
    others.refuse_marks(reader, chosen, rejected)
    return prompt, chosen, rejected


def _prompt(reader: RowReader, format: str) -> Row:
    if reader.tools():
        raise reader.error("tools", "a prompt to be sampled cannot have tools. Leave the column out.")
    prompt = _prompt_of(reader, format)
    given = reader.row.get("prompt_id")
    return {"prompt_id": prompt_hash(prompt) if given is None else str(given), "prompt": prompt}


def _prompt_of(reader: RowReader, format: str) -> list[Message]:
    columns = FORMATS[format].columns
    is_pair = "preference" in FORMATS[format].kinds and format not in (*RATED, *VOTES)
    if is_pair and not set(COMPARED) & set(columns):
        return _pair(reader, format)[0]
    if format in CONVERSATION_COLUMNS:
        column = CONVERSATION_COLUMNS[format]
        messages = _conversation(reader, column, format)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1]["role"] not in ASKING:
            raise reader.error(column, "no message of the user that could be answered.")
        return messages
    return _alpaca_prompt(reader) if "instruction" in reader.row else _open_prompt(reader, "prompt")


# where the formats of whole conversations keep them
CONVERSATION_COLUMNS = {
    **dict.fromkeys(("messages", "messages_feedback", "ultrafeedback", "glaive"), "messages"),
    **dict.fromkeys(("sharegpt", "sharegpt_feedback", "lima"), "conversations"),
    "contents": "contents",
    "conversation": "conversation",
    "ultrachat": "data",
    "turns_in_text": "text",
}
# how they are read where they are no list of messages
_TEXTS = RowReader.texts_in_turn
_READS = {"ultrachat": _TEXTS, "lima": _TEXTS, "turns_in_text": RowReader.transcript}
# who can be answered
ASKING = ("user", "tool")


def _answered(reader: RowReader, format: str) -> tuple[list[Message], Message]:
    """A prompt and one answer to it."""
    if format in CONVERSATION_COLUMNS:
        column = CONVERSATION_COLUMNS[format]
        *prompt, answer = _conversation(reader, column, format)
        if not prompt or answer["role"] != "assistant":
            raise reader.error(column, f"ends with a message of the {answer['role']}, not an answer.")
        return prompt, answer
    if "instruction" in FORMATS[format].columns:
        prompt, answers = _alpaca_prompt(reader), reader.messages("output", role="assistant")
        return prompt, _one_answer(reader, "output", answers)
    *before, answer = reader.messages("completion", role="assistant")
    if not before or answer["role"] != "assistant":
        return _open_prompt(reader, "prompt"), _one_answer(reader, "completion", [*before, answer])
    return _prompt_inside(reader, before, "completion"), answer


def _alpaca_prompt(reader: RowReader) -> list[Message]:
    parts = [reader.text("instruction"), reader.optional_text("input")]
    content = "\n\n".join(part for part in parts if part.strip())
    return _checked(reader, "instruction", [Message(role="user", content=content)])


def _pair(reader: RowReader, format: str) -> tuple[list[Message], Message, Message]:
    """Prompt, chosen and rejected; the prompt may be given apart, inside both conversations, or both."""
    chosen, rejected = (_side(reader, column, format) for column in ("chosen", "rejected"))
    inside = chosen[:-1]
    if format == "swift_ranking":  # its rejected answer stands alone
        rejected = [*inside, *rejected]
    if inside != rejected[:-1]:
        if format in ("arena", "arena_votes"):
            parted = "goes another way than the first before its last answer, so the two answer different "
            raise reader.error("answer_b", f"{parted}prompts. Keep rows whose conversations have one turn.")
        raise reader.error("rejected", "answers another conversation than 'chosen' does.")
    if inside:
        prompt = _prompt_inside(reader, inside, "chosen")
    elif (
        "prompt" not in reader.row
        and format != "alpaca_ranking"
        and (other := next((name for name in PROMPTS if name in reader.row), None))
    ):
        prompt = _open_prompt(reader, other)
    else:
        prompt = _alpaca_prompt(reader) if format == "alpaca_ranking" else _open_prompt(reader, "prompt")
    return prompt, _behind_transcript(reader, chosen[-1]), _behind_transcript(reader, rejected[-1])


def _prompt_inside(reader: RowReader, inside: list[Message], column: str) -> list[Message]:
    """The prompt where `column` holds a conversation that ends with the answer, `inside` being the rest."""
    prompt = others.with_prompt_before(reader, inside)
    others.refuse_another_prompt(reader, column, prompt)
    return _checked(reader, column, prompt)


def _side(reader: RowReader, column: str, format: str) -> list[Message]:
    is_transcript = format == "transcript"
    messages = reader.transcript(column) if is_transcript else reader.messages(column, role="assistant")
    if messages[-1]["role"] != "assistant":
        raise reader.error(column, f"ends with a message of the {messages[-1]['role']}, not an answer.")
    return messages


def _open_prompt(reader: RowReader, column: str) -> list[Message]:
    """A prompt that is waiting for an answer; of a transcript, the turns before the answer."""
    is_open = is_transcript(reader.value(column))
    prompt = reader.transcript(column) if is_open else reader.messages(column, role="user")
    if is_open and prompt[-1] == Message(role="assistant", content=""):
        prompt = prompt[:-1]
    if prompt[-1]["role"] not in ASKING:
        raise reader.error(column, f"ends with a message of the {prompt[-1]['role']}, not of the user.")
    return _checked(reader, column, prompt)


def _one_answer(reader: RowReader, column: str, messages: list[Message]) -> Message:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise reader.error(column, f"expected one message of the assistant, found: {roles}.")
    answer = _behind_transcript(reader, messages[0])
    others.add_thinking_column(reader, answer)
    return answer


def _behind_transcript(reader: RowReader, answer: Message) -> Message:
    """An answer without the space that separates it from its speaker, where the prompt is a transcript."""
    if not is_transcript(reader.row.get("prompt")):
        return answer
    return {**answer, "content": answer["content"].strip()}


def _conversation(reader: RowReader, column: str, format: str) -> list[Message]:
    messages = _READS.get(format, RowReader.conversation)(reader, column)
    if format == "ultrafeedback":
        others.refuse_another_prompt(reader, column, messages)
    others.mark_by_list(reader, column, messages)
    return _checked(reader, column, messages)


def _checked(reader: RowReader, column: str, messages: list[Message]) -> list[Message]:
    """The messages behind what the row says of the system and of earlier turns, if their order makes sense.

    A user may speak twice in a row, as people do; whether a template takes that is for the template to say.
    """
    messages = others.with_what_precedes(reader, column, messages)
    before = ""
    for index, message in enumerate(messages, start=1):
        problem = out_of_order(before, message, index)
        if problem:
            raise reader.error(column, f"message {index} {problem}")
        before = message["role"]
    return messages
