"""Contracts: pure, different answers to one question, judged apart, and held out by code."""

from __future__ import annotations

import gzip
import json
import random
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.adaptation import following
from raggd.adaptation.following import (
    Use,
    lesson_prompt,
    pools_of,
    training_lessons,
    without_template,
)
from raggd.backbone.load import Backbone
from raggd.data.answers import contains_answer
from raggd.data.contracts.base import Asked, Contract, draw_lesson
from raggd.data.contracts.families import (
    CITES,
    HEADS,
    HELD,
    HELD_FAMILIES,
    KEYS,
    KNOWN,
    LABELS,
    LETTER_CHANGES,
    MARKERS,
    NATURAL,
    NEW,
    REFUSALS,
    SENTENCES,
    SETS,
    TAGS,
    VERDICTS,
    check_held_out,
    draw_contract,
)
from raggd.data.contracts.letters import CHANGES, FIGURES
from raggd.data.contracts.targets import sentences, shorten
from raggd.data.questions import PreparedRetriever, prepared_id, read_prepared, write_prepared
from raggd.data.remarks import remarks_on
from raggd.data.shown import (
    inside,
    is_refusal,
    named_passages,
    refusals_of,
    says_no,
    unsupported,
)
from raggd.data.template import REFUSAL
from raggd.evaluation.contracts import Judged, contract_result
from raggd.records import Demonstration, Passage, RaggdError, SupportSet
from raggd.settings import ExamplesSettings
from workflow_fixtures import drawn_lessons, prepared_row

ROWS = [prepared_row(i) for i in range(60)]
ALL = [*KNOWN, *NEW, *HELD, NATURAL]


@pytest.mark.parametrize("contract", ALL, ids=lambda c: c.name)
def test_the_wanted_answer_is_right_and_another_one_is_not(contract: Contract) -> None:
    for seed in range(6):
        lesson = draw_lesson(contract, ROWS, random.Random(seed))
        assert lesson is not None
        asked = lesson.asked
        assert contract.judge(asked.answer, asked)[:3] == (1, 1, 1)
        wrong = contract.judge("[[ nothing: of the kind ]]", asked)
        assert wrong[1:3] == (0, 0)
        assert (wrong.form, wrong.refused) == (0, False)


def test_one_question_has_different_right_answers() -> None:
    row = ROWS[0]
    wanted = {}
    for contract in KNOWN:
        asked = contract.ask(row, ROWS, random.Random(3), refuse=bool(contract.refusal))
        if asked is not None:
            wanted[contract.name] = asked.answer
    assert len(wanted) > 22
    assert len(set(wanted.values())) > 18
    same = [c for c in KNOWN if not c.refusal and c.target == "entity"]
    passages = {c.ask(row, ROWS, random.Random(3)).passages for c in same if not c.files}  # type: ignore[union-attr]
    assert len(passages) == 1, "under the same draw the passages are the same"


@given(number=st.integers(0, 10**9), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_training_never_draws_what_is_held_out(number: int, seed: int) -> None:
    contract = draw_contract(number, seed)
    check_held_out(contract)
    assert contract == draw_contract(number, seed)
    assert contract.family not in HELD_FAMILIES
    assert not contract.refusal or contract.refusal not in {c.refusal for c in NEW}
    assert not contract.labels or contract.labels not in {c.labels for c in NEW}


@pytest.mark.parametrize("contract", [*NEW, *HELD], ids=lambda c: c.name)
def test_a_held_out_contract_is_refused(contract: Contract) -> None:
    with pytest.raises(RaggdError, match="held out of training"):
        check_held_out(contract)


def test_new_literals_are_in_no_known_list() -> None:
    templates = {c.template for c in KNOWN}
    assert not {c.template for c in NEW if c.template != "$x"} & templates
    new = {c.family: c for c in NEW}
    assert new["prefix"].template.partition(": ")[0] not in HEADS
    assert not any(f'"{key}"' in new["json"].template for key in KEYS)
    assert not any(f"<{tag}>" in new["xml"].template for tag in TAGS)
    assert new["refusal"].refusal not in REFUSALS
    assert not {c.template for c in NEW} & {*SENTENCES, *CITES}
    assert not {" ".join(c.labels) for c in NEW if c.labels} & {*VERDICTS, *MARKERS, *LABELS}
    assert {c.family for c in NEW} <= {c.family for c in KNOWN}


def test_form_and_content_are_told_apart() -> None:
    contract = next(c for c in KNOWN if c.name == "json")
    asked = contract.ask(ROWS[0], ROWS, random.Random(0))
    assert asked is not None
    gold = ROWS[0].gold
    assert contract.judge(gold, asked)[:3] == (0, 1, 0)
    assert contract.judge('{"answer": "Rome"}', asked)[:3] == (1, 0, 0)
    assert contract.judge(f'{{"answer": "the {gold}"}}', asked)[:3] == (1, 1, 0)
    assert contract.judge(f'{{"answer": "{gold}"', asked).form == 0
    upper = next(c for c in KNOWN if c.name == "upper")
    asked = upper.ask(ROWS[0], ROWS, random.Random(0))
    assert asked is not None
    assert upper.judge(gold, asked)[:3] == (0, 1, 0)


def test_a_refusal_is_right_only_where_it_is_wanted() -> None:
    contract = next(c for c in KNOWN if c.name == "refuse")
    lacking = contract.ask(ROWS[0], ROWS, random.Random(0), refuse=True)
    there = contract.ask(ROWS[0], ROWS, random.Random(0))
    assert lacking is not None
    assert there is not None
    said = contract.judge("Not in the documents.", lacking)
    assert (said.form, said.content, said.exact, said.refused) == (1, 1, 0, True)
    assert contract.judge("not in the documents", there)[:3] == (1, 0, 0)
    assert contract.judge("Rome", lacking)[:3] == (1, 0, 0)


def test_a_text_that_names_both_labels_chooses_none() -> None:
    contract = next(c for c in KNOWN if c.name == "yes-no")
    asked = contract.ask(ROWS[0], ROWS, random.Random(0))
    assert asked is not None
    assert contract.judge("yes or no", asked)[:3] == (0, 0, 0)


_SHAPED = Contract("c", "f")


def _wanting(answer: str, *contents: str) -> Asked:
    return Asked("q", "asked", (), answer, (answer,), contents or (answer,))


@pytest.mark.parametrize(
    ("contract", "answer", "other", "expected"),
    [
        (replace(_SHAPED, target="initials"), "BO", "Barack Obama", (0, 0, 0)),
        (replace(_SHAPED, target="initials"), "BO", "BX", (1, 0, 0)),
        (replace(_SHAPED, target="first-word"), "Bleak", "Bleak House", (0, 1, 0)),
        (replace(_SHAPED, target="last-word"), "House", "Home", (1, 0, 0)),
        (replace(_SHAPED, target="number"), "2", "1, 2, 3", (0, 0, 0)),
        (replace(_SHAPED, target="number"), "2", "[2]", (0, 1, 0)),
        (replace(_SHAPED, target="sentence"), "It is so said.", '"It is so," he said.', (1, 0, 0)),
        (replace(_SHAPED, target="sentence"), "It is so said.", '"It is so said."', (0, 1, 0)),
        (replace(_SHAPED, labels=("A", "B", "C")), "C", "C) a river", (0, 1, 0)),
        (replace(_SHAPED, labels=("A", "B", "C")), "C", "A or C", (0, 0, 0)),
        (replace(_SHAPED, labels=("yes", "no")), "no", "No.", (0, 1, 0)),
        (replace(_SHAPED, labels=("yes", "no")), "no", "Yes, it has no such key.", (0, 0, 0)),
    ],
)
def test_a_value_is_told_by_its_shape(
    contract: Contract, answer: str, other: str, expected: tuple[int, ...]
) -> None:
    assert contract.judge(answer, _wanting(answer))[:3] == (1, 1, 1)
    assert contract.judge(other, _wanting(answer))[:3] == expected


@pytest.mark.parametrize("template", ["[$x]", "{$x}", "[[$x]]", "[$x]($t)", "[$n] $x"])
def test_brackets_alone_are_no_json(template: str) -> None:
    said = 'Dwayne "The Rock" Johnson'
    contract = replace(_SHAPED, template=template)
    wanted = contract.render(said, 1, 'The "T"')
    assert said in wanted
    assert contract.slot(wanted) == said
    inside = replace(_SHAPED, template='["$x"]').render(said, 1, "")
    assert json.loads(inside) == [said]


def test_a_citation_in_json_is_one_string() -> None:
    contract = replace(_SHAPED, template='{"answer": "$x", "source": "$t"}')
    asked = _wanting(contract.render("Rome", 1, 'The "T"'), "Rome")
    assert contract.judge(asked.answer, asked)[:3] == (1, 1, 1)
    assert contract.judge('{"answer": "Rome", "source": "B", "more": "C"}', asked).form == 0
    assert contract.judge('{"answer": "Rome", "source": "B"C"}', asked).form == 0


def test_a_wrapped_refusal_has_its_wrapping() -> None:
    contract = replace(_SHAPED, template='{"a": "$x"}', refusal="not found", wrapped=True)
    wanted = contract.refusal_text
    asked = Asked("q", "asked", (), wanted, (wanted,), (), True)
    assert contract.judge(wanted, asked)[:3] == (1, 1, 1)
    assert contract.judge('{"a": "Not found."}', asked)[:3] == (1, 1, 0)
    assert contract.judge("a not found", asked)[:3] == (0, 1, 0)


def test_nothing_is_no_answer_and_a_title_that_is_not_there_no_name() -> None:
    row = replace(ROWS[0], gold="?!", answers=("?!",))
    slug = replace(_SHAPED, letters="slug")
    assert all(slug.ask(row, ROWS, random.Random(seed)) is None for seed in range(5))
    cited = replace(_SHAPED, template="$x ($t)")
    assert cited.ask(ROWS[0], ROWS, random.Random(0)) is not None
    bare = replace(ROWS[0], passages=tuple(replace(p, title="") for p in ROWS[0].passages))
    assert cited.ask(bare, ROWS, random.Random(0)) is None


@pytest.mark.parametrize("held", [*NEW, *HELD], ids=lambda c: c.name)
def test_what_a_held_out_contract_wants_is_held_out_under_any_name(held: Contract) -> None:
    with pytest.raises(RaggdError, match="held out of training"):
        check_held_out(replace(held, name="other", family="upper+marks"))


@given(text=st.text(max_size=40))
def test_changes_of_letters_are_done_once(text: str) -> None:
    for change in CHANGES.values():
        assert change(change(text)) == change(text) or "ß" in text or not text.isascii()


@given(day=st.dates(), number=st.integers(0, 10**9), name=st.sampled_from(sorted(FIGURES)))
def test_dates_and_numbers_are_rewritten_once(day: date, number: int, name: str) -> None:
    figure = FIGURES[name]
    known = [f"{day:%d %B} {day.year:04}", f"{number:,}", day.isoformat()]
    for text in known:
        once = figure.change(text)
        assert figure.change(once) == once
        assert once == text or re.fullmatch(figure.written, once), (text, once)


def test_a_shorter_passage_keeps_its_answer_and_whole_sentences() -> None:
    text = " ".join(f"Sentence number {i} says this and that about it." for i in range(40))
    passage = Passage("a", text, "T")
    cut = shorten(passage, ("number 31",), random.Random(0))
    assert "number 31 says" in cut.text
    assert len(cut.text.split()) <= 55
    assert set(sentences(cut.text)) <= set(sentences(text))


def test_labels_and_refusals_are_shown_by_the_examples() -> None:
    for name in ("yes-no", "refuse", "labels"):
        contract = next(c for c in KNOWN if c.name == name)
        for seed in range(8):
            lesson = draw_lesson(contract, ROWS, random.Random(seed), refusals=1)
            assert lesson is not None
            answers = [d.answer for d in lesson.support.demonstrations]
            if contract.refusal:
                assert answers.count(contract.refusal) == 1
            else:
                assert len(set(answers)) == 2


def test_half_of_the_lessons_are_natural_and_no_held_task_is_trained_on() -> None:
    lessons = drawn_lessons(ROWS, ExamplesSettings())
    drawn = [next(lessons) for _ in range(400)]
    natural = sum(lesson.contract is NATURAL for lesson in drawn)
    assert 160 < natural < 240
    assert 160 < 2 * sum(bool(lesson.contract.refusal) for lesson in drawn) < 240
    again = drawn_lessons(ROWS, ExamplesSettings())
    assert [next(again) for _ in range(5)] == drawn[:5]
    with pytest.raises(RaggdError, match="popqa, which no training may see"):
        pools_of([*ROWS, prepared_row(1, "popqa")])
    few = drawn_lessons(ROWS, ExamplesSettings(tasks=5, natural=0))
    assert len({next(few).contract.name for _ in range(60)}) <= 5


def test_a_lesson_shows_examples_without_their_passages(tiny_backbone: Backbone) -> None:
    lesson = draw_lesson(KNOWN[0], ROWS, random.Random(1))
    assert lesson is not None
    tokenizer = tiny_backbone.tokenizer
    shown = lesson_prompt(tokenizer, lesson, 500)
    bare = lesson_prompt(tokenizer, lesson, 500, Use(show=False))
    whole = lesson_prompt(tokenizer, lesson, 1500, Use(passages=True))
    with_passages = sum(
        len(p.text.split()) for d in lesson.support.demonstrations for p in d.passages
    )
    assert len(bare.tokens) < len(shown.tokens) < len(bare.tokens) + with_passages + 60
    assert len(whole.tokens) >= len(shown.tokens) + with_passages
    assert shown.answer_tokens == bare.answer_tokens
    told = lesson_prompt(tokenizer, lesson, 500, Use(told=True))
    assert len(told.tokens) > len(shown.tokens), "the instruction says more"
    assert told.passages == shown.passages
    settings = ExamplesSettings(steps=3, batch=2)
    lessons = training_lessons(tokenizer, ROWS, settings, Use(predict=True))
    assert len(lessons) == 6
    assert all(t.prompt.tokens[: len(t.examples)] == t.examples for t in lessons)
    bare_ones = training_lessons(tokenizer, ROWS, settings, Use(show=False, predict=True))
    assert [t.examples for t in bare_ones] == [t.examples for t in lessons]
    assert all(t.prompt.tokens[: len(t.examples)] != t.examples for t in bare_ones)


def test_lessons_drawn_by_all_cores_are_those_of_one(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ExamplesSettings(steps=3, batch=2)
    alone = training_lessons(tiny_backbone.tokenizer, ROWS, settings)
    monkeypatch.setattr(following, "MANY", 2)
    monkeypatch.setattr(following, "CHUNK", 1)
    monkeypatch.setattr(following.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert training_lessons(tiny_backbone.tokenizer, ROWS, settings) == alone


@pytest.mark.parametrize(
    "answers",
    [
        ("up", "down", "up"),  # labels
        ("[1]", "[1]", "[1]"),
        ("Found: yes", "Found: Verona", "Found: Bergen"),
        ("A page of its own", "Verona", "Bergen"),  # a title
        ("sí", "no", "sí"),
        ("a", "Verona", "Bergen"),
        ("Royal Saudi Air Force", "Verona", "Bergen"),  # evidence was missed
        ("the Tamil film industry", "Verona", "Bergen"),
        ("No, it was in May.", "Verona", "Bergen"),
        ("Non, ils allaient à Bergen.", "Oui, Verona.", "Oui, Bergen."),
    ],
)
def test_what_is_no_refusal(answers: tuple[str, ...]) -> None:
    text = "They went up to Verona and then, in May, to Bergen."
    passages = (Passage("p", text, "A page of its own"),)
    shown = [Demonstration(str(i), "where", passages, a) for i, a in enumerate(answers)]
    assert refusals_of(shown) == ()
    said = (
        "not in the documents",
        "ERR_404",
        "Das steht dort nicht.",
        "-",
        "Please ask our support team",
    )
    for refusal in said:
        among = [*shown[1:], Demonstration("r", "when", passages, refusal)]
        if "Verona" in answers:
            assert refusals_of(among) == (refusal,)


@pytest.mark.parametrize(
    "answer",
    [
        "null",
        "k. A.",
        "N.A.",
        '""',
        "🤷",
        "Désolé, je l'ignore.",
        "Sorry, ask Ann.",
        "Leider unklar",
    ],
)
def test_refusals_that_apologise_or_leave_a_blank(answer: str) -> None:
    passages = (Passage("p", "They went up to Verona, then to Bergen with their aunt."),)
    shown = [Demonstration(a, "where", passages, a) for a in ("Verona", "Bergen", answer)]
    assert refusals_of(shown) == (answer,)


@pytest.mark.parametrize(
    "answer",
    [
        "[LOW] the folder is not writable",  # as the passages say
        "Luca Ferri (year unknown)",  # a part of what was asked
        "Maps (Nothing but Maps)",  # a title
        "18:00",
        "+493055501240",
        "€145.00",
    ],
)
def test_answers_that_look_like_refusals(answer: str) -> None:
    text = "In Verona the folder is not writable. Luca Ferri drew it, till 6 pm, in Bergen."
    passages = (Passage("p", f"{text} Maps, in Nothing but Maps.", "Nothing but Maps"),)
    shown = [Demonstration(a, "where", passages, a) for a in ("Verona", "Bergen", answer)]
    assert refusals_of(shown) == ()


def test_a_number_of_its_passages_is_told_in_another_language() -> None:
    passages = (Passage("p", "Breakfast costs 22 euros. Tours start at 11 am in the hall."),)
    answers = (
        "Das Frühstück kostet 22 Euro.",
        "Um 11 Uhr geht es los.",
        "Nicht in den Unterlagen.",
    )
    shown = [Demonstration(a, "?", passages, a) for a in answers]
    assert refusals_of(shown) == answers[2:]


@pytest.mark.parametrize(
    "answers",
    [
        ("- Verona\n- Bergen", "- May\n- Bergen", "- Bergen\n- May"),
        ("1. Verona\n2. Bergen", "1. May", "1. Bergen"),
        ('{"to": "Verona", "n": 1}', '{"to": "Bergen", "n": 2}', '{"to": "Verona", "n": 3}'),
        ("Verona,1,x", "Bergen,2,y", "Verona,3,z"),
        ("| to |\n|---|\n| Verona |", "| to |\n|---|\n| Bergen |", "| to |\n|---|\n| May |"),
        ("Verona (page 3)", "Bergen (page 4)", "May (page 9)"),
        ("to:verona", "to:bergen", "to:verona"),
        ("ja:it", "ja:Bergen", "ja:it"),
        ("to:Verona", "to:Verona", "to:Verona"),
        ("The trip led to Verona.", "In Bergen it had an end.", "That was in the month of May."),
    ],
)
def test_answers_with_some_of_their_evidence_are_not_told_to_lack_it(
    answers: tuple[str, ...],
) -> None:
    passages = (Passage("p", "They went to Verona and then, in May, to Bergen."),)
    shown = [Demonstration(str(n), f"where {n} ?", passages, a) for n, a in enumerate(answers)]
    assert unsupported(shown) == []


@pytest.mark.parametrize("frame", ["*{}*", "[[{}]]", "Antwort: {}.", "<x>{}</x>", "{} (1)", "“{}”"])
@pytest.mark.parametrize("odd", range(3))
def test_one_that_is_written_otherwise_is_told(frame: str, odd: int) -> None:
    values = ("Verona", "Bergen", "12 May")
    passages = (Passage("p", "They went to Verona and, on 12 May, to Bergen."),)
    shown = [Demonstration(v, f"{v} ?", passages, frame.format(v)) for v in values]
    assert remarks_on(shown) == []
    shown[odd] = replace(shown[odd], answer=values[odd])
    (told,) = remarks_on(shown)
    assert told.startswith("2 of 3 answered demonstrations are written as")
    assert f"'{values[odd]}' is not" in told
    plain = [replace(d, answer=v) for d, v in zip(shown, values, strict=True)]
    assert remarks_on(plain) == []


@pytest.mark.parametrize(
    ("held", "refusal"),
    [
        ('{"answer": "%s"}', '{"answer": null}'),
        ('{"answer": "%s", "source": {"page": 1}}', '{"answer": "", "source": {"page": null}}'),
        ('["%s"]', "[]"),
    ],
)
def test_json_that_holds_nothing_is_a_refusal(held: str, refusal: str) -> None:
    passages = (Passage("p", "They went to Verona and, on 12 May, to Bergen."),)
    answers = (held % "Verona", held % "Bergen", refusal)
    shown = [Demonstration(a, f"{a} ?", passages, a) for a in answers]
    assert refusals_of(shown) == (refusal,)
    counted = [replace(d, answer=f'{{"count": {n}}}') for n, d in enumerate(shown)]
    assert refusals_of(counted) == ()


@pytest.mark.parametrize(
    ("yes", "no"),
    [("ja", "Nein."), ("Oui", "non"), ("да", "Нет!"), ("はい", "いいえ"), ("نعم", "لا")],
)
def test_a_verdict_is_no_refusal_in_any_language(yes: str, no: str) -> None:
    passages = (Passage("p", f"Verona? {yes} ."),)
    shown = [Demonstration(a, "where", passages, a) for a in (yes, no, "Verona")]
    assert refusals_of(shown) == ()
    assert not any(map(says_no, shown))


@given(st.integers(0, 10**6), st.booleans())
def test_the_number_of_passages_does_not_tell_what_is_to_be_refused(seed: int, whole: bool) -> None:
    (contract,) = (c for c in KNOWN if c.name == "refuse")
    contract = replace(contract, whole=whole)
    asked = [
        contract.ask(ROWS[seed % len(ROWS)], ROWS, random.Random(seed), refuse)
        for refuse in (False, True)
    ]
    if all(asked):
        answered, refused = (a for a in asked if a)
        assert len(answered.passages) == len(refused.passages)
        texts = [" ".join(p.text for p in a.passages) for a in (answered, refused)]
        assert contains_answer(texts[0], answered.contents)
        assert not contains_answer(texts[1], answered.contents)


def test_a_lesson_is_read_as_it_is_answered() -> None:
    (json_form,) = (c for c in KNOWN if c.name == "json-passage")
    lesson = draw_lesson(json_form, ROWS, random.Random(1))
    assert lesson is not None
    read = without_template(lesson)
    assert lesson.asked.answer.startswith('{"answer": "')
    assert read.asked.answer in lesson.asked.contents
    assert all("{" not in d.answer for d in read.support.demonstrations)
    assert without_template(read) == read
    refusing = next(c for c in HELD if c.name == "refuse-code")
    refused = draw_lesson(refusing, ROWS, random.Random(1), refusals=1, refuse=True)
    assert refused is not None
    assert without_template(refused).asked.answer == REFUSAL


def test_a_prepared_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    write_prepared(path, ROWS)
    assert read_prepared(path) == ROWS
    first = path.read_bytes()
    write_prepared(path, ROWS)
    assert path.read_bytes() == first
    assert prepared_id(ROWS) != prepared_id(ROWS[1:])
    with pytest.raises(RaggdError, match="no prepared file"):
        read_prepared(tmp_path / "other.gz")
    path.write_bytes(first[:-20])
    with pytest.raises(RaggdError, match=r"line \d+: the file is damaged"):
        read_prepared(path)
    plain = tmp_path / "train.jsonl"
    write_prepared(plain, ROWS)
    assert plain.read_bytes() == gzip.decompress(first)
    assert read_prepared(plain) == ROWS
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())  # as editors save it
    assert read_prepared(plain) == ROWS
    twice = [row for old in ROWS for row in (old, replace(old, id=f"b{old.id}", task="other"))]
    write_prepared(plain, twice)  # two tasks may ask the same
    for task in {"other", *(row.task for row in ROWS)}:
        found = [question.id for question in PreparedRetriever(plain).questions(task)]
        assert found == [row.id for row in twice if row.task == task]
    plain.write_bytes(first)  # packed, whatever its name says
    assert read_prepared(plain) == ROWS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no question"),
        ('{"question": "Who?"}', r"line 1: not a prepared question \(id: "),
        ('{"id": 1}', r"\(id: .*string"),
        ("[]", "line 1: not a prepared question"),
        ("{", "line 1: not a prepared question"),
    ],
)
def test_what_is_no_prepared_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(RaggdError, match=told):
        read_prepared(tmp_path / "train.jsonl")


def _shown(*pairs: tuple[str, bool]) -> SupportSet:
    return SupportSet(
        "own",
        tuple(
            Demonstration(str(i), f"question {i}", (Passage("p", f"text {a if held else ''}"),), a)
            for i, (a, held) in enumerate(pairs)
        ),
    )


def test_refusals_are_found_in_what_is_shown() -> None:
    some = _shown(("Rome", True), ("not in the documents", False), ("the sea", True))
    assert refusals_of(some.demonstrations) == ("not in the documents",)
    labels = _shown(("correct", False), ("wrong", False))
    assert refusals_of(labels.demonstrations) == ()
    assert refusals_of(_shown(("Rome", True), ("the sea", True)).demonstrations) == ()
    assert is_refusal("Not in the documents.", ("not in the documents",))
    assert not is_refusal("Rome", ("not in the documents",))
    assert inside(["<a>Rome</a>", "<a>sea</a>"]) == ["Rome", "sea"]
    wrapped = replace(some.demonstrations[0], answer='{"answer": "Rome"}')
    wrapped = replace(wrapped, passages=(Passage("p", "Rome is a city."),))
    assert refusals_of([wrapped, some.demonstrations[1]]) == ("not in the documents",)


def test_a_refusal_of_which_nothing_was_found_is_one_too() -> None:
    some = _shown(("Rome", True), ("not in our manual", False), ("the sea", True)).demonstrations
    bare = [replace(d, passages=()) if "manual" in d.answer else d for d in some]
    assert refusals_of(bare) == ("not in our manual",)
    guess = [replace(d, answer="Verona") if "manual" in d.answer else d for d in bare]
    assert refusals_of(guess) == ()
    assert refusals_of([replace(d, passages=()) for d in some]) == (), "then nothing tells"
    alone = [d for d in bare if "manual" in d.answer]
    assert refusals_of(alone * 2) == ("not in our manual",), "all of them refuse"
    others = [replace(d, answer=f"{d.answer}, not {i}") for i, d in enumerate(alone * 2)]
    assert refusals_of(others) == (), "what is not so may be the answer"


def test_odd_sets_are_remarked_on() -> None:
    mixed = _shown(('{"a": "Rome"}', True), ("the sea", True), ("Oslo", True))
    assert "are JSON, the others are not" in remarks_on(mixed.demonstrations)[0]
    same = _shown(("fruit", False), ("fruit", False))
    assert "all 2 demonstrations have the answer 'fruit'" in remarks_on(same.demonstrations)[0]
    assert remarks_on(_shown(("Rome", True), ("the sea", True)).demonstrations) == []
    guess = _shown(("Rome", True), ("text but another thing", False), ("the sea", True))
    assert refusals_of(guess.demonstrations) == ()
    assert [d.answer for d in unsupported(guess.demonstrations)] == ["text but another thing"]
    (told,) = remarks_on(guess.demonstrations)
    assert "holds its answer" in told


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            ('{"city": "Rome"}', '{"city": "Oslo", "in": 1}', "[1]"),
            "of 3 forms (keys: city; city, in;",
        ),
        (("It isn't in the files.", "Unknown to us", "none given"), "all 3 demonstrations refuse"),
        (("nothing in the files",), "the demonstration refuses"),
        (("Rome", "罗马市长"), ""),
        (("罗马", "奥斯陆"), "spells the answers' script"),
        (("no", "yes"), ""),
        (("No problem: Rome.", "No problem: Oslo."), ""),
    ],
)
def test_contradictions_refusals_alone_and_strange_scripts_are_told(
    answers: tuple[str, ...], told: str
) -> None:
    shown = [Demonstration(str(n), f"where {n} ?", (), answer) for n, answer in enumerate(answers)]
    by_bytes = SimpleNamespace(encode=lambda text, **_: list(text.encode()))
    remarks = remarks_on(shown, by_bytes)
    assert len(remarks) == bool(told)
    assert told in " ".join(remarks)


def test_a_set_of_which_nothing_is_found_is_told_where_it_was_looked_for() -> None:
    shown = [Demonstration(str(n), f"wo {n} ?", (), name) for n, name in enumerate(("Rom", "Oslo"))]
    assert remarks_on(shown) == []
    (told,) = remarks_on(shown, searched=True)
    assert "No passage was found for any demonstration" in told
    refusing = [replace(one, answer="not in our files") for one in shown]
    assert "any demonstration" not in " ".join(remarks_on(refusing, searched=True))


def test_an_example_of_which_nothing_is_found_is_told_unless_it_refuses() -> None:
    some = _shown(("Rome", True), ("the sea", True)).demonstrations
    for answer, told in (("Verona", True), ("not in our files", False)):
        bare = replace(some[0], question="who ?", answer=answer, passages=())
        remarks = remarks_on([*some, bare])
        assert remarks == ["No passage at all was found for the demonstration 'who ?'."] * told
    classes = [replace(bare, question=f"q{i}", answer=a) for i, a in enumerate(("hr", "it", "hr"))]
    assert remarks_on(classes, searched=True) == []


def test_repeated_and_contradicting_demonstrations_are_told() -> None:
    one, other = (
        Demonstration(name, "where is it ?", (Passage("p", "Rome or Oslo."),), name)
        for name in ("Rome", "Oslo")
    )
    (twice,) = remarks_on([one, replace(one, id="again"), replace(other, question="and now ?")])
    assert twice.startswith("1 of 3 demonstrations repeat")
    (open_,) = remarks_on([one, other])
    assert open_.startswith("the question 'where is it ?' is answered in 2 ways")


def test_passages_are_named_by_number_title_or_file() -> None:
    passages = [Passage("a", "x", "Oil change"), Passage("b", "y", "", "guide.md")]
    assert named_passages("2 litres [1]", passages) == (1,)
    assert named_passages("2 litres (guide.md)", passages) == (2,)
    assert named_passages("Oil change", passages) == (1,)
    assert named_passages("2 litres", passages) == ()
    for cited in ("[1, 2]", "[1][2]", "[1;2]", "【1】【2】", "（1）（2）", "［１、２］"):
        assert named_passages(f"2 litres {cited}", passages) == (1, 2), cited
    assert named_passages("won (2, 1) in [2019, 2]", passages) == ()
    assert set(SETS) == {"known", "new", "unseen"}


def test_a_result_tells_sets_letters_and_refusals_apart() -> None:
    contracts, judged = [*KNOWN, *HELD], {"right": [], "letters": [], "wrong": []}
    for contract in contracts:
        for number in range(2):
            refuse = number == 0 if contract.refusal else None
            lesson = draw_lesson(contract, ROWS, random.Random(number), refusals=1, refuse=refuse)
            assert lesson is not None
            own = lesson.asked.answer if contract.family in LETTER_CHANGES else "[[ nothing ]]"
            answers = {"right": lesson.asked.answer, "letters": own, "wrong": "[[ nothing ]]"}
            for name, answer in answers.items():
                score = contract.judge(answer, lesson.asked)
                judged[name].append(Judged("nq", contract, lesson.asked, answer, score))
    result = contract_result(judged)
    assert set(result["contracts"]) == {contract.name for contract in contracts}
    assert [result["macro"][name]["exact"] for name in ("right", "wrong")] == [100, 0]
    assert [result[part]["letters"]["exact"] for part in ("letters", "rest")] == [100, 0]
    assert set(result["by_set"]) == {"known", "unseen"}, "no new one was asked"
    share = sum(c.family in LETTER_CHANGES for c in KNOWN) / len(KNOWN)
    assert result["by_set"]["known"]["letters"]["exact"][0] == round(100 * share, 1)
    assert (result["refusal"]["right"]["f1"], result["refusal"]["wrong"]["f1"]) == (100, 0)
    assert result["differences"]["right - wrong"]["content"] == [100, 100, 100]
