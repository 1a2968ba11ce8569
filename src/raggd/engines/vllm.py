"""A LoRA resolver for vLLM: a stock server answers requests for the model ``raggd/<support id>``.

vLLM finds this module by its entry point (group ``vllm.general_plugins``) and asks the resolver
for every model name that it does not know. The prediction is a forward pass of a second copy of
the backbone, in the server's front-end process; the adapter it writes is kept, so it is made once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from raggd.records import RaggdError, content_id


def adapter_number(path: str) -> int:
    """Return the number by which vLLM tells adapters apart: 1 to 2^31 - 1, a hash of the folder."""
    return int(content_id(path), 16) % (2**31 - 1) + 1


def register() -> None:
    """Register the resolver; called by vLLM in each of its processes, so nothing is loaded."""
    from vllm.logger import init_logger
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    from raggd.engines.adapters import PREFIX, AdapterFolders

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
