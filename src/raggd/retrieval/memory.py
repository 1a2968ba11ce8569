"""A bound on memory: read from settings, compared with what the process really holds."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from raggd.records import RaggdError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", re.IGNORECASE)
_STATE, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def parse_size(text: str) -> int:
    """Read a size such as ``3GB``: a number with K, M, G or T (powers of 1,000), or plain bytes.

    Returns:
        Bytes.

    Raises:
        RaggdError: it is not a size, or not above 0.

    >>> parse_size("1.5 GB")
    1500000000
    """
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        raise RaggdError(f"'{text}' is not a size: expected a number with MB or GB, such as 3GB.")
    return size


def show_size(size: float) -> str:
    """Return a number of bytes for people.

    >>> show_size(2_340_000_000)
    '2.3 GB'
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def held_memory() -> int:
    """Return what this process holds now (its resident set), in bytes."""
    if _STATE.is_file():
        return int(_STATE.read_text().split()[1]) * resource.getpagesize()
    return peak_memory()  # the most it ever held: an upper bound


def peak_memory() -> int:
    """Return the most that this process ever held (its peak resident set), in bytes."""
    if _STATUS.is_file():  # the other figure would count the parent at the time of the fork
        match = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        if match:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Budget:
    """The most memory, in bytes, that this process may hold while it builds an index."""

    bound: int

    def left(self) -> int:
        """Return how much more may be taken now, in bytes; below 0 if the bound is passed."""
        return self.bound - held_memory()

    def require(self, size: int, what: str) -> None:
        """Refuse work that takes `size` bytes and would not fit, before it starts.

        Raises:
            RaggdError: less is left.
        """
        if self.left() < size:
            raise RaggdError(
                f"a memory bound of {show_size(self.bound)} is too small for {what}: it takes "
                f"{show_size(held_memory() + size)}. Give at least that by retrieval.memory or "
                "`raggd index --memory`."
            )
