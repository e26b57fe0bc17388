"""IFEval-style instructions: verdicts strict and loose, as a scorer, in reports, and on pocket prompts."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from handbook_utils import DataError, follows_instructions, instruction_report
from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.pocket_rows import pocket_rows
from handbook_utils.data.split import parse_split
from handbook_utils.online.rewards import Rewards
from handbook_utils.pocket.families.base import Flaws
from handbook_utils.pocket.world import demonstrate, gold_reward
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.instructions.accuracy import instruction_accuracy
from handbook_utils.sampling.scoring.instructions.following import loose_variants
from handbook_utils.sampling.scoring.instructions.table import INSTRUCTIONS
from handbook_utils.sampling.scoring.instructions.texts import (
    LANGUAGES,
    count_sentences,
    language_of,
    may_be_english,
)
from handbook_utils.sampling.scoring.score import NoScore, score
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.sampling.stages import sample_metrics
from handbook_utils.schema.recipe import scorer_sections

# id, arguments, texts that follow it, texts that do not
VERDICTS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["C++", "rust"]}, ["c++ and Rust", "rusty C++"], ["C and rust"]),
    (
        "keywords:frequency",
        {"keyword": "war ", "frequency": 2, "relation": "at least"},
        ["War and war", "warm wars"],
        ["war"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocks"], ["Rock!"]),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        ["#a #b"],
        ["#a b"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht gut."],
        ["This is not good.", "7 + 7"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["Dr. Li paid 3.5 dollars. Good!"],
        ["One. Two? Three"],
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na***b"], ["a\n\nb"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, ["a***b***c"], ["a******c"]),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["it's me"],  # three: it, s, me
        ["a b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"},
        ['a\n\n"so, b'],
        ["a\n\nsome", "so\n\na", "a\n\nso\n\nb", "a\nso"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b c]"],
        ["[a] [b", "[a\n] [b]"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Hi.\np. s. bye"], ["PS: bye"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S bye"], ["P.S. bye"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n - b"],
        ["* a\n** b", "* a\n---\n- b"],
    ),
    ("detectable_format:constrained_response", {}, ["Well: My answer is no."], ["No."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* **b**"],
        ["*a b", "** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a\nSection 2 b"],
        ["SECTION 1 SECTION 2", "Section one, Section 2"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}", "[" * 100_000]),
    ("detectable_format:title", {}, ["<<A poem>>\nbody"], ["<<>>", "<<a\n>>", "<a>"]),
    ("combination:two_responses", {}, ["a ****** b"], ["a ****** a", "a", "a ****** b ****** c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, [" say IT. It."], ["It. Say it."]),
    ("startend:end_checker", {"end_phrase": "Bye!"}, ['"Well, bye!"'], ["Bye! Bye"]),
    ("startend:quotation", {}, [' "a" '], ['"', '"a', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and a WELL-KNOWN plan"],
        ["NASA and Nasa"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THE CAT IS ON THE MAT"],
        ["The cat", "LE CHAT EST SUR LES ROCHERS", "7"],
    ),
    ("change_case:english_lowercase", {}, ["the cat, 7 times"], ["the Cat", "кот сидит на стуле"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]
IFEVAL = {
    "keywords": ["existence", "frequency", "forbidden_words", "letter_frequency"],
    "language": ["response_language"],
    "length_constraints": [
        "number_sentences",
        "number_paragraphs",
        "number_words",
        "nth_paragraph_first_word",
    ],
    "detectable_content": ["number_placeholders", "postscript"],
    "detectable_format": [
        "number_bullet_lists",
        "constrained_response",
        "number_highlighted_sections",
        "multiple_sections",
        "json_format",
        "title",
    ],
    "combination": ["two_responses", "repeat_prompt"],
    "startend": ["end_checker", "quotation"],
    "change_case": ["capital_word_frequency", "english_capital", "english_lowercase"],
    "punctuation": ["no_comma"],
}
SENTENCES = {
    "ar": "الطقس جميل اليوم وسوف نذهب إلى الحديقة مع الأصدقاء في المدينة.",
    "bg": "Днес времето е хубаво и ние отиваме в парка с приятели, но това не е много далеч.",
    "bn": "আজ আবহাওয়া খুব সুন্দর এবং আমরা বন্ধুদের সাথে পার্কে যাচ্ছি।",
    "de": "Das Wetter ist heute schön und wir gehen mit den Freunden in den Park.",
    "en": "The weather is nice today, and we are going to the park with our friends.",
    "es": "El tiempo es muy agradable hoy y vamos al parque con los amigos de la escuela.",
    "fa": "امروز هوا خوب است و ما با دوستان به پارک می رویم.",
    "fi": "Tänään sää on kaunis ja menemme puistoon ystävien kanssa, mutta se ei ole kaukana.",
    "fr": "Il fait beau aujourd'hui et nous allons au parc avec les amis de l'école.",
    "gu": "આજે હવામાન ખૂબ સરસ છે અને અમે મિત્રો સાથે પાર્કમાં જઈ રહ્યા છીએ.",
    "he": "מזג האוויר יפה היום ואנחנו הולכים לפארק עם חברים.",
    "hi": "आज मौसम बहुत अच्छा है और हम अपने दोस्तों के साथ पार्क में जा रहे हैं।",
    "it": "Il tempo è bello oggi e andiamo al parco con gli amici della scuola.",
    "ja": "今日は天気がいいので、友達と一緒に公園に行きます。",
    "kn": "ಇಂದು ಹವಾಮಾನ ತುಂಬಾ ಚೆನ್ನಾಗಿದೆ ಮತ್ತು ನಾವು ಸ್ನೇಹಿತರೊಂದಿಗೆ ಹೋಗುತ್ತಿದ್ದೇವೆ.",
    "ko": "오늘은 날씨가 좋아서 친구들과 함께 공원에 갑니다.",
    "ml": "ഇന്ന് കാലാവസ്ഥ വളരെ നല്ലതാണ്, ഞങ്ങൾ സുഹൃത്തുക്കളോടൊപ്പം പാർക്കിൽ പോകുന്നു.",
    "mr": "आज हवामान खूप छान आहे आणि आम्ही मित्रांसोबत उद्यानात जात आहोत.",
    "ne": "आज मौसम राम्रो छ र हामी साथीहरूसँग पार्कमा जाँदैछौं।",
    "pa": "ਅੱਜ ਮੌਸਮ ਬਹੁਤ ਵਧੀਆ ਹੈ ਅਤੇ ਅਸੀਂ ਦੋਸਤਾਂ ਨਾਲ ਪਾਰਕ ਜਾ ਰਹੇ ਹਾਂ।",
    "pl": "Dzisiaj jest ładna pogoda i idziemy do parku z przyjaciółmi, ale nie na długo.",
    "pt": "O tempo está muito bom hoje e nós vamos ao parque, mas não vamos ficar.",
    "ru": "Сегодня хорошая погода, и мы идем в парк с друзьями, но это не очень далеко.",
    "sw": "Leo hali ya hewa ni nzuri sana na tunakwenda kwa bustani na marafiki.",
    "ta": "இன்று வானிலை மிகவும் நன்றாக உள்ளது, நாங்கள் பூங்காவிற்கு செல்கிறோம்.",
    "te": "ఈ రోజు వాతావరణం చాలా బాగుంది మరియు మేము స్నేహితులతో పార్కుకు వెళ్తున్నాము.",
    "th": "วันนี้อากาศดีมากและเราจะไปสวนสาธารณะกับเพื่อน",
    "uk": "Сьогодні гарна погода, і ми йдемо до парку з друзями, але це не дуже далеко.",
    "ur": "آج موسم بہت اچھا ہے اور ہم دوستوں کے ساتھ پارک میں جا رہے ہیں۔",
    "vi": "Hôm nay thời tiết rất đẹp và chúng tôi đi công viên với các bạn của tôi.",
}
PROMPTS = [
    {
        "key": 1,
        "prompt": "Name a river, without commas, in two words at least.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 2}],
    },
    {
        "key": 2,
        "prompt": "Quote a king.",
        "instruction_id_list": ["startend:quotation"],
        # as tables have it: every argument of any instruction, null where it is not meant
        "kwargs": [{"relation": None, "num_words": None}],
    },
]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "input_data.jsonl", PROMPTS)


def scorer(prompts: Path, **options: Any) -> Any:
    section = {"kind": "instructions", "prompts": {"name": str(prompts)}, **options}
    return load_scorers(scorer_sections([f"follows={json.dumps(section)}"]), ResolvedInputs())[0]


def answer(text: str, *, row: int = 0, system: str | None = None) -> Completion:
    said = [{"role": "user", "content": PROMPTS[row]["prompt"]}]
    before = [] if system is None else [{"role": "system", "content": system}]
    return Completion(f"other id {row}", 0, [*before, *said], text, 3, "stop", None)  # type: ignore[list-item]


def test_all_instructions_of_ifeval_can_be_checked_and_each_is_tried_below() -> None:
    names = {f"{group}:{name}" for group, names in IFEVAL.items() for name in names}
    assert set(INSTRUCTIONS) == names
    assert {name for name, *_ in VERDICTS} == names


def test_the_book_names_every_instruction_whose_verdict_may_differ_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "book/metrics.md").read_text(encoding="utf-8")
    table = page.partition("*Where verdicts differ")[2].partition("All other rules")[0]
    named = set(re.findall(r"`([a-z_]+:[a-z_]+)`", table))
    assert named == {name for name, one in INSTRUCTIONS.items() if one.differs}


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), VERDICTS)
def test_what_follows_an_instruction_passes_and_what_does_not_fails(
    name: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    assert [follows_instructions(text, [name], [arguments]).strict for text in good] == [(True,)] * len(good)
    assert [follows_instructions(text, [name], [arguments]).strict for text in bad] == [(False,)] * len(bad)


def test_loose_forgives_a_first_line_a_last_line_and_stars_and_strict_does_not() -> None:
    quoted, comma = (["startend:quotation"], [{}]), (["punctuation:no_comma"], [{}])
    for text in ('Sure:\n"a"', '"a"\nBye', 'Sure:\n"a"\nBye', '*"a"*', 'Sure:\n**"a"**\nBye'):
        found = follows_instructions(text, *quoted)
        assert (found.strict, found.loose) == ((False,), (True,)), text
    assert follows_instructions("Well, so\na, b", *comma).loose == (False,)
    assert len(set(loose_variants("1\n*2*\n3"))) == 8


def test_an_empty_answer_follows_nothing_even_where_a_check_would_pass_it() -> None:
    assert follows_instructions(" \n ", ["punctuation:no_comma"], [{}]).loose == (False,)
    # nor does what loose leaves of one line: nothing
    assert follows_instructions("a, b", ["punctuation:no_comma"], [{}]).loose == (False,)


def test_each_language_is_told_from_a_sentence_and_none_from_what_has_no_words() -> None:
    assert tuple(SENTENCES) == LANGUAGES
    assert {code: language_of(text) for code, text in SENTENCES.items()} == {code: code for code in SENTENCES}
    assert [language_of(text) for text in ("", "42!", "xyzzy")] == [None, None, None]
    assert [code for code, text in SENTENCES.items() if may_be_english(text.upper())] == ["en"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("No mark", 1),
        ("One... Two?! Three.", 3),
        ('He said "Go." Then J. R. Smith left.', 2),
        ("Costs 3.5 e.g. here.", 1),
        ("1. First.\n2. Second.", 2),
        ("好。很好。", 2),
        ("...", 1),
    ],
)
def test_sentences_end_at_marks_but_not_after_abbreviations_or_numbers(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


def test_no_answer_however_it_is_made_holds_a_check_up() -> None:
    """Marks that invite backtracking; quadratic time would take minutes."""
    length = 100_000
    texts = [
        mark * (length // len(mark)) + "x" for mark in (".", "[", "<<", "*", "**", "a. ", '"', "Section ")
    ]
    begun = time.process_time()
    for text in texts:
        for name, arguments, *_ in VERDICTS:
            follows_instructions(text, [name], [arguments])
    assert time.process_time() - begun < 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"instruction_id_list": ["punctuation:no_coma"]},
            r"row 1: no check .* Did you mean 'punctuation:no_comma'",
        ),
        (
            {"instruction_id_list": ["count:word_count_range"]},
            r"instruction 'count:word_count_range'.*not counted",
        ),
        ({"instruction_id_list": [], "kwargs": []}, r"row 1: 'instruction_id_list' is empty"),
        ({"instruction_id_list": None}, r"row 1 has no 'instruction_id_list'"),
        (
            {"instruction_id_list": "punctuation:no_comma"},
            r"'instruction_id_list' is a str. It has to be a list",
        ),
        ({"kwargs": []}, r"row 1: 1 instructions and 0 entries in 'kwargs'"),
        ({"kwargs": ["x"]}, r"the entry of 'punctuation:no_comma' in 'kwargs' is 'x'"),
        (
            {"kwargs": [{"num_words": 3}]},
            r"'punctuation:no_comma' has no argument 'num_words'. It takes none",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused_by_name_before_anything_is_scored(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    row = {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], **changed}
    with pytest.raises(DataError, match=message):
        scorer(write(tmp_path / "rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "length_constraints:number_words",
            {"num_words": 3},
            "needs the argument 'relation': \"less than\" or",
        ),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at most"},
            "'relation' is 'at most'",
        ),
        ("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"}, "'num_words' is 2.5"),
        (
            "length_constraints:number_words",
            {"num_words": True, "relation": "at least"},
            "'num_words' is True",
        ),
        ("length_constraints:number_words", {"num_word": 3}, "'num_word'. Did you mean 'num_words'"),
        ("keywords:existence", {"keywords": "one"}, "'keywords' is 'one'. Write a list of texts"),
        ("keywords:existence", {"keywords": []}, "Write a list of texts, none of them empty"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "Write one character",
        ),
        ("language:response_language", {"language": "English"}, "'language' is 'English'. Write a code"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
            "a paragraph beyond 'num_paragraphs'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_and_none_is_drawn_at_random(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        follows_instructions("text", [name], [arguments])


def test_whole_numbers_that_a_table_made_floats_are_whole_numbers() -> None:
    words = {"num_words": 2.0, "relation": "at least", "num_bullets": None}
    assert follows_instructions("a b", ["length_constraints:number_words"], [words]).strict == (True,)


def test_a_prompt_that_is_asked_for_two_things_in_two_rows_is_an_error(tmp_path: Path) -> None:
    rows = [PROMPTS[1], {**PROMPTS[1], "instruction_id_list": ["punctuation:no_comma"]}]
    with pytest.raises(DataError, match=r"row 2 asks a prompt for other things than an earlier row"):
        scorer(write(tmp_path / "rows.jsonl", rows))


def test_the_score_is_all_or_a_share_strict_or_loose_and_its_parts_are_beside_it(prompts: Path) -> None:
    rows = [answer("The Po"), answer("Po"), answer("Here, a river:\nThe Po")]
    columns = scorer(prompts)(rows)
    assert columns["follows"] == [1, 0, 0]
    assert columns["follows.inst_strict"] == [1, 0.5, 0.5]
    assert columns["follows.prompt_loose"] == [1, 0, 1]
    assert columns["follows.instructions"] == [2, 2, 2]
    assert scorer(prompts, reward="share")(rows)["follows"] == [1, 0.5, 0.5]
    assert scorer(prompts, loose=True)(rows)["follows"] == [1, 0, 1]
    assert scorer(prompts, reward="share", loose=True)(rows)["follows"] == [1, 0.5, 1]


def test_a_prompt_is_found_by_its_text_also_behind_a_system_message(prompts: Path) -> None:
    assert scorer(prompts)([answer('"I"', row=1, system="Be brief.")])["follows"] == [1]


def test_a_prompt_without_instructions_on_record_has_no_score_and_is_told_once(prompts: Path) -> None:
    stranger = Completion("p", 0, [{"role": "user", "content": "Hi"}], "Hi", 1, "stop", None)
    told: list[Any] = []
    (row,) = score([stranger], scorer(prompts), failed=told.append)
    assert [one.scorer for one in told] == ["follows"]
    assert "no instructions are on record" in told[0].reason
    assert all(np.isnan(value) for name, value in row.scores.items() if name != "words")
    assert isinstance(scorer(prompts)([stranger])["follows"][0], NoScore)


def test_it_is_a_reward_for_online_training(prompts: Path) -> None:
    rewards = Rewards({"follows": scorer(prompts)})
    scored = rewards.of([answer("The Po"), answer("Po")], step=0)
    rewards.check_repeats(scored)
    assert rewards.total(scored).tolist() == [1, 0]


def test_instruction_level_accuracy_is_a_ratio_of_sums_and_its_interval_is_over_prompts() -> None:
    met, asked = np.array([3.0, 0.0, 1.0] * 20), np.array([3.0, 3.0, 1.0] * 20)
    one = instruction_accuracy(met, asked, np.arange(60))
    assert one.value == pytest.approx(4 / 7)  # (3 + 0 + 1) / (3 + 3 + 1), not the mean of 1, 0 and 1
    # by hand: residuals 9/7, -12/7, 3/7; their squares 81 + 144 + 9 over 49, times 20, over 59; over mean 7/3
    spread = np.sqrt(234 / 49 * 20 / 59) / (7 / 3) / np.sqrt(60)
    trials = (4 / 7) * (3 / 7) / spread**2
    assert trials == pytest.approx(49.4, abs=0.1)  # of 140 instructions: those of a prompt go together
    assert one.high - one.low == pytest.approx(2 * 2.001 * spread, rel=0.05)
    # the same answers once more are no further evidence
    twice = instruction_accuracy(np.tile(met, 2), np.tile(asked, 2), np.tile(np.arange(60), 2))
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))


def test_accuracies_without_spread_have_an_interval_all_the_same() -> None:
    found = instruction_accuracy(np.full(100, 2.0), np.full(100, 2.0), np.arange(100))
    assert found.value == found.high == 1
    assert 0.95 < found.low < 0.97  # Clopper and Pearson: 0.025 ** (1 / 100) is 0.964


def test_the_report_gives_four_accuracies_and_those_of_each_instruction(
    prompts: Path, tmp_path: Path
) -> None:
    texts = [{"prompt": PROMPTS[0]["prompt"], "response": text} for text in ("The Po", "So, here:\nThe Po")]
    given = [*texts, {"prompt": PROMPTS[1]["prompt"], "response": "I"}, {"prompt": "Hi", "response": "Hi"}]
    report = instruction_report(str(write(tmp_path / "answers.jsonl", given)), str(prompts))
    values = {name: figure.value for name, figure in report.metrics.items()}
    # prompts count once: (1 + 0) / 2 of the first, 0 of the second
    assert values["prompt_strict"] == pytest.approx(0.25)
    assert values["prompt_loose"] == pytest.approx(0.5)
    assert values["inst_strict"] == pytest.approx(1.5 / 3)
    assert values["inst_loose"] == pytest.approx(2 / 3)
    assert [(one.id, one.asked, one.strict.value) for one in report.instructions] == [
        ("length_constraints:number_words", 2, 1),
        ("punctuation:no_comma", 2, 0.5),
        ("startend:quotation", 1, 0),
    ]
    assert report.cautions[0] == "1 of 4 answers are to other prompts, and left out"


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
def test_one_prompt_and_verdicts_that_are_all_alike_have_wide_intervals(
    prompts: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": PROMPTS[1]["prompt"], "response": '"I"'}] * 9
    report = instruction_report(str(write(tmp_path / "answers.jsonl", rows)), str(prompts))
    assert (report.prompts, report.answers) == (1, 9)
    for figure in report.metrics.values():
        assert (figure.value, figure.n) == (1, 1)
        assert figure.low < 0.25  # nine answers to one prompt say no more of other prompts than one does


def test_the_command_shows_figures_names_what_is_left_out_and_says_how_to_see_each_verdict(
    handbook: Any, prompts: Path, tmp_path: Path
) -> None:
    answers = write(tmp_path / "answers.jsonl", [{"prompt": PROMPTS[1]["prompt"], "response": '"I"'}])
    code, out, _ = handbook("instruction-report", answers, "--prompts", prompts)
    assert code == 0
    assert "prompt_strict" in out
    assert "1 of 2 prompts have no answer" in out
    assert "handbook score" in out
    code, out, _ = handbook("instruction-report", answers, "--prompts", prompts, "--json")
    assert json.loads(out)["metrics"]["inst_strict"]["value"] == 1
    code, out, _ = handbook("instruction-report", "--ids", "--json")
    assert [one["id"] for one in json.loads(out)] == list(INSTRUCTIONS)


def test_the_command_refuses_pairs_strangers_and_instructions_it_cannot_check(
    handbook: Any, prompts: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    strangers = write(tmp_path / "strangers.jsonl", [{"prompt": "p", "response": "a"}])
    other = write(tmp_path / "other.jsonl", [{**PROMPTS[1], "instruction_id_list": ["startend:quote"]}])
    for arguments, message in (
        ((pairs, "--prompts", prompts), "rows are pairs of answers"),
        ((strangers, "--prompts", prompts), "none of the 1 answers is to a prompt"),
        ((strangers, "--prompts", other), "no check is known for the instruction 'startend:quote'"),
        ((strangers,), "--prompts: not given"),
        (("--prompts", prompts), "the answers: not given"),
        ((strangers, "--prompts", prompts, "--level", "95"), "--level must be between 0 and 1"),
    ):
        code, _, err = handbook("instruction-report", *arguments)
        assert code == 2
        assert message in err


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
def test_a_gain_over_a_baseline_is_the_difference_of_the_two_reports_on_the_prompts_that_both_answered(
    handbook: Any, tmp_path: Path
) -> None:
    texts = [("The Po", "So, no"), ("Go, now", "I"), ("The Po", "The Po"), ("Up, up", "Up")]
    asked = [{**PROMPTS[0], "prompt": f"{PROMPTS[0]['prompt']} {number}"} for number in range(20)]
    asked += [{**PROMPTS[1], "prompt": f"{PROMPTS[1]['prompt']} {number}"} for number in range(20)]
    prompts = write(tmp_path / "input_data.jsonl", [{"key": 1, **row} for row in asked])
    files = [
        write(
            tmp_path / f"{side}.jsonl",
            [
                {"prompt": row["prompt"], "response": texts[number % 4][side]}
                for number, row in enumerate(asked)
                if number < last
            ],
        )
        for side, last in ((0, 40), (1, 39))
    ]
    before, after = (instruction_report(str(file), str(prompts), split="train[:39]") for file in files)
    report = instruction_report(str(files[1]), str(prompts), against=str(files[0]))
    assert list(report.gains) == list(report.metrics)
    for name, gain in report.gains.items():
        assert gain.difference.n == 39
        assert gain.difference.value == pytest.approx(after.metrics[name].value - before.metrics[name].value)
        assert gain.difference.low < gain.difference.value < gain.difference.high
        assert gain.p_value <= gain.p_holm <= 1
    assert "prompts answered on one side only: 1; the comparison is of 39" in report.cautions
    code, out, _ = handbook("instruction-report", files[1], "-p", prompts, "--against", files[0])
    assert code == 0
    assert "against the baseline" in out
    stranger = write(tmp_path / "stranger.jsonl", [{"prompt": asked[39]["prompt"], "response": "I"}])
    code, _, err = handbook("instruction-report", files[1], "-p", prompts, "--against", stranger)
    assert code == 2
    assert "answers none of the prompts" in err


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
def test_scored_rows_and_stages_show_the_reports_figures(
    handbook: Any, prompts: Path, tmp_path: Path
) -> None:
    given = [
        {"prompt": PROMPTS[0]["prompt"], "response": "Po"},
        {"prompt": PROMPTS[1]["prompt"], "response": '"I"'},
    ]
    answers = write(tmp_path / "answers.jsonl", given)
    section = json.dumps({"kind": "instructions", "prompts": {"name": str(prompts)}})
    out = tmp_path / "scored.jsonl"
    _, text, _ = handbook("score", answers, "-s", f"follows={section}", "--out", out, "--json")
    metrics = json.loads(text)["metrics"]
    assert metrics["follows.inst_strict"]["value"] == pytest.approx(2 / 3)  # not 0.75, the mean over prompts
    assert metrics["follows.prompt_strict"]["unit"] == "rate"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    parts = {name: [row[name] for row in rows] for name in rows[0] if name.startswith("follows.")}
    table = {"prompt_id": ["a", "b"], "tokens": [1, 1], "words": [1, 1], "finish_reason": ["stop", "stop"]}
    of_stage = sample_metrics(pa.table({**table, **parts}))
    assert of_stage["follows.inst_strict"].to_json() == metrics["follows.inst_strict"]


def test_a_flawless_answer_of_the_pocket_world_follows_its_instructions_and_flawed_ones_do_not() -> None:
    rows = pocket_rows("pocket:instructions", parse_split("test[:120]"), seed=0)
    families = {row["prompt_id"].partition("-")[0] for row in rows}
    assert families == {"story", "list", "reply", "repeat"}  # how-tos state nothing that a check can see

    def followed(row: dict[str, Any], flaws: Flaws) -> bool:
        text = demonstrate(row["prompt"], rng=random.Random(row["prompt_id"]), flaws=flaws)
        assert (gold_reward(row["prompt"], text).value == 1) == (flaws == Flaws())
        return all(follows_instructions(text, row["instruction_id_list"], row["kwargs"]).strict)

    assert all(followed(row, Flaws()) for row in rows)
    # another animal, item or product is seen in most of them
    assert 0 < np.mean([followed(row, Flaws(wrong=True)) for row in rows]) < 0.5
    # the check is not the instruction: a list's number is not checked, and manners are never asked for
    lists = [row for row in rows if row["prompt_id"].startswith("list-")]
    assert all(followed(row, Flaws(missed=True)) for row in lists)
    assert all(followed(row, Flaws(rude=True)) for row in rows)
