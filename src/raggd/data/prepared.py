"""The prepared file: questions with their passages and gold answers, all that training reads.

Made once where the corpus lies; after that, training needs no index and no network. JSON Lines, one
question a line, packed where the name ends in ``.gz``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raggd.files import replacing
from raggd.records import Hit, Passage, Question, RaggdError, content_id


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
    text = "".join(_line(row) + "\n" for row in rows)
    packed = path.suffix.lower() == ".gz"
    with replacing(path) as temporary:
        data = text.encode()
        temporary.write_bytes(gzip.compress(data, compresslevel=9, mtime=0) if packed else data)


_ROW = TypeAdapter(Prepared)


def read_prepared(path: Path) -> list[Prepared]:
    """Read what `write_prepared` wrote, packed or not, in order; a damaged line is named."""
    if not path.is_file():
        raise RaggdError(
            f"no prepared file at {path}: make one with `raggd data prepare --out {path}`."
        )
    rows: list[Prepared] = []
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # whatever its name
        with gzip.open(path) if packed else path.open("rb") as lines:
            rows.extend(map(_ROW.validate_json, lines))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise RaggdError(
            f"{path}, line {len(rows) + 1}: not a prepared question ({field or 'the line'}: "
            f"{first['msg']}). Make the file again with `raggd data prepare`."
        ) from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RaggdError(
            f"{path}, line {len(rows) + 1}: the file is damaged. Make it again with `raggd data "
            "prepare`."
        ) from error
    if not rows:
        raise RaggdError(f"{path} holds no question: make it again with `raggd data prepare`.")
    return rows


def prepared_id(rows: Sequence[Prepared]) -> str:
    """Return a hash of everything in a prepared file."""
    return content_id(*map(_line, rows))


class PreparedRetriever:
    """Finds the passages that `raggd data prepare` wrote for a question; knows no other."""

    def __init__(self, path: Path) -> None:
        self._path, self._all = path, read_prepared(path)
        self._rows = {row.question: row for row in self._all}
        self._passages = {p.id: p for row in self._all for p in (*row.passages, *row.near)}
        self._ids = sorted(self._passages)
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

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._ids)

    def passage_at(self, row: int) -> Passage:
        """Return a passage by its place, 0 to ``len(self) - 1``."""
        return self._passages[self._ids[row]]
