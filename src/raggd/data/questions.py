"""Question files in FlashRAG's layout: one ``{"id", "question", "golden_answers"}`` per line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from raggd.files import read_json_lines
from raggd.records import Question, RaggdError


class QuestionWarning(UserWarning):
    """A question file holds questions that cannot be used, which were left out."""


def _is_spelled(listed: Any) -> bool:
    # Published files (NQ, TriviaQA) hold lists that were written as text and read as a sequence:
    # of "['Huey Smith']" each letter once, brackets too, beside the aliases that stayed whole.
    return isinstance(listed, list) and "[" in listed and "]" in listed


def _answers(listed: Any) -> tuple[str, ...]:
    found = [str(answer).strip() for answer in (listed if isinstance(listed, list) else [listed])]
    if _is_spelled(listed):  # any passage holds some letter, and would count as evidence
        found = [answer for answer in found if len(answer) > 1]
    return tuple(dict.fromkeys(filter(None, found)))


def parse_question(value: dict[str, Any], *, task: str, where: str) -> Question:
    """Turn one FlashRAG object into a question.

    Args:
        value: ``{"id", "question", "golden_answers"}``; other keys are ignored.
        task: the benchmark's name; ids are made unique across tasks by ``task:`` before them.
        where: file and line, for the error message.

    Returns:
        The question; blank and repeated answers are dropped, and the letters of a list that came
        split into its characters (``"["`` and ``"]"`` are among the answers).

    Raises:
        RaggdError: a key is missing, the question is empty, or no answer is left.
    """
    for key in ("id", "question", "golden_answers"):
        if value.get(key) is None:
            raise RaggdError(
                f'{where}: no "{key}". Expected {{"id", "question", "golden_answers": [...]}}.'
            )
    name, text, listed = str(value["id"]), str(value["question"]).strip(), value["golden_answers"]
    if not text:
        raise RaggdError(f"{where}: question '{name}' is empty. Give it a text or remove the line.")
    answers = _answers(listed)
    if not answers:
        raise RaggdError(f"{where}: question '{name}' has no answer. Add one or remove the line.")
    prefix = f"{task}:" if task else ""
    full = name if name.startswith(prefix) else prefix + name
    return Question(id=full, text=text, answers=answers, task=task)


def read_questions(path: Path, *, task: str) -> list[Question]:
    """Read a FlashRAG question file.

    Args:
        path: a ``.jsonl`` or ``.jsonl.gz`` file.
        task: the task that its questions belong to.

    Returns:
        The questions, in the order of the file. Left out, with a `QuestionWarning` that counts
        them, are those that have only single letters of a split list for an answer.

    Raises:
        RaggdError: the file is missing or holds none, a line is not a question, an id is repeated.
    """
    questions: dict[str, Question] = {}
    spelled = 0
    for number, value in read_json_lines(path):
        if _is_spelled(listed := value.get("golden_answers")) and not _answers(listed):
            spelled += 1
            continue
        question = parse_question(value, task=task, where=f"{path}, line {number}")
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
