"""Evidence, hit rates and demonstrations."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from raggd.data.questions import parse_demonstrations
from raggd.files import read_json_lines
from raggd.records import Passage, Question, RaggdError
from raggd.retrieval.bm25 import BM25Retriever
from raggd.retrieval.evidence import (
    coverage,
    evidence_for,
    holds_answer,
    is_answerable,
    make_demonstrations,
)
from retrieval_fixtures import build_bm25

CORPUS = [
    Passage("1", "Lima is the capital of Peru. Lima lies on the coast.", "Lima"),
    Passage("2", "Peru is a country; its capital is a large city.", "Peru"),
    Passage("3", "Bees make honey.", "Bee"),
]
CAPITAL = Question("q1", "What is the capital of Peru?", ("Ciudad de los Reyes", "Lima"), "nq")
MAKER = Question("q2", "Who makes honey?", ("a wasp",), "nq")


@pytest.fixture(name="retriever")
def _retriever(tmp_path: Path) -> BM25Retriever:
    return build_bm25(CORPUS, tmp_path / "index")


def test_evidence_keeps_the_order_of_questions_and_ranks(retriever: BM25Retriever) -> None:
    found = evidence_for([MAKER, CAPITAL], retriever, k=2)
    assert [[p.id for p in passages] for passages in found] == [["3"], ["2", "1"]]
    assert evidence_for([MAKER], retriever, k=0) == [()]


def test_evidence_holds_an_answer_or_not_or_cannot_tell() -> None:
    assert holds_answer(CAPITAL, CORPUS) is True
    assert holds_answer(CAPITAL, CORPUS[1:]) is False
    asked = Question("q3", "Do bees make honey?", ("Yes", "yes."), "nq")
    assert holds_answer(asked, CORPUS) is None
    assert holds_answer(replace(asked, answers=("yes", "Lima")), CORPUS) is True


@pytest.mark.parametrize(
    ("question", "text", "share"),
    [
        ("the cafe near Zürich", "A café near Zurich.", 1.0),
        ("the museum of Zuerich", "Zürich has a museum.", 1.0),
        ("email the museum", "The museum: by e-mail.", 1.0),
        ("the e-mail of a museum", "email of the museum", 1.0),
        ("3,000 of F-16", "3000 F16", 1.0),
        ("the naïve plan", "A plan.", 0.5),
        ("e-mail or letter", "a letter", 1 / 3),
    ],
)
def test_what_a_passage_covers_in_another_spelling(question: str, text: str, share: float) -> None:
    assert coverage(question, [Passage("a", text)]) == pytest.approx(share)


def test_demonstrations_show_the_answer_that_the_passages_hold(retriever: BM25Retriever) -> None:
    shown = make_demonstrations([CAPITAL], retriever, k=2)[0]
    assert shown.answer == "Lima"
    assert shown.answer != CAPITAL.answers[0]
    assert (shown.id, shown.question) == ("q1", CAPITAL.text)
    assert [shown.passages] == evidence_for([CAPITAL], retriever, k=2)
    unanswered = Question("q9", "Why?", ("  ",))
    with pytest.raises(RaggdError, match="'q9'"):
        make_demonstrations([CAPITAL, unanswered], retriever, k=1)


def test_ones_own_demonstration_shows_the_first_of_its_answers(retriever: BM25Retriever) -> None:
    accepted = ["Ciudad de los Reyes, Peru", "Lima"]
    own = parse_demonstrations([{"question": CAPITAL.text, "golden_answers": accepted}])
    for given in (own[0], replace(own[0], answers=(" ", f" {accepted[0]} ", "Lima"))):
        assert make_demonstrations([given], retriever, k=2)[0].answer == accepted[0]
    others = replace(own[0], task="nq")
    assert make_demonstrations([others], retriever, k=2)[0].answer == "Lima"


def test_real_questions_find_their_answers(tmp_path: Path) -> None:
    beside = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("RAGGD_DATA", beside))
    file, corpus = data / "qa/popqa/test.jsonl.gz", data / "corpus/wiki95k.jsonl.gz"
    if not (file.is_file() and corpus.is_file()):
        pytest.skip(f"no development data at {data} (set RAGGD_DATA)")
    questions = [
        Question(str(row["id"]), row["question"], tuple(row["golden_answers"]))
        for _, row in read_json_lines(file)
    ][:100]
    passages = []
    for number, row in read_json_lines(corpus):
        if number % 12 == 0:
            title, _, text = row["contents"].partition("\n")
            passages.append(Passage(str(row["id"]), text, title))
    retriever = build_bm25(passages, tmp_path / "index")
    rates = []
    for k in (1, 5, 20):
        found = evidence_for(questions, retriever, k)
        held = sum(is_answerable(q, passages) for q, passages in zip(questions, found, strict=True))
        rates.append(held / len(questions))
    # Only a twelfth of the corpus is here; the whole one gives 0.80 and 0.87 at 5 and 20.
    assert rates == sorted(rates)
    assert 0.02 < rates[1] < 0.6
