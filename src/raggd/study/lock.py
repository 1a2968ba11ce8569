"""One study at a time in a folder: a lock that the system releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raggd.records import RaggdError

LOCK_FILE = "study.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one writer.

    The lock belongs to the open file, not to its existence: after a crash nothing is left to clean
    up.

    Args:
        folder: made if it is not there.

    Yields:
        Nothing.

    Raises:
        RaggdError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise RaggdError(
            f"cannot write in {folder} ({error.strerror}): choose another folder by --out."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise RaggdError(
                f"another study is running in {folder} (process {stream.read().strip() or '?'}): "
                "wait for it, stop it, or choose another folder by --out."
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
