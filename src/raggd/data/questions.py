"""Questions with their answers: files in FlashRAG's layout, one's own, and prepared files.

A prepared file, packed where its name ends in ``.gz``, has passages beside them: made once where
the corpus lies, it is all that training reads, without index and network.
"""

from __future__ import annotations

import ast
import gzip
import json
import warnings
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raggd.data.shown import parsed_json
from raggd.data.text import text_of
from raggd.files import read_json_lines, replacing
from raggd.records import Demonstration, Hit, Passage, Question, RaggdError, SupportSet, content_id

_EXPECTED = '{"question": "...", "answer": "..."}'


class QuestionWarning(UserWarning):
    """A question file holds questions that cannot be used, which were left out."""


def _each(listed: Any) -> Sequence[Any]:
    return listed if isinstance(listed, list | tuple) else [listed]


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
    each = _each(listed)
    found = [text_of(answer, "an answer", where).strip() for answer in each]
    if any(_is_list_as_text(answer, each is not listed) for answer in found):
        raise RaggdError(f"{where}: an answer is a list written as text: write it as a list.")
    if _is_spelled(listed):  # any passage holds some letter, and would count as evidence
        found = [answer for answer in found if len(answer) > 1]
    return tuple(dict.fromkeys(filter(None, found)))


def _question(value: Mapping[str, Any], task: str, where: str, number: int) -> Question:
    # ids are made unique across tasks by the task before them; a question without one has a number
    asked, listed = value.get("question"), value.get("golden_answers")
    listed = value.get("answer") if listed is None else listed
    if asked is None or listed is None:
        lacks = '"question"' if asked is None else '"golden_answers" and no "answer"'
        found = ", ".join(str(key)[:40] for key in list(value)[:10]) or "(none)"
        raise RaggdError(f"{where}: no {lacks}. Expected {_EXPECTED}, found the keys {found}.")
    name = value.get("id")
    unnamed = name is None or name == ""
    name = text_of(f"line-{number}" if unnamed else name, "the id", where).strip()
    text = text_of(asked, "the question", where).strip()
    answers = _answers(listed, where)
    if not text or not answers:
        lacks = "has no answer. Add one" if text else "is empty. Give it a text"
        raise RaggdError(f"{where}: question '{name}' {lacks} or remove the line.")
    full = name if name.startswith(f"{task}:") else f"{task}:{name}"
    return Question(id=full, text=text, answers=answers, task=task)


def read_questions(path: Path, *, task: str) -> list[Question]:
    """Read a question file (``.jsonl``, ``.jsonl.gz``); `task` is a benchmark's name or one's own.

    Of ``{"id", "question", "golden_answers": [...]}`` the last may be one ``"answer"``, and the id
    may be missing; other keys, blank and repeated answers are dropped. So are the letters of a list
    that came split into its characters; questions that have no others are left out, with a
    `QuestionWarning` that counts them.

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
        question = _question(value, task, where, number)
        if question.id in questions:
            raise RaggdError(f"{where}: the id '{question.id}' occurs twice. Ids must be unique.")
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
    if value.get("passages"):
        raise RaggdError(
            f'{where}: "passages" of a demonstration are found in the documents: leave them out. '
            "(A request to the server may bring its own, and so may a raggd.SupportSet.)"
        )
    one, several = value.get("answer"), value.get("golden_answers")
    both = one is not None and several is not None
    if both and one != several and str(one) not in map(str, _each(several)):
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
        questions.append(_question(value, OWN_TASK, where, number))
    if not questions:
        raise RaggdError(none)
    return questions


@dataclass(frozen=True, slots=True)
class Prepared:
    """An answered question with evidence that holds an answer and evidence that does not."""

    id: str
    task: str  # the benchmark or source it comes from
    question: str
    answers: tuple[str, ...]  # every answer that counts as right
    gold: str  # the one to show or to train on
    passages: tuple[Passage, ...]  # retrieved, best first; empty when none of them holds an answer
    # passages retrieved for it that hold no answer: what a refusal is learned from
    near: tuple[Passage, ...]


def _line(row: Prepared) -> str:
    return json.dumps(asdict(row), ensure_ascii=False)


def write_prepared(path: Path, rows: Iterable[Prepared]) -> None:
    """Write a prepared file; equal rows give equal bytes."""
    data = "".join(_line(row) + "\n" for row in rows).encode()
    if path.suffix.lower() == ".gz":
        data = gzip.compress(data, compresslevel=9, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


_ROW = TypeAdapter(Prepared)


def read_prepared(path: Path) -> list[Prepared]:
    """Read what `write_prepared` wrote, packed or not, in order; a damaged line is named."""
    if not path.is_file():
        raise RaggdError(
            f"no prepared file at {path}: make one with `raggd data prepare --out {path}`."
        )
    rows = list[Prepared]()
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # whatever its name
        with gzip.open(path) if packed else path.open("rb") as lines:
            rows.extend(_ROW.validate_json(line.removeprefix(BOM_UTF8)) for line in lines)
        problem = "" if rows else " holds no question"
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        problem = f", line {len(rows) + 1}: not a prepared question ({field}: {first['msg']})"
    except (OSError, EOFError, zlib.error, ValueError):
        problem = f", line {len(rows) + 1}: the file is damaged"
    if problem:
        raise RaggdError(f"{path}{problem}. Make it again with `raggd data prepare`.")
    return rows


def prepared_id(rows: Sequence[Prepared]) -> str:
    """Return a hash of everything in a prepared file."""
    return content_id(*map(_line, rows))


class PreparedRetriever:
    """Finds the passages that `raggd data prepare` wrote for a question; knows no other."""

    def __init__(self, path: Path) -> None:
        self._path, self._all = path, read_prepared(path)
        self._rows = {row.question: row for row in self._all}
        passages = {p.id: p for row in self._all for p in (*row.passages, *row.near)}
        self.passages = [passages[name] for name in sorted(passages)]
        self.fingerprint = f"prepared-{prepared_id(self._all)}"

    def questions(self, task: str) -> list[Question]:
        """Return the questions of a task, or refuse where there are none."""
        rows = [row for row in self._all if row.task == task]
        if not rows:
            known = ", ".join(sorted({row.task for row in self._all}))
            raise RaggdError(f"{self._path} holds no question of '{task}' (only of {known}).")
        return [Question(row.id, row.question, (row.gold, *row.answers), task) for row in rows]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return at most `k` passages of each prepared question, best first; others are refused."""
        found = []
        for query in queries:
            row = self._rows.get(query)
            if row is None:
                raise RaggdError(f"{self._path} holds no passages for '{query}': prepare it again.")
            passages = (row.passages or row.near)[:k]
            found.append([Hit(p, 1.0 / (1 + rank)) for rank, p in enumerate(passages)])
        return found
