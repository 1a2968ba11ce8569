"""Gold answers: normal form, holding, and the alias that is shown."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data.answers import choose_answer, contains_answer, normalise_answer
from raggd.records import Passage, RaggdError

WORDS = st.lists(st.text("abcdefgh", min_size=2, max_size=6), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Saint Lawrence River", "saint lawrence river"),
        ("July 5 , 2018", "july 5 2018"),
        ("Anglo-French", "anglofrench"),
        ("  an apple,   A day ", "apple day"),
        ("theatre", "theatre"),
        ("U.S.", "us"),
        ("Pétain!", "pétain"),
        ("The A", ""),
    ],
)
def test_normal_form_is_squads(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


@pytest.mark.fuzz
@given(st.text())
def test_normal_form_is_stable(text: str) -> None:
    once = normalise_answer(text)
    assert once == " ".join(once.split())
    assert not set(once) & set(".,;!?'\"")


@pytest.mark.parametrize(
    ("text", "answers", "held"),
    [
        ("It rises in Paris, France.", ["paris"], True),
        ("The Parisian life", ["Paris"], False),
        ("from 1940-1944 he led", ["1944"], True),
        ("the U.S. Navy", ["US"], True),
        ("Roosevelt, Franklin", ["Franklin Roosevelt"], False),
        ("on July 5, 2018 it opened", ["July 5 , 2018"], True),
        ("anything", [], False),
        ("anything !!!", ["!!!", "the"], False),
        ("He said no.", ["no"], True),
        ("It is known.", ["no"], False),
    ],
)
def test_holding_an_answer(text: str, answers: list[str], held: bool) -> None:
    assert contains_answer(text, answers) is held


@pytest.mark.fuzz
@given(WORDS, WORDS, WORDS)
def test_a_run_of_tokens_is_always_found(
    before: list[str], answer: list[str], after: list[str]
) -> None:
    text = " ".join(before + answer + after)
    assert contains_answer(text.upper(), [" ".join(answer)])
    assert not contains_answer(text, [answer[0] + "zz"])


def test_the_most_frequent_alias_wins_over_the_shorter() -> None:
    passages = [Passage("1", "Philippe Petain led. Philippe Petain fell.", "Vichy")]
    assert choose_answer(["Philippe Petain", "Vichy"], passages) == "Philippe Petain"
    assert choose_answer(["Philippe Petain", "Petain"], passages) == "Petain"  # both twice: shorter


def test_neighbouring_occurrences_all_count() -> None:
    passages = [Passage("1", "Boutros Boutros Boutros; Ghali Ghali")]
    assert choose_answer(["Boutros", "Ghali"], passages) == "Boutros"


def test_the_title_counts() -> None:
    assert choose_answer(["Kidneys", "Renal"], [Passage("1", "An organ.", "Kidneys")]) == "Kidneys"


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["politician", "political leader", "polit.", "pol"], "politician"),
        (["Kidney (food)", "KIDNEY", "The kidney"], "The kidney"),
        (["USA"], "USA"),
        (["yes"], "yes"),
        (["31", "thirty-one"], "31"),
        (["  Astrid  ", ""], "Astrid"),
    ],
)
def test_without_evidence_the_shortest_plain_alias(answers: list[str], chosen: str) -> None:
    assert choose_answer(answers, [Passage("1", "Nothing here.")]) == chosen


def test_the_choice_ignores_the_order_of_aliases() -> None:
    passages = [Passage("1", "abcd efgh wxyz")]
    chosen = {choose_answer(p, passages) for p in permutations(["wxyz", "abcd", "efgh", "zz"])}
    assert chosen == {"abcd"}
    assert choose_answer(["zz"], passages) != "abcd"


def test_no_answer_is_an_error() -> None:
    with pytest.raises(RaggdError, match="no answer"):
        choose_answer(["", "  "], [])


@pytest.mark.parametrize(
    ("word", "longer"), [("गीत", "गीता"), ("কল", "কলা"), ("மர", "மரம்"), ("పన", "పని")]
)
def test_a_vowel_sign_belongs_to_its_word(word: str, longer: str) -> None:
    assert contains_answer(f"x {longer}। y", [longer])
    assert contains_answer(f"x, {word}। y", [word])
    assert not contains_answer(f"x {longer} y", [word])
