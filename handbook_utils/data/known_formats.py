"""The shapes in which people keep rows, each with an example that the book shows and a test reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.schema.sections import PairsSection
from handbook_utils.schema.stage_table import Kind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A shape in which people keep rows.

    Attributes:
        columns: the columns that every such row has.
        kinds: the kinds of data that can be made from it.
        example: a row of it.
        names: columns that are read under another name, to that name.
        pairs: what a recipe says of the pairs to be made of the example; None where it need not.
        more: further rows that belong to the example.
    """

    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    example: Row
    names: Mapping[str, str] = field(default_factory=dict)
    pairs: PairsSection | None = None
    more: tuple[Row, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The example, with the rows that belong to it."""
        return [self.example, *self.more]


_ASK, _ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
_WRONG = {"role": "assistant", "content": "5"}
_SHARED = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
_TALK: tuple[Kind, ...] = ("conversation", "prompt")
_PAIR: tuple[Kind, ...] = ("preference", "feedback", "prompt")
FORMATS: dict[str, Format] = {
    "text": Format(("text",), ("text",), {"text": "Two and two make four."}),
    "messages": Format(("messages",), _TALK, {"messages": [_ASK, _ANSWER]}),
    "sharegpt": Format(("conversations",), _TALK, {"conversations": _SHARED}),
    "prompt_completion": Format(("prompt", "completion"), _TALK, {"prompt": "2 + 2?", "completion": "4"}),
    "alpaca": Format(
        ("instruction", "output"), _TALK, {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    ),
    "preference": Format(("chosen", "rejected"), _PAIR, {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}),
    "transcript": Format(
        ("chosen", "rejected"),
        _PAIR,
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
        },
    ),
    "ultrafeedback": Format(
        ("prompt", "chosen", "rejected", "messages"),
        (*_PAIR, "conversation"),
        {
            "prompt": "2 + 2?",
            "chosen": [_ASK, _ANSWER],
            "rejected": [_ASK, _WRONG],
            "messages": [_ASK, _ANSWER],
        },
    ),
    "feedback": Format(
        ("prompt", "completion", "label"),
        ("feedback", "prompt"),
        {"prompt": "2 + 2?", "completion": "4", "label": True},
    ),
    "messages_feedback": Format(
        ("messages", "label"), ("feedback", "prompt"), {"messages": [_ASK, _ANSWER], "label": True}
    ),
    "sharegpt_feedback": Format(
        ("conversations", "label"), ("feedback", "prompt"), {"conversations": _SHARED, "label": False}
    ),
    "alpaca_feedback": Format(
        ("instruction", "output", "label"),
        ("feedback", "prompt"),
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "label": True},
    ),
    "messages_ranking": Format(
        ("messages", "chosen", "rejected"),
        _PAIR,
        {"messages": [_ASK], "chosen": _ANSWER, "rejected": _WRONG},
        names={"messages": "prompt"},
    ),
    "sharegpt_ranking": Format(
        ("conversations", "chosen", "rejected"),
        _PAIR,
        {"conversations": _SHARED[:1], "chosen": _SHARED[1], "rejected": {"from": "gpt", "value": "5"}},
        names={"conversations": "prompt"},
    ),
    "alpaca_ranking": Format(
        ("instruction", "chosen", "rejected"),
        _PAIR,
        {"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"},
    ),
    "swift_ranking": Format(
        ("messages", "rejected_response"),
        _PAIR,
        {"messages": [_ASK, _ANSWER], "rejected_response": "5"},
        names={"messages": "chosen", "rejected_response": "rejected"},
    ),
    "swift_conversations": Format(
        ("messages", "rejected_messages"),
        _PAIR,
        {"messages": [_ASK, _ANSWER], "rejected_messages": [_ASK, _WRONG]},
        names={"messages": "chosen", "rejected_messages": "rejected"},
    ),
    "preference_messages": Format(
        ("chosen_messages", "rejected_messages"),
        _PAIR,
        {"chosen_messages": [_ASK, _ANSWER], "rejected_messages": [_ASK, _WRONG]},
        names={"chosen_messages": "chosen", "rejected_messages": "rejected", "prompt_messages": "prompt"},
    ),
    "openai_preference": Format(
        ("input", "preferred_output", "non_preferred_output"),
        _PAIR,
        {"input": {"messages": [_ASK]}, "preferred_output": [_ANSWER], "non_preferred_output": [_WRONG]},
        names={"input": "prompt", "preferred_output": "chosen", "non_preferred_output": "rejected"},
    ),
    "argilla_pair": Format(
        ("instruction", "chosen_response", "rejected_response"),
        _PAIR,
        {
            **{"instruction": "2 + 2?", "chosen_response": "4", "rejected_response": "5"},
            **{"chosen_avg_rating": 5.0, "rejected_avg_rating": 1.0},
        },
        names={"instruction": "prompt", "chosen_response": "chosen", "rejected_response": "rejected"},
    ),
    "helpsteer2_preference": Format(
        ("prompt", "response_1", "response_2", "preference_strength"),
        _PAIR,
        {"prompt": "2 + 2?", "response_1": "4", "response_2": "5", "preference_strength": -3},
    ),
    "helpsteer3": Format(
        ("context", "response1", "response2", "overall_preference"),
        _PAIR,
        {"context": [_ASK], "response1": "5", "response2": "4", "overall_preference": 2},
        names={"context": "prompt"},
    ),
    "argilla_ranking": Format(
        ("prompt", "response1", "response2", "preference"),
        _PAIR,
        {
            **{"prompt": "2 + 2?", "response1": "5", "response2": "4"},
            "preference": [{"value": [{"rank": 1, "value": "response2"}, {"rank": 2, "value": "response1"}]}],
        },
    ),
    "judged": Format(
        ("prompt", "answer_a", "answer_b", "preference"),
        _PAIR,
        {"prompt": "2 + 2?", "answer_a": "4", "answer_b": "5", "preference": "a"},
    ),
    "arena": Format(
        ("conversation_a", "conversation_b", "winner"),
        ("preference", "feedback"),
        {
            **{"conversation_a": [_ASK, _ANSWER], "conversation_b": [_ASK, _WRONG]},
            "winner": "model_a",
        },
        names={"conversation_a": "answer_a", "conversation_b": "answer_b", "winner": "preference"},
    ),
    "arena_votes": Format(
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        ("preference", "feedback"),
        {
            **{"prompt": '["2 + 2?"]', "response_a": '["4"]', "response_b": '["5"]'},
            **{"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        },
        names={"response_a": "answer_a", "response_b": "answer_b"},
    ),
    "shp": Format(
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _PAIR,
        {
            **{"history": "2 + 2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1},
            **{"score_A": 12, "score_B": 3},
        },
        names={"history": "prompt", "human_ref_A": "answer_a", "human_ref_B": "answer_b"},
    ),
    "summaries": Format(
        ("info", "summaries", "choice"),
        _PAIR,
        {
            "info": {"subreddit": "math", "title": "Sums", "post": "I wondered what 2 and 2 make. It is 4."},
            "summaries": [{"text": "2 + 2 = 5."}, {"text": "2 + 2 = 4."}],
            "choice": 1,
        },
    ),
    "ultrafeedback_ratings": Format(
        ("instruction", "completions"),
        _PAIR,
        {
            "instruction": "2 + 2?",
            "completions": [
                {"response": "4", "overall_score": 9.0, "annotations": {"honesty": {"Rating": "5"}}},
                {"response": "5", "overall_score": 2.0, "annotations": {"honesty": {"Rating": "3"}}},
            ],
        },
        names={"instruction": "prompt"},
        pairs=PairsSection(rating="overall_score"),
    ),
    "distilabel_ratings": Format(
        ("instruction", "generations", "ratings"),
        _PAIR,
        {"instruction": "2 + 2?", "generations": ["4", "5"], "ratings": [5, 1]},
        names={"instruction": "prompt"},
        pairs=PairsSection(rating="ratings"),
    ),
    "rated_answers": Format(
        ("prompt", "answers"),
        _PAIR,
        {"prompt": "2 + 2?", "answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 2}]},
        pairs=PairsSection(rating="rank"),
    ),
    "rated_rows": Format(
        ("prompt", "response"),
        _PAIR,
        {"prompt": "2 + 2?", "response": "4", "helpfulness": 4, "correctness": 4},
        pairs=PairsSection(rating=["helpfulness", "correctness"]),
        more=({"prompt": "2 + 2?", "response": "5", "helpfulness": 1, "correctness": 0},),
    ),
    "contents": Format(
        ("contents",),
        _TALK,
        {
            "contents": [
                {"role": "user", "parts": [{"text": "2 + 2?"}]},
                {"role": "model", "parts": [{"text": "4"}]},
            ]
        },
    ),
    "conversation": Format(("conversation",), _TALK, {"conversation": [{"input": "2 + 2?", "output": "4"}]}),
    "ultrachat": Format(("data",), _TALK, {"data": ["2 + 2?", "4", "And 3 + 3?", "6"]}),
    "lima": Format(("conversations",), _TALK, {"conversations": ["2 + 2?", "4"]}),
    "turns_in_text": Format(("text",), _TALK, {"text": "### Human: 2 + 2?### Assistant: 4"}),
    "glaive": Format(
        ("chat",),
        _TALK,
        {
            "system": "SYSTEM: You are a helpful assistant.",
            "chat": "USER: 2 + 2?\n\n\nASSISTANT: 4 <|endoftext|>\n\n\n",
        },
    ),
    "prompt": Format(("prompt",), ("prompt",), {"prompt": "2 + 2?"}),
}
