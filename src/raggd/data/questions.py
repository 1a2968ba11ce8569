"""Question files in FlashRAG's layout: one ``{"id", "question", "golden_answers"}`` per line.

One's own questions may leave out the id and give one ``"answer"``; their task may have any name.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raggd.data.text import normal_text
from raggd.files import read_json_lines
from raggd.records import Question, RaggdError

_JSON_NAMES = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


class QuestionWarning(UserWarning):
    """A question file holds questions that cannot be used, which were left out."""


def _is_spelled(listed: Any) -> bool:
    # Published files (NQ, TriviaQA) hold lists that were written as text and read as a sequence:
    # of "['Huey Smith']" each letter once, brackets too, beside the aliases that stayed whole.
    return isinstance(listed, list) and "[" in listed and "]" in listed


def _is_list_as_text(answer: str) -> bool:
    # "['Paris', 'Paname']": no answer of a model is ever that.
    try:
        return answer[:1] == "[" and isinstance(ast.literal_eval(answer), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _text(value: Any, what: str, where: str) -> str:
    if isinstance(value, str):
        return normal_text(value).strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise RaggdError(
        f"{where}: {what} is {_JSON_NAMES.get(type(value), 'no text')}: expected text."
    )


def _answers(listed: Any, where: str) -> tuple[str, ...]:
    each = listed if isinstance(listed, list | tuple) else [listed]
    found = [_text(answer, "an answer", where) for answer in each]
    if any(map(_is_list_as_text, found)):
        raise RaggdError(f"{where}: an answer is a list written as text: write it as a list.")
    if _is_spelled(listed):  # any passage holds some letter, and would count as evidence
        found = [answer for answer in found if len(answer) > 1]
    return tuple(dict.fromkeys(filter(None, found)))


def parse_question(
    value: Mapping[str, Any], *, task: str, where: str, fallback_id: str = ""
) -> Question:
    """Turn one object into a question.

    Args:
        value: FlashRAG's ``{"id", "question", "golden_answers": [...]}``, or ``"answer"`` for the
            last; other keys are ignored.
        task: the benchmark's name; ids are made unique across tasks by ``task:`` before them.
        where: file and line, for the error message.
        fallback_id: id of a question that has none; empty: it must have one.

    Returns:
        The question, in the normal form of text; blank and repeated answers are dropped, and the
        letters of a list that came split into its characters (``"["`` and ``"]"`` are among the
        answers).

    Raises:
        RaggdError: a key is missing or holds something else than text or a number, the question
            is empty, or no answer is left.
    """
    listed = value.get("golden_answers", value.get("answer"))
    name = value.get("id")
    name = fallback_id or None if name is None or name == "" else name
    named = {"id": name, "question": value.get("question")}
    for key, held in {**named, "golden_answers": listed}.items():
        if held is None:
            raise RaggdError(
                f'{where}: no "{key}". Expected {{"id", "question", "golden_answers": [...]}}.'
            )
    name = _text(named["id"], "the id", where)
    text = _text(named["question"], "the question", where)
    if not text:
        raise RaggdError(f"{where}: question '{name}' is empty. Give it a text or remove the line.")
    answers = _answers(listed, where)
    if not answers:
        raise RaggdError(f"{where}: question '{name}' has no answer. Add one or remove the line.")
    prefix = f"{task}:" if task else ""
    full = name if name.startswith(prefix) else prefix + name
    return Question(id=full, text=text, answers=answers, task=task)


def read_questions(path: Path, *, task: str) -> list[Question]:
    """Read a FlashRAG question file.

    Args:
        path: a ``.jsonl`` or ``.jsonl.gz`` file.
        task: the task that its questions belong to, a benchmark's or one's own.

    Returns:
        The questions, in the order of the file. Left out, with a `QuestionWarning` that counts
        them, are those that have only single letters of a split list for an answer.

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
