"""One's own answered questions: from a file, from pairs, from dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raggd.data.questions import parse_question
from raggd.files import read_json_lines
from raggd.records import Demonstration, Question, RaggdError, SupportSet

OWN_TASK = "own"
"""The task of one's own demonstrations, when it has no other name."""
NOBODY = SupportSet(OWN_TASK, (Demonstration("none", "none", (), "none"),))
"""Stands in where a method that reads no demonstrations is asked to adapt."""

Shown = Question | tuple[str, str] | Mapping[str, Any]
"""An answered question: a `Question`, ``(question, answer)``, or ``{"question", "answer"}``."""

EXPECTED = '{"question": "...", "answer": "..."}'


def _parsed(value: Mapping[str, Any], number: int, where: str) -> Question:
    if value.get("golden_answers", value.get("answer")) is None:
        raise RaggdError(f"{where}: the demonstration has no answer. Expected {EXPECTED}.")
    return parse_question(value, task=OWN_TASK, where=where, fallback_id=f"line-{number}")


def read_demonstrations(path: Path) -> list[Question]:
    """Read answered questions from JSON Lines.

    Args:
        path: lines of ``{"question": ..., "answer": ...}`` or FlashRAG's ``golden_answers``.

    Returns:
        The questions with their answers.

    Raises:
        RaggdError: there is none, or one lacks its question or answer.
    """
    questions = [
        _parsed(value, number, f"{path}, line {number}") for number, value in read_json_lines(path)
    ]
    if not questions:
        raise RaggdError(f"{path} holds no demonstrations: expected lines such as {EXPECTED}.")
    return questions


def parse_demonstrations(shown: Iterable[Shown]) -> list[Question]:
    """Turn answered questions of any form into questions with answers.

    Args:
        shown: `Question`, ``(question, answer)`` or ``{"question": ..., "answer": ...}``.

    Returns:
        The questions, in order.

    Raises:
        RaggdError: there is none, or one lacks its question or answer.
    """
    questions = []
    for number, value in enumerate(shown, start=1):
        where = f"demonstration {number}"
        if isinstance(value, Question):
            questions.append(value)
        elif isinstance(value, Mapping):
            questions.append(_parsed(value, number, where))
        elif isinstance(value, tuple | list) and len(value) == 2:
            pair = {"question": value[0], "answer": value[1]}
            questions.append(_parsed(pair, number, where))
        else:
            raise RaggdError(
                f"{where} is a {type(value).__name__}: expected (question, answer) or {EXPECTED}."
            )
    if not questions:
        raise RaggdError(f"no demonstrations were given: expected at least one {EXPECTED}.")
    return questions
