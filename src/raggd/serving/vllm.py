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
_WRITING = Lock()


def rag_of_environment() -> Rag:
    """Read where things are from the environment, which is all that an engine passes on.

    RAGGD_SETTINGS names the settings file, RAGGD_SUPPORTS the folder of support sets.
    """
    supports = os.environ.get("RAGGD_SUPPORTS")
    own = [] if supports is None else [f"serving.supports={json.dumps(supports)}"]
    return load(settings=load_settings(os.environ.get("RAGGD_SETTINGS"), own))


def adapter_folder(rag: Rag, name: str) -> Path:
    """Return the PEFT folder of ``raggd/base`` or a stored set, in the cache; it is made once."""
    from raggd.adaptation.export import CONFIG_FILE

    wanted, parts = name.removeprefix(PREFIX), rag.parts
    if wanted == name:
        raise RaggdError(f"'{name}' is not a model of raggd: its names begin with '{PREFIX}'.")
    with _WRITING:  # two requests for one adapter write it once
        if wanted == BASE_NAME:
            backbone, told = parts.settings.backbone, parts.settings.serving.instruction
            names = (parts.base.fingerprint, backbone.model_dump_json(), told)
            key, support = f"{wanted}.{content_id(*names)}", None
        else:
            support = rag.store.stored(wanted).support
            key = rag.key(support)
        path = cache_folder() / "adapters" / key
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

        rag: Rag | None = None

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """Return the request of a predicted adapter, None for names that are not raggd's."""
            if not lora_name.startswith(PREFIX):
                return None
            try:
                self.rag = self.rag or rag_of_environment()
                path = str(await asyncio.to_thread(adapter_folder, self.rag, lora_name))
            except RaggdError as error:
                log.warning("raggd: %s", error)
                return None
            return LoRARequest(lora_name, adapter_number(path), path)

    LoRAResolverRegistry.register_resolver("raggd", RaggdResolver())
