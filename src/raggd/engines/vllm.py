"""A plug-in of vLLM: a request for the model ``raggd/<support id>`` gets the predicted adapter.

vLLM finds it by the entry point ``vllm.general_plugins`` and asks it for adapters that it does not
know yet, when VLLM_ALLOW_RUNTIME_LORA_UPDATING is set. ``raggd/base`` is the base adapter alone.
RAGGD_SETTINGS names a settings file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from raggd.records import RaggdError

if TYPE_CHECKING:
    from raggd.api import Rag

PREFIX = "raggd/"
LOG = logging.getLogger("raggd.engines.vllm")


class RaggdResolver:
    """Turns names into adapters; vLLM's `LoRAResolver` by shape."""

    def __init__(self, rag: Rag | None = None) -> None:
        """Load nothing yet.

        Args:
            rag: adapts; None: what the settings file in RAGGD_SETTINGS names, on first use.
        """
        self._rag = rag
        self._lock = Lock()

    def _loaded(self, model: str) -> Rag:
        if self._rag is None:
            import raggd

            settings = raggd.load_settings(_settings_file())
            if Path(model).is_dir():  # what vLLM serves is also what reads the demonstrations
                weights = settings.adapter.model_copy(update={"weights": _weights(settings)})
                backbone = settings.backbone.model_copy(update={"name": model})
                settings = settings.model_copy(update={"backbone": backbone, "adapter": weights})
            self._rag = raggd.load(settings=settings)
        return self._rag

    def folder(self, model: str, name: str) -> Path | None:
        """Find or make the adapter of a name.

        Args:
            model: the model that vLLM serves, a folder or a Hugging Face name.
            name: ``raggd/<support id>`` or ``raggd/base``.

        Returns:
            The PEFT folder; None where raggd has no adapter of that name.
        """
        from raggd.engines.adapters import adapter_folder

        if not name.startswith(PREFIX):
            return None
        try:
            with self._lock:  # one backbone: predictions wait for each other
                return adapter_folder(self._loaded(model), name.removeprefix(PREFIX))
        except RaggdError as error:
            LOG.warning("no adapter '%s': %s", name, error)
            return None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Answer vLLM's question for an adapter that it does not know.

        Args:
            base_model_name: the model that vLLM serves.
            lora_name: as the request names it.

        Returns:
            vLLM's `LoRARequest`, or None.
        """
        folder = await asyncio.to_thread(self.folder, base_model_name, lora_name)
        if folder is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))


def _settings_file() -> Path | None:
    named = os.environ.get("RAGGD_SETTINGS")
    return Path(named) if named else None


def _weights(settings: Any) -> str:
    from raggd.assembly import shipped_weights

    named = str(settings.adapter.weights)
    return str(shipped_weights(settings.backbone.name)) if named == "shipped" else named


def register() -> None:
    """Tell vLLM of the resolver; called by vLLM in each of its processes."""
    from vllm.lora.resolver import LoRAResolverRegistry

    if "raggd" not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver("raggd", RaggdResolver())
