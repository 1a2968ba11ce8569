"""From a row of the table of methods to a method that adapts and answers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raggd.methods.spec import METHODS, SPECS
from raggd.records import require_known

if TYPE_CHECKING:  # torch and transformers load only when a method is made
    from raggd.adaptation.predictors.base import Predictor
    from raggd.backbone.load import Backbone
    from raggd.core.low_rank import BaseAdapter
    from raggd.methods.base import Method
    from raggd.retrieval.base import Retriever
    from raggd.settings import Settings


class Parts(Protocol):
    """What methods are made of; an `Assembly` has it all."""

    settings: Settings

    @property
    def backbone(self) -> Backbone:
        """The frozen language model."""

    @property
    def base(self) -> BaseAdapter:
        """W0."""

    @property
    def weights(self) -> Path:
        """Folder of the weight files."""

    @property
    def source(self) -> str:
        """Where benchmarks are read from."""

    @property
    def retriever(self) -> Retriever:
        """Finds passages."""

    def predictor(self, file: str) -> Predictor:
        """Load a predictor of the weights folder, given its file name."""


def build_method(parts: Parts, name: str) -> Method:
    """Return a method of `METHODS` ready to adapt and answer; another name is refused."""
    require_known("method", name, METHODS)
    module, function = SPECS[name].builder.split(":")
    builder = getattr(import_module(f"raggd.methods.{module}"), function)
    method: Method = builder(parts, name, **SPECS[name].options)
    return method
