"""A LoRA resolver for vLLM: a stock server answers requests for the model ``raggd/<support id>``.

vLLM finds this module by its entry point (group ``vllm.general_plugins``) and asks the resolver
for every model name that it does not know. The prediction is a forward pass of a second copy of
the backbone, in the server's front-end process; the adapter it writes is kept, so it is made once.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

from raggd.api import Rag, load
from raggd.files import cache_folder
from raggd.records import RaggdError, content_id
from raggd.settings import load_settings

PREFIX = "raggd/"
BASE_NAME = "base"
"""``raggd/base`` is the base adapter alone, ``raggd/<support id>`` base and predicted update."""


class AdapterFolders:
    """PEFT folders by model name, written on demand: the first that is missing loads the model."""

    def __init__(self, rag: Rag, folder: Path | None = None) -> None:
        """Load nothing yet; without a folder, adapters go into the cache folder."""
        self._rag = rag
        self._folder = folder or cache_folder() / "adapters"
        self._lock = Lock()

    @classmethod
    def from_environment(cls) -> AdapterFolders:
        """Read where things are from the environment, which is all that an engine passes on.

        RAGGD_SETTINGS names the settings file, RAGGD_SUPPORTS the folder of support sets.
        """
        supports = os.environ.get("RAGGD_SUPPORTS")
        own = [] if supports is None else [f"serving.supports={json.dumps(supports)}"]
        return cls(load(settings=load_settings(os.environ.get("RAGGD_SETTINGS"), own)))

    def find(self, name: str) -> Path:
        """Return the adapter of ``raggd/base`` or a stored set, made unless it is there."""
        from raggd.adaptation.export import CONFIG_FILE

        wanted = name.removeprefix(PREFIX)
        if wanted == name:
            raise RaggdError(f"'{name}' is not a model of raggd: its names begin with '{PREFIX}'.")
        rag, parts = self._rag, self._rag.parts
        with self._lock:  # two requests for one adapter write it once
            if wanted == BASE_NAME:
                backbone, told = parts.settings.backbone, parts.settings.serving.instruction
                names = (parts.base.fingerprint, backbone.model_dump_json(), told)
                key, support = f"{wanted}.{content_id(*names)}", None
            else:
                support = rag.store.stored(wanted).support
                key = rag.key(support)
            path = self._folder / key
            if not (path / CONFIG_FILE).is_file():
                rag.export_peft(path, None if support is None else rag.adapt(support))
            return path


def adapter_number(path: str) -> int:
    """Return the number by which vLLM tells adapters apart: 1 to 2^31 - 1, a hash of the folder."""
    return int(content_id(path), 16) % (2**31 - 1) + 1


def register() -> None:
    """Register the resolver; called by vLLM in each of its processes, so no model is loaded."""
    from vllm.logger import init_logger
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    log = init_logger("vllm.raggd")

    class RaggdResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is no dependency of raggd
        """Turns a support set's name into the adapter predicted from it."""

        folders: AdapterFolders | None = None

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """Return the request of a predicted adapter, None for names that are not raggd's."""
            if not lora_name.startswith(PREFIX):
                return None
            try:
                self.folders = self.folders or AdapterFolders.from_environment()
                path = str(await asyncio.to_thread(self.folders.find, lora_name))
            except RaggdError as error:
                log.warning("raggd: %s", error)
                return None
            return LoRARequest(lora_name, adapter_number(path), path)

    LoRAResolverRegistry.register_resolver("raggd", RaggdResolver())
