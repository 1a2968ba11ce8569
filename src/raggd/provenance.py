"""What a record says about where it came from: versions, command, time."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("raggd", "torch", "transformers", "PyStemmer", "numpy", "safetensors")


def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python, raggd, what results depend on, and further libraries."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def command_line() -> str:
    """Return the running command, its first word shortened to the program's name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def origin(*others: str) -> dict[str, Any]:
    """Return versions (with those of further libraries), command and time, for a record."""
    return {"versions": versions(*others), "command": command_line(), "created": utc_now()}


def seconds_since_start() -> float | None:
    """Return how long ago this process was started; None where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def utc_now() -> str:
    """Return the time now, UTC, to the second, in ISO form."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
