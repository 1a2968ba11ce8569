"""Predicted updates in memory: the least recently used are dropped within a bound of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from raggd.core.low_rank import Update, tensors_of


def size_of(update: Update) -> int:
    """Return the bytes of an update's six tensors."""
    return sum(t.element_size() * t.nelement() for t in tensors_of(update.factors).values())


class UpdateCache:
    """Updates by the id of their support set; safe from any thread."""

    def __init__(self, most: int) -> None:
        """Start empty.

        Args:
            most: bytes to hold; an update larger than that is not kept.
        """
        self._most = most
        self._updates: OrderedDict[str, Update] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """Bytes held now."""
        self.dropped = 0
        """Updates dropped to stay within the bound, so far."""

    def __len__(self) -> int:
        return len(self._updates)

    def __contains__(self, support: str) -> bool:
        return support in self._updates

    def get(self, support: str) -> Update | None:
        """Look an update up, and count it as used.

        Args:
            support: id of the support set.

        Returns:
            The update, or None.
        """
        with self._lock:
            if support in self._updates:
                self._updates.move_to_end(support)
            return self._updates.get(support)

    def put(self, support: str, update: Update) -> None:
        """Keep an update, dropping others if need be.

        Args:
            support: id of the support set.
            update: a single update.
        """
        with self._lock:
            self._remove(support)
            self._updates[support] = update
            self.bytes += size_of(update)
            while self.bytes > self._most:
                self._remove(next(iter(self._updates)))
                self.dropped += 1

    def discard(self, support: str) -> None:
        """Forget an update, if it is there.

        Args:
            support: id of the support set.
        """
        with self._lock:
            self._remove(support)

    def _remove(self, support: str) -> None:
        old = self._updates.pop(support, None)
        if old is not None:
            self.bytes -= size_of(old)
