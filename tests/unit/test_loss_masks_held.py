"""Tools in the tokens of a turn, and the length of its mask where text stands behind what is learned."""

from __future__ import annotations

from handbook_utils.chat.loss_masks import Turn, split_turns, tokenize_turns
from tests.chat_templates import TWO, UNMARKED, tokenizer_of
from tests.tiny_models import CHAT_TEMPLATE

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
TOOL = {"type": "function", "function": {"name": "get_weather"}}
SHOWS = "{{ tools[0].function.name if tools else 'none' }}" + UNMARKED


def test_the_tools_of_a_turn_are_in_its_tokens_and_those_of_none_are_not() -> None:
    tokenizer = tokenizer_of(SHOWS)
    turns = [Turn([ASK], [ANSWER], tools) for tools in ([TOOL], [], None)]
    shown, *others = tokenize_turns(tokenizer, turns)
    assert tokenizer.decode(shown.ids).startswith("get_weather<|user|>")
    assert shown.start == shown.prompt_tokens
    for row in others:
        assert tokenizer.decode(row.ids).startswith("none<|user|>")


def test_text_behind_the_last_answer_has_a_mask_and_no_loss() -> None:
    marked = CHAT_TEMPLATE.replace("{% endgeneration %}", "{% endgeneration %}{{ 'later' }}")
    tokenizer = tokenizer_of(marked)
    plain = tokenize_turns(tokenizer_of(CHAT_TEMPLATE), split_turns(TWO))
    for row, before in zip(tokenize_turns(tokenizer, split_turns(TWO)), plain, strict=True):
        assert len(row.loss) == len(row.ids)
        assert tokenizer.decode(row.ids).endswith("later")
        learned = [token for token, counts in zip(row.ids, row.loss, strict=True) if counts]
        assert learned == [t for t, counts in zip(before.ids, before.loss, strict=True) if counts]
