"""What examples' answers share: found, taken out, put back; nothing else is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import tiny
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.contracts.letters import LETTERS, RESPELLED
from raggd.data.pieces import VALUE, Piece
from raggd.data.reading import template_of
from raggd.data.remarks import remarks_on
from raggd.data.shown import refusals_of
from raggd.data.template import REFUSAL, AnswerTemplate
from raggd.methods.answering import answer_batch, render
from raggd.methods.base import Adapted
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, SupportSet
from raggd.serving.row import AnswerText

NAMES = ("Gary Barlow", "New Ross", "Lake Vänern", "Henri de Toulouse")
WRITTEN = [
    "{x}!",
    '"{x}"',
    "The answer is {x}.",
    "La réponse est {x}.",
    '{{"answer": "{x}"}}',
    '{{"data": {{"answer": "{x}"}}, "sure": true}}',
    "<b>{x}</b>",
    "answer:\n  text: {x}",
    "{x} [{n}]",
    "[{n}] {x}",
    "{x} ({t})",
    "{x}\nSource: {t}",
    '{{"answer": "{x}", "passage": {n}}}',
    "[{x}]({t})",
]


def _evidence(name: str, at: int) -> tuple[Passage, ...]:
    texts = ["Nothing of it here.", "Nor is it here."]
    texts.insert(at % 3, f"It was {name} in 1990.")
    return tuple(
        Passage(f"p{i}", text, f"Page {name} {i}", f"docs/{i}.md") for i, text in enumerate(texts)
    )


def _shown(answers: Sequence[str], names: Sequence[str] = NAMES) -> tuple[Demonstration, ...]:
    return tuple(
        Demonstration(str(i), f"who {i}", _evidence(name, i), answer)
        for i, (answer, name) in enumerate(zip(answers, names, strict=False))
    )


def _written(frame: str, name: str, at: int) -> str:
    return frame.format(x=name, n=at % 3 + 1, t=f"Page {name} {at % 3}")


@pytest.mark.parametrize("frame", WRITTEN)
def test_a_template_is_taken_out_and_put_around_another_value(frame: str) -> None:
    shown = _shown([_written(frame, name, i) for i, name in enumerate(NAMES)])
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(NAMES)
    assert [template.write(p.answer, d.passages) for p, d in zip(plain, shown, strict=True)] == [
        d.answer for d in shown
    ]
    wanted = _written(frame, "Ada Lovelace", 2)
    evidence = _evidence("Ada Lovelace", 2)
    assert template.write("Ada Lovelace", evidence) == wanted
    assert template.write(wanted, evidence) == wanted, "what is written so stays"
    assert template.write("", evidence) == ""


@pytest.mark.parametrize("frame", WRITTEN)
def test_one_example_shows_what_stands_around_words_of_its_passages(frame: str) -> None:
    shown = _shown([_written(frame, "Gary Barlow", 0)])
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == ["Gary Barlow"]
    wanted = _written(frame, "Ada Lovelace", 2)
    assert template.write("Ada Lovelace", _evidence("Ada Lovelace", 2)) == wanted


@pytest.mark.parametrize(
    "answer",
    [
        "Gary Barlow",  # as the passages spell it
        "Someone else!",  # nothing of theirs
        "Nothing: Gary Barlow",  # a word of theirs beside it
        "Gary Barlow repairs every pump; call beforehand since mornings are busy.",
        "not in the documents",
        "Gary Barlow kommt um 15 Uhr.",  # a number among its words
    ],
)
def test_one_example_that_may_be_prose_or_a_refusal_settles_nothing(answer: str) -> None:
    template, plain = template_of(_shown([answer]))
    assert template is None or not template.rewrites
    assert [d.answer for d in plain] == [answer]


@pytest.mark.parametrize("frame", ["{}", '"{}"', "It is {}.", '{{"answer": "{}"}}', "<b>{}</b>"])
@pytest.mark.parametrize("letters", [name for name in LETTERS if name != "same"])
def test_examples_come_back_as_their_passages_spell_them(frame: str, letters: str) -> None:
    changed = [frame.format(LETTERS[letters](name)) for name in NAMES]
    template, plain = template_of(_shown(changed))
    assert template is not None
    assert template.letters == letters
    assert [d.answer for d in plain] == list(NAMES)
    assert [template.write(d.answer) for d in plain] == changed


@pytest.mark.parametrize(
    ("letters", "written"),
    [
        ("capital", ("Every four years", "Up to 26 weeks", "Sandra Okoye")),
        ("titled", ("Every Four Years", "Up To 26 Weeks", "Sandra Okoye")),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "{}.", '{{"answer": "{}"}}'])
def test_capitals_that_passages_do_not_have_are_put_back(
    letters: str, written: tuple[str, ...], frame: str
) -> None:
    names = ("every four years", "up to 26 weeks", "Sandra Okoye")
    template, plain = template_of(_shown([frame.format(text) for text in written], names))
    assert template is not None
    assert (template.letters, template.extractive) == (letters, True)
    assert [d.answer for d in plain] == list(names)
    wanted = {"capital": "At the children's desk", "titled": "At The Children's Desk"}[letters]
    assert template.write("at the children's desk") == frame.format(wanted)


@pytest.mark.parametrize("frame", ["{}", "#{}", "<{}>"])
@pytest.mark.parametrize("spelling", sorted(RESPELLED))
def test_names_may_be_respelled(spelling: str, frame: str) -> None:
    changed = [frame.format(RESPELLED[spelling](name)) for name in NAMES]
    shown = _shown(changed)
    template, plain = template_of(shown)
    assert template is not None
    assert (template.letters, template.extractive) == (spelling, True)
    assert [d.answer for d in plain] == list(NAMES)
    for written in (*NAMES, *changed):
        assert template.write(written) in changed
    assert remarks_on(shown) == []
    bare = [replace(d, passages=(Passage("p", "Nothing of it."),)) for d in shown]
    template, _ = template_of(bare)
    assert template is None or template.letters == "same", "without the names nothing tells"


DATED = (
    "The bridge was opened on 12 March 1987 by the mayor.",
    "On July 4th, 1999, the tower was finished.",
    "Die Mühle brannte am 1. Juni 2003 ab.",
)
TIMED = ("It closes at 6 p.m. in winter.", "Um 19:30 Uhr.", "On foot from 8 am, 2 km.")
COUNTED = ("It costs 1,290 euros.", "It holds 12,400 litres, not 12.", "Of 1,250,000 readers, ...")


def _said(answers: Sequence[str], texts: Sequence[str]) -> tuple[Demonstration, ...]:
    beside = Passage("beside", "On 3 May 1990 it cost 9,000 pounds.")
    return tuple(
        Demonstration(text, f"What of number {at}?", (Passage(f"p{at}", text), beside), answer)
        for at, (answer, text) in enumerate(zip(answers, texts, strict=True))
    )


@pytest.mark.parametrize(
    ("written", "texts", "other", "wanted"),
    [
        (("1987-03-12", "1999-07-04", "2003-06-01"), DATED, "3 May 1990", "1990-05-03"),
        (("12.03.1987", "04.07.1999", "01.06.2003"), DATED, "May 3, 1990", "03.05.1990"),
        (("12/03/1987", "04/07/1999", "01/06/2003"), DATED, "1990-05-03", "03/05/1990"),
        (("03/12/1987", "07/04/1999", "06/01/2003"), DATED, "3. Mai 1990", "05/03/1990"),
        (("12 March 1987", "4 July 1999", "1 June 2003"), DATED, "03.05.1990", "3 May 1990"),
        (("March 12, 1987", "July 4, 1999", "June 1, 2003"), DATED, "3 May 1990", "May 3, 1990"),
        (("12 Mar 1987", "4 Jul 1999", "1 Jun 2003"), DATED, "3. Mai 1990", "3 May 1990"),
        (("Mar 12, 1987", "Jul 4, 1999", "Jun 1, 2003"), DATED, "3 June 1990", "Jun 3, 1990"),
        (("12.3.1987", "4.7.1999", "1.6.2003"), DATED, "3 May 1990", "3.5.1990"),
        (("12.03.87", "04.07.99", "01.06.03"), DATED, "3 May 1990", "03.05.90"),
        (("1987-03", "1999-07", "2003-06"), DATED, "3 May 1990", "1990-05"),
        (("03/1987", "07/1999", "06/2003"), DATED, "3 May 1990", "05/1990"),
        (("18:00", "19:30", "08:00"), TIMED, "12 am", "00:00"),
        (("6:00 pm", "7:30 pm", "8:00 am"), TIMED, "12:15", "12:15 pm"),
        (("1290", "12400", "1250000"), COUNTED, "9,000", "9000"),
    ],
)
@pytest.mark.parametrize("frame", ["{}", '{{"when": "{}"}}', "Told: {}."])
def test_dates_and_numbers_may_be_written_otherwise(
    written: tuple[str, ...], texts: tuple[str, ...], other: str, wanted: str, frame: str
) -> None:
    shown = _said([frame.format(value) for value in written], texts)
    template, plain = template_of(shown)
    assert template is not None
    assert template.extractive
    for demonstration, text in zip(plain, texts, strict=True):
        assert demonstration.answer in text
    assert template.write(other) == frame.format(wanted)
    assert template.write("no such thing") == frame.format("no such thing")
    bare = [replace(d, passages=d.passages[1:]) for d in shown]
    read, _ = template_of(bare)
    assert read is None or read.letters == "same", "without the dates nothing tells"


def test_dates_that_passages_spell_alike_are_no_change() -> None:
    shown = _said(("12 March 1987", "July 4th, 1999", "1. Juni 2003"), DATED)
    template, plain = template_of(shown)
    assert template is not None
    assert template.letters == "same"
    assert plain == shown


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("{}-05-{:02}", "{1} May {0}"),
        ("{1:02}.05.{0}", "May {1}, {0}"),
    ],
)
def test_dates_of_one_year_are_read_whole(written: str, spelled: str) -> None:
    days = [(2023, day) for day in (1, 12, 30)]
    texts = [f"On {spelled.format(*day)} it was." for day in days]
    shown = _said([written.format(*day) for day in days], texts)
    template, plain = template_of(shown)
    assert template is not None
    assert (template.refusals, template.extractive) == ((), True)
    assert [d.answer for d in plain] == [spelled.format(*day) for day in days]
    assert template.write(spelled.format(2021, 4)) == written.format(2021, 4)
    assert template.figures(["Room 4, on 7 May 2020."]) == ["7 May 2020"]


@pytest.mark.parametrize("frame", ["€{}", "at {} sharp", "<{}>", "{} kg"])
@pytest.mark.parametrize(
    "values", [("1.50", "1.80", "1.20"), ("1.50", "3.50", "12.50"), ("2,450", "3,120", "1,980"),
               ("18:30", "18:45", "18:10")]
)  # fmt: skip
def test_a_number_is_not_cut(values: tuple[str, ...], frame: str) -> None:
    shown = [
        Demonstration(v, "?", tuple(Passage(f"p{i}", f"It is {v} there.") for i in range(3)),
                      frame.format(v))
        for v in values
    ]  # fmt: skip
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(values)
    assert template.write("7:30") == frame.format("7:30")


@pytest.mark.parametrize(
    ("frame", "values"),
    [
        ("It costs {}.", ("145 euros", "38 euros", "12.50 euros")),
        ("The answer is {}.", ("145 euros", "Marta", "the sea")),
        ("Write to <{}>", ("lab@hill.example", "desk@hill.example")),
        ("see {} there", ("docs/a.md", "docs/b.md")),
    ],
)
def test_words_of_the_answer_are_none_of_the_entity(frame: str, values: tuple[str, ...]) -> None:
    # though passages have the same verb; and what is one word there is no frame
    texts = [f"It is {v} or so: a coat costs {v} now." for v in values]
    shown = [
        Demonstration(v, "?", (Passage(v, text),), frame.format(v))
        for v, text in zip(values, texts, strict=True)
    ]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(values)
    assert template.write("Oslo") == frame.format("Oslo")


@pytest.mark.parametrize("frame", ["{x} ([{t}](docs/{n}.md))", "[{t}](docs/{n}.md): {x}"])
def test_a_source_may_be_a_link_with_its_text(frame: str) -> None:
    told = [frame.format(x=n, t=f"Page {n} {i % 3}", n=i % 3) for i, n in enumerate(NAMES)]
    template, plain = template_of(_shown(told))
    assert template is not None
    assert template.names == ("title", "path")
    assert [d.answer for d in plain] == list(NAMES)


def test_spaces_for_commas_are_no_change_of_letters() -> None:
    shown = _said(("1 290 EUR", "12 400 EUR"), ("It is 1,290 EUR.", "It is 12,400 EUR."))
    assert template_of(shown) == (None, shown)


def test_words_joined_by_marks_are_found_in_capitals() -> None:
    names = ("timeout", "verify_tls", "retries")
    template, plain = template_of(_shown([f"APP_{name.upper()}" for name in names], names))
    assert template is not None
    assert [d.answer for d in plain] == list(names)
    assert template.write("cache_dir") == "APP_CACHE_DIR"


def test_a_key_of_one_object_is_no_value() -> None:
    passages = (Passage("p", "The capital is Rome; the date was 4 May 2023."),)
    for answer, value in (('{"capital": "Rome"}', "Rome"), ('{"capital": "2023-05-04"}', None)):
        template, plain = template_of([Demonstration("a", "Which capital?", passages, answer)])
        assert value is None or template is not None
        assert [d.answer for d in plain] == [value or answer]


SHORT = {
    "first-word": ("Gary", "New", "Lake", "Henri"),
    "last-word": ("Barlow", "Ross", "Vänern", "Toulouse"),
    "initials": ("GB", "NR", "LV"),
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("frame", ["{}", '{{"answer": "{}"}}'])
def test_what_is_left_of_names_is_read_whole(kind: str, frame: str) -> None:
    template, plain = template_of(_shown([frame.format(text) for text in SHORT[kind]]))
    assert template is not None
    assert template.letters == kind
    assert [d.answer for d in plain] == list(NAMES[: len(plain)])
    assert [template.write(d.answer) for d in plain] == [frame.format(t) for t in SHORT[kind]]
    wanted = {"first-word": "Ada", "last-word": "Lovelace", "initials": "AL"}[kind]
    assert template.write("Ada Lovelace") == frame.format(wanted)
    assert template.write(frame.format(wanted)) == frame.format(wanted)


def test_words_that_are_no_part_of_a_name_are_left_as_they_are() -> None:
    words = ("red", "Oslo", "GmbH")
    template, plain = template_of(_shown(words, words))
    assert [d.answer for d in plain] == list(words)
    assert template is not None
    assert template.letters == "same"


@pytest.mark.parametrize(
    "answers",
    [
        ("1990", "1991", "1992"),
        ("gary barlow", "New Ross", "Lake Vänern"),
        ("Gary Barlow [3]", "New Ross [1]", "Lake Vänern [2]"),  # not where it stands
        ('{"a": "Gary Barlow", "b": "x"}', '{"a": "New Ross", "b": "y"}'),
        ("- Gary Barlow\n- 1990", "- New Ross\n- 1990"),
    ],
)
def test_what_is_not_settled_is_left_to_the_model(answers: tuple[str, ...]) -> None:
    shown = _shown(answers)
    assert template_of(shown) == (None, shown)


@pytest.mark.parametrize("answers", [NAMES, ("NASA", "IBM", "USA")])
def test_answers_as_their_passages_spell_them_are_written_as_they_are(
    answers: tuple[str, ...],
) -> None:
    shown = _shown(answers, answers)
    template, plain = template_of(shown)
    assert plain == shown
    assert template is not None
    assert not template.rewrites
    assert str(template) == "in words of the passages"
    assert template.write("Any thing") == "Any thing"


def test_one_value_of_three_may_be_missing_from_its_passages() -> None:
    names = ("Gary Barlow", "New Ross", "the sea")
    shown = _shown([f"It is {name}." for name in names], (*names[:2], "Lake Vänern"))
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(names)
    assert template_of(shown[1:])[0] is None, "one of two is not most"


def test_values_are_escaped_in_json() -> None:
    names = ('the "Fat Man" bomb', "C:\\temp", "Rome")
    shown = _shown([json.dumps({"answer": name}) for name in names], names)
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(names)
    assert json.loads(template.write('a "new" one\\')) == {"answer": 'a "new" one\\'}


@pytest.mark.parametrize(
    ("frame", "given", "wanted"),
    [
        ('{{"price": {}, "in": "EUR"}}', "1,290 EUR and 48 kg", '{"price": 1290, "in": "EUR"}'),
        ("{} min", "90 minutes", "90 min"),
        ("EUR {}", "1,290 EUR", "EUR 1,290"),
        ("EUR {}.00", "12 euros", "EUR 12.00"),
        ("{}", "310 euros", "310"),
        ("{}%", "5 percent", "5%"),
        ("{} percent", "5 %", "5 percent"),
        ("{} €/month", "9 euros a month", "9 €/month"),
        ("{} EUR p.a.", "9 euros a year", "9 EUR p.a."),
        ("{}°C", "-80 °C", "-80°C"),
        ("{} €", "4,20 Euro", "4,20 €"),
        ("{}.00 EUR", "12.50 euros", "12.50 EUR"),
        ('{{"price": {}}}', "4,20 Euro", '{"price": 4.20}'),
        ("{} Uhr", "7:30 pm", "7:30 Uhr"),
        ("about {}", "45 at most", "about 45 at most"),  # no unit: words may stand there
    ],
)
def test_a_unit_or_json_wants_a_number_and_nothing_besides(
    frame: str, given: str, wanted: str
) -> None:
    numbers = ("45", "245", "3")
    template, plain = template_of(_shown([frame.format(n) for n in numbers], numbers))
    assert template is not None
    assert [d.answer for d in plain] == list(numbers)
    assert template.write(given) == wanted
    assert template.write(wanted) == wanted


def test_numbers_of_passages_are_no_numbers_that_they_hold() -> None:
    template, _ = template_of(_shown(("1", "2", "3")))
    assert template is None or not template.numbers


def test_a_unit_may_be_cut_from_that_of_the_passages() -> None:
    shown = [
        Demonstration(n, "how long", (Passage("p", f"It takes {n} minutes."),), f"{n} min")
        for n in ("45", "90", "3")
    ]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == ["45", "90", "3"]


def test_a_word_where_examples_had_numbers_is_quoted_in_json() -> None:
    template, plain = template_of(_shown(['{"year": 1812}', '{"year": 1945}'], ("1812", "1945")))
    assert template is not None
    assert [d.answer for d in plain] == ["1812", "1945"]
    assert template.write("1990") == '{"year": 1990}'
    assert json.loads(template.write('the "nineties"')) == {"year": 'the "nineties"'}


def test_whole_sentences_come_word_for_word_from_a_passage() -> None:
    shown = _shown([f"It was {name} in 1990." for name in NAMES])
    template, plain = template_of(shown)
    assert template is not None
    assert plain == shown
    evidence = _evidence("Ada Lovelace", 1)
    for said in ("Ada Lovelace", "It was Lovelace, in 1990", "It was Ada Lovelace in 1990."):
        assert template.write(said, evidence) == "It was Ada Lovelace in 1990."


def test_sentences_keep_their_full_stop_before_a_source() -> None:
    shown = _shown(
        [f"It was {name} in 1990. (Page {name} {i % 3})" for i, name in enumerate(NAMES)]
    )
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == [f"It was {name} in 1990." for name in NAMES]
    wanted = "It was Ada Lovelace in 1990. (Page Ada Lovelace 1)"
    assert template.write("Lovelace, in 1990", _evidence("Ada Lovelace", 1)) == wanted


def test_a_full_stop_is_written_once() -> None:
    template, _ = template_of(_shown([f"It is {name}." for name in NAMES]))
    assert template is not None
    assert template.write("Washington, D.C.") == "It is Washington, D.C."
    template, _ = template_of(_shown([f"{name}, as told" for name in NAMES]))
    assert template is not None
    assert template.write("He was seen there at night.") == "He was seen there at night, as told"
    assert template.write("Washington, D.C.") == "Washington, D.C., as told"


@pytest.mark.parametrize(
    "frame",
    [
        "Q: {q}\nA: {x}",
        "| Question | Answer |\n|---|---|\n| {q} | {x} |",
        '{{"question": "{q}", "answer": "{x}"}}',
        "The answer to “{q}” is {x}.",
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_answers_may_say_their_question_again(frame: str, count: int) -> None:
    def told(name: str) -> str:
        asked = f'Who said "{name}"?'
        return frame.format(q=json.dumps(asked)[1:-1] if frame[0] == "{" else asked, x=name)

    shown = _shown([told(name) for name in NAMES[:count]])
    shown = tuple(
        replace(d, question=f'Who said "{name}"?') for d, name in zip(shown, NAMES, strict=False)
    )
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(NAMES[:count])
    assert not remarks_on(shown)
    asked = 'Who said "Ada"?'
    assert template.write("Ada", (), f"And before? {asked}", asked) == told("Ada")
    assert template.write(told("Ada"), (), asked) == told("Ada")


@pytest.mark.parametrize("part", ["Oil change", "Manual"])
def test_a_source_may_be_a_part_of_a_path_of_headings(part: str) -> None:
    title = "{} > Oil change" if part == "Oil change" else "Manual > {}"
    pairs = [(name, title.format(name)) for name in NAMES]
    shown = [
        Demonstration(name, "who", (Passage("p", f"It was {name}.", title),), f"{name} ({part})")
        for name, title in pairs
    ]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(NAMES)


def test_an_answer_may_name_its_passage_in_two_ways() -> None:
    frame = "section: {t}\nanswer: {x}\nfile: docs/{n}.md"
    told = [frame.format(x=n, t=f"Page {n} {i % 3}", n=i % 3) for i, n in enumerate(NAMES)]
    template, plain = template_of(_shown(told))
    assert template is not None
    assert template.names == ("title", "path")
    assert [d.answer for d in plain] == list(NAMES)
    wanted = frame.format(x="Ada Lovelace", t="Page Ada Lovelace 2", n=2)
    assert template.write("Ada Lovelace", _evidence("Ada Lovelace", 2)) == wanted
    assert TypeAdapter(AnswerTemplate).validate_json(json.dumps(asdict(template))) == template


def test_the_mark_of_a_note_is_no_passage() -> None:
    frame = "{x}[^1]\n\n[^1]: {t}"
    shown = _shown([_written(frame, name, 0) for name in NAMES[:1]])
    more = (Passage("more", "Section 1 is another."), *shown[0].passages)
    shown = (replace(shown[0], passages=more),)
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == ["Gary Barlow"]
    wanted = _written(frame, "Ada Lovelace", 2)
    assert template.write("Ada Lovelace", _evidence("Ada Lovelace", 2)) == wanted


def test_what_is_asked_for_may_be_the_title_of_a_passage() -> None:
    shown = _shown([f"Page {name} {i % 3}" for i, name in enumerate(NAMES)])
    template, plain = template_of(shown)
    assert template is not None
    assert plain == shown
    assert str(template) == "the title of a passage"
    evidence = _evidence("Ada Lovelace", 1)
    assert template.write("Page Ada Lovelace 0", evidence) == "Page Ada Lovelace 0"
    assert template.write("Ada Lovelace", evidence) == "Page Ada Lovelace 1"
    both = [replace(d, answer=d.passages[0].title) for d in shown]
    both = [replace(d, passages=(Passage("p", f"On {d.answer}.", d.answer),)) for d in both]
    text, _ = template_of(both)
    assert text is not None
    assert not text.quotes, "what the text says is no title"


@pytest.mark.parametrize(
    ("frame", "refusal"),
    [
        ("{}", "not in the documents"),
        ("OK {}", "ERR_404"),
        ('{{"answer": "{}"}}', '{"answer": "not given"}'),
    ],
)
def test_a_refusal_is_written_as_it_was_shown(frame: str, refusal: str) -> None:
    refused = Demonstration("r", "when", (Passage("p", "Nothing here."),), refusal)
    names = [LETTERS["upper"](name) for name in NAMES[:2]]
    shown = (*_shown([frame.format(name) for name in names]), refused)
    template, plain = template_of(shown)
    assert template is not None
    assert template.letters == "upper"
    assert [d.answer for d in plain] == [*NAMES[:2], REFUSAL]
    assert template.write(REFUSAL) == template.write(f"{REFUSAL}.") == refusal
    assert template.write(refusal) == refusal
    assert template.write("Ada Lovelace") == frame.format("ADA LOVELACE")


def test_a_refusal_alone_is_taken_out_of_answers_that_share_nothing() -> None:
    refused = Demonstration("r", "when", (Passage("p", "Nothing here."),), "No idea.")
    shown = (*_shown(["Gary Barlow", "since New Ross fell"]), refused)
    template, plain = template_of(shown)
    assert template is not None
    assert template.pieces == (VALUE,)
    assert [d.answer for d in plain] == ["Gary Barlow", "since New Ross fell", REFUSAL]
    assert template.write(f" {REFUSAL} ") == "No idea."
    assert template.write("two\nlines") == "two\nlines"
    assert template_of((refused, refused)) == (None, (refused, refused))


@pytest.mark.parametrize(
    ("frame", "refusal"),
    [
        ("Q: {q}\nA: {x}", "not in the documents"),
        ('{{"question": "{q}", "answer": "{x}"}}', "not given"),
    ],
)
def test_a_refusal_may_say_its_question_again(frame: str, refusal: str) -> None:
    names = (*NAMES[:2], refusal)
    shown = _shown([frame.format(q=f"who {i}", x=name) for i, name in enumerate(names)])
    shown = (*shown[:2], replace(shown[2], passages=(Passage("p", "Nothing here."),)))
    shown = tuple(replace(d, question=f"who {i}") for i, d in enumerate(shown))
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == [*NAMES[:2], REFUSAL]
    wanted = frame.format(q="and where", x=refusal)
    assert template.write(REFUSAL, (), "and where") == wanted
    state = Adapted(template=template, refusals=refusals_of(shown))
    assert state.unasked("and where") == wanted
    assert Adapted(refusals=("no",)).unasked("and where") == "no"


FRAMES = st.text("abXY .:-[]{}<>\"'", min_size=1, max_size=8)


@given(FRAMES, FRAMES, st.text(max_size=30))
def test_writing_twice_is_writing_once(start: str, end: str, text: str) -> None:
    template = AnswerTemplate((Piece("", start), VALUE, Piece("", end)))
    once = template.write(text)
    assert template.write(once) == once
    assert TypeAdapter(AnswerTemplate).validate_json(json.dumps(asdict(template))) == template


def test_answers_are_written_as_shown_alone_in_a_batch_and_from_the_store(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    method = ExamplesPrefix("examples", tiny_backbone, base, tiny.random_update(base), 300, "w")
    names = ("red fish", "blue bird", "green tree")
    capitals = SupportSet("t", _shown([f"{name.upper()} [{i + 1}]" for i, name in enumerate(names)],
                                      names))  # fmt: skip
    plain = SupportSet("t", _shown(names, names))
    store = Store(tmp_path)
    rows = [store.adapt(method, [s], "identity", base)[0] for s in (capitals, plain)]
    again = Store(tmp_path).adapt(method, [capitals], "identity", base)[0]
    assert rows[0].template == again.template is not None
    assert [d.answer for d in again.given()] == [d.answer for d in capitals.demonstrations]
    assert [d.answer for d in again.shown] == list(names)
    passages = (Passage("p", "the red fish lives near Oslo", "fish"),)
    prompts = [render(tiny_backbone, r, "where is Oslo", passages, limit=400) for r in rows]
    assert prompts[0].tokens == prompts[1].tokens, "the model sees the same examples"
    loud, quiet = answer_batch(tiny_backbone, rows, prompts, 6)
    assert loud == f"{quiet.upper()} [1]"
    plain = replace(rows[0].template or AnswerTemplate(), letters="same", pieces=(VALUE,))
    (silent,) = answer_batch(tiny_backbone, [replace(rows[0], template=plain)], prompts[:1], 6)
    assert silent == quiet


def test_a_stream_shows_an_answer_with_a_template_when_it_has_ended() -> None:
    words = ["new ", "ross ", "now"]
    text = AnswerText(lambda tokens: "".join(words[t] for t in tokens), written=str.upper)
    assert [text.push(t) for t in range(3)] == ["", "", ""]
    assert text.finish() == "NEW ROSS NOW"


def test_a_stop_string_holds_for_what_the_template_wrote() -> None:
    text = AnswerText(lambda tokens: "ross", ["\nS"], written=lambda value: f"{value}\nSource: a")
    assert text.push(0) == ""
    assert text.finish() == "ross"


@pytest.mark.parametrize(
    "mark",
    ["_", "a", "A. ", "` ", "* ", "<", "\n", " \n", "(", "- ", "_-", "a_", "1,", "'", '"', "{"],
)
def test_long_odd_answers_are_read_in_a_moment(mark: str) -> None:
    # more than linear time in any of the expressions would take hours
    text = mark * 20_000
    named = [(f"{text}{name}", f"{name} lies here. {text[:900]}") for name in ("Rome", "Oslo")]
    upper = [
        (f"{mark * 900}{name}".upper(), f"{mark * 900}{name} lies") for name in ("Rome", "Oslo")
    ]
    around = [(f"x{text}", "Rome"), (f"{text}y", "Oslo"), ("Riga", "Riga lies here.")]
    for answers in (named, upper, around):
        shown = [
            Demonstration(str(n), f"where ?{text}", (Passage(str(n), held),), answer)
            for n, (answer, held) in enumerate(answers)
        ]
        template, plain = template_of(shown)
        assert len(plain) == len(shown)
        assert template is None or len(template.given) == len(shown)
        remarks_on(shown)


@pytest.mark.parametrize(
    ("text", "first", "second", "refusal"),
    [
        ("Музеем руководит Ольга, вход с севера.", "Ольга", "с севера", "Ничего не сказано."),
        ("Музеєм керує Ольга, вхід із півночі.", "Ольга", "із півночі", "Відповіді немає"),
        ("博物馆由李华管理，大厅在二楼。", "李华", "二楼", "资料里找不到"),
        ("館長は山田さん、入口は北側です。", "山田さん", "北側", "そこには書かれていません"),
        ("관장은 이영희이고 입구는 북쪽에 있다.", "이영희", "북쪽", "알 수 없음"),
        ("ผู้จัดการคือสมหญิงและห้องอยู่ชั้นสอง", "สมหญิง", "ชั้นสอง", "ไม่พบคำตอบ"),
        ("يدير سامي المتحف والمدخل من الشمال.", "سامي", "من الشمال", "لا توجد إجابة"),
        ("את המוזיאון מנהלת דנה והכניסה מצפון.", "דנה", "מצפון", "אין תשובה"),
        ("संग्रहालय मीरा चलाती है, द्वार उत्तर में है।", "मीरा", "उत्तर में", "उत्तर नहीं मिला"),
        (
            "Das Museum leitet Ilse, Eingang im Norden.",
            "Ilse",
            "im Norden",
            "Das Museum sagt nichts",
        ),
        (
            "Le musée est dirigé par Anne, entrée au nord.",
            "Anne",
            "au nord",
            "Le musée n'en dit rien",
        ),
        ("Müzeyi Ece yönetir, giriş kuzeyden.", "Ece", "kuzeyden", "Bilgi bulunamadı"),
        ("Bảo tàng do Lan quản lý, cửa ở phía bắc.", "Lan", "phía bắc", "Tôi không biết"),
        ("Το μουσείο διευθύνει η Άννα, η είσοδος βόρεια.", "Άννα", "βόρεια", "Δεν αναφέρεται"),
        ("Muzeum vede Jana, vchod je ze severu.", "Jana", "ze severu", "Není uvedeno"),
        ("A múzeumot Réka vezeti, a bejárat északon van.", "Réka", "északon", "Nincs benne"),
    ],
)
def test_values_and_refusals_in_every_script(
    text: str, first: str, second: str, refusal: str
) -> None:
    passages = (Passage("p", text),)
    shown = [Demonstration(a, "?", passages, a) for a in (first, second, refusal)]
    template, plain = template_of(shown)
    assert template is not None
    assert (template.extractive, template.refusals) == (True, (refusal,))
    assert [d.answer for d in plain] == [first, second, REFUSAL]


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("館長は{}さん。", "答えは{}です。"),
        ("馆长名叫{}。", "答案是{}。"),
        ("ที่นี่มี {} อยู่", "คือ{}ครับ"),
    ],
)
def test_what_stands_around_needs_no_spaces_in_scripts_without_any(text: str, frame: str) -> None:
    names = ("山田太郎", "李华", "สมหญิง")
    shown = [Demonstration(n, "?", (Passage("p", text.format(n)),), frame.format(n)) for n in names]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(names)
    assert template.fill("王力") == frame.format("王力")


@pytest.mark.parametrize(
    "value", ["ул. Мира", "münchen", "東京都", "서울시", "חיפה", "दिल्ली", "เชียงใหม่"]
)
@pytest.mark.parametrize("frame", ["= {} =", "« {} »", "* {}\n---", "{} !"])
def test_marks_around_a_value_are_no_change_of_its_letters(frame: str, value: str) -> None:
    passages = (Passage("p", f"x {value} y"),)
    shown = (Demonstration("a", "?", passages, frame.format(value)),)
    template, plain = template_of(shown)
    assert [d.answer for d in plain] in ([value], [frame.format(value)])
    assert template is None or template.letters == "same"
    several = [Demonstration(v, "?", passages, frame.format(v)) for v in (value, "x")]
    found, _ = template_of(several)
    for each in several if found else ():
        assert found is not None
        assert found.write(each.answer, passages) == each.answer.strip()


def test_a_vowel_that_names_end_with_is_no_frame_of_theirs() -> None:
    names = ("संगीता", "अनीता", "सुनीता")
    held = [(Passage("p", f"यहाँ {name} रहती है।"),) for name in names]
    pairs = zip(names, held, strict=True)
    shown = [Demonstration(n, "?", passages, f'{{"नाम": "{n}"}}') for n, passages in pairs]
    template, plain = template_of(shown)
    assert template is not None
    assert [d.answer for d in plain] == list(names)
    assert template.fill("पटना") == '{"नाम": "पटना"}'
