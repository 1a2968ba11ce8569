"""A study file: the shared sections of a run, and lists of backbones, retrievers and seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raggd.data.benchmarks import HUB, known_benchmarks
from raggd.methods.spec import METHODS
from raggd.records import RaggdError, require_known
from raggd.settings import Settings, changed, known_retriever, read_settings

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
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
_EMBEDDED = {"pocket", HUB}


class StudyBackbone(BaseModel):
    """One backbone with its weights and the methods that are run on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_LABEL)
    """How folders, tables and figures call it."""
    model: str = ""
    """As `backbone.name`: embedded, hub name or folder; empty: the same as `name`."""
    weights: str = "shipped"
    """As `adapter.weights`."""
    methods: list[str] = Field(min_length=1)


class StudyRetriever(BaseModel):
    """One way to find evidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_LABEL)
    """How folders, tables and figures call it."""
    retriever: Annotated[str, AfterValidator(known_retriever)] = "bm25"
    encoder: str = "all-minilm-l6-v2"
    noise: float = Field(default=0.0, ge=0, le=1)
    """Share of the passages that random ones replace."""


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
    return known_benchmarks(names, HUB if folder in _EMBEDDED else folder)


def _refuse_repeated(kind: str, names: list[str], source: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RaggdError(f"{source}: {kind} '{repeated[0]}' is listed twice. List it once.")


def check_study(study: StudySettings, source: str) -> None:
    """Refuse what does not fit together, before anything is loaded; `source` is for the message.

    Raises:
        RaggdError: a setting that the study lists is given once for all, a name occurs twice, or a
            benchmark or method is unknown (the nearest is offered).
    """
    for section, places in _LISTED.items():
        for name, place in places.items():
            if name in getattr(study, section).model_fields_set:
                raise RaggdError(
                    f"{source}: '{section}.{name}' does not belong in a study file, which has "
                    f"several: give {place} instead."
                )
    check_benchmarks(study, [*study.evaluation.benchmarks, *study.evaluation.whole])
    for kind in ("backbones", "retrievers"):
        _refuse_repeated(kind[:-1], [entry.name for entry in getattr(study, kind)], source)
    _refuse_repeated("seed", [str(seed) for seed in study.seeds], source)
    for backbone in study.backbones:
        for method in backbone.methods:
            require_known(f"method of backbone '{backbone.name}'", method, METHODS)
        _refuse_repeated(f"method of backbone '{backbone.name}'", backbone.methods, source)


def load_study(path: Path, assignments: list[str] | None = None) -> StudySettings:
    """Return the checked settings of a study file, changed by ``section.name=value`` strings."""
    study = read_settings(StudySettings, path, assignments)
    check_study(study, str(path))
    return study
