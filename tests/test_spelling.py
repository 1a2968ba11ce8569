"""A change of letters that examples share: found, taken out, made again; nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.contracts.letters import LETTERS
from raggd.data.spelling import Spelling, spelling_of
from raggd.methods.answering import answer_batch, render
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, SupportSet
from raggd.serving.row import AnswerText

NAMES = ("Gary Barlow", "New Ross", "Lake Vänern", "Henri de Toulouse")


def _shown(answers: tuple[str, ...], names: tuple[str, ...] = NAMES) -> tuple[Demonstration, ...]:
    return tuple(
        Demonstration(str(i), f"who {i}", (Passage("p", f"It was {name} in 1990."),), answer)
        for i, (answer, name) in enumerate(zip(answers, names, strict=False))
    )


@pytest.mark.parametrize("frame", ["{}", '"{}"', "It is {}.", '{{"answer": "{}"}}', "<b>{}</b>"])
@pytest.mark.parametrize("letters", [name for name in LETTERS if name != "same"])
def test_examples_come_back_as_their_passages_spell_them(frame: str, letters: str) -> None:
    changed = [LETTERS[letters](name) for name in NAMES]
    spelling, plain = spelling_of(_shown(tuple(frame.format(text) for text in changed)))
    assert spelling is not None
    assert spelling.letters == letters
    assert [d.answer for d in plain] == [frame.format(name) for name in NAMES]
    assert [spelling.apply(d.answer) for d in plain] == [frame.format(text) for text in changed]
    if frame != "{}":
        assert spelling.apply("something else: x") == "something else: x"


@pytest.mark.parametrize(
    "answers",
    [
        NAMES,
        ("NASA", "IBM", "USA"),  # spelt so in their passages
        ("YES", "NO", "YES"),  # held by no passage
        ("1990", "1991", "1992"),
        ("gary barlow", "New Ross", "Lake Vänern"),
    ],
)
def test_what_is_no_change_of_letters_is_left_alone(answers: tuple[str, ...]) -> None:
    names = answers if answers[0] == "NASA" else NAMES
    shown = _shown(answers, names)
    assert spelling_of(shown) == (None, shown)


def test_a_refusal_is_neither_shown_nor_written_in_other_letters() -> None:
    refused = Demonstration("r", "when", (Passage("p", "Nothing here."),), "not in the documents")
    shown = (*_shown(("GARY BARLOW", "NEW ROSS")), refused)
    spelling, plain = spelling_of(shown)
    assert spelling == Spelling("upper", "", "")
    assert [d.answer for d in plain] == ["Gary Barlow", "New Ross", "not in the documents"]


@given(st.text(max_size=30), st.sampled_from([n for n in LETTERS if n != "same"]))
def test_applying_twice_is_applying_once(text: str, letters: str) -> None:
    spelling = Spelling(letters, "a: ", ".")
    once = spelling.apply(f"a: {text}.")
    assert spelling.apply(once) == once
    assert once.startswith("a: ")
    assert once.endswith(".")


def test_answers_are_spelt_as_shown_alone_in_a_batch_and_from_the_store(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    method = ExamplesPrefix("examples", tiny_backbone, base, tiny.random_update(base), 300, "w")
    names = ("red fish", "blue bird", "green tree")
    capitals = SupportSet("t", _shown(tuple(map(str.upper, names)), names))
    plain = SupportSet("t", _shown(names, names))
    store = Store(tmp_path)
    rows = [store.adapt(method, [s], "identity", base)[0] for s in (capitals, plain)]
    again = Store(tmp_path).adapt(method, [capitals], "identity", base)[0]
    assert rows[0].spelling == again.spelling == Spelling("upper", "", "")
    passages = (Passage("p", "the red fish lives near Oslo", "fish"),)
    prompts = [render(tiny_backbone, r, "where is Oslo", passages, limit=400) for r in rows]
    assert prompts[0].tokens == prompts[1].tokens, "the model sees the same examples"
    loud, quiet = answer_batch(tiny_backbone, rows, prompts, 6)
    assert loud == quiet.upper()
    assert loud != quiet
    (silent,) = answer_batch(tiny_backbone, [replace(rows[0], spelling=None)], prompts[:1], 6)
    assert silent == quiet


def test_a_stream_shows_an_answer_whose_letters_change_when_it_has_ended() -> None:
    words = ["new ", "ross ", "now"]
    text = AnswerText(lambda tokens: "".join(words[t] for t in tokens), spelt=str.upper)
    assert [text.push(t) for t in range(3)] == ["", "", ""]
    assert text.finish() == "NEW ROSS NOW"
