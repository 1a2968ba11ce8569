"""Closed answers: options are read by their texts, labels are held to, evidence tells verdicts."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import tiny
from raggd.adaptation.following import without_template
from raggd.backbone.extractive import Extract, mixed
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.closed import VERDICTS, Closed, closed_of, labels_of, names_held, options_of
from raggd.data.contracts.base import Asked, Lesson
from raggd.data.contracts.families import KNOWN
from raggd.data.reading import template_of
from raggd.data.template import AnswerTemplate
from raggd.evaluation.forms import infer_form
from raggd.methods.answering import answer_batch, extract_of, render
from raggd.methods.base import Adapted
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, SupportSet

STYLES = ("{m}) {x}", "{m}. {x}", "({m}) {x}", "[{m}] {x}")
TEXTS = st.lists(
    st.text(string.ascii_letters, min_size=5, max_size=9), min_size=2, max_size=5, unique=True
)
SEA = (Passage("p", "Lima lies near the coast of Peru.", "Peru"),)


def listed(stem: str, texts: Sequence[str], style: str, markers: str) -> str:
    lines = [style.format(m=m, x=x) for m, x in zip(markers, texts, strict=False)]
    return "\n".join([stem, *lines])


@given(TEXTS, st.sampled_from(STYLES), st.sampled_from(["ABCDE", "12345", "abcde", "XYZPQ"]))
def test_options_come_back_with_their_markers(texts: list[str], style: str, markers: str) -> None:
    question = listed("Which?", texts, style, markers)
    found = options_of(question)
    assert list(found.values()) == texts
    assert "".join(found) == markers[: len(texts)]
    assert Closed("marker").asked(question) == "Which?"
    assert Closed("", ("yes", "no")).asked(question) == question


@given(TEXTS, st.sampled_from(["A", "a", "1"]), st.sampled_from(["({m}) {x}", "{m}) {x},"]))
def test_options_in_one_line_are_found(texts: list[str], first: str, style: str) -> None:
    markers = [chr(ord(first) + i) for i in range(len(texts))]
    parts = [style.format(m=m, x=x) for m, x in zip(markers, texts, strict=True)]
    question = " ".join(["Which is it?", *parts])
    assert options_of(question) == dict(zip(markers, texts, strict=True))
    assert Closed("marker").asked(question) == "Which is it?"


@pytest.mark.parametrize(
    "question",
    [
        "Who was it?",
        "Note: this is\nno list",
        "A) alone",
        "Which?\nA) twice\nB) twice",  # no text would tell which
        "What does b) in section a) say?",
    ],
)
def test_others_list_none(question: str) -> None:
    assert options_of(question) == {}
    assert Closed("marker").asked(question) == question


def choice(answer: str, texts: Sequence[str] = ("Lima", "Oslo"), id: str = "a") -> Demonstration:
    return Demonstration(id, listed("which is it", texts, "{m}) {x}", "AB"), SEA, answer)


@pytest.mark.parametrize("frame", ["{}", '{{"choice": "{}"}}', "Answer: {}", "**{}**"])
def test_the_model_reads_texts_and_the_user_gets_markers(frame: str) -> None:
    shown = (choice(frame.format("A")), choice(frame.format("B"), id="b"))
    template, plain = template_of(shown)
    assert template is not None
    assert template.closed == Closed("marker")
    assert [(d.question, d.answer) for d in plain] == [
        ("which is it", "Lima"),
        ("which is it", "Oslo"),
    ]
    assert template.rewrites
    asked = listed("where", ("Rome", "Cairo"), "{m}) {x}", "XY")
    assert template.write("Cairo", SEA, asked) == frame.format("Y")
    assert template.write("Cairo", SEA, "where") == frame.format("Cairo"), "it lists none"
    given = Adapted(shown=plain, template=template).given()
    assert given == shown


def test_texts_of_options_are_answers_too() -> None:
    template, plain = template_of((choice("Lima"), choice("Oslo", id="b")))
    assert template is not None
    assert template.closed == Closed("text")
    assert [d.answer for d in plain] == ["Lima", "Oslo"]
    assert template.closed.choices(plain[0].question) == ()
    assert template.closed.choices(choice("A").question) == ("Lima", "Oslo")


@pytest.mark.parametrize(
    "frame", ["{m}) {x}", "{m}. {x}", "({m}) {x}", "**{m}:** {x}", '{{"choice": "{m}) {x}"}}']
)
@pytest.mark.parametrize("count", [1, 2])
def test_options_come_back_as_lines_with_their_markers(frame: str, count: int) -> None:
    told = [("A", "Lima"), ("B", "Oslo")][:count]
    shown = [choice(frame.format(m=m, x=x), id=m) for m, x in told]
    template, plain = template_of(shown)
    assert template is not None
    assert template.closed is not None
    assert template.closed.options == "line"
    assert [(d.question, d.answer) for d in plain] == [("which is it", x) for _, x in told]
    asked = listed("where", ("Rome", "Cairo"), "{m}) {x}", "XY")
    assert template.closed.choices(asked) == ("Rome", "Cairo")
    assert template.write("Cairo", SEA, asked) == frame.format(m="Y", x="Cairo")
    assert TypeAdapter(AnswerTemplate).validate_json(json.dumps(asdict(template))) == template


def label(answer: str, question: str = "is it so", text: str = "") -> Demonstration:
    return Demonstration(answer + question, question, (Passage("p", text),) if text else (), answer)


@pytest.mark.parametrize("frame", ["{}", "It is: {}", '{{"verdict": "{}"}}'])
def test_labels_are_taken_out_of_what_stands_around_them(frame: str) -> None:
    answers = ("zim", "zam", "zim")
    shown = [label(frame.format(a), f"q{i}") for i, a in enumerate(answers)]
    template, plain = template_of(shown)
    assert template is not None
    assert template.closed is not None
    assert template.closed.labels == ("zim", "zam")
    assert [d.answer for d in plain] == list(answers)
    assert template.write("zam") == frame.format("zam")
    assert template.rewrites == (frame != "{}")


@pytest.mark.parametrize(
    "answers",
    [
        ("zim", "zam", "zum"),  # each once
        ("zim", "zim", "zim"),  # no other to choose from
        ("3", "4", "3"),
        ("a reply of five words", "a reply of five words", "zam"),
        ("Lima", "Oslo", "Lima"),  # found in the passages
    ],
)
def test_answers_that_may_be_free_are_no_labels(answers: tuple[str, ...]) -> None:
    shown = [label(a, f"q{i}", f"{a} lies far away") for i, a in enumerate(answers)]
    if "Lima" not in answers:
        shown = [replace(d, passages=()) for d in shown]
    assert closed_of(answers, shown) is None


@pytest.mark.parametrize("grades", [("P1", "P3", "P2"), ("level 2", "level 1"), ("S-3", "S-1")])
def test_grades_of_one_scale_are_labels_though_none_comes_back(grades: tuple[str, ...]) -> None:
    shown = [replace(label(g, f"q{i}"), passages=()) for i, g in enumerate(grades)]
    template, plain = template_of(shown)
    assert template is not None
    assert template.closed is not None
    assert (template.closed.labels, tuple(plain)) == (grades, tuple(shown))
    assert template.classes
    mixed = [*shown[:-1], replace(shown[-1], answer="Q1")]
    held = [replace(d, passages=(Passage("p", f"see {d.answer} .", "a"),)) for d in shown]
    for others in (mixed, held):
        template, _ = template_of(others)
        assert template is None or template.closed is None


def test_numbers_of_places_are_no_grades() -> None:
    shown = [label(f"Schalter {n}", f"q{n}", f"It is at counter {n}.") for n in (4, 5, 9)]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == ["4", "5", "9"]
    assert template.closed is None
    assert template.write("2") == "Schalter 2"


@pytest.mark.parametrize("two", [("Ja", "Nein"), ("true", "false"), ("non", "oui")])
def test_two_words_for_yes_and_no_are_labels_though_none_comes_back(two: tuple[str, str]) -> None:
    shown = [label(a, f"q{i}", "It is so.") for i, a in enumerate(two)]
    assert labels_of(two, shown) == two
    held = [replace(d, passages=(Passage("p", f"The default is {d.answer}."),)) for d in shown]
    assert labels_of(two, held) == ()


def test_yes_and_no_are_no_classes_in_any_language_and_need_their_passages() -> None:
    for labels, classes in ((("ja", "nein", "ja"), False), (("hr", "it", "hr"), True)):
        shown = [replace(label(a, f"q{i}"), passages=()) for i, a in enumerate(labels)]
        template, _ = template_of(shown)
        assert template is not None
        assert template.classes is classes
        assert template.closed is not None
        assert template.closed.chance("Who is Ann?", ()) is None, "the evidence tells nothing"
        assert Adapted(template=template).needs_passages is not classes
        assert Adapted(template=template, refusals=("none",)).needs_passages


def test_the_word_that_a_question_begins_with_is_no_name_in_any_language() -> None:
    found = [Passage("p", "Katzen leben in Oslo.")]
    assert names_held("Leben Katzen in Oslo?", [Passage("p", "Katzen und Oslo.")]) == 1
    assert names_held("Ama a Oslo?", found) == 1
    assert names_held("Bergen has cats.", found) == 0, "a claim may begin with one"


def test_a_label_may_be_part_of_another() -> None:
    shown = [label(a, f"q{i}") for i, a in enumerate(("supported", "not supported", "supported"))]
    template, plain = template_of(shown)
    assert template is not None
    assert template.closed is not None
    assert template.closed.labels == ("supported", "not supported")
    assert tuple(plain) == tuple(shown)


def test_what_stands_around_free_answers_makes_them_no_labels() -> None:
    shown = [label(f"<a>{a}</a>", f"q{i}", f"{a} lies far away") for i, a in enumerate("xyx")]
    template, _ = template_of(shown)
    assert template is not None
    assert template.closed is None
    assert len(template.pieces) == 3


def verdicts(held: str, lacking: str) -> list[Demonstration]:
    text = "Ada Lovelace and Charles Babbage built it in London."
    return [
        label(held, "claim: Ada Lovelace built it", text),
        label(lacking, "claim: Grace Hopper built it", text),
        label(held, "claim: Charles Babbage built it", text),
    ]


@pytest.mark.parametrize(("held", "lacking"), [("zim", "zam"), ("yes", "no"), ("no", "yes")])
def test_evidence_tells_verdicts_as_the_examples_use_them(held: str, lacking: str) -> None:
    shown = verdicts(held, lacking)
    closed = closed_of([d.answer for d in shown], shown)
    assert closed is not None
    told, free = {}, 1.0
    for name in ("Ada Lovelace", "Grace Hopper"):
        found = closed.chance(f"claim: {name} sailed", shown[0].passages)
        assert found is not None
        told[name], free = found
    if closed.labels[0] == lacking:
        told = {name: 1 - free - chance for name, chance in told.items()}
    assert told["Ada Lovelace"] > 0.6 > 0.3 > told["Grace Hopper"]
    assert free < 0.4


def test_labels_that_evidence_does_not_explain_are_left_to_the_model() -> None:
    text = "Ada Lovelace and Charles Babbage built it in London."
    shown = [
        label("zim", "Did Ada Lovelace build it", text),
        label("zam", "Did Charles Babbage build it", text),
        label("zim", "Was it built in London", text),
    ]
    closed = closed_of([d.answer for d in shown], shown)
    assert closed is not None
    assert closed.weights[2] > 0.6 > 1 - VERDICTS
    assert sum(closed.weights) == pytest.approx(1.0)
    bare = [replace(d, question="is it so", passages=()) for d in shown]
    unnamed = closed_of([d.answer for d in bare], bare)
    assert unnamed is not None
    assert unnamed.weights == pytest.approx((VERDICTS / 2, VERDICTS / 2, 1 - VERDICTS))


def test_names_that_passages_hold() -> None:
    passages = [Passage("p", "The Seine flows through PARIS.", "Rivers 7")]
    assert names_held("Does the Seine flow in Paris?", passages) == 1.0
    assert names_held("Does the Rhine flow in Paris?", passages) == 0.5
    assert names_held("claim: the Rhine", passages, frozenset({"rhine"})) is None
    assert names_held("is it so", passages) is None
    assert names_held("Since 7", passages) == 0.5, "a word that is written like a name"
    assert names_held("Seine", []) == 0.0


def test_a_rule_mixes_evidence_with_the_models_own_view() -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 0.5])
    own = float(logits[1:3].softmax(0)[0])
    torch.testing.assert_close(mixed(logits, 1, 2, 0.0, 1.0), logits)
    for told, left in ((0.0, 0.2), (0.5, 0.3), (0.9, 0.0)):
        found = mixed(logits, 1, 2, told, left)
        assert float(found[1:3].softmax(0)[0]) == pytest.approx(told + left * own, abs=1e-5)
        assert torch.equal(found[[0, 3]], logits[[0, 3]])
        assert float(found[1:3].logsumexp(0)) == pytest.approx(float(logits[1:3].logsumexp(0)))
    assert mixed(logits, 1, 2, 0.0, 0.0).isfinite().all()


@pytest.mark.parametrize(
    "labels", [("red", "blue"), ("red fish", "red bird"), ("red", "red sea"), ("red sea", "red")]
)
@pytest.mark.parametrize("first", [True, False])
def test_evidence_is_weighed_where_two_labels_part(
    tiny_backbone: Backbone, labels: tuple[str, str], first: bool
) -> None:
    tokenizer, flat = tiny_backbone.tokenizer, torch.zeros(len(tiny_backbone.tokenizer))
    extract = Extract(tiny_backbone, (), labels, (0.9 if first else 0.1, 0.0))
    written: list[int] = []
    while not written or written[-1] not in tiny_backbone.stops:
        logits = extract.limit(flat)
        assert logits.isfinite().sum() <= 2 + len(tiny_backbone.stops)
        written.append(int(logits.argmax()))
        extract.push(written[-1])
    assert tokenizer.decode(written[:-1]) == labels[0 if first else 1]


def test_answers_are_held_to_the_options_of_their_own_question(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    support = SupportSet("t", (choice("A"), choice("B", ("Rome", "Oslo"), "b")))
    method = ExamplesPrefix("examples", tiny_backbone, base, tiny.random_update(base), 300, "w")
    row = method.adapt([support])[0]
    stored = Store(tmp_path).adapt(method, [support], "i", base)[0]
    again = Store(tmp_path).adapt(method, [support], "i", base)[0]
    assert stored.template == again.template == row.template
    questions = [
        listed("what", ("red fish", "blue bird"), "{m}) {x}", "XY"),
        listed("what", ("big tree", "small sea", "salt"), "{m}) {x}", "PQR"),
    ]
    prompts = [render(tiny_backbone, row, q, SEA, limit=400) for q in questions]
    assert [p.question for p in prompts] == questions
    without = render(tiny_backbone, row, "what", SEA, limit=400)
    assert prompts[0].tokens == prompts[1].tokens == without.tokens, "options are not read"
    answers = answer_batch(tiny_backbone, [row, again], prompts, 6)
    assert answers[0] in {"X", "Y"}
    assert answers[1] in {"P", "Q", "R"}
    alone = [answer_batch(tiny_backbone, [row], [p], 6)[0] for p in prompts]
    assert answers == alone


def test_labels_of_a_row_are_decided_by_its_own_prompt(tiny_backbone: Backbone) -> None:
    # the tiny tokenizer knows these words alone, whatever their case
    text = "Lima is the capital of Peru"
    shown = [
        label("red", "is it so that Lima lies", text),
        label("blue", "is it so that Oslo lies", text),
        label("red", "is it so that Peru lies", text),
    ]
    template, plain = template_of(shown)
    row = Adapted(template=template, shown=plain)
    passages = shown[0].passages
    prompts = [
        render(tiny_backbone, row, f"is it so that {name} lies", passages, limit=400)
        for name in ("Lima", "Cairo")
    ]
    flat = torch.zeros(len(tiny_backbone.tokenizer))
    extracts = [extract_of(tiny_backbone, row, prompt) for prompt in prompts]
    chosen = [int(extract.limit(flat).argmax()) for extract in extracts if extract]
    assert chosen == [tiny_backbone.tokenizer.convert_tokens_to_ids(w) for w in ("red", "blue")]


def test_a_lesson_of_choosing_is_learned_as_it_is_read() -> None:
    contract = next(c for c in KNOWN if c.name == "choice")
    support = SupportSet("choice", (choice("A"), choice("B", id="b")))
    question = listed("who", ("Rome", "Cairo"), "{m}) {x}", "AB")
    asked = Asked("q", question, SEA, "B", ("B",), ("B",))
    read = without_template(Lesson(contract, support, asked))
    assert (read.asked.question, read.asked.answer) == ("who", "Cairo")
    assert [d.answer for d in read.support.demonstrations] == ["Lima", "Oslo"]


def test_forms_know_markers_and_labels() -> None:
    form = infer_form([choice("A"), choice("B", id="b")])
    assert form.labels == ("A", "B")
    shown = [label(a, f"q{i}") for i, a in enumerate(("zim", "zam", "zim"))]
    assert infer_form(shown).labels == ("zim", "zam")


def test_titles_that_are_numbered_alike_are_no_grades() -> None:
    titles = ("Title 3", "Title 2", "Title 4")
    shown = [Demonstration(t, "what?", (Passage(t, "It is so.", t),), t) for t in titles]
    assert labels_of(titles, shown) == ()
    bare = [replace(d, passages=(Passage("p", "It is so."),)) for d in shown]
    assert labels_of(titles, bare) == titles
