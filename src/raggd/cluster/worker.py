"""A worker of a study: holds a backbone, answers draws, returns part files. No Ray here."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raggd.cluster.crew import check_node, settle
from raggd.progress import silent
from raggd.provenance import versions
from raggd.records import RaggdError
from raggd.study.check import check_cells
from raggd.study.plan import Cell, Identities
from raggd.study.runner import StudyRunner
from raggd.study.settings import StudySettings


@dataclass(frozen=True)
class PartTask:
    """One method on one draw.

    Attributes:
        cell: backbone, retriever, benchmark, method, seed.
        draw: number of the draw.
        known: text of its part file where there is one: it is computed again only if it no longer
            fits.
    """

    cell: Cell
    draw: int
    known: str = field(default="", repr=False)

    @property
    def path(self) -> str:
        """Its part file, below the study's folder."""
        name = f"{self.cell.benchmark}-{self.draw:03d}-{self.cell.method}.json"
        return f"{self.cell.folder}/parts/{name}"


@dataclass(frozen=True)
class PartDone:
    """What a worker returns.

    Attributes:
        text: of the part file; empty where the benchmark has fewer draws.
        questions: that it answers.
        computed: whether it was computed now.
    """

    text: str
    questions: int
    computed: bool


class StudyWorker:
    """Answers draws of a study; what it has loaded stays for the next one."""

    def __init__(self, study: StudySettings, folder: str, threads: int) -> None:
        """Load nothing yet.

        Args:
            study: the settings.
            folder: working folder of the driver; relative paths start there.
            threads: processor threads to use; 0 leaves the number as it is.
        """
        settle(folder, threads)
        self._study = study
        self._scratch = tempfile.TemporaryDirectory(prefix="raggd-worker-")
        self._runner = StudyRunner(study, Path(self._scratch.name), silent)

    def introduce(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Say what this node has, for the driver to compare with its own.

        Args:
            cells: to be computed.

        Returns:
            ``node``, ``versions``, ``identities`` of the cells, and ``problem``: why they cannot be
            computed here, if so.
        """
        found: dict[str, Any] = {"node": platform.node(), "versions": versions(), "problem": ""}
        try:
            check_cells(self._study, cells)
            identities = Identities(self._study)
            found["identities"] = {cell.path: identities.of(cell) for cell in cells}
        except RaggdError as error:
            found |= {"problem": str(error), "identities": {}}
        return found

    def work(self, task: PartTask) -> PartDone | RaggdError:
        """Answer a draw with a method.

        Args:
            task: the work.

        Returns:
            Its part file; a `RaggdError` is returned, not raised, so that it arrives unwrapped.
        """
        try:
            return self._part(task)
        except RaggdError as error:
            return error

    def _part(self, task: PartTask) -> PartDone:
        cell, runner = task.cell, self._runner
        whole = runner.task(cell.seed, cell.retriever, cell.benchmark)
        if task.draw >= len(whole.draws):
            return PartDone("", 0, computed=False)
        path = Path(self._scratch.name) / task.path
        if task.known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(task.known, encoding="utf-8")
        parts = runner.parts_of(cell.backbone, cell.retriever, cell.seed)
        runner.part(cell, task.draw, whole, parts, lambda _: None)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return PartDone(text, len(whole.draws[task.draw]), computed=text != task.known)


def check_worker(told: Mapping[str, Any], cells: Mapping[str, str]) -> None:
    """Refuse a worker that would not compute the same.

    Args:
        told: what `StudyWorker.introduce` returned.
        cells: identities of the cells on the driver's machine, by path.

    Raises:
        RaggdError: it lacks data or weights, or has other ones, or other versions; both named.
    """
    check_node(told)
    for path, identity in cells.items():
        if told["identities"].get(path) != identity:
            raise RaggdError(
                f"the worker on node '{told['node']}' has other data or weights for {path}: give "
                "all nodes the same files at the same paths."
            )
