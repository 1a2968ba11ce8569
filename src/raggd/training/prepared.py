"""A prepared file in the place of an index: the passages of its own questions, by their text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from raggd.data.prepared import prepared_id, read_prepared
from raggd.records import Hit, Passage, Question, RaggdError


class PreparedRetriever:
    """Finds the passages that a prepared file holds for a question; knows no other question."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Args:
            path: what `raggd data prepare` wrote.
        """
        rows = read_prepared(path)
        self._path = path
        self._rows = {row.question: row for row in rows}
        self._passages = {p.id: p for row in rows for p in (*row.passages, *row.near)}
        self._ids = sorted(self._passages)
        self.fingerprint = f"prepared-{prepared_id(rows)}"

    def questions(self, task: str) -> list[Question]:
        """Return the questions of a task.

        Args:
            task: the benchmark.

        Returns:
            Its questions, as prepared.

        Raises:
            RaggdError: there are none.
        """
        rows = [row for row in self._rows.values() if row.task == task]
        if not rows:
            known = ", ".join(sorted({row.task for row in self._rows.values()}))
            raise RaggdError(f"{self._path} holds no question of '{task}' (only of {known}).")
        return [Question(row.id, row.question, (row.gold, *row.answers), task) for row in rows]

    def search(
        self,
        queries: Sequence[str],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Hit]]:
        """Look up the passages of prepared questions.

        Args:
            queries: texts of questions in the file.
            k: most passages per question.
            exclude: for each, ids of passages that must not be returned.

        Returns:
            The passages of each, best first; those that hold no answer where none does.

        Raises:
            RaggdError: a question is not in the file.
        """
        found = []
        for number, query in enumerate(queries):
            row = self._rows.get(query)
            if row is None:
                raise RaggdError(f"{self._path} holds no passages for '{query}': prepare it again.")
            left_out = exclude[number] if exclude else ()
            passages = [p for p in row.passages or row.near if p.id not in left_out]
            found.append([Hit(p, 1.0 / (1 + rank)) for rank, p in enumerate(passages[:k])])
        return found

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Look passages up by id.

        Args:
            ids: of passages in the file.

        Returns:
            The passages, in the order of `ids`.
        """
        return [self._passages[name] for name in ids]

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._ids)

    def passage_at(self, row: int) -> Passage:
        """Return a passage by its place, 0 to ``len(self) - 1``."""
        return self._passages[self._ids[row]]
