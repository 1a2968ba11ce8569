"""From settings to loaded parts: data, retriever, backbone, weights, methods. Each on first use."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raggd.data.benchmarks import find_corpus
from raggd.data.documents import summary
from raggd.data.pocket import Search, write_pocket
from raggd.files import cache_folder
from raggd.methods.spec import (
    BASE_FILE,
    adapting_method,
    build_method,
    is_untrained,
    shipped_weights,
    weight_file,
)
from raggd.progress import Progress, silent
from raggd.records import Passage, RaggdError
from raggd.retrieval.base import RetrievalWarning, Retriever
from raggd.retrieval.bring_your_own import open_named
from raggd.retrieval.build import Index, build_index
from raggd.retrieval.cache import CachedRetriever
from raggd.retrieval.evidence import NoisyRetriever
from raggd.settings import AdapterSettings, RetrievalSettings, Settings

if TYPE_CHECKING:  # torch and transformers load only when a model is needed
    import torch

    from raggd.adaptation.predictors.base import Predictor
    from raggd.backbone.load import Backbone
    from raggd.core.low_rank import BaseAdapter
    from raggd.methods.base import Method

POCKET = "pocket"
_DEPENDS = {
    "backbone": ("backbone",),
    "source": ("data",),
    "index": ("data", "retrieval"),
    "retriever": ("data", "retrieval"),
    "base": ("backbone", "adapter"),
    "_predictors": ("backbone", "adapter"),
}
"""What an `Assembly` keeps loaded, and the sections of the settings that each depends on."""


class Assembly:
    """Everything that a run needs, made from its settings and loaded on first use.

    Downloads, conversions and indexing are told to `progress`; a `backbone` is the one that the
    settings name, loaded already.
    """

    def __init__(
        self, settings: Settings, progress: Progress = silent, *, backbone: Backbone | None = None
    ) -> None:
        self.settings, self.progress = settings, progress
        if backbone is not None:
            self.__dict__["backbone"] = backbone  # where a cached property keeps its value

    def derived(self, settings: Settings) -> Assembly:
        """Return parts of other settings; what is loaded and still fits is not loaded again."""
        made, old = Assembly(settings, self.progress), self.settings
        for name, sections in _DEPENDS.items():
            alike = all(getattr(settings, s) == getattr(old, s) for s in sections)
            if alike and name in self.__dict__:
                made.__dict__[name] = self.__dict__[name]
        return made

    def say(self, text: str) -> None:
        """Tell the user in a few words what is going on."""
        self.progress(text, 0, None)

    @cached_property
    def source(self) -> str:
        """The data source: ``hub``, or a folder in FlashRAG's layout."""
        folder = self.settings.data.folder
        return str(self._pocket() if folder == POCKET else Path(folder))

    def _pocket(self) -> Path:
        def indexed(corpus: Path) -> tuple[Search, str]:
            retriever = build_index(corpus, RetrievalSettings(), progress=self.progress).retriever

            def search(queries: list[str]) -> list[list[Passage]]:
                return [[hit.passage for hit in hits] for hits in retriever.search(queries, 3)]

            return search, f"{retriever.fingerprint}-3"

        return write_pocket(cache_folder() / POCKET, indexed, self.progress)

    @property
    def corpus(self) -> Path:
        """Where the passages are read from."""
        named = self.settings.data.corpus
        return Path(named) if named else find_corpus(self.source)

    def index_of(self, corpus: Path) -> Index:
        """Return the index of a corpus, made or brought up to date; files left out are told."""
        index = build_index(corpus, self.settings.retrieval, progress=self.progress)
        if index.skipped:
            told = f"{corpus}: {summary(list(index.skipped))}."
            warnings.warn(told, RetrievalWarning, stacklevel=2)
        return index

    @cached_property
    def index(self) -> Index:
        """The index of the corpus that the settings name."""
        return self.index_of(self.corpus)

    @cached_property
    def retriever(self) -> Retriever:
        """The retriever behind the cache that all methods share; disturbed if the settings say."""
        return self.retriever_with(self.settings.retrieval.noise)

    def retriever_with(self, noise: float) -> Retriever:
        """Return the cached retriever, a share (0 to 1) of its passages random ones."""
        named = self.settings.retrieval.retriever
        if ":" in named:
            if noise:
                raise RaggdError(
                    "retrieval.noise needs an index of ours to draw random passages from: choose "
                    "retrieval.retriever=bm25, dense or hybrid."
                )
            return open_named(named, self.settings)
        found = self.index.retriever
        cached = CachedRetriever(found, cache_folder() / "retrieval")
        if not noise:
            return cached
        return NoisyRetriever(cached, noise, found.store.passage_at, len(found))

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen language model."""
        from raggd.backbone.load import load_backbone

        self.say(f"loading {self.settings.backbone.name}")
        return load_backbone(self.settings.backbone, self.progress)

    @property
    def device(self) -> torch.device:
        """Where the backbone is or will be; base adapter and predictors live there, too."""
        from raggd.backbone.device import choose_device

        loaded: Backbone | None = self.__dict__.get("backbone")
        return loaded.device if loaded else choose_device(self.settings.backbone.device)

    @property
    def weights(self) -> Path:
        """Folder of base adapter and predictors."""
        named = self.settings.adapter.weights
        return shipped_weights(self.settings.backbone.name) if named == "shipped" else Path(named)

    @cached_property
    def base(self) -> BaseAdapter:
        """The base adapter W0; that it fits the backbone is checked when it is attached."""
        from raggd.adaptation.base_adapter import load_base, untrained_base

        if is_untrained(self.weights):
            self.say(f"no base adapter ships for {self.settings.backbone.name}: used as it is")
            return untrained_base(self.backbone, self.settings.adapter)
        path = weight_file(self.weights, BASE_FILE)
        base, usual = load_base(path), AdapterSettings()
        for name in ("rank", "alpha"):
            told, there = getattr(self.settings.adapter, name), getattr(base.spec, name)
            if told not in {there, getattr(usual, name)}:
                raise RaggdError(
                    f"adapter.{name} is {told:g}, but {path} was trained with {there:g}: leave the "
                    "setting out, or train weights with it (`raggd train base`)."
                )
        return base.to(self.device)

    @cached_property
    def _predictors(self) -> dict[str, Predictor]:
        return {}

    def predictor(self, file: str) -> Predictor:
        """Load a predictor of the weights folder, once."""
        from raggd.adaptation.predictors.base import load_predictor

        if file not in self._predictors:
            self._predictors[file] = load_predictor(weight_file(self.weights, file), self.device)
        return self._predictors[file]

    @property
    def adapting(self) -> str:
        """The method by which demonstrations adapt the model where nobody names another."""
        return adapting_method(self.weights)

    def method(self, name: str) -> Method:
        """Make one of `METHODS`, ready to adapt and answer."""
        return build_method(self, name)
