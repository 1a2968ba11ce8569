"""A study: its file, the cells of its grid, where their records lie, and whether one still fits.

A file has the shared sections of a run, and lists of backbones, retrievers and seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raggd.adaptation.base_adapter import load_base
from raggd.adaptation.soft_prefix import load_prefix
from raggd.assembly import POCKET, Assembly
from raggd.data.benchmarks import HUB, SPLITS, find_file, known_benchmarks, scored_questions
from raggd.data.reading import READING
from raggd.evaluation.runner import deciding_values
from raggd.files import file_hash, read_json
from raggd.methods.spec import (
    BASE_FILE,
    FILES_OF,
    METHODS,
    PROMPT_FILE,
    REFUSALS_FILE,
    SPECS,
    weights_hash,
)
from raggd.records import RaggdError, content_id, part_path, require_known
from raggd.retrieval.build import passages_hash
from raggd.settings import Place, Settings, changed, known_retriever, read_settings

_LISTED = {
    "backbone": {"name": "[[backbones]] model"},
    "retrieval": {
        "retriever": "[[retrievers]] retriever",
        "encoder": "[[retrievers]] encoder",
        "noise": "[[retrievers]] noise",
    },
    "adapter": {"weights": "[[backbones]] weights"},
    "evaluation": {"seed": "seeds"},
}
"""Settings that a study lists, one entry each, instead of naming one of them."""
_PUBLISHED = {POCKET, HUB}  # data of which there is one version


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """How folders, tables and figures call it."""


class StudyBackbone(_Entry):
    """One backbone with its weights and the methods that are run on it."""

    model: Place = ""  # as `backbone.name`: embedded, hub name or folder; empty: the same as `name`
    weights: Place = "shipped"  # as `adapter.weights`
    methods: list[str] = Field(min_length=1)


class StudyRetriever(_Entry):
    """One way to find evidence."""

    retriever: Annotated[str, AfterValidator(known_retriever)] = "bm25"
    encoder: Place = "all-minilm-l6-v2"
    noise: float = Field(default=0.0, ge=0, le=1)  # share of the passages that random ones replace


class StudySettings(Settings):
    """Everything that a study depends on. Sections are those of a run, shared by all its cells."""

    backbones: list[StudyBackbone] = Field(min_length=1)
    retrievers: list[StudyRetriever] = Field(
        default=[StudyRetriever(name="bm25")], min_length=1, validate_default=True
    )
    seeds: list[int] = Field(default=[0], min_length=1)
    """Each chooses questions and draws supports anew."""

    def run_settings(self, backbone: str, retriever: str, seed: int) -> Settings:
        """Return the settings of one run, given labels of backbone and retriever, and a seed."""
        entry = next(b for b in self.backbones if b.name == backbone)
        found = next(r for r in self.retrievers if r.name == retriever)
        settings = Settings(**{name: getattr(self, name) for name in Settings.model_fields})
        settings = changed(settings, "backbone", name=entry.model or entry.name)
        settings = changed(settings, "adapter", weights=entry.weights)
        settings = changed(settings, "retrieval", **found.model_dump(exclude={"name"}))
        return changed(settings, "evaluation", seed=seed)

    def first(self, backbone: str = "") -> Settings:
        """Return the settings of the first run, of all or of one backbone."""
        name = backbone or self.backbones[0].name
        return self.run_settings(name, self.retrievers[0].name, self.seeds[0])


def study_of(settings: Settings, methods: Sequence[str]) -> StudySettings:
    """Return the study of one run: one backbone, one retriever, one seed."""
    name, retrieval = settings.backbone.name, settings.retrieval
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).lstrip("._-") or "backbone"
    entry = StudyBackbone(
        name=label, model=name, weights=settings.adapter.weights, methods=list(methods)
    )
    kind = re.sub(r"[^A-Za-z0-9._-]+", "-", retrieval.retriever).strip("._-")
    listed = {part: getattr(retrieval, part) for part in _LISTED["retrieval"]}
    return StudySettings(
        **{part: getattr(settings, part) for part in Settings.model_fields},
        backbones=[entry],
        retrievers=[StudyRetriever(name=kind, **listed)],
        seeds=[settings.evaluation.seed],
    )


def check_benchmarks(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return the benchmarks that are named, each once; unknown ones are refused, none loaded."""
    folder = settings.data.folder
    return known_benchmarks(names, HUB if folder in _PUBLISHED else folder)


def load_study(path: Path, assignments: list[str] | None = None) -> StudySettings:
    """Read a study file, changed by ``section.name=value`` strings, and check it; load nothing."""
    study = read_settings(StudySettings, path, assignments)
    for section, places in _LISTED.items():
        for name, place in places.items():
            if name in getattr(study, section).model_fields_set:
                raise RaggdError(
                    f"{path}: '{section}.{name}' does not belong in a study file, which has "
                    f"several: give {place} instead."
                )
    check_benchmarks(study, [*study.evaluation.benchmarks, *study.evaluation.whole])
    listed = {
        "backbone": [entry.name for entry in study.backbones],
        "retriever": [entry.name for entry in study.retrievers],
        "seed": [str(seed) for seed in study.seeds],
    }
    for backbone in study.backbones:
        kind = f"method of backbone '{backbone.name}'"
        for method in backbone.methods:
            require_known(kind, method, METHODS)
        listed[kind] = backbone.methods
    for kind, names in listed.items():
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise RaggdError(f"{path}: {kind} '{repeated[0]}' is listed twice. List it once.")
    return study


# The cells of its grid.

RECORD_FORMAT = "5"  # changes with what a record holds: older ones are joined anew
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
Pair = tuple[str, str]  # label of a backbone and name of a method


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

    def part(self, draw: int) -> str:
        """Return where its answers to a draw lie, below the study's folder."""
        return f"{self.folder}/{part_path(self.benchmark, draw, self.method)}"


def all_cells(study: StudySettings, **named: Sequence[str]) -> list[Cell]:
    """Return the cells of a study in the order of the file, or those of some names alone.

    Names are of the fields of a `Cell`: ``method=["base"]``; none of a field leave all in.

    Raises:
        RaggdError: the study does not have what is named.
    """
    cells = [
        Cell(seed, backbone.name, retriever.name, benchmark, method)
        for seed in study.seeds
        for backbone in study.backbones
        for retriever in study.retrievers
        for benchmark in study.evaluation.benchmarks
        for method in backbone.methods
    ]
    chosen = cells
    for kind, names in named.items():
        known = list(dict.fromkeys(getattr(cell, kind) for cell in cells))
        for name in names:
            require_known(f"{kind} of the study", name, known)
        chosen = [cell for cell in chosen if not names or getattr(cell, kind) in names]
    return chosen


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
_EXAMPLES = {name for name, spec in SPECS.items() if spec.builder == "examples:build"}


class Identities:
    """Says of each cell what its record must have been made from; files are hashed once."""

    def __init__(self, study: StudySettings) -> None:
        self.study = study
        self._file, self._corpus = cache(file_hash), cache(passages_hash)
        self._weights = cache(_weight_identity)

    def _data(self, parts: Assembly, benchmark: str) -> list[str]:
        # the embedded data and the hub's are published once; looking would download
        named = parts.settings.data
        found = [named.folder] if named.folder in _PUBLISHED else []
        if not found:
            files = [find_file(parts.source, benchmark, split) for split in SPLITS]
            found += [self._file(path) for path in files if path]
        if named.corpus or named.folder not in _PUBLISHED:
            found.append(self._corpus(parts.corpus))
        return found

    def _backbone(self, name: str) -> str:
        # what lies here may be trained on under the same name; others have one version
        files = sorted(Path(name).iterdir()) if Path(name).is_dir() else [Path(name)]
        hashes = [self._file(path) for path in files if path.is_file()]
        return content_id(name, *hashes) if hashes else name

    def of(self, cell: Cell) -> str:
        """Return the hash, 16 hexadecimal digits, of what decides a cell's answers."""
        settings = self.study.run_settings(cell.backbone, cell.retriever, cell.seed)
        parts, retrieval, sampled = Assembly(settings), settings.retrieval, settings.evaluation
        files = FILES_OF.get(cell.method, ())
        if cell.method in _EXAMPLES:  # a rule is read where there is one
            files = (*files, REFUSALS_FILE)
        decided = {
            "format": RECORD_FORMAT,
            "method": cell.method,
            "benchmark": cell.benchmark,
            "backbone": self._backbone(settings.backbone.name),
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
            "weights": {file: self._weights(parts.weights / file) for file in files},
            **({"reading": READING} if cell.method in _EXAMPLES else {}),
        }
        return content_id(json.dumps(decided, sort_keys=True))

    def fits(self, out: Path, cell: Cell) -> bool:
        """Return whether a cell's record is there and was made from what the study now names."""
        try:
            record = read_json(out / cell.path, what="run record")
            return bool(record["hashes"]["cell"] == self.of(cell))
        except (RaggdError, OSError, ValueError, KeyError, TypeError):  # or the data are not here
            return False


def _weight_identity(path: Path) -> str:
    # what records call a weight file: a fingerprint of its numbers, or its hash
    if not path.is_file():
        return "missing"
    if path.name == BASE_FILE:
        return load_base(path).fingerprint
    if path.name == PROMPT_FILE:
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
