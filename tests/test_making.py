"""Demonstrations from passages: answers, questions, the round trip, review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.demonstrations import read_demonstrations
from raggd.making import propose as proposing
from raggd.making.clauses import clause_questions
from raggd.making.propose import Maker, Proposal, Yield, best_per_passage, propose
from raggd.making.questions import finished, is_grounded, question_prompt
from raggd.making.spans import Span, answer_spans, sentences
from raggd.records import Hit, Passage, RaggdError
from raggd.settings import load_settings
from raggd.workflows import make_demonstrations
from raggd.workflows.make_demonstrations import (
    ReviewStoppedError,
    as_line,
    choose_passages,
    edited,
    run_make,
)
from tiny import make_backbone
from workflow_fixtures import changed, parts_with, settings_text, write_data, write_weights


def passage(text: str, title: str = "Orm Gate") -> Passage:
    return Passage(f"id of {title}", text, title)


# --- answers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It was opened by Karl Berg in 1957.", [("1957", "year"), ("Karl Berg", "name")]),
        ("It was opened to all cars on 4 May 1957.", [("4 May 1957", "date")]),
        ("The whole thing is 1,212 metres long.", [("1,212 metres", "number")]),
        ("The warranty of the pump ends after 24 months.", [("24 months", "number")]),
        ("Karl was a German civil engineer from Norway.", [("Norway", "name")]),
        ("The fair was held as of 2025, it is said.", [("2025", "year")]),
        ("It crosses Russia's longest river near the Orm farm.", []),  # Orm stands in the title
        ("Only five words here: Oslo.", []),
    ],
)
def test_answers_are_dates_numbers_and_names(text: str, wanted: list[tuple[str, str]]) -> None:
    assert [(span.text, span.kind) for span in answer_spans(passage(text))] == wanted


def test_sentences_end_where_a_capital_follows() -> None:
    text = "One is 1.5 m. Two is here. “Three” is."
    assert sentences(text) == ["One is 1.5 m.", "Two is here.", "“Three” is."]


# --- questions in the words of the passage


def asked(text: str, answer: str, title: str = "Orm Gate") -> list[str]:
    spans = {span.text: span for span in answer_spans(passage(text, title))}
    return clause_questions(passage(text, title), spans[answer])


@pytest.mark.parametrize(
    ("text", "answer", "question"),
    [
        ("It was opened in 1957 by the mayor.", "1957", "opened in what year by the mayor"),
        ("It was opened by Karl Berg in spring.", "Karl Berg", "opened by whom in spring"),
        ("It is 212 metres long, they say.", "212 metres", "is how many metres long"),
        ("It was opened on 4 May 1957, late.", "4 May 1957", "was opened on what date"),
        ("It was planned in May 1957, at last.", "May 1957", "was planned in what month"),
        ("It (the old one) leads to the town of Oslo.", "Oslo", "leads to the town of what"),
    ],
)
def test_a_clause_asks_for_its_answer(text: str, answer: str, question: str) -> None:
    (found,) = asked(text, answer)
    assert found.startswith("Orm Gate ")
    assert question in found
    assert found.endswith("?")
    assert answer not in found


def test_dates_of_a_life_become_questions() -> None:
    text = "Anna Lind (4 May 1901 – 3 June 1950) was a chemist."
    assert asked(text, "4 May 1901", "Anna") == ["When was Anna born?"]
    assert asked(text, "3 June 1950", "Anna") == ["When did Anna die?"]
    text = "Anna Lind (born 4 May 1901 in Malmö) was a chemist."
    assert asked(text, "4 May 1901", "Anna (chemist)") == ["When was Anna born?"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Founded in 1957 by Karl Berg, it is old.", "1957"),  # no subject
        ("The bridge (built by Karl Berg) is old.", "Karl Berg"),  # inside brackets
        ("The chemist, Karl Berg, opened it in spring.", "Karl Berg"),  # an aside
        ("It was built between 1957 - 1961 by the mayor.", "1957"),  # half of a range
    ],
)
def test_a_sentence_that_does_not_lend_itself_asks_nothing(text: str, answer: str) -> None:
    assert asked(text, answer) == []


# --- questions of the backbone


@pytest.mark.parametrize(
    ("question", "grounded"),
    [
        ("When was the Orm Gate opened?", True),
        ("Who designed the Orm Gate?", False),  # nothing is said of a design
        ("When was the Orm Gate opened, in 1957?", False),  # gives the answer away
        ("When was the Orm Gate opened", False),
        ("The Orm Gate?", False),
        ("What is the gate?", False),  # one telling word
    ],
)
def test_only_questions_in_the_words_of_the_passage_are_tried(
    question: str, grounded: bool
) -> None:
    text = "The Orm Gate was opened in 1957."
    assert is_grounded(question, passage(text), Span("1957", "year", text)) is grounded


@pytest.mark.parametrize("template", ["chat", None])
def test_the_prompt_ends_with_the_first_words_of_the_question(template: str | None) -> None:
    backbone = make_backbone() if template else make_backbone(template=None)
    text = "the river lies near the old king in Oslo"
    span = Span("Oslo", "name", text)
    prompt = question_prompt(backbone.tokenizer, passage(text, "river"), span, "where is")
    shown = backbone.tokenizer.decode(prompt.tokens)
    assert shown.replace(" ", "").endswith("whereis")
    assert text.replace(" ", "") in shown.replace(" ", "")
    assert prompt.answer_tokens == 0


def test_a_question_ends_at_its_first_mark() -> None:
    assert finished("Who", " built it? Answer: Karl") == "Who built it?"
    assert finished("Who", "built it") == "Who built it"


# --- the round trip

OPENED = passage("It was opened in 1957 by the mayor. It leads to the town of Oslo.")
HERB = passage("It was first eaten in 1812 by the poor. It grows in the town of Rome.", "Sorrel")
TWIN = passage("It was painted grey in 1957 by the mayor.", "Twin Tower")


class Finder:
    """Finds every passage whose title a question holds."""

    fingerprint = "finder"

    def __init__(self, *passages: Passage) -> None:
        self.held = passages

    def search(self, queries: Sequence[str], k: int, exclude: object = None) -> list[list[Hit]]:
        return [[Hit(p, 1.0) for p in self.held if p.title in query][:k] for query in queries]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        return [next(p for p in self.held if p.id == name) for name in ids]


class Model:
    """Stands in for the backbone's answers: knows what each question is answered with."""

    def __init__(self, answers: dict[str, str], writes: str = "nothing") -> None:
        self.answers, self.writes = answers, writes
        self.written: list[str] = []

    def __call__(
        self, backbone: Backbone, rows: Any, prompts: Any, tokens: int, **options: Any
    ) -> Any:
        texts = [backbone.tokenizer.decode(p.tokens) for p in prompts]
        if rows[0].base is None:
            self.written += texts
            return [self.writes] * len(texts), None
        golds = options["golds"]
        given = [next((a for q, a in self.answers.items() if q in t), "no idea") for t in texts]
        return given, torch.tensor([0.1 * len(gold) for gold in golds])


class Words:
    """A tokenizer of code points: what goes in comes out."""

    chat_template = "{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}"
    bos_token_id = eos_token_id = pad_token_id = 0
    unk_token_id, all_special_tokens, added_tokens_decoder = None, (), MappingProxyType({})

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "\n".join(turn["content"] for turn in messages)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, tokens))


@pytest.fixture
def maker(tiny_backbone: Backbone, base: BaseAdapter) -> Maker:
    readable = replace(tiny_backbone, tokenizer=Words())
    finder = Finder(OPENED, HERB, TWIN)
    return Maker(readable, base, finder, k=3, limit=5000, max_tokens=8, batch=2)


def proposals(
    maker: Maker, model: Model, monkeypatch: pytest.MonkeyPatch, *passages: Passage
) -> tuple[list[Proposal], Yield]:
    monkeypatch.setattr(proposing, "answer_rows", model)
    monkeypatch.setattr(proposing, "shared_opening", lambda *_: None)
    counted = Yield()
    return list(propose(maker, passages, 0, counted)), counted


IN_1957 = "Orm Gate was opened in what year by the mayor?"
IN_1812 = "Sorrel was first eaten in what year by the poor?"


def test_what_survives_is_kept(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    found, counted = proposals(maker, Model({IN_1957: "1957."}), monkeypatch, OPENED, HERB)
    ((question, answer, wording),) = [(p.question, p.answer, p.wording) for p in found]
    assert (question, answer, wording) == (IN_1957, "1957", "clause")
    assert (counted.passages, counted.spans, counted.answered, counted.kept) == (2, 4, 1, 1)
    assert counted.drafts >= counted.grounded >= counted.retrieved > counted.answered


def test_a_wrong_answer_is_dropped(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    found, counted = proposals(maker, Model({IN_1957: "in 1935"}), monkeypatch, OPENED)
    assert found == []
    assert counted.retrieved > 0


def test_a_question_that_does_not_find_its_passage_is_dropped(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = replace(maker, retriever=Finder(HERB))
    found, counted = proposals(blind, Model({IN_1957: "1957"}), monkeypatch, OPENED)
    assert found == []
    assert (counted.grounded > 0, counted.retrieved) == (True, 0)


def test_the_backbone_words_anew_what_survived(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "In what year was the Orm Gate opened?"
    model = Model({IN_1957: "1957", own: "1957"}, writes="was the Orm Gate opened? Bye")
    found, _ = proposals(maker, model, monkeypatch, OPENED)
    assert [p.answer for p in found] == ["1957"]
    assert {"Answer: 1957" in text for text in model.written} == {True}
    worse = Proposal("a", "b", OPENED, "clause", 0.5)
    better = Proposal("c", "b", OPENED, "model", 0.2)
    assert best_per_passage([worse, better, replace(worse, passage=HERB)]) == [
        better,
        replace(worse, passage=HERB),
    ]


def test_no_two_proposals_have_one_answer(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = "Twin Tower was painted grey in what year by the mayor?"
    model = Model({IN_1957: "1957", twin: "1957", IN_1812: "1812"})
    found, counted = proposals(maker, model, monkeypatch, OPENED, TWIN, HERB)
    assert sorted(p.answer for p in found) == ["1812", "1957"]
    assert (counted.answered, counted.kept) == (3, 2)


# --- the command


def test_passages_are_chosen_by_what_they_are() -> None:
    many = [passage(f"text {i}", f"title {i}") for i in range(50)]
    chosen = choose_passages(many, 5, 0)
    assert choose_passages(reversed(many), 5, 0) == chosen
    assert choose_passages(many, 8, 0)[:5] == chosen
    assert choose_passages(many, 5, 1) != chosen
    assert len(choose_passages(many[:3], 5, 0)) == 3


def test_a_line_is_read_back_as_a_demonstration(tmp_path: Path) -> None:
    line = as_line(Proposal(IN_1957, "1957", OPENED, "clause", 0.1))
    (tmp_path / "made.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (question,) = read_demonstrations(tmp_path / "made.jsonl")
    assert (question.text, question.answers) == (IN_1957, ("1957",))
    assert line["passage"]["text"] == OPENED.text


def made(count: int) -> list[Proposal]:
    return [Proposal(f"question {i}?", str(i), OPENED, "clause", 0.1) for i in range(count)]


@pytest.fixture
def parts(tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    weights = write_weights(tmp_path / "weights", tiny_backbone)
    text = settings_text(write_data(tmp_path / "data"), "tiny", str(weights))
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    return parts_with(load_settings(tmp_path / "settings.toml"), tiny_backbone)


def test_the_reviewer_decides(parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_demonstrations, "propose", lambda *_: iter(made(9)))

    def judge(proposal: Proposal) -> Proposal | None:
        number = int(proposal.answer)
        if number == 5:
            raise ReviewStoppedError
        if number == 1:
            return edited(proposal, "better? ", " one")
        return proposal if number % 2 == 0 else None

    out = tmp_path / "made.jsonl"
    assert run_make(parts, out, 6, 0, judge)["made"] == 4
    kept = [(q.text, *q.answers) for q in read_demonstrations(out)]
    assert kept == [
        ("question 0?", "0"),
        ("better?", "one"),
        ("question 2?", "2"),
        ("question 4?", "4"),
    ]
    with pytest.raises(RaggdError, match="neither may be empty"):
        edited(made(1)[0], "x", " ")
    assert run_make(parts, out, 3, 0)["made"] == 3
    assert len(read_demonstrations(out)) == 3


def test_nothing_made_is_an_error_and_leaves_no_file(parts: Any, tmp_path: Path) -> None:
    small = parts_with(changed(parts.settings, "evaluation", max_answer_tokens=2), parts.backbone)
    with pytest.raises(RaggdError, match=r"none of \d+ passages led to a demonstration"):
        run_make(small, tmp_path / "made.jsonl", 1, 0)
    assert not (tmp_path / "made.jsonl").exists()
