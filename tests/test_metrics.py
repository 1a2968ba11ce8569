"""Exact match and F1 against values worked out by hand from SQuAD v1.1's rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.data.answers import exact_match, token_f1
from raggd.records import RaggdError

# Gold answers of questions of the SQuAD 1.1 development set (on Super Bowl 50), then edge cases.
STADIUM = [
    "Santa Clara, California",
    "Levi's Stadium",
    "Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",
]
SCORE = ["24–10", "24–10", "24–10"]  # with an en dash, which is not ASCII punctuation
FACTS = [
    # prediction, gold answers, EM, F1
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the Denver  Broncos.", ["Denver Broncos"], 1, 1),
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # P 1, R 1/2
    ("The Carolina Panthers", ["Denver Broncos"], 0, 0),
    ("Levi's Stadium in Santa Clara", STADIUM, 0, 10 / 16),  # 5 words shared of 5 and 11
    ("Santa Clara", STADIUM, 0, 4 / 5),  # 2 of 2 and 3
    ("LEVIS STADIUM", STADIUM, 1, 1),
    ("24–10", SCORE, 1, 1),
    ("24-10", SCORE, 0, 0),  # ASCII hyphen vanishes: 2410
    ("24 – 10", SCORE, 0, 0),
    ("gold", ["gold", "the color gold"], 1, 1),
    ("a golden anniversary", ["golden anniversary", "gold-themed"], 1, 1),
    # repeated words count as often as both have them
    ("New York New York", ["New York"], 0, 4 / 6),
    ("new new york", ["new york new york"], 0, 6 / 7),
    ("la la la", ["la"], 0, 2 / 4),
    # nothing left after normalisation: equal, but v1.1 gives no F1 for it
    ("The", ["a"], 1, 0),
    ("", ["The."], 1, 0),
    ("...", ["!?"], 1, 0),
    ("", ["Paris"], 0, 0),
    ("Paris", ["the"], 0, 0),
    # unicode is kept as it is
    ("beyoncé", ["Beyoncé"], 1, 1),
    ("Beyonce", ["Beyoncé"], 0, 0),
    ("“Halo”", ["Halo"], 0, 0),  # typographic quotes are not removed
    ("ÅNGSTRÖM unit", ["ångström"], 0, 2 / 3),
    ("東京", ["東京"], 1, 1),
    ("l’a", ["l’"], 1, 1),  # the article goes at a word boundary, not only between blanks
    # punctuation goes before articles and joins what it stood between
    ("A-level", ["level"], 0, 0),
    ("U.S.A.", ["usa"], 1, 1),
    ("an_apple", ["anapple"], 1, 1),
    ("non\u00a0breaking", ["non breaking"], 1, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "em", "f1"), FACTS)
def test_equals_the_official_script(
    prediction: str, answers: list[str], em: float, f1: float
) -> None:
    assert exact_match(prediction, answers) == em
    assert token_f1(prediction, answers) == pytest.approx(f1, abs=1e-15)
    assert type(exact_match(prediction, answers)) is float
    assert type(token_f1(prediction, answers)) is float


@pytest.mark.parametrize("metric", [exact_match, token_f1])
def test_no_answers_is_an_error(metric) -> None:
    with pytest.raises(RaggdError, match="without gold answers"):
        metric("Paris", [])
    with pytest.raises(RaggdError, match="list of strings"):
        metric("Paris", "Paris")


WORDS = st.lists(st.sampled_from(["the", "red", "Red", "blue", "sea", "-", "a."]), max_size=6)
TEXTS = WORDS.map(" ".join)


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_relations(prediction: str, answers: list[str]) -> None:
    em, f1 = exact_match(prediction, answers), token_f1(prediction, answers)
    assert em in {0.0, 1.0}
    assert 0 <= f1 <= 1
    assert em == max(exact_match(prediction, [answer]) for answer in answers)
    assert f1 == max(token_f1(prediction, [answer]) for answer in answers)
    assert (em, f1) == (
        exact_match(prediction.upper() + " !", answers[::-1]),
        token_f1(prediction.upper() + " !", answers[::-1]),
    )


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_f1_is_symmetric_and_below_one_only_for_other_words(one: str, two: str) -> None:
    assert token_f1(one, [two]) == token_f1(two, [one])
    if exact_match(one, [two]) and token_f1(one, [one]):
        assert token_f1(one, [two]) == 1
