"""The form of answers, read from examples alone, against the contracts that made them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raggd.data.contracts.base import Contract, Lesson, draw_lesson
from raggd.data.contracts.families import HELD, KNOWN, NATURAL, NEW
from raggd.data.questions import read_demonstrations
from raggd.evaluation.forms import infer_form, language_of
from raggd.records import Demonstration, Passage
from workflow_fixtures import prepared_row

ROWS = [prepared_row(i) for i in range(60)]
BY_NAME = {contract.name: contract for contract in (*KNOWN, *NEW, *HELD, NATURAL)}
INITIALS = BY_NAME["initials"]  # three letters in capitals cannot be told from other capitals


def lesson_of(contract: Contract, seed: int) -> Lesson:
    lesson = draw_lesson(contract, ROWS, random.Random(seed), refusals=1)
    assert lesson is not None
    # three numbers, or three names with one beginning, would show more than the contract wants
    golds = {row.gold[:2] for row in ROWS for d in lesson.support.demonstrations if row.id == d.id}
    assume(len(golds) > 1 and any(gold[0].isalpha() for gold in golds))
    return lesson


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "initials"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_a_contract_follows_the_form_read_from_three_of_its_examples(name: str, seed: int) -> None:
    lesson = lesson_of(BY_NAME[name], seed)
    form = infer_form(lesson.support.demonstrations)
    asked = lesson.asked
    found = form.judge(asked.answer, asked.accepted)
    assert (found.form, found.content, found.exact) == (1, 1, 1)
    assert found.refused == found.wanted == asked.refused
    assert found.refused or form.values(asked.answer) is not None, "not for being exact alone"
    if not asked.refused:
        wrong = form.judge("[[ nothing: of the kind ]]", asked.accepted)
        assert (wrong.form, wrong.content, wrong.exact) == (0, 0, 0)


@given(
    own=st.sampled_from(sorted(BY_NAME)),
    other=st.sampled_from(sorted(BY_NAME)),
    seed=st.integers(0),
)
@settings(max_examples=300, deadline=None)
def test_an_answer_of_another_contract_has_the_form_only_where_the_contract_says_so(
    own: str, other: str, seed: int
) -> None:
    contract = BY_NAME[own]
    # that a first word is one is not told by three that are
    assume(contract is not INITIALS and contract.target != "first-word")
    lesson, strange = lesson_of(contract, seed), lesson_of(BY_NAME[other], seed + 1)
    form = infer_form(lesson.support.demonstrations)
    answer = strange.asked.answer
    told = form.judge(answer, lesson.asked.accepted).form == 1
    true = contract.judge(answer, lesson.asked).form == 1
    # stricter than the contract: '~~' opens a wrapping, a sentence is in the examples' language
    stricter = answer.startswith("~~") or (
        own == "full-sentence" and language_of(answer) != "English"
    )
    assert told == true or (stricter and not told)


def demonstrations(*answers: str, text: str = "") -> list[Demonstration]:
    return [
        Demonstration(str(i), f"question {i}", (Passage("p", text or "Nothing is here."),), answer)
        for i, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "name", "follows", "fails"),
    [
        (["- a\n- b", "- c"], "lines that begin with '-'", "- x\n- y\n- z", "x, y"),
        (["1. a\n2. b", "1. c\n2. d\n3. e"], "lines that begin", "1. x", "- x"),
        (['{"a": ["x"]}', '{"a": ["y", "z"]}'], "JSON with 'a'", '{"a":["x"]}', '{"a": "x"}'),
        (["5", "12", "7"], "a number", "99", "five"),
        (["yes", "yes", "yes"], "one of yes, no", "no", "No."),
        (
            ["Das Limit ist hoch.", "Man setzt es mit der Option.", "Die Datei ist nicht da."],
            "a sentence, in German",
            "Das wird nicht mit der Datei gemacht.",
            "It is not in the file that is read.",
        ),
        (["the Rhine", "the Danube"], "a short answer", "Oder", '{"answer": "the Oder"}'),
    ],
)  # fmt: skip
def test_what_examples_share(answers: list[str], name: str, follows: str, fails: str) -> None:
    form = infer_form(demonstrations(*answers, text="The Rhine meets no Danube: the Rhine."))
    assert name in form.name
    assert form.judge(follows, ["q"]).form == 1
    assert form.judge(fails, ["q"]).form == 0


SETS = {
    "short": "a short answer",
    "capitals": "in capitals, a short answer",
    "json": "JSON with 'value'",
    "sentence": "written as 'According to the documentation, it is ....'",
    "german": "written as 'In der Dokumentation steht ....'",
    "source": "written as '... [<t>]'",
    "refusal": "a short answer, or 'not in the documents'",
    "yes-no": "one of yes, no",
    "list": "lines that begin with '-'",
}
DOCUMENTATION = Path(__file__).parents[1] / "examples" / "documentation"


@pytest.mark.parametrize("name", SETS)
def test_the_sets_on_documentation_show_their_forms(name: str) -> None:
    shown = read_demonstrations(DOCUMENTATION / f"{name}.examples.jsonl")
    asked = read_demonstrations(DOCUMENTATION / f"{name}.questions.jsonl")
    assert (len(shown), len(asked)) == (3, 6)
    files = ("getting-started.md", "processors.md", "recipes.md")
    text = "One may use Colorama, Logstash or pathos."
    supports = [
        Demonstration(q.id, q.text, (Passage("p", text, "Title", file),), q.answers[0])
        for q, file in zip(shown, files, strict=True)
    ]
    form = infer_form(supports)
    assert form.name == SETS[name]
    for question in asked:
        found = form.judge(question.answers[0], question.answers)
        assert found[:3] == (1, 1, 1)
        assert found.refused or form.values(question.answers[0]) is not None
    assert {path.name.split(".")[0] for path in DOCUMENTATION.glob("*.jsonl")} == set(SETS)


def test_where_nothing_is_shared_no_form_is_scored() -> None:
    form = infer_form(demonstrations("Rome", "a\nb\nc", "It is a long sentence that says a lot."))
    assert form.name == ""
    assert form.judge("anything", ["Rome"]).form is None
    assert form.judge("It is Rome.", ["Rome"]).content == 1
    alone = infer_form(demonstrations("not in the documents"))
    assert alone.judge("Rome", ["Rome"]).content == 1


def test_content_is_judged_whatever_the_wrapping() -> None:
    shown = demonstrations('{"key": "Oslo", "page": 1}', '{"key": "Rome", "page": 1}')
    form = infer_form(shown)
    for answer, parts in {
        '{"key": "Bern", "page": 2}': (1, 1, 0),
        '{"key": "Genf", "page": 1}': (1, 0, 0),
        "Bern, I think": (0, 1, 0),
        '{"key":"Bern","page":1}': (1, 1, 0),
        '{"key": "Bern", "page": 1}': (1, 1, 1),
    }.items():
        assert form.judge(answer, ['{"key": "Bern", "page": 1}'])[:3] == parts
    assert form.judge("Bern", ["Bern"])[:3] == (1, 1, 1), "a gold may be written bare"
    items = infer_form(demonstrations("- a\n- b", "- c"))
    assert items.judge("- red\n- green", ["- red\n- blue"]).content == 0.5


def test_refusals_and_labels_are_decisions() -> None:
    passage = (Passage("p", "Rome and Oslo are cities."),)
    shown = [
        Demonstration("1", "where?", passage, "Answer: Rome"),
        Demonstration("2", "where?", passage, "Answer: Oslo"),
        Demonstration("3", "who?", passage, "ERR_404"),
    ]
    form = infer_form(shown)
    assert form.refusals == ("ERR_404",)
    assert "written as 'Answer: ...'" in form.name
    said, missed = form.judge("err 404", ["ERR_404"]), form.judge("Answer: Bern", ["ERR_404"])
    assert (said.content, said.refused, said.wanted) == (1, True, True) or said.form == 0
    assert (missed.form, missed.content, missed.refused, missed.wanted) == (1, 0, False, True)
    assert form.judge("ERR_404", ["Answer: Rome"])[:2] == (1, 0)
    labels = infer_form(demonstrations("pro", "contra", "pro"))
    assert labels.labels == ("pro", "contra")
    assert labels.judge("pro or contra", ["pro"])[:3] == (0, 0, 0)
    assert labels.judge("It is pro.", ["pro"])[:3] == (0, 1, 0)
    # of a gold that is spelt otherwise the label is meant, of one that is none itself
    assert labels.judge("pro", ["Pro"])[:3] == (1, 1, 0)
    assert labels.judge("maybe", ["Pro"])[:3] == (0, 0, 0)
    assert labels.judge("maybe", ["neither"])[:3] == (0, 0, 0)
    assert labels.judge("neither of them", ["neither"])[:3] == (0, 1, 0)
