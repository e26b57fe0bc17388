"""What the scorer `answer` guards against in math-verify: told when a release changes it."""

from __future__ import annotations

from math_verify import LatexExtractionConfig, parse, verify


def read(text: str) -> object:
    return parse(rf"\boxed{{{text}}}")


def test_of_what_is_no_latex_to_its_end_the_last_number_is_taken() -> None:
    assert read("x^2 ? 1")[0] == 1  # type: ignore[index]
    assert parse(r"2\sqrt{3}")[0] == 2
    assert parse(r"\boxed{x^2 ? 1}", [LatexExtractionConfig()], fallback_mode="no_fallback") == []


def test_numbers_side_by_side_are_added_and_subscripts_left_out() -> None:
    assert read("2 3 4")[0] == 9  # type: ignore[index]
    assert read("1 1/2")[0] == 1  # type: ignore[index]
    assert read("1011_2")[0] == 1011  # type: ignore[index]


def test_verify_is_not_symmetric() -> None:
    equation, one = read("2x+z=1"), read("1")
    assert (verify(one, equation), verify(equation, one)) == (True, False)


def test_numbers_in_powers_of_ten_and_words_are_read_as_products() -> None:
    assert not verify(read("1e3"), read("1000"))
    assert verify(read("listen"), read("silent"))
    assert verify(read("0.0000001"), read("0.0000002"))
