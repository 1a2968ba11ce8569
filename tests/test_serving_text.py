"""The text of an answer: the same in pieces as whole, one line, cut before stop strings."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raggd.backbone.generate import clean_answer
from raggd.records import Passage
from raggd.serving.row import AnswerText, held_back
from raggd.serving.service import share_a_script

CHARACTERS = st.sampled_from([*"abc .,", "\n", "\t", "\r", "é", "漢", "🙂", "\u2028", "\x1c"])
TEXTS = st.text(CHARACTERS, max_size=30)


def decode(tokens: list[int]) -> str:
    """Tokens are bytes: characters of several bytes are unfinished in between."""
    return bytes(tokens).decode("utf-8", "replace")


def write(text: str, stops: tuple[str, ...] = (), lines: bool = False) -> tuple[str, str, int]:
    """The pieces joined, the whole, and how many tokens were read before the text ended."""
    writer = AnswerText(decode, stops, lines=lines)
    pieces, read = "", 0
    for token in text.encode():
        pieces += writer.push(token)
        read += 1
        if writer.ended:
            break
    else:
        pieces += writer.finish()
    return pieces, writer.text, read


@given(TEXTS)
def test_pieces_make_what_the_offline_method_shows(text: str) -> None:
    pieces, whole, _ = write(text)
    assert pieces == whole == clean_answer(text)


@given(TEXTS, st.lists(st.sampled_from(["b", "a\n", ", "]), max_size=2))
def test_an_answer_of_several_lines(text: str, stops: list[str]) -> None:
    pieces, whole, _ = write(text, tuple(stops), lines=True)
    body = text.lstrip()
    cuts = [at for stop in stops if (at := body.find(stop)) >= 0]
    assert pieces == whole == clean_answer(body[: min(cuts)] if cuts else body, lines=True)


ONE_LINE = st.text(CHARACTERS, min_size=1, max_size=3).filter(lambda s: s.splitlines() == [s])


@given(TEXTS, st.lists(ONE_LINE, max_size=3))
@example("a漢a", ["漢", "a漢a"])
def test_stop_strings_cut(text: str, stops: list[str]) -> None:
    pieces, whole, _ = write(text, tuple(stops))
    body = text.lstrip()
    # the one that is complete first ends the text, though another may have begun before it
    written = (body[:n] for n in range(len(body) + 1))
    read = next((part for part in written if any(stop in part for stop in stops)), "")
    kept = body[: min(at for stop in stops if (at := read.find(stop)) >= 0)] if read else body
    assert pieces == whole == clean_answer(kept)
    assert not any(stop in whole for stop in stops)


def test_writing_ends_at_a_second_line_and_at_a_stop_string() -> None:
    assert write("\n one\ntwo")[1:] == ("one", 6)
    assert write("one END two", ("END",))[1:] == ("one", 7)
    assert write("one END two")[1:] == ("one END two", 11)


def test_nothing_is_shown_that_may_still_change() -> None:
    writer = AnswerText(decode, ["END"])
    shown = [writer.push(token) for token in "é EN".encode()]
    assert shown == ["", "é", "", "", ""]
    assert writer.push(ord("x")) == " ENx"


@given(TEXTS, st.lists(st.text(CHARACTERS, min_size=1, max_size=4), max_size=3))
def test_held_back_is_the_longest_beginning_of_a_stop(text: str, stops: list[str]) -> None:
    ends = [n for n in range(1, len(text) + 1) for s in stops if n < len(s) and s[:n] == text[-n:]]
    assert held_back(text, stops) == max(ends, default=0)


@pytest.mark.parametrize(
    ("question", "text", "same"),
    [
        ("who is it ?", "It is a king.", True),
        ("кто это ?", "It is a king.", False),
        ("что такое GPU ?", "A GPU is a processor.", True),
        ("誰ですか", "王です", True),
        ("1 + 1 = ?", "It is a king.", True),
    ],
)
def test_scripts(question: str, text: str, same: bool) -> None:
    assert share_a_script(question, [Passage("1", text)]) is same
    assert not share_a_script(question, [])
