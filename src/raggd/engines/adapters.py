"""From a model's name to a PEFT folder that holds its predicted adapter; made once, then found."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock

from raggd.adaptation.export import CONFIG_FILE, write_peft
from raggd.api import Rag
from raggd.assembly import Assembly
from raggd.data.supports import load_support, supports_folder
from raggd.files import cache_folder, file_hash
from raggd.methods.spec import PREDICTOR_FILE, weight_file
from raggd.records import RaggdError, content_id
from raggd.settings import load_settings

PREFIX = "raggd/"
BASE_NAME = "base"
"""``raggd/base`` is the base adapter alone, ``raggd/<support id>`` base and predicted update."""


class AdapterFolders:
    """Writes adapters on demand; the backbone is loaded when the first one is missing."""

    def __init__(self, rag: Rag, supports: Path | None = None, folder: Path | None = None) -> None:
        """Load nothing yet.

        Args:
            rag: adapts.
            supports: folder of stored support sets; None: where `raggd supports add` puts them.
            folder: for the adapters; None: in the cache folder.
        """
        self._rag = rag
        self._supports = supports or supports_folder()
        self._folder = folder or cache_folder() / "adapters"
        self._lock = Lock()

    @classmethod
    def from_environment(cls) -> AdapterFolders:
        """Read where things are from the environment, which is all that an engine passes on.

        Returns:
            Folders for the settings file RAGGD_SETTINGS and the support sets in RAGGD_SUPPORTS;
            for the defaults where they are not set.
        """
        named, supports = os.environ.get("RAGGD_SETTINGS"), os.environ.get("RAGGD_SUPPORTS")
        settings = load_settings(Path(named) if named else None)
        return cls(Rag(Assembly(settings)), Path(supports) if supports else None)

    def find(self, name: str) -> Path:
        """Return the adapter of a model's name, predicting and writing it unless it is there.

        Args:
            name: ``raggd/base`` or ``raggd/<support id>``.

        Returns:
            A PEFT folder.

        Raises:
            RaggdError: the name has another form, or there is no such support set.
        """
        wanted = name.removeprefix(PREFIX)
        if wanted == name:
            raise RaggdError(f"'{name}' is not a model of raggd: its names begin with '{PREFIX}'.")
        support = None if wanted == BASE_NAME else load_support(self._supports, wanted)
        with self._lock:  # one prediction at a time: the backbone is one
            path = self._folder / self._key(wanted)
            if not (path / CONFIG_FILE).is_file():
                update = None if support is None else self._rag.adapt(support)
                parts = self._rag.parts
                write_peft(path, parts.backbone, parts.base, update)
            return path

    def _key(self, wanted: str) -> str:
        # other weights, or the backbone in another precision, make another adapter of the same set
        parts = self._rag.parts
        settings = (parts.settings.backbone, parts.settings.target)
        used = [parts.base.fingerprint, *(part.model_dump_json() for part in settings)]
        if wanted != BASE_NAME:
            used.append(file_hash(weight_file(parts.weights, PREDICTOR_FILE)))
        return f"{wanted}-{content_id(*used)}"
