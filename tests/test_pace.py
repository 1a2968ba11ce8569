"""How much a demo asks for: by what the machine can do, at least 24 questions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raggd.backbone.load import Backbone
from raggd.evaluation.price import CHOICES, Pace, look, questions_for

DEMO = {"methods": 6, "encoded": 2, "sgd_steps": 5}


def test_a_fast_machine_asks_more_than_a_slow_one() -> None:
    assert questions_for(240, Pace(0.05, 0.1).of(**DEMO)) == (120, 3)
    # AVX2 in float32 on two cores: six minutes are enough for the least
    slow = Pace(1.53, 3.1).of(**DEMO)
    assert questions_for(240, slow) == (24, 1)
    assert slow.seconds(24, 2) < 360
    assert slow.seconds(120, 6) > 1200
    assert questions_for(240, Pace(100, 200).of(**DEMO)) == (24, 1)  # never fewer


@given(st.floats(0.01, 5), st.floats(0.01, 10), st.floats(60, 600))
def test_what_is_chosen_fits_or_is_the_least(answer: float, encode: float, most: float) -> None:
    pace = Pace(answer, encode).of(**DEMO)
    questions, draws = questions_for(most, pace)
    assert questions in CHOICES
    needed = pace.seconds(questions, 2 * draws)
    assert needed <= most or (questions, draws) == (24, 1)
    faster = questions_for(most, Pace(answer / 2, encode / 2).of(**DEMO))
    assert faster[1] * faster[0] >= questions * draws or faster[1] > draws


def test_a_look_times_real_work(tiny_backbone: Backbone) -> None:
    pace = look(tiny_backbone)
    assert pace.answer > 0
    assert 0 < pace.encode < 3 * pace.answer
