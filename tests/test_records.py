"""The records that flow through raggd, and where a record says it came from."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.provenance import command_line, utc_now, versions
from raggd.records import (
    Demonstration,
    Passage,
    Prediction,
    RaggdError,
    RunRecord,
    SupportSet,
    content_id,
    unknown_name,
)

SHOWN = Demonstration("d1", "Who?", (Passage("p1", "Lima is a city.", "Lima"),), "Lima")


def test_unknown_names_offer_the_nearest_or_none() -> None:
    assert "did you mean 'popqa'?" in str(unknown_name("benchmark", "popqq", ["nq", "popqa"]))
    far = str(unknown_name("benchmark", "zzz", ["nq", "popqa"]))
    assert "did you mean" not in far
    assert "Known: nq, popqa." in far
    assert "'zzz'" in far


PARTS = st.lists(st.text("ab", max_size=3), max_size=3)


@given(PARTS, PARTS)
def test_content_ids_differ_exactly_when_the_parts_do(left: list[str], right: list[str]) -> None:
    assert (content_id(*left) == content_id(*right)) == (left == right)


def test_content_ids_keep_parts_apart_and_have_the_length_asked_for() -> None:
    assert "ab" + "c" == "a" + "bc"
    assert content_id("ab", "c") != content_id("a", "bc")
    assert len(content_id("x")) == 16
    assert content_id("x", length=64).startswith(content_id("x"))


def test_a_support_set_without_demonstrations_or_answers_is_refused() -> None:
    with pytest.raises(RaggdError, match="support set of task 'nq' is empty"):
        SupportSet("nq", ())
    with pytest.raises(RaggdError, match="'d2' of task 'nq' has no answer"):
        SupportSet("nq", (SHOWN, replace(SHOWN, id="d2", answer=" \n")))


@pytest.mark.parametrize(
    "other",
    [
        SupportSet("trivia", (SHOWN,)),
        SupportSet("nq", (SHOWN, SHOWN)),
        SupportSet("nq", (replace(SHOWN, question="What?"),)),
        SupportSet("nq", (replace(SHOWN, answer="Quito"),)),
        SupportSet("nq", (replace(SHOWN, passages=()),)),
        SupportSet("nq", (replace(SHOWN, passages=(Passage("p1", "Lima is a city."),)),)),
    ],
)
def test_a_support_id_names_its_content(other: SupportSet) -> None:
    assert other.id != SupportSet("nq", (SHOWN,)).id
    assert SupportSet("nq", (replace(SHOWN, id="renamed"),)).id == SupportSet("nq", (SHOWN,)).id


TEXT = st.text("a\n", max_size=3)
SHOWN_SETS = st.lists(
    st.builds(
        Demonstration,
        st.just("d"),
        TEXT,
        st.lists(st.builds(Passage, st.just("p"), TEXT, TEXT, TEXT), max_size=2).map(tuple),
        TEXT.map(lambda text: f"{text}a"),
    ),
    min_size=1,
    max_size=2,
).map(tuple)


@given(SHOWN_SETS, SHOWN_SETS)
def test_support_ids_differ_exactly_when_what_is_shown_does(
    left: tuple[Demonstration, ...], right: tuple[Demonstration, ...]
) -> None:
    assert (SupportSet("t", left).id == SupportSet("t", right).id) == (left == right)
    listed = [Demonstration("d", "a", tuple(Passage("p", "a", "a") for _ in d.passages), d.answer)
              for d in left]  # fmt: skip
    glued = [d for s in listed for d in (replace(s, passages=()), *(
        Demonstration("d", "a\na", (), "a\na") for _ in s.passages[::2]))]  # fmt: skip
    if any(d.passages for d in listed):  # questions and answers that look like passages
        assert SupportSet("t", tuple(listed)).id != SupportSet("t", tuple(glued)).id


def test_a_support_id_depends_on_the_order() -> None:
    second = replace(SHOWN, question="What?")
    forth, back = SupportSet("nq", (SHOWN, second)), SupportSet("nq", (second, SHOWN))
    assert forth.id != back.id


def _record() -> RunRecord:
    predictions = (
        Prediction("q1", "Lima", 1.0, 1.0, ("p1", "p2"), "s1", 0.25, 2),
        Prediction("q2", "Río", 0.0, 0.1),
    )
    return RunRecord(
        method="rag-gd",
        benchmark="nq",
        split="test",
        backbone="tiny",
        retriever="bm25-1",
        seed=3,
        predictions=predictions,
        cost={"adapt_ms": 1.5},
        settings={"retrieval": {"top_k": 3}},
        hashes={"base": "abc"},
        versions={"raggd": "0"},
        command="raggd demo",
        created="2026-01-01T00:00:00+00:00",
    )


def test_run_records_come_back_as_they_were() -> None:
    record = _record()
    text = record.to_json()
    assert RunRecord.from_json(text) == record
    assert "Río" in text  # readable, not escaped
    changed = json.loads(text)
    changed["predictions"][0]["em"] = 0.0
    assert RunRecord.from_json(json.dumps(changed)) != record


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"predictions": 4}', '{"predictions": [{"x": 1}]}', '{"method": "a"}'],
)
def test_what_is_no_run_record_is_refused_by_name(text: str) -> None:
    with pytest.raises(RaggdError, match=r"some/file\.json is not a raggd run record"):
        RunRecord.from_json(text, source="some/file.json")


def test_records_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SHOWN.answer = "Quito"  # type: ignore[misc]


def test_provenance_names_versions_command_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"][0].isdigit()
    monkeypatch.setattr("raggd.provenance.LIBRARIES", ("no-such-library",))
    assert versions()["no-such-library"] == "not installed"
    words = ["/opt/bin/raggd", "ask", "two words"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(command_line()) == ["raggd", "ask", "two words"]
    assert Path(words[0]).parent.as_posix() not in command_line()
    now = datetime.fromisoformat(utc_now())
    assert now.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=5)
