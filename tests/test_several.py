"""Answers of several values: read from examples, written with every value out of the passages."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from raggd.backbone.extractive import Slots
from raggd.backbone.load import Backbone
from raggd.data.pieces import is_part
from raggd.data.reading import several_of, template_of
from raggd.data.template import REFUSAL, AnswerTemplate, Several
from raggd.methods.answering import extract_of, render
from raggd.methods.base import Adapted
from raggd.records import Demonstration, Passage

STAFF = (
    ("Ines Carvalho", "head of the workshop", "2016", "3 May 2011", "8 bar", "1,290"),
    ("Bram Visser", "ferry captain", "2009", "12 June 1999", "16 bar", "12,400"),
    ("Noor Haddad", "head of sales", "2019", "1 July 2020", "3 bar", "9,000"),
)
OTHER = ("Olaf Jansen", "night porter", "2021", "9 March 2003", "1.2 bar", "2,500")
TEXT = (
    "{0} has been {1} of the company since {2} (first on {3}). The pump has {4}; it cost {5} euros."
)
FORMS: dict[str, Callable[..., str]] = {
    "json": lambda n, r, y, *_: json.dumps({"name": n, "role": r, "since": y}),
    "json, nested": lambda n, r, *_: json.dumps({"staff": {"name": n, "ok": True}, "role": r}),
    "json, pretty": lambda n, r, *_: json.dumps({"name": n, "role": r}, indent=2),
    "json, a number": lambda n, r, y, *_: json.dumps({"role": r, "since": int(y)}),
    "json, a date": lambda n, r, y, d, *_: json.dumps({"name": n, "first": ISO[d]}),
    "json, digits": lambda n, r, y, d, b, c: json.dumps(
        {"name": n, "cost": int(c.replace(",", ""))}
    ),
    "lines": lambda n, r, y, d, b, _: f"- Name: {n}\n- Role: {r}\n- Pressure: {b}",
    "lines, a heading": lambda n, r, *_: f"Found:\n{n}\nRole: {r}",
    "brackets": lambda n, r, y, *_: f"{n} ({r}), {y}",
    "columns": lambda n, r, y, d, b, _: f"{n};{r};{b}",
    "a pair": lambda n, r, y, d, b, _: f"{n} ({b})",
    "a mark": lambda n, r, *_: f"{n} > {r}",
    "tabs": lambda n, r, y, *_: f"{n}\t{r}\t{y}",
    "quotes": lambda n, r, *_: f"INSERT INTO t VALUES ('{n}', '{r}');",
    "row": lambda n, r, *_: f"| {n} | {r} |",
}
ISO = {
    "3 May 2011": "2011-05-03",
    "12 June 1999": "1999-06-12",
    "1 July 2020": "2020-07-01",
    "9 March 2003": "2003-03-09",
}


def shown(form: Callable[..., str]) -> tuple[Demonstration, ...]:
    """Three examples of a form, each with its own passage and one of somebody else."""
    beside = Passage("beside", "A gardener came in 1955.")
    return tuple(
        Demonstration(
            one[0], f"Who is {one[0]}?", (Passage("p", TEXT.format(*one)), beside), form(*one)
        )
        for one in STAFF
    )


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A tokenizer whose tokens are parts of words, spaces included."""
    raw = ByteLevelBPETokenizer()
    words = [TEXT.format(*one) for one in (*STAFF, OTHER)]
    raw.train_from_iterator(words, vocab_size=320, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token="<end>")
    tokenizer.chat_template = tiny.TEMPLATE
    return SimpleNamespace(tokenizer=tokenizer, stops=[tokenizer.convert_tokens_to_ids("<end>")])


def written(backbone: Any, slots: Slots, choose: Callable[[list[int]], int]) -> str:
    """What is written when every token is chosen among those that are allowed."""
    tokens: list[int] = []
    while len(tokens) < 400:
        token = choose(sorted(slots.allowed()))
        if token in backbone.stops:
            break
        tokens.append(token)
        slots.push(token)
    return str(backbone.tokenizer.decode(tokens))


@pytest.mark.parametrize("name", FORMS)
@given(draw=st.randoms(use_true_random=False))
def test_whatever_a_model_likes_the_form_is_kept_and_values_are_of_passages(
    byte_level: Any, name: str, draw: random.Random
) -> None:
    template, plain = template_of(shown(FORMS[name]))
    assert template is not None
    assert template.several is not None
    assert plain == shown(FORMS[name])  # the model sees the answers as they are
    passage = Passage("q", TEXT.format(*OTHER))
    slots = Slots(byte_level, [passage.text], template.several)
    answer = written(byte_level, slots, draw.choice)
    literals = map(re.escape, template.several.literals)
    found = re.fullmatch("(.+?)".join(literals), answer)
    assert found, answer
    for value, kind in zip(found.groups(), template.several.kinds, strict=True):
        known = {"iso dates": ISO[OTHER[3]], "plain digits": "2500"}.get(kind)
        assert value == known if known else is_part(value, [passage]), answer
    assert not name.startswith("json") or isinstance(json.loads(answer), dict)


@pytest.mark.parametrize("name", FORMS)
def test_the_right_answer_can_be_written(byte_level: Any, name: str) -> None:
    several = several_of(shown(FORMS[name]))
    assert several is not None
    slots = Slots(byte_level, [TEXT.format(*OTHER)], several)
    left = FORMS[name](*OTHER)
    decode = byte_level.tokenizer.decode

    def next_of(allowed: list[int]) -> int:
        nonlocal left
        fitting = [t for t in allowed if t not in byte_level.stops and left.startswith(decode([t]))]
        if not fitting:
            return int(byte_level.stops[0])
        token = max(fitting, key=lambda t: len(decode([t])))
        left = left[len(decode([token])) :]
        return token

    assert written(byte_level, slots, next_of) == FORMS[name](*OTHER)


def test_a_value_of_another_kind_than_shown_is_written_too(byte_level: Any) -> None:
    several = several_of(shown(lambda n, r, y, d, b, _: f"pressure={b};since={y}"))
    assert several is not None
    answer = written(byte_level, Slots(byte_level, ["the night porter"], several), min)
    assert re.fullmatch("pressure=(.+);since=(.+)", answer)


def test_a_title_before_a_name_ends_no_part() -> None:
    parts, _ = Several(("", " (", ")"), ("part", "part")).texts(
        0, ["By Dr. H. Moor. It rains, so."]
    )
    assert parts == ["By Dr. H. Moor", " It rains", " so", ""]


NAMES = [one[0] for one in STAFF]


@pytest.mark.parametrize(
    "answers",
    [
        [f"- {name}\n- {year}" for name, _, year, *_ in STAFF],  # lists, which may be longer
        [f"{name}, {role}" for name, role, *_ in STAFF],
        [f"{name}; {role}" for name, role, *_ in STAFF],
        [f"{name} has been {role}." for name, role, *_ in STAFF],
        [json.dumps({"name": name, "mood": mood}) for name, mood in zip(NAMES, "abc", strict=True)],
        [json.dumps({"name": name, key: "2016"}) for name, key in zip(NAMES, "abc", strict=True)],
        [json.dumps({"name": name, "ok": True}) for name in NAMES],
        [json.dumps([name, year]) for name, _, year, *_ in STAFF],
    ],
)
def test_what_is_no_form_of_several_values_is_left_to_the_model(answers: Sequence[str]) -> None:
    own = list(shown(FORMS["json"]))
    texts = [
        Demonstration(d.id, d.question, d.passages, answer)
        for d, answer in zip(own, answers, strict=True)
    ]
    assert several_of(texts) is None
    assert several_of(own[:1]) is None


def test_a_template_of_several_values_is_kept_and_told(tiny_backbone: Backbone) -> None:
    refusing = Demonstration("no", "Who is the mayor?", (Passage("m", "Nothing."),), "Not known.")
    template, plain = template_of([*shown(FORMS["row"]), refusing])
    assert template is not None
    assert TypeAdapter(AnswerTemplate).validate_python(asdict(template)) == template
    assert str(template) == "written as '| ... | ... |'"
    row = Adapted(shown=plain, template=template)
    passages = [Passage("q", TEXT.format(*OTHER))]
    prompt = render(tiny_backbone, row, "Who?", passages, limit=400)
    held = extract_of(tiny_backbone, row, prompt)
    assert isinstance(held, Slots)
    for token in tiny_backbone.tokenizer.encode(REFUSAL, add_special_tokens=False):
        assert token in held.allowed()  # the refusal may be given instead
        held.push(token)
    assert held.allowed() == set(tiny_backbone.stops)
    assert isinstance(template.several, Several)
    assert extract_of(tiny_backbone, row, render(tiny_backbone, row, "Who?", [], limit=400)) is None
