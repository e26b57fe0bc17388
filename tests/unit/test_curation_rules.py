"""What each rule about one row finds, and what it leaves alone."""

from __future__ import annotations

import sys

import pytest

from handbook_utils.curation.near.sketches import require_rensa
from handbook_utils.curation.rules import answers
from handbook_utils.curation.rules.languages import language_of, wrong_language
from handbook_utils.curation.rules.pairs import LengthBias, equal_pair
from handbook_utils.curation.rules.table import RULES, Settings, Thresholds, chosen_actions
from handbook_utils.errors import DataError, MissingDependencyError

FINE = [
    "Paris",
    "42",
    "Yes.",
    "\U0001f44d",
    "The answer is 42.",
    "You need:\n- two eggs\n- half a litre of milk and a little bit of salt\n- flour",
    "```python\ndef add(a, b):\n    return a + b\n```",
    "Call it like this:\n\nresult = add(first_number_of_all, second_number_of_all, and_so_on)",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "See https://example.org/a/long/path/to/the/page/that/you/asked/me/for/today",
    "He asked: \u201cWho goes there, in the middle of the night, without a light?\u201d",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
    "# A Short Poem\n\nRoses are red\nViolets are blue\nSugar is sweet\nAnd so are you",
    "I can help you with that. First, open the window. Then close it again, slowly and with care.",
    "She said that she cannot come, and that she is sorry for it.",
]


@pytest.mark.parametrize("text", FINE)
@pytest.mark.parametrize("rule", ["empty", "cut", "refused"])
def test_a_good_answer_is_left_alone(rule: str, text: str) -> None:
    assert getattr(answers, rule)(text) == ""
    assert answers.repetitive(text, 0.5) == ""


@pytest.mark.parametrize("text", ["", "  \n", "...", "-", "\u2014"])
def test_an_answer_that_says_nothing_is_empty(text: str) -> None:
    assert answers.empty(text) or text == "\u2014"


@pytest.mark.parametrize(
    "text",
    [
        "To make tea you first boil the water, then you pour it over the",
        "There are three reasons for this. The first one is that water boils at one hundred degrees, and",
        "Here is the program:\n```python\ndef add(a, b):\n    return",
        "The capital of France is a city on the river which is called the Seine and has many bri",
        "One can choose between the following things: apples, pears, plums,",
    ],
)
def test_an_answer_that_stops_in_the_middle_is_cut(text: str) -> None:
    assert answers.cut(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m very sorry, but as a language model I am unable to do this.",
        "I cannot provide medical advice.",
        "As an AI language model, I don't have feelings.",
        "Unfortunately, I won't be able to do that.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Lo siento, pero no puedo ayudar con eso.",
    ],
)
def test_a_refusal_is_found(text: str) -> None:
    assert answers.refused(text)


def test_a_refusal_that_is_quoted_late_is_none() -> None:
    assert not answers.refused(
        "Here is the story you asked for. " * 12 + "'I cannot help you,' said the fox."
    )


def test_a_loop_is_repetitive_and_a_table_of_different_rows_is_not() -> None:
    assert answers.repetitive("and then he went home " * 20, 0.5)
    assert not answers.repetitive("\n".join(f"row {n}: the value is {n * n}" for n in range(60)), 0.5)


def test_a_loop_of_characters_without_spaces_is_repetitive() -> None:
    assert answers.repetitive("\u54c8\u54c8\u54c8\u54c8" * 20, 0.5)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the best way to learn how to swim?", "en"),
        ("Wie kann ich das am besten lernen, und ist es f\u00fcr mich nicht zu schwer?", "de"),
        ("Quelle est la meilleure fa\u00e7on de le faire pour une personne qui est pas pr\u00eate?", "fr"),
        ("\u00bfC\u00f3mo se hace una tortilla que est\u00e9 muy buena con los huevos?", "es"),
        ("\u041a\u0430\u043a \u0434\u0435\u043b\u0430 \u0441\u0435\u0433\u043e\u0434\u043d\u044f", "ru"),
        ("\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837", "zh"),
        ("\u4eca\u65e5\u306e\u5929\u6c17\u306f\u3069\u3046\u3067\u3059\u304b", "ja"),
        ("2 + 2", None),
        ("Berlin", None),
        ("x = [1, 2, 3]", None),
    ],
)
def test_a_language_is_told_where_it_is_clear(text: str, code: str | None) -> None:
    assert language_of(text) == code


def test_a_translation_that_was_asked_for_is_no_mistake() -> None:
    german = "Das ist nicht schwer, und es ist auch gut f\u00fcr die Gesundheit."
    assert wrong_language("What is the best way to learn to swim?", german)
    assert not wrong_language("How would you say this in German: it is not hard?", german)
    assert not wrong_language("Translate the following: it is not hard for you.", german)
    assert wrong_language("", german, ("en",))
    assert not wrong_language("", german, ("en", "de"))


def test_a_pair_of_equal_answers_is_found_whatever_its_spacing() -> None:
    assert equal_pair("It is so.", " It  is so.\n")
    assert not equal_pair("It is so.", "It is not so.")


def test_length_bias_has_a_rate_a_ratio_and_an_effect_with_intervals() -> None:
    bias = LengthBias()
    for _ in range(80):
        bias.add("four words are here", "two words")  # 19 against 9 characters
    for _ in range(20):
        bias.add("two words", "four words are here")
    found = bias.to_json()
    assert found is not None
    assert found["longer_chosen"]["value"] == 0.8
    assert found["longer_chosen"]["low"] == pytest.approx(0.711, abs=1e-3)  # Wilson's, of 80 in 100
    # log(20 / 10) = 0.693 with the signs of 80 and 20: mean 0.416, deviation 0.557
    assert found["length_ratio"]["value"] == pytest.approx(2**0.6)
    assert found["effect_size"]["value"] == pytest.approx(0.746, abs=2e-3)
    assert found["effect_size"]["low"] < 0.746 < found["effect_size"]["high"]


def test_no_length_bias_is_told_of_no_pairs() -> None:
    assert LengthBias().to_json() is None


def test_a_rule_named_for_itself_goes_before_all() -> None:
    actions = chosen_actions(off=["all"], drop=["cut"])
    assert actions["cut"] == "drop"
    assert {action for name, action in actions.items() if name != "cut"} == {"off"}
    assert actions.keys() == RULES.keys()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"drop": ["near_duplicates"]}, "Did you mean 'near_duplicate'"),
        ({"drop": ["cut"], "off": ["cut"]}, "is in --drop and in --off"),
    ],
)
def test_a_rule_that_is_misspelt_or_named_twice_is_refused(lists: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chosen_actions(**lists)


@pytest.mark.parametrize("given", [{"near": 0.0}, {"near": 1.5}, {"leak_words": 0}, {"repetition": -1}])
def test_a_threshold_that_means_nothing_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(given))):
        Thresholds(**given)  # type: ignore[arg-type]


def test_without_the_library_of_sketches_the_extra_and_a_way_around_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingDependencyError, match=r"handbook-utils\[curation\].*--off near_duplicate"):
        require_rensa()


def test_a_rule_that_lacks_what_it_needs_is_said_to_be_unchecked() -> None:
    assert set(Settings().not_checked()) == {"test_prompt", "control_tokens"}
    assert Settings(tested=("test.jsonl",), tokenizer="pocket:base").not_checked() == {}
    assert Settings({"test_prompt": "off", "control_tokens": "off"}).not_checked() == {}
