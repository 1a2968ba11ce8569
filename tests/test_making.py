"""Demonstrations from passages: answers, questions, the round trip, review."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.drafts import Draft, drafts
from raggd.data.questions import read_demonstrations
from raggd.records import Hit, Passage, RaggdError
from raggd.settings import changed, load_settings
from raggd.study import made as make_demonstrations
from raggd.study.made import (
    Yield,
    as_line,
    choose_passages,
    edited,
    propose,
    run_make,
)
from workflow_fixtures import parts_with, settings_text, write_data, write_weights


def passage(text: str, title: str = "Orm Gate") -> Passage:
    return Passage(f"id of {title}", text, title)


GUIDE = """The `retries` option controls how often a request is sent again. Use the `quiet` flag to
hide the progress bar. If the file is missing, the command returns exit code 3.

```python
The_client = make("anything")  # The client returns nothing.
```

| The table | returns |
|---|---|
| a row | returns nothing here. |

- The default port is `8080`.
- The pool can be closed with `Pool.close`.

This returns a value that nobody can place. See [the page](https://example.org) for more of it.
    indented = "The code returns a string."
"""


def asked(text: str, title: str = "Orm Gate") -> list[tuple[str, str]]:
    return [(d.question, d.answer) for d in drafts(passage(text, title))]


def test_documentation_gives_questions_and_no_debris_of_code() -> None:
    assert asked(GUIDE, "Client > Options") == [
        ("What option controls how often a request is sent again?", "retries"),
        ("What flag is used to hide the progress bar?", "quiet"),
        ("What does the command return, if the file is missing?", "exit code 3"),
        ("What is the default port?", "8080"),
        ("What can the pool be closed with?", "Pool.close"),
    ]


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("It was opened in 1957 by the mayor.", "When was Orm Gate opened by the mayor?", "1957"),
        ("It was opened by Ole Berg in May.", "By whom was Orm Gate opened in May?", "Ole Berg"),
        ("It is 212 metres long.", "Orm Gate is how many metres long?", "212 metres"),
        ("The gate was opened on 4 May 1957.", "When was the gate opened?", "4 May 1957"),
        ("The valve supplies water and costs 9 euros.", "", ""),
        ("The road leads to Oslo.", "The road leads to what?", "Oslo"),
        ("The warranty ends after 24 months.", "The warranty ends after what?", "24 months"),
        ("The limit defaults to five seconds.", "What does the limit default to?", "five seconds"),
        ("The parser applies `Rule` and it has no end.", "", ""),
        ("Anna Li (4 May 1901 – 3 June 1950) was here.", "When was Anna Li born?", "4 May 1901"),
        ("In the spring the gate was opened by Karl Berg.", "", ""),
        ("They say that the gate returns a value.", "", ""),
        ("The gate returns it when asked for.", "", ""),
        ("The gate returns the gate.", "", ""),
        ("The cli() method returns {a: 1} there.", "", ""),
        ("# The heading returns a value", "", ""),
    ],
)  # fmt: skip
def test_a_sentence_asks_for_a_part_of_it(text: str, question: str, answer: str) -> None:
    assert asked(text) == ([(question, answer)] if question else [])


def test_a_path_of_headings_is_no_subject() -> None:
    assert asked("It was opened in 1957.", "Orm > Gate") == []
    assert asked("It was opened in 1957.", "Orm (old)") == [("When was Orm opened?", "1957")]


@given(st.text("aTh1957 `.,#|(){}=\n-*_[]:?by<>", max_size=300), st.text("Ab >(", max_size=9))
def test_any_text_gives_questions_whose_answers_stand_in_it(text: str, title: str) -> None:
    for draft in drafts(passage(text, title)):
        assert draft.question.endswith("?")
        assert " ".join(draft.answer.split()) in " ".join(text.replace("`", "").split())


# --- the round trip

OPENED = passage("It was opened in 1957 by the mayor.")
HERB = passage("It was first eaten in 1812 by the poor.", "Sorrel")
TWIN = passage("It was painted grey in 1957 by the mayor.", "Twin Tower")


class Finder:
    """Finds every passage whose title a question holds."""

    fingerprint = "finder"

    def __init__(self, *passages: Passage) -> None:
        self.held = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(p, 1.0) for p in self.held if p.title in query][:k] for query in queries]


class Model:
    """Stands in for the backbone's answers: knows what each question is answered with."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[int] = []

    def __call__(
        self, backbone: Backbone, rows: Any, prompts: Any, tokens: int
    ) -> tuple[list[str], None]:
        texts = [backbone.tokenizer.decode(p.tokens) for p in prompts]
        self.asked.append(len(texts))
        return [next((a for q, a in self.answers.items() if q in t), "?") for t in texts], None


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


def finding(parts: Assembly, *passages: Passage) -> Assembly:
    parts.__dict__["retriever"] = Finder(*passages)
    return parts


@pytest.fixture
def maker(tiny_backbone: Backbone, base: BaseAdapter) -> Assembly:
    changes = ["evaluation.batch=2", "evaluation.max_answer_tokens=8"]
    settings = load_settings(assignments=[*changes, "backbone.context_tokens=5000"])
    parts = parts_with(settings, replace(tiny_backbone, tokenizer=Words()))
    parts.__dict__["base"] = base
    return finding(parts, OPENED, HERB, TWIN)


def proposals(
    maker: Assembly, model: Model, monkeypatch: pytest.MonkeyPatch, *passages: Passage
) -> tuple[list[Draft], Yield]:
    monkeypatch.setattr(make_demonstrations, "answer_rows", model)
    counted = Yield()
    return list(propose(maker, passages, 0, counted)), counted


IN_1957 = "When was Orm Gate opened by the mayor?"
IN_1812 = "When was Sorrel first eaten by the poor?"
ALSO_1957 = "When was Twin Tower painted grey by the mayor?"


def test_what_survives_is_kept(maker: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    found, counted = proposals(maker, Model({IN_1957: "1957."}), monkeypatch, OPENED, HERB)
    assert found == [Draft(OPENED, IN_1957, "1957")]
    assert counted == Yield(passages=2, drafts=2, retrieved=2, answered=1, kept=1)


def test_a_question_that_does_not_find_its_passage_is_dropped(
    maker: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = finding(maker, HERB)
    model = Model({IN_1957: "1957"})
    assert proposals(blind, model, monkeypatch, OPENED)[0] == []
    assert model.asked == []  # the backbone is not troubled


def test_no_two_proposals_have_one_answer(maker: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model({IN_1957: "1957", ALSO_1957: "1957", IN_1812: "1812"})
    found, counted = proposals(maker, model, monkeypatch, OPENED, TWIN, HERB)
    assert sorted(d.answer for d in found) == ["1812", "1957"]
    assert (counted.answered, counted.kept) == (3, 2)
    assert model.asked == [2, 1]


def test_the_backbone_answers_no_more_than_is_read(
    maker: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model({f"When was Gate {n} opened?": str(1900 + n) for n in range(80)})
    monkeypatch.setattr(make_demonstrations, "answer_rows", model)
    many = [passage(f"It was opened in {1900 + n}.", f"Gate {n}") for n in range(80)]
    finding(maker, *many)
    first = next(propose(maker, iter(many), 0, Yield()))
    assert first.question == "When was Gate 0 opened?"
    assert sum(model.asked) == maker.settings.evaluation.batch


# --- the command


def test_passages_are_chosen_by_what_they_are() -> None:
    many = [passage(f"text {i}", f"title {i}") for i in range(50)]
    chosen = choose_passages(many, 5, 0)
    assert choose_passages(reversed(many), 5, 0) == chosen
    assert choose_passages(many, 8, 0)[:5] == chosen
    assert choose_passages(many, 5, 1) != chosen
    assert len(choose_passages(many[:3], 5, 0)) == 3


def test_a_line_is_read_back_as_a_demonstration(tmp_path: Path) -> None:
    line = as_line(Draft(OPENED, IN_1957, "1957"))
    (tmp_path / "made.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (question,) = read_demonstrations(tmp_path / "made.jsonl")
    assert (question.text, question.answers) == (IN_1957, ("1957",))
    assert line["passage"]["text"] == OPENED.text


def made(count: int) -> list[Draft]:
    return [Draft(OPENED, f"question {i}?", str(i)) for i in range(count)]


@pytest.fixture
def parts(tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    weights = write_weights(tmp_path / "weights", tiny_backbone)
    text = settings_text(write_data(tmp_path / "data"), "tiny", str(weights))
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    return parts_with(load_settings(tmp_path / "settings.toml"), tiny_backbone)


def test_the_reviewer_decides(parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_demonstrations, "propose", lambda *_: iter(made(9)))

    def review(proposals: Iterator[Draft]) -> Iterator[Draft]:
        for proposal in proposals:
            number = int(proposal.answer)
            if number == 5:
                return
            if number == 1:
                yield edited(proposal, "better? ", " one")
            elif number % 2 == 0:
                yield proposal

    out = tmp_path / "made.jsonl"
    assert run_make(parts, out, 6, 0, review)["made"] == 4
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
