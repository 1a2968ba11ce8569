"""From a model's name to a PEFT folder that holds its predicted adapter; made once, then found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Lock

from raggd.adaptation.export import CONFIG_FILE
from raggd.api import Rag, load
from raggd.files import cache_folder
from raggd.records import RaggdError, content_id
from raggd.settings import load_settings

PREFIX = "raggd/"
BASE_NAME = "base"
"""``raggd/base`` is the base adapter alone, ``raggd/<support id>`` base and predicted update."""


class AdapterFolders:
    """Writes adapters on demand; the backbone is loaded when the first one is missing."""

    def __init__(self, rag: Rag, folder: Path | None = None) -> None:
        """Load nothing yet.

        Args:
            rag: adapts, from the support sets of its store.
            folder: for the adapters; None: in the cache folder.
        """
        self._rag = rag
        self._folder = folder or cache_folder() / "adapters"
        self._lock = Lock()

    @classmethod
    def from_environment(cls) -> AdapterFolders:
        """Read where things are from the environment, which is all that an engine passes on.

        Returns:
            Folders for the settings file RAGGD_SETTINGS and the support sets in RAGGD_SUPPORTS;
            for the defaults where they are not set.
        """
        supports = os.environ.get("RAGGD_SUPPORTS")
        own = [] if supports is None else [f"serving.supports={json.dumps(supports)}"]
        return cls(load(settings=load_settings(os.environ.get("RAGGD_SETTINGS"), own)))

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
        rag, parts = self._rag, self._rag.parts
        with self._lock:  # two requests for one adapter write it once
            if wanted == BASE_NAME:
                names = (parts.base.fingerprint, parts.settings.backbone.model_dump_json())
                key, support = f"{wanted}.{content_id(*names)}", None
            else:
                support = rag.store.support(wanted)
                key = rag.key(support)
            path = self._folder / key
            if not (path / CONFIG_FILE).is_file():
                rag.export_peft(path, None if support is None else rag.adapt(support))
            return path
