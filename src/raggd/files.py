"""Files that are whole or absent: atomic writes, hashes, safetensors, JSON Lines, the cache."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import math
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from raggd.records import RaggdError

if TYPE_CHECKING:
    from torch import Tensor


def cache_folder() -> Path:
    """Return `RAGGD_CACHE`, else ``~/.cache/raggd``; who has no home is asked to name one."""
    root, base = os.environ.get("RAGGD_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(root).expanduser() if root else Path(base or "~/.cache").expanduser() / "raggd"
    except RuntimeError as error:  # a user that the system does not know, in a container
        raise RaggdError(f"no cache folder ({error}): name one by RAGGD_CACHE.") from error


class CacheWarning(UserWarning):
    """Something could not be kept, so that it has to be made again."""


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_OF_SQLITE = {"FULL": errno.ENOSPC, "READONLY": errno.EROFS, "CANTOPEN": errno.EACCES}


def _number_of(error: BaseException | None) -> int | None:
    name = str(getattr(error, "sqlite_errorname", "")).split("_")  # SQLITE_READONLY_DIRECTORY
    return _OF_SQLITE.get(name[1]) if len(name) > 1 else getattr(error, "errno", None)


def is_unwritable(error: BaseException | None) -> bool:
    """Return whether something could not be written where it is: no room, or no permission."""
    return _number_of(error) in _UNWRITABLE


def reason_of(error: Exception) -> str:
    """Return in words why a file could not be read or written."""
    number = _number_of(error)
    if number == errno.ENOSPC:
        return "the disk is full"
    return os.strerror(number) if number else str(error)


def first_line(error: Exception) -> str:
    """Return what a library's error says first; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    A reader never sees a half-written file; on any exception, Ctrl-C included, the temporary
    file is removed and what was there before stays. A link stays one; a pipe or device
    (``/dev/stdout``) is written to as it is.

    Raises:
        RaggdError: the file cannot be written (a full disk, no permission).
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        if path.is_fifo() or path.is_char_device():
            yield path
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise RaggdError(
            f"cannot write {path}: {reason_of(error)}. Nothing was changed. Free space or choose "
            "another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, atomically."""
    with replacing(path) as temporary:
        # half a surrogate pair, e.g. of a file's name, has no UTF-8: written as JSON escapes it
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, which knows no infinity: a number without bounds becomes null.

    >>> as_json({"low": float("-inf"), "mean": [1.5]})
    '{"low": null, "mean": [1.5]}'
    """
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, as_json(value, 1) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values as JSON Lines, one each, atomically."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON file, which messages call `what`; one that is missing or damaged is refused."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RaggdError(f"cannot read {what} at {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RaggdError(f"{what} at {path} is not valid JSON ({error}): it is damaged.") from error


_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BEFORE_LINES = " \t\x1e\ufeff"
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""What a text file begins with, and the encoding that it names; longer marks come first."""


def open_text(path: Path) -> IO[str]:
    """Open a file of JSON, unpacked if it is ``.gz``; its encoding is told by its first bytes."""
    stream: Any = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # noqa: SIM115
    try:
        start = stream.peek(4)[:4]
    except BaseException:
        stream.close()
        raise
    return io.TextIOWrapper(stream, encoding=json.detect_encoding(start))


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the objects of a JSON Lines file (also ``.gz``) with their line numbers, from 1.

    Blank lines are skipped, and the marks before a line that files joined to one, or sequences of
    JSON (RFC 7464), leave there; halves of surrogate pairs in strings become U+FFFD. Of a file
    that grows meanwhile, about as much is read as it held at first.

    Raises:
        RaggdError: the file is missing or damaged, or a line is not a JSON object.
    """
    number = read = 0
    try:
        sized = path.is_file() and path.suffix.lower() != ".gz"  # a pipe has no size
        held = path.stat().st_size if sized else math.inf
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if (bare := line.lstrip(_BEFORE_LINES)).strip():
                    yield number, _json_object(bare)
                read += len(line)  # characters, of a byte at least
                if read > held:
                    break
    except UnicodeDecodeError as error:
        raise RaggdError(
            f"{path}, line {number + 1} or soon after: byte {error.object[error.start]:#04x} is no "
            f"{error.encoding.upper()}. Save the file as UTF-8."
        ) from error
    except ValueError as error:
        raise RaggdError(
            f"{path}, line {max(number, 1)}: {error}. Expected one JSON object per line."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise RaggdError(f"cannot read {path}: {reason_of(error)}.") from error


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        if getattr(error, "pos", 0) >= len(line.rstrip()):
            raise ValueError("not JSON (it goes on in the next line)") from error
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected one JSON object, found {type(value).__name__}")
    if _HALF.search(line):  # as text, escapes of whole pairs become their character
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
        value = json.loads(text.decode("utf-16", "replace"))
    return dict(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of an object of JSON; a key that occurs twice is a `ValueError`."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {json.dumps(twice)} occurs twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=each_key_once)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as a safetensors file, atomically; equal content, equal bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, str(temporary), metadata=dict(metadata))
        except SafetensorError as error:  # the library hides the system's error in its own text
            full = f"os error {errno.ENOSPC})" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
        _sort_metadata(temporary)
        temporary.chmod(0o644)


def _sort_metadata(path: Path) -> None:
    # the library writes metadata in random order; sorted, equal content has equal bytes and hash
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # the same length, but for the padding
            stream.seek(8)
            stream.write(text.ljust(size))


def load_tensors(
    path: Path, kind: str = "", advice: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, on the CPU, and the header's metadata.

    Raises:
        RaggdError: it is missing or damaged, or of another `kind`: `advice` says how to make one.
    """
    with _opened_tensors(path) as opened:
        metadata = dict(opened.metadata() or {})
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if kind and metadata.get("kind") != kind:
        raise RaggdError(f"{path} is not a {kind} file: {advice}.")
    return tensors, metadata


def check_unchanged(path: Path, found: str, recorded: str) -> None:
    """Refuse weights whose fingerprint is not the one that their header recorded."""
    if found != recorded:
        raise RaggdError(
            f"{path}: the weights have fingerprint {found}, the header says {recorded}: the file "
            "was changed or damaged. Copy or make it again."
        )


def tensor_header(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file alone; refused as by `load_tensors`."""
    with _opened_tensors(path) as opened:
        return dict(opened.metadata() or {})


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file is there, and as long as its header says."""
    try:
        return bool(tensor_header(path))
    except RaggdError:
        return False


@contextmanager
def _opened_tensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RaggdError(f"no weight file at {path}: check it, or make one with `raggd train`.")
    try:
        with safe_open(str(path), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError, ValueError) as error:
        raise RaggdError(
            f"{path} is not a whole safetensors file ({error}): it is truncated or damaged. "
            "Copy or make it again."
        ) from error
