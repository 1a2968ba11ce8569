"""What a support set was adapted to is remembered by content: the second time costs a look-up.

For asking and serving, not for evaluation: there each adaptation is run, so that its cost is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from raggd.core.low_rank import BaseAdapter
from raggd.core.storage import load_update
from raggd.methods.base import Adapted, Method
from raggd.records import RaggdError, SupportSet, content_id

IN_MEMORY = 64
"""Support sets whose updates stay in memory (some megabytes each)."""
ON_DISK = 64
"""Updates kept in the folder; the longest unused go first."""


class Remembered:
    """A method that adapts to each support set once.

    Attributes:
        computed: support sets that were adapted to, not remembered.
    """

    def __init__(
        self,
        method: Method,
        identity: str,
        folder: Path | None = None,
        base: BaseAdapter | None = None,
    ) -> None:
        """Remember nothing yet.

        Args:
            method: adapts.
            identity: hash of all else that its updates depend on (backbone, prompt, settings).
            folder: where updates outlive the process; None keeps them in memory only.
            base: the adapter that updates in the folder start from.
        """
        self._method = method
        self._identity = identity
        self._base = base
        self._folder = folder
        self._known: OrderedDict[str, Adapted] = OrderedDict()
        self.computed = 0

    @property
    def name(self) -> str:
        """Name of the method."""
        return self._method.name

    @property
    def adapts(self) -> bool:
        """Whether the method adapts."""
        return self._method.adapts

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprints of the method's weights."""
        return self._method.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Adapt to the support sets that are not remembered; look the others up.

        Args:
            supports: sets of equal size.

        Returns:
            One result each, as the method itself gives.
        """
        keys = [self._key(support) for support in supports]
        found = {key: known for key in keys if (known := self._recall(key))}
        missing = {key: s for key, s in zip(keys, supports, strict=True) if key not in found}
        if missing:
            fresh = self._method.adapt(list(missing.values()))
            self.computed += len(missing)
            found |= dict(zip(missing, fresh, strict=True))
            for key in missing:
                self._store(key, found[key])
        for key in keys:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > IN_MEMORY:
            self._known.popitem(last=False)
        return [found[key] for key in keys]

    def _key(self, support: SupportSet) -> str:
        return content_id(
            self.name, str(sorted(self.hashes.items())), self._identity, support.id, length=32
        )

    def _file(self, key: str) -> Path | None:
        return self._folder / f"{key}.safetensors" if self._folder and self._base else None

    def _recall(self, key: str) -> Adapted | None:
        if key in self._known:
            return self._known[key]
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            update = load_update(file)
        except RaggdError:  # a damaged file is made again
            return None
        if self._base is None or update.base != self._base.fingerprint:
            return None
        file.touch()
        return Adapted(self._base, update.to(self._base.device))

    def _store(self, key: str, adapted: Adapted) -> None:
        file = self._file(key)
        # a file gives back base and update and nothing else
        plain = adapted.base is self._base and adapted.reads_evidence and not adapted.shown
        if file is None or adapted.update is None or not plain or adapted.prefix is not None:
            return
        adapted.update.save(file)
        stored = sorted(file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for old in stored[:-ON_DISK]:
            old.unlink(missing_ok=True)
