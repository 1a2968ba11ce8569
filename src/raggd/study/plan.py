"""The cells of a study, where their records lie, and whether a record still fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raggd.assembly import POCKET, Assembly
from raggd.data.benchmarks import HUB, SPLITS, find_file, scored_questions
from raggd.evaluation.runner import deciding_values
from raggd.files import file_hash
from raggd.methods.spec import BASE_FILE, PROMPT_FILE, SPECS, weights_hash
from raggd.records import RaggdError, content_id, require_known
from raggd.retrieval.corpus import passages_hash
from raggd.study.settings import StudySettings

RECORD_FORMAT = "5"
"""Changes with what a record holds: older records are then joined anew from their parts."""
PUBLISHED = {
    "nq": 3610,
    "triviaqa": 11313,
    "popqa": 14267,
    "hotpotqa": 7405,
    "2wikimultihopqa": 12576,
    "musique": 2417,
    "bamboogle": 125,
}
"""Questions of FlashRAG's test or dev sets, which are counted without fetching them."""
Pair = tuple[str, str]
"""Label of a backbone and name of a method."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One entry of the study's grid."""

    seed: int
    backbone: str
    retriever: str
    benchmark: str
    method: str

    @property
    def pair(self) -> Pair:
        """What decides how long a question takes."""
        return (self.backbone, self.method)

    @property
    def folder(self) -> str:
        """Folder of the run that the cell belongs to, below the study's folder."""
        return f"{self.backbone}/{self.retriever}/seed-{self.seed}"

    @property
    def path(self) -> str:
        """Its run record, below the study's folder."""
        return f"{self.folder}/{self.benchmark}-{self.method}.json"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the study to work on; an empty field leaves all in."""

    backbones: Sequence[str] = ()
    retrievers: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    methods: Sequence[str] = ()

    def check(self, study: StudySettings) -> None:
        """Refuse names that the study does not have."""
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
        kinds = ("backbone", "retriever", "benchmark", "method")
        wanted = {kind: getattr(self, f"{kind}s") for kind in kinds}
        return all(not names or getattr(cell, kind) in names for kind, names in wanted.items())


def all_cells(study: StudySettings, part: Part | None = None) -> list[Cell]:
    """Return the cells of a study, or of a piece of it, in the order of the file."""
    cells = [
        Cell(seed, backbone.name, retriever.name, benchmark, method)
        for seed in study.seeds
        for backbone in study.backbones
        for retriever in study.retrievers
        for benchmark in study.evaluation.benchmarks
        for method in backbone.methods
    ]
    return [cell for cell in cells if part is None or part.holds(cell)]


DECIDING = {
    "retriever": None,
    "encoder": "bm25",
    "precision": "bm25",
    "index_factory": "bm25",
    "top_k": None,
    "noise": None,
}
"""Settings of the retrieval that decide the evidence; some do not for the retriever beside them.
Listed one by one, so that a new setting elsewhere leaves finished work valid."""


class Identities:
    """Says of each cell what its record must have been made from; files are hashed once."""

    def __init__(self, study: StudySettings) -> None:
        """Look at nothing yet."""
        self.study = study
        self._file, self._corpus = cache(file_hash), cache(passages_hash)
        self._weights = cache(_weight_identity)

    def _data(self, parts: Assembly, benchmark: str) -> list[str]:
        # the embedded data and the hub's are published once; looking would download
        named = parts.settings.data
        found = [named.folder] if named.folder in {HUB, POCKET} else []
        if not found:
            files = [find_file(parts.source, benchmark, split) for split in SPLITS]
            found += [self._file(path) for path in files if path]
        if named.corpus or named.folder not in {HUB, POCKET}:
            found.append(self._corpus(parts.corpus))
        return found

    def of(self, cell: Cell) -> str:
        """Return the hash of what decides a cell's answers, as far as files and settings show it.

        It is stored in the record as the hash ``cell``: 16 hexadecimal digits.

        Raises:
            RaggdError: data or weights cannot be found.
        """
        settings = self.study.run_settings(cell.backbone, cell.retriever, cell.seed)
        parts, retrieval, sampled = Assembly(settings), settings.retrieval, settings.evaluation
        files = SPECS[cell.method].files if cell.method in SPECS else ()
        decided = {
            "format": RECORD_FORMAT,
            "method": cell.method,
            "benchmark": cell.benchmark,
            "backbone": settings.backbone.name,
            "retrieval": {
                name: getattr(retrieval, name)
                for name, unused in DECIDING.items()
                if retrieval.retriever != unused
            },
            "answering": deciding_values(settings),
            "questions": 0 if cell.benchmark in sampled.whole else sampled.questions,
            "draws": (sampled.draws, sampled.support, sampled.seed),
            "demonstrations": settings.target.demonstrations,
            "data": self._data(parts, cell.benchmark),
            "weights": {name: self._weights(parts.weights / name) for name in files},
        }
        return content_id(json.dumps(decided, sort_keys=True))

    def fits(self, out: Path, cell: Cell) -> bool:
        """Return whether a cell's record is there and was made from what the study now names."""
        try:
            record = json.loads((out / cell.path).read_text(encoding="utf-8"))
            return bool(record["hashes"]["cell"] == self.of(cell))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        except RaggdError:  # e.g. the data are not here: the cell cannot be vouched for
            return False


def _weight_identity(path: Path) -> str:
    # what records call a weight file: a fingerprint of its numbers, or its hash
    if not path.is_file():
        return "missing"
    if path.name == BASE_FILE:
        from raggd.adaptation.base_adapter import load_base

        return load_base(path).fingerprint
    if path.name == PROMPT_FILE:
        from raggd.adaptation.prompt_tuning import load_prefix

        return load_prefix(path).fingerprint
    return weights_hash(path)


def cell_size(study: StudySettings, parts: Assembly, benchmark: str) -> int:
    """Return how many questions a cell of a benchmark answers; the published number on the hub."""
    limit = 0 if benchmark in study.evaluation.whole else study.evaluation.questions
    if parts.settings.data.folder == HUB:
        size = PUBLISHED.get(benchmark, limit)
    else:
        size = len(scored_questions(parts.source, benchmark))
    return min(limit, size) if limit else size


def draws_of(study: StudySettings, size: int) -> int:
    """Return how many part files a cell of so many questions has."""
    return 1 if study.evaluation.support == "query" else max(1, min(study.evaluation.draws, size))
