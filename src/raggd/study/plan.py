"""The cells of a study, where their records lie, and whether a record still fits. No torch here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raggd.assembly import POCKET, Assembly
from raggd.data.benchmarks import SPLITS, find_file
from raggd.data.sources import HUB
from raggd.evaluation.identity import deciding_values
from raggd.files import file_hash
from raggd.methods.spec import FILES_OF
from raggd.records import RaggdError, content_id, require_known
from raggd.study.settings import StudySettings

RECORD_FORMAT = "4"
"""Changes with what a record holds: older records are then joined anew from their parts."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One entry of the study's grid."""

    seed: int
    backbone: str
    retriever: str
    benchmark: str
    method: str

    @property
    def folder(self) -> str:
        """Folder of the run that the cell belongs to, below the study's folder."""
        return run_folder(self.backbone, self.retriever, self.seed)

    @property
    def path(self) -> str:
        """Its run record, below the study's folder."""
        return f"{self.folder}/{self.benchmark}-{self.method}.json"


def run_folder(backbone: str, retriever: str, seed: int) -> str:
    """Return the folder of one run of the study, below the study's folder."""
    return f"{backbone}/{retriever}/seed-{seed}"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the study to work on; an empty field leaves all in."""

    backbones: Sequence[str] = ()
    retrievers: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    methods: Sequence[str] = ()

    def check(self, study: StudySettings) -> None:
        """Refuse names that the study does not have.

        Args:
            study: the settings.
        """
        known = {
            "backbones": [entry.name for entry in study.backbones],
            "retrievers": [entry.name for entry in study.retrievers],
            "benchmarks": list(study.evaluation.benchmarks),
            "methods": sorted({m for entry in study.backbones for m in entry.methods}),
        }
        for kind, names in known.items():
            for name in getattr(self, kind):
                require_known(f"{kind[:-1]} of the study", name, names)

    def holds(self, cell: Cell) -> bool:
        """Return whether a cell belongs to the piece."""
        pairs = (
            (self.backbones, cell.backbone),
            (self.retrievers, cell.retriever),
            (self.benchmarks, cell.benchmark),
            (self.methods, cell.method),
        )
        return all(not wanted or name in wanted for wanted, name in pairs)


def all_cells(study: StudySettings, part: Part | None = None) -> list[Cell]:
    """List the cells of a study.

    Args:
        study: the settings.
        part: the piece to list; None lists all.

    Returns:
        The cells, in the order of the file.
    """
    cells = [
        Cell(seed, backbone.name, retriever.name, benchmark, method)
        for seed in study.seeds
        for backbone in study.backbones
        for retriever in study.retrievers
        for benchmark in study.evaluation.benchmarks
        for method in backbone.methods
    ]
    return [cell for cell in cells if part is None or part.holds(cell)]


def _corpus_state(path: Path) -> Iterator[str]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    yield from (f"{file.name} {file.stat().st_size}" for file in files)


@dataclass
class Identities:
    """Says of each cell what its record must have been made from; files are hashed once."""

    study: StudySettings
    _files: dict[Path, str] = field(default_factory=dict)
    _data: dict[str, str] = field(default_factory=dict)

    def _hash(self, path: Path) -> str:
        if path not in self._files:
            self._files[path] = file_hash(path) if path.is_file() else "missing"
        return self._files[path]

    def _data_hash(self, parts: Assembly, benchmark: str) -> str:
        if parts.settings.data.folder in {HUB, POCKET}:
            return parts.settings.data.folder  # published once; looking would download
        if benchmark not in self._data:
            files = [find_file(parts.source, benchmark, split) for split in SPLITS]
            hashes = [self._hash(path) for path in files if path]
            self._data[benchmark] = content_id(*hashes, *_corpus_state(parts.corpus))
        return self._data[benchmark]

    def of(self, cell: Cell) -> str:
        """Return the hash of what decides a cell's answers, as far as files and settings show it.

        Args:
            cell: of the study.

        Returns:
            16 hexadecimal digits, stored in the record as the hash ``cell``.

        Raises:
            RaggdError: data or weights cannot be found.
        """
        settings = self.study.run_settings(cell.backbone, cell.retriever, cell.seed)
        parts = Assembly(settings)
        files = FILES_OF[cell.method]
        weights = [self._hash(parts.weights / name) for name in files] if files else []
        sampled = settings.evaluation
        values = (
            cell.method,
            settings.backbone.name,
            settings.retrieval.model_dump_json(exclude_defaults=True),
            deciding_values(settings),
            str(0 if cell.benchmark in sampled.whole else sampled.questions),
            str((sampled.draws, sampled.support, sampled.seed)),
            str(settings.target.demonstrations),
            self._data_hash(parts, cell.benchmark),
        )
        return content_id(RECORD_FORMAT, *values, *weights)


def recorded_identity(path: Path) -> str:
    """Return the hash ``cell`` of a record; empty if there is none or it cannot be read."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["hashes"]["cell"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def finished_cells(out: Path, cells: Collection[Cell], identities: Identities) -> set[Cell]:
    """Find the cells whose record is there and was made from what the study now names.

    Args:
        out: the study's folder.
        cells: to look at.
        identities: of the study.

    Returns:
        The finished ones.
    """
    found = set()
    for cell in cells:
        recorded = recorded_identity(out / cell.path)
        try:
            if recorded and recorded == identities.of(cell):
                found.add(cell)
        except RaggdError:  # e.g. the data are not here: the cell cannot be vouched for
            continue
    return found


def unfinished_cells(out: Path, cells: Sequence[Cell], identities: Identities) -> list[Cell]:
    """Find the cells that are still to be computed.

    Args:
        out: the study's folder.
        cells: to look at.
        identities: of the study.

    Returns:
        Those that are not among `finished_cells`, in order.
    """
    finished = finished_cells(out, cells, identities)
    return [cell for cell in cells if cell not in finished]
