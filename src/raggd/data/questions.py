"""Questions with their answers: files in FlashRAG's layout, and one's own from anywhere.

A file holds one ``{"id", "question", "golden_answers"}`` per line. One's own questions may leave
out the id and give one ``"answer"``; their task may have any name.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raggd.data.shown import parsed_json
from raggd.data.text import text_of
from raggd.files import read_json_lines
from raggd.records import Demonstration, Question, RaggdError, SupportSet


class QuestionWarning(UserWarning):
    """A question file holds questions that cannot be used, which were left out."""


def _listed(value: Mapping[str, Any]) -> Any:
    listed = value.get("golden_answers")
    return value.get("answer") if listed is None else listed


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_spelled(listed: Any) -> bool:
    # Published files (NQ, TriviaQA) hold lists that were written as text and read as a sequence:
    # of "['Huey Smith']" each letter once, brackets too, beside the aliases that stayed whole.
    return isinstance(listed, list) and "[" in listed and "]" in listed


def _is_list_as_text(answer: str, alone: bool) -> bool:
    # "['Paris', 'Paname']": no answer of a model is ever that; a list of JSON alone may be a form.
    if answer[:1] != "[" or (alone and parsed_json(answer) is not None):
        return False
    try:
        return isinstance(ast.literal_eval(answer), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _answers(listed: Any, where: str) -> tuple[str, ...]:
    each = listed if _is_list(listed) else [listed]
    found = [text_of(answer, "an answer", where).strip() for answer in each]
    if any(_is_list_as_text(answer, not _is_list(listed)) for answer in found):
        raise RaggdError(f"{where}: an answer is a list written as text: write it as a list.")
    if _is_spelled(listed):  # any passage holds some letter, and would count as evidence
        found = [answer for answer in found if len(answer) > 1]
    return tuple(dict.fromkeys(filter(None, found)))


def parse_question(
    value: Mapping[str, Any], *, task: str, where: str, fallback_id: str = ""
) -> Question:
    """Turn ``{"id", "question", "golden_answers": [...]}`` into a question; other keys are ignored.

    ``"answer"`` stands for the last. Ids are made unique across tasks by ``task:`` before them; a
    question without one gets `fallback_id`, if there is that. `where` is for the error message.
    Blank and repeated answers are dropped, and the letters of a list that came split into its
    characters (``"["`` and ``"]"`` are among the answers).

    Raises:
        RaggdError: a key is missing or holds something else than text or a number, the question
            is empty, or no answer is left.
    """
    listed = _listed(value)
    name = value.get("id")
    name = fallback_id or None if name is None or name == "" else name
    named = {"id": name, "question": value.get("question")}
    for key, held in {**named, "golden_answers": listed}.items():
        if held is None:
            raise RaggdError(
                f'{where}: no "{key}". Expected {{"id", "question", "golden_answers": [...]}}.'
            )
    name = text_of(named["id"], "the id", where).strip()
    text = text_of(named["question"], "the question", where).strip()
    if not text:
        raise RaggdError(f"{where}: question '{name}' is empty. Give it a text or remove the line.")
    answers = _answers(listed, where)
    if not answers:
        raise RaggdError(f"{where}: question '{name}' has no answer. Add one or remove the line.")
    prefix = f"{task}:" if task else ""
    full = name if name.startswith(prefix) else prefix + name
    return Question(id=full, text=text, answers=answers, task=task)


def read_questions(path: Path, *, task: str) -> list[Question]:
    """Read a question file (``.jsonl``, ``.jsonl.gz``); `task` is a benchmark's name or one's own.

    Left out, with a `QuestionWarning` that counts them, are questions that have only single letters
    of a split list for an answer.

    Raises:
        RaggdError: the file is missing or holds none, a line is not a question, an id is repeated.
    """
    questions: dict[str, Question] = {}
    spelled = 0
    for number, value in read_json_lines(path):
        where = f"{path}, line {number}"
        if _is_spelled(listed := value.get("golden_answers")) and not _answers(listed, where):
            spelled += 1
            continue
        question = parse_question(value, task=task, where=where, fallback_id=f"line-{number}")
        if question.id in questions:
            raise RaggdError(
                f"{path}, line {number}: the id '{question.id}' occurs twice. Ids must be unique."
            )
        questions[question.id] = question
    if not questions:
        raise RaggdError(f"{path} holds no question: expected one JSON object per line.")
    if spelled:
        warnings.warn(
            f"{path}: questions left out since their answers are single letters: {spelled}.",
            QuestionWarning,
            stacklevel=2,
        )
    return list(questions.values())


OWN_TASK = "own"  # the task of one's own demonstrations, when it has no other name
NOBODY = SupportSet(OWN_TASK, (Demonstration("none", "none", (), "none"),))
"""Stands in where a method that reads no demonstrations is asked to adapt."""

Shown = Question | tuple[str, str] | Mapping[str, Any]
"""An answered question: a `Question`, ``(question, answer)``, or ``{"question", "answer"}``."""

_EXPECTED = '{"question": "...", "answer": "..."}'


def read_demonstrations(path: Path) -> list[Question]:
    """Read answered questions, ``{"question", "answer"}`` or FlashRAG's, from JSON Lines."""
    lines = ((f"{path}, line {n}", n, value) for n, value in read_json_lines(path))
    return _answered(lines, f"{path} holds no demonstrations: expected lines such as {_EXPECTED}.")


def parse_demonstrations(shown: Iterable[Shown]) -> list[Question]:
    """Turn answered questions of any form into `Question`; refuse none, and what is no pair."""
    if not isinstance(shown, Iterable) or isinstance(shown, Mapping | str | bytes):
        raise RaggdError(
            f"the demonstrations are a {type(shown).__name__}: expected a list of (question, "
            f"answer) or {_EXPECTED}, or the path of a file of such lines."
        )
    given = ((f"demonstration {n}", n, value) for n, value in enumerate(shown, start=1))
    return _answered(given, f"no demonstrations were given: expected at least one {_EXPECTED}.")


def _check_shown(value: Mapping[str, Any], where: str) -> None:
    if _listed(value) is None:
        found = ", ".join(str(key)[:40] for key in list(value)[:10]) or "(none)"
        raise RaggdError(
            f"{where}: the demonstration has no answer. Expected {_EXPECTED}, found the keys "
            f"{found}."
        )
    if value.get("passages"):
        raise RaggdError(
            f'{where}: "passages" of a demonstration are found in the documents: leave them out. '
            "(A request to the server may bring its own, and so may a raggd.SupportSet.)"
        )
    one, several = value.get("answer"), value.get("golden_answers")
    if one is not None and several is not None:
        listed = several if _is_list(several) else [several]
        if one != several and str(one) not in map(str, listed):
            raise RaggdError(f'{where}: "answer" and "golden_answers" differ: leave one out.')


def _answered(values: Iterable[tuple[str, int, Shown]], none: str) -> list[Question]:
    questions = []
    for where, number, value in values:
        if isinstance(value, Question):
            questions.append(value)
            continue
        if isinstance(value, tuple | list) and len(value) == 2:
            value = {"question": value[0], "answer": value[1]}
        if not isinstance(value, Mapping):
            raise RaggdError(
                f"{where} is a {type(value).__name__}: expected (question, answer) or {_EXPECTED}."
            )
        _check_shown(value, where)
        name = f"line-{number}"
        questions.append(parse_question(value, task=OWN_TASK, where=where, fallback_id=name))
    if not questions:
        raise RaggdError(none)
    return questions
