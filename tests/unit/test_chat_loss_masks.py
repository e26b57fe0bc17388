"""Which tokens of a conversation carry loss, by hand; and when turns can share a row."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_utils.chat.loss_masks import (
    TokenRow,
    Turn,
    encode_conversations,
    join_turns,
    split_turns,
    tokenize_turns,
)
from handbook_utils.errors import DataError, TemplateError
from tests.chat_templates import FORGETFUL, TWO, UNMARKED, tokenizer_of
from tests.tiny_models import CHAT_TEMPLATE


def shown(tokenizer: Any, row: TokenRow) -> str:
    """The row's text with what carries loss in brackets."""
    parts = [tokenizer.decode([token]) for token in row.ids]
    return "".join(f"[{part}]" if loss else part for part, loss in zip(parts, row.loss, strict=True))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, UNMARKED], ids=["by marks", "by prefix difference"])
def test_an_answer_and_its_end_carry_loss_and_nothing_else(template: str) -> None:
    tokenizer = tokenizer_of(template)
    first, second = tokenize_turns(tokenizer, split_turns(TWO))
    assert shown(tokenizer, first) == "<|user|>Hi<|end|><|assistant|>[Y][o][<|end|>]"
    # the earlier answer is given here: it is learned in its own row
    assert shown(tokenizer, second) == (
        "<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>Bye<|end|><|assistant|>[S][o][<|end|>]"
    )


def test_the_turns_of_a_conversation_share_a_row_with_the_same_tokens_learned() -> None:
    tokenizer = tokenizer_of(UNMARKED)
    rows = tokenize_turns(tokenizer, split_turns(TWO))
    (joined,) = join_turns(rows)
    assert shown(tokenizer, joined) == (
        "<|user|>Hi<|end|><|assistant|>[Y][o][<|end|>]<|user|>Bye<|end|><|assistant|>[S][o][<|end|>]"
    )
    assert learned_in_context([joined]) == learned_in_context(rows)
    assert len(joined.ids) < sum(len(row.ids) for row in rows)


def learned_in_context(rows: list[TokenRow]) -> list[tuple[tuple[int, ...], int]]:
    """Each learned token with all that precedes it: what a causal model can tell apart."""
    return sorted(
        (tuple(row.ids[:place]), row.ids[place])
        for row in rows
        for place, loss in enumerate(row.loss)
        if loss
    )


def test_a_template_that_rewrites_earlier_turns_keeps_a_row_a_turn() -> None:
    tokenizer = tokenizer_of(FORGETFUL)
    thinking = [m | {"content": "x</think>" + m["content"]} if m["role"] == "assistant" else m for m in TWO]
    rows = join_turns(tokenize_turns(tokenizer, split_turns(thinking)))
    assert [shown(tokenizer, row) for row in rows] == [
        "<|user|>Hi<|end|><|assistant|>[x][<][/][t][h][i][n][k][>][Y][o][<|end|>]",
        "<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>Bye<|end|><|assistant|>[x][<][/][t][h][i][n][k][>][S][o][<|end|>]",
    ]


def test_a_repeated_row_and_another_conversation_stay_rows_of_their_own() -> None:
    row = TokenRow([1, 2, 3], [False, False, True], 2, 2)
    longer = TokenRow([1, 2, 3, 4], [False, False, True, True], 2, 2)  # another answer to the same prompt
    other = TokenRow([9, 2, 3, 5], [False, False, False, True], 3, 3)
    assert join_turns([row, row, longer, other]) == [row, row, longer, other]


def test_where_prompt_and_row_part_is_told() -> None:
    opened = UNMARKED.replace("{{ '<|assistant|>' }}{% endif %}", "{{ '<|assistant|>think' }}{% endif %}")
    tokenizer = tokenizer_of(opened)
    (row,) = tokenize_turns(tokenizer, [Turn(TWO[:1], TWO[1:2])])
    # <|user|> H i <|end|> <|assistant|> are shared; the prompt goes on with five letters
    assert (row.start, row.prompt_tokens) == (5, 10)
    assert shown(tokenizer, row) == "<|user|>Hi<|end|><|assistant|>[Y][o][<|end|>]"


def test_each_conversation_is_told_its_own_tools() -> None:
    template = "{% if tools %}{{ tools[0].function.name }}{% endif %}" + UNMARKED
    tokenizer = tokenizer_of(template)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    ids = encode_conversations(tokenizer, [TWO[:1], TWO[:1]], template_kwargs=[{"tools": tools}, {}])
    assert [tokenizer.decode(row) for row in ids] == ["add<|user|>Hi<|end|>", "<|user|>Hi<|end|>"]


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + UNMARKED
    system = [{"role": "system", "content": "Be brief."}, *TWO[:1]]
    with pytest.raises(TemplateError, match=r"refuses conversation 2 \(system, user\).*user first"):
        encode_conversations(tokenizer_of(strict), [TWO[:1], system])


@pytest.mark.parametrize(
    ("messages", "what"),
    [([], "no message of the assistant"), (TWO[:1], "no message of the assistant"), (TWO[1:], "starts with")],
)
def test_a_conversation_without_an_answer_to_learn_is_refused(messages: Any, what: str) -> None:
    with pytest.raises(DataError, match=what):
        split_turns(messages)
