"""What looked right and was not: each row beside a control, by the tokens that carry loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from handbook_utils import load_tokenizer
from handbook_utils.chat.loss_masks import tokenize_turns
from handbook_utils.data.formats import normalise_rows
from handbook_utils.data.load import load_dataset
from handbook_utils.data.mixture import WrittenEndsWarning
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection
from handbook_utils.training.rows.tokenized import turn_of
from tests.unit.test_data_other_tools import ASK, PEAR, STONE, TALK, jsonl, refusal


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = load_tokenizer("pocket:base")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def learned(tokenizer: Any, prompt: list[Any], answer: list[Any]) -> str:
    """The text that carries loss when an answer is learned."""
    (row,) = tokenize_turns(tokenizer, [turn_of({"prompt": prompt, "completion": answer}, "completion")])
    text: str = tokenizer.decode([token for token, counts in zip(row.ids, row.loss, strict=True) if counts])
    return text


def answers(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    made = normalise_rows([row], kind="conversation")
    return [learned(tokenizer, example["prompt"], example["completion"]) for example in made]


def chosen(tokenizer: Any, row: dict[str, Any], **pairs: Any) -> str:
    section = PairsSection(**pairs) if pairs else None
    (pair,) = normalise_rows([row], kind="preference", pairs=section)
    return learned(tokenizer, pair["prompt"], pair["chosen"])


# --- columns that are called thinking


@pytest.mark.parametrize("key", ["reasoning", "thinking", "reasoning_content"])
@pytest.mark.parametrize("switch", ["on", "Off", "true", "high", "no_think", "0.5", "2048"])
def test_a_switch_that_is_called_thinking_is_not_learned_and_is_told(
    tokenizer: Any, tmp_path: Path, key: str, switch: str
) -> None:
    for row in (
        {"prompt": "Name a fruit.", "completion": "Pear.", key: switch},
        {"messages": [ASK, {**PEAR, key: switch}]},
    ):
        assert answers(tokenizer, row) == ["Pear.<|end|>"]
        with pytest.warns(UserWarning, match=f"nothing reads them.*'{key}'"):
            load_dataset(jsonl(tmp_path / "rows.jsonl", row), kind="conversation")
    thinks = {"prompt": "Name a fruit.", "completion": "Pear.", key: "Turn it off."}
    assert answers(tokenizer, thinks) == ["[Turn it off.]Pear.<|end|>"]


# --- a prompt beside a whole conversation


@pytest.mark.parametrize(
    ("row", "kind", "column"),
    [
        ({"prompt": "Speak as a pirate.", "chosen": TALK, "rejected": [ASK, STONE]}, "preference", "prompt"),
        ({"prompt": "Speak as a pirate.", "chosen": TALK, "rejected": [ASK, STONE]}, "feedback", "prompt"),
        ({"instruction": "Be rude.", "chosen": TALK, "rejected": [ASK, STONE]}, "preference", "instruction"),
        ({"prompt": "Speak as a pirate.", "completion": TALK}, "conversation", "prompt"),
        ({"prompt": "Write turns.", "completion": str(TALK)}, "conversation", "prompt"),
        (
            {"prompt": "Be rude.", "chosen": TALK, "rejected": [ASK, STONE], "messages": TALK},
            "conversation",
            "prompt",
        ),
    ],
)
def test_a_prompt_that_the_conversation_beside_it_does_not_hold_is_refused(
    tokenizer: Any, row: dict[str, Any], kind: Any, column: str
) -> None:
    said = refusal(row, kind)
    assert f"column '{column}': is not in the conversation of" in said
    repeated = {**row, column: " Name a\nfruit. "}
    (made, *_) = normalise_rows([repeated], kind=kind)
    assert learned(tokenizer, made["prompt"], made.get("completion") or made["chosen"]) == "Pear.<|end|>"
    assert made["prompt"] == [ASK]


def test_a_prompt_of_messages_is_put_before_a_conversation_once(tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be kind."}
    for prompt, inside in (
        ([system, ASK], [ASK]),
        ([ASK], [system, ASK]),
        ([system, ASK], [system, ASK]),
        ([system], [ASK]),
        ([system, ASK], []),
    ):
        row = {"prompt": prompt, "chosen": [*inside, PEAR], "rejected": [*inside, STONE]}
        (pair,) = normalise_rows([row], kind="preference")
        assert pair["prompt"] == [system, ASK]
        assert learned(tokenizer, pair["prompt"], pair["chosen"]) == "Pear.<|end|>"


# --- which answer is better


@pytest.mark.parametrize("name", ["rank", "ranking", "gpt4_rank", "overallRank", "Ranking", "rank_avg"])
def test_the_first_of_a_ranking_is_chosen_whatever_its_name(tokenizer: Any, name: str) -> None:
    ranked = [{"answer": "Pear.", name: 1}, {"answer": "Stone.", name: 2}, {"answer": "Mud.", name: "10"}]
    row = {"prompt": "Name a fruit.", "answers": ranked[::-1]}
    assert chosen(tokenizer, row, rating=name) == "Pear.<|end|>"
    beside = {
        "instruction": "Name a fruit.",
        "generations": ["Stone.", "Pear."],
        "ratings": [5, 1],
        name: [2, 1],
    }
    assert chosen(tokenizer, beside, rating=name) == "Pear.<|end|>"
    rated = {"prompt": "Name a fruit.", "answers": [{**one, "frankness": one[name]} for one in ranked]}
    assert chosen(tokenizer, rated, rating="frankness") == "Mud.<|end|>"


@pytest.mark.parametrize("name", ["toxicity", "rank_score", "position", "ppl", "num_errors"])
def test_a_rating_of_which_less_may_be_better_is_refused_by_name(tokenizer: Any, name: str) -> None:
    row = {
        "prompt": "Name a fruit.",
        "answers": [{"answer": "Pear.", name: 1}, {"answer": "Stone.", name: 2}],
    }
    with pytest.raises(DataError, match=f"rating '{name}', of which less may be better"):
        chosen(tokenizer, row, rating=name)


@pytest.mark.parametrize(
    ("vote", "text"),
    [("response1", "Pear."), (["response2"], "Stone."), ({"value": "Response 1"}, "Pear.")],
)
def test_a_vote_names_its_answer_and_anything_else_is_refused(tokenizer: Any, vote: Any, text: str) -> None:
    row = {"prompt": "Name a fruit.", "response1": "Pear.", "response2": "Stone."}
    assert chosen(tokenizer, {**row, "preference": vote}) == f"{text}<|end|>"
    for unclear in (1, 2, "1", -1.0, "A", ["A"], {"value": "left"}):
        said = refusal({**row, "preference": unclear}, "preference")
        assert "in 'preference'" in said


def test_a_vote_that_nobody_cast_is_a_tie() -> None:
    row = {"prompt": "Name a fruit.", "response1": "Pear.", "response2": "Stone."}
    for silent in (None, [], [{"value": "response1", "status": "discarded"}], ["tie"], 0):
        with warnings.catch_warnings(), pytest.raises(DataError, match="no rows"):
            warnings.simplefilter("ignore")
            normalise_rows([{**row, "preference": silent}], kind="preference")


# --- labels


@pytest.mark.parametrize("saved", ["folder", "parquet"])
@pytest.mark.parametrize(
    ("names", "label"),
    [(["good", "bad"], True), (["bad", "good"], False), (["true", "false"], True), (["0", "1"], False)],
)
def test_a_label_kept_as_the_number_of_a_class_means_what_the_class_is_called(
    tmp_path: Path, saved: str, names: list[str], label: bool
) -> None:
    kinds = {"prompt": Value("string"), "completion": Value("string"), "label": ClassLabel(names=names)}
    rows = Dataset.from_list(
        [{"prompt": "Name a fruit.", "completion": "Pear.", "label": 0}], Features(kinds)
    )
    if saved == "folder":
        rows.save_to_disk(str(tmp_path / "rows"))
    else:
        rows.to_parquet(str(tmp_path / "rows.parquet"))
    name = tmp_path / ("rows" if saved == "folder" else "rows.parquet")
    (row,) = load_dataset(str(name), kind="feedback")
    assert (row["completion"], row["label"]) == ([PEAR], label)
    topics = rows.cast_column("label", ClassLabel(names=["sports", "news"]))
    topics.to_parquet(str(tmp_path / "topics.parquet"))
    with pytest.raises(DataError, match="column 'label': expected true or false, found str 'sports'"):
        load_dataset(str(tmp_path / "topics.parquet"), kind="feedback")


def test_an_answer_that_is_a_class_is_learned_by_its_name(tokenizer: Any, tmp_path: Path) -> None:
    kinds = Features({"prompt": Value("string"), "completion": ClassLabel(names=["Pear.", "Stone."])})
    file = tmp_path / "rows.parquet"
    Dataset.from_list([{"prompt": "Name a fruit.", "completion": 0}], kinds).to_parquet(str(file))
    (row,) = load_dataset(str(file), kind="conversation")
    assert learned(tokenizer, row["prompt"], row["completion"]) == "Pear.<|end|>"


@pytest.mark.parametrize(
    ("label", "liked"), [("desirable", True), ("Undesirable", False), ("thumbs up", True)]
)
def test_a_label_in_words_is_read_beside_an_answer_and_a_conversation(label: str, liked: bool) -> None:
    for row in ({"prompt": "Name a fruit.", "completion": "Pear."}, {"messages": TALK}):
        (made,) = normalise_rows([{**row, "label": label}], kind="feedback")
        assert made["label"] is liked
    (talk,) = normalise_rows([{"messages": TALK, "label": "sports"}], kind="conversation")
    assert talk["completion"] == [PEAR]


# --- text that was rendered already


@pytest.mark.parametrize(
    "prompt",
    [
        *("USER: Name a fruit.\nASSISTANT:", "HUMAN: Name a fruit.\n\nASSISTANT:"),
        *("### User:\nName a fruit.\n\n### Assistant:\n", "Human: Name a fruit.\n\nAssistant:"),
    ],
)
def test_a_transcript_in_capitals_becomes_turns(tokenizer: Any, prompt: str) -> None:
    row = {"prompt": prompt, "completion": " Pear."}
    assert answers(tokenizer, row) == ["Pear.<|end|>"]
    assert normalise_rows([row], kind="conversation")[0]["prompt"] == [ASK]
    longer = {**row, "prompt": f"{prompt} Pear.\n\n{prompt}"}
    assert normalise_rows([longer], kind="conversation")[0]["prompt"] == [*TALK, ASK]


@pytest.mark.parametrize(
    "prompt",
    [
        "A chat between a curious user and an assistant. USER: Name a fruit. ASSISTANT:",
        *("USER: Name a fruit. ASSISTANT:", "user: Name a fruit.\nassistant:", "Human: Name a fruit.\nAI:"),
        *("User: Name a fruit.\n\nBot:", "\n\nH: Name a fruit.\n\nA:", "<human>: Name a fruit.\n<bot>:"),
        "Below is an instruction.\n\n### Instruction:\nName a fruit.\n\n### Response:\n",
        "<|prompter|>Name a fruit.<|endoftext|><|assistant|>",
        "GPT4 Correct User: Name a fruit.<|end_of_turn|>GPT4 Correct Assistant:",
        *("[|Human|]Name a fruit.\n[|AI|]", "[gMASK]<sop><|user|>\nName a fruit.<|assistant|>"),
        "<|im_user|>user<|im_middle|>Name a fruit.<|im_end|>",
    ],
)
def test_a_rendered_prompt_is_refused_wherever_it_stands(prompt: str) -> None:
    for row in (
        {"prompt": prompt, "completion": "Pear."},
        {"messages": [{"role": "user", "content": prompt}, PEAR]},
        {"instruction": prompt, "output": "Pear."},
    ):
        said = refusal(row)
        assert "as a prompt that was rendered already" in said or "the mark of a chat template" in said


@pytest.mark.parametrize(
    "prompt",
    [
        *("What does ASSISTANT: mean?", "Write USER: in capitals.", "Name an AI:", "Q: Name a fruit.\nA:"),
        *("Continue:\nHuman: hi\nAI:", "What follows ### Response:", "My user: tag\nends the model:"),
    ],
)
def test_a_prompt_that_speaks_of_speakers_is_a_prompt(tokenizer: Any, prompt: str) -> None:
    row = {"prompt": prompt, "completion": "Pear."}
    assert answers(tokenizer, row) == ["Pear.<|end|>"]
    assert normalise_rows([row], kind="conversation")[0]["prompt"] == [{"role": "user", "content": prompt}]


def test_a_system_text_that_was_rendered_is_refused(tokenizer: Any) -> None:
    row = {"instruction": "Name a fruit.", "output": "Pear."}
    said = refusal({**row, "system": "<|im_start|>system\nBe kind.<|im_end|>"})
    assert "column 'system': begins with '<|im_start|>'" in said
    assert answers(tokenizer, {**row, "system": "Be kind."}) == ["Pear.<|end|>"]


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>\n", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>"])
def test_an_end_that_was_written_out_is_told_with_counts(tmp_path: Path, end: str) -> None:
    rows = [{"prompt": f"Name fruit {n}.", "completion": "Pear."} for n in range(3)]
    rows[1]["completion"] += end
    said = f"1 answers of 3 examples end with the end mark.*example 2, '{end.strip()}'".replace("|", r"\|")
    with pytest.warns(WrittenEndsWarning, match=said):
        load_dataset(jsonl(tmp_path / "rows.jsonl", *rows), kind="conversation")
    pairs = [{"prompt": "Name a fruit.", "chosen": f"Pear.{end}", "rejected": f"Stone.{end}"}]
    with pytest.warns(WrittenEndsWarning, match="2 answers of 1 examples"):
        load_dataset(jsonl(tmp_path / "pairs.jsonl", *pairs), kind="preference")
    for row in rows:
        row["completion"] = "In HTML <s>Pear.</s> is struck."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(jsonl(tmp_path / "plain.jsonl", *rows), kind="conversation")


# --- marks of names that nobody knows


@pytest.mark.parametrize(
    ("key", "value"),
    [("no_loss", True), ("skip_loss", 1), ("is_masked", "true"), ("mask_loss", False), ("learn", 0)],
)
def test_a_mark_of_a_name_that_is_not_known_is_refused(tokenizer: Any, key: str, value: Any) -> None:
    said = refusal({"messages": [ASK, {**STONE, key: value}, ASK, PEAR]})
    assert f"'{key}' seems to say whether the message is learned" in said
    known = {"messages": [ASK, {**STONE, "weight": 0}, ASK, {**PEAR, "weight": 1}]}
    assert answers(tokenizer, known) == ["Pear.<|end|>"]
    for other in ({"train_id": "a7"}, {"mask_token": "<m>"}, {"learner": 1}, {"loss_note": "low"}):
        assert answers(tokenizer, {"messages": [ASK, {**PEAR, **other}]}) == ["Pear.<|end|>"]


def test_a_column_of_such_marks_is_refused_and_a_known_one_heeded(tokenizer: Any) -> None:
    talk = {"messages": [ASK, STONE, ASK, PEAR]}
    for column in ("assistant_masks", "loss_flags", "learned"):
        said = refusal({**talk, column: [0, 0, 0, 1]})
        assert f"column '{column}': seems to say which messages are learned" in said
    assert answers(tokenizer, {**talk, "loss_mask": [0, 0, 0, 1]}) == ["Pear.<|end|>"]
    assert answers(tokenizer, {**talk, "losses": [0.3, 2.1, 0.2, 1.4]})[-1] == "Pear.<|end|>"


def test_torchtunes_pairs_are_read_by_the_line_that_the_error_names(tokenizer: Any, tmp_path: Path) -> None:
    row = {"chosen_conversations": TALK, "rejected_conversations": [ASK, STONE]}
    assert "{chosen_conversations: chosen, rejected_conversations: rejected}" in refusal(row, "preference")
    names = {"chosen_conversations": "chosen", "rejected_conversations": "rejected"}
    (pair,) = load_dataset(jsonl(tmp_path / "rows.jsonl", row), kind="preference", columns=names)
    assert learned(tokenizer, pair["prompt"], pair["chosen"]) == "Pear.<|end|>"
    assert learned(tokenizer, pair["prompt"], pair["rejected"]) == "Stone.<|end|>"
