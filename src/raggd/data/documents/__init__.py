"""Passages from files as people have them: which files there are, and what stands in each.

    list_files(corpus) -> SourceFile -> stream_file(file) -> Passage

A file that cannot be read never stops a folder: it becomes a `Skipped` with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raggd.data.documents.files import Skipped, SourceFile, files_under, shown_name, source_file
from raggd.data.documents.passages import passages_of
from raggd.data.documents.passages import split_sentences as split_sentences
from raggd.data.documents.passages import split_words as split_words
from raggd.files import file_hash
from raggd.records import Passage, RaggdError, content_id

READERS = {
    ".jsonl": "lines:read_lines",
    ".jsonl.gz": "lines:read_lines",
    ".txt": "plain:read",
    ".text": "plain:read",
    ".rst": "plain:read_rst",
    ".md": "markdown:read",
    ".markdown": "markdown:read",
    ".pdf": "pdf:read",
    ".docx": "word:read",
    ".html": "web:read",
    ".htm": "web:read",
    ".xhtml": "web:read",
    ".csv": "comma:read",
    ".tsv": "comma:read",
}
"""Module and function that read each kind: from a path to blocks, or to passages (JSON Lines)."""
_KNOWN = ", ".join(READERS)

READ_WHOLE = 200_000_000
"""Bytes up to which a JSON Lines file of a folder is read before its first passage counts."""


def list_files(path: Path, skipped: list[Skipped] | None = None) -> list[SourceFile]:
    """List the files of a corpus; nothing is read.

    Args:
        path: a file, or a folder, searched recursively without hidden files and folders.
        skipped: broken links, files of an unknown kind and the like are appended.

    Returns:
        The files that a reader takes, sorted by name; a single file is returned whatever its kind.

    Raises:
        RaggdError: there is none.
    """
    if not path.is_dir():
        return [source_file(path)]
    left_out: list[Skipped] = []
    found = list(files_under(path, left_out))
    files = [file for file in found if _kind(file)]
    left_out += [Skipped(f.name, _unknown(f)) for f in found if not _kind(f)]
    if not files:
        raise RaggdError(
            f"no readable file in the folder {shown_name(path)}: expected {_KNOWN} "
            f"(hidden files and folders are left out; {len(left_out)} others are skipped)."
        )
    if skipped is not None:
        skipped += sorted(left_out, key=lambda each: each.file)
    return sorted(files, key=lambda file: file.name)


def _kind(file: SourceFile) -> str:
    # The ending that names the reader; empty for an unknown kind.
    name = file.path.name.lower()
    return next((kind for kind in READERS if name.endswith(kind)), "")


def _unknown(file: SourceFile) -> str:
    return f"no reader for {file.path.suffix.lower() or 'a name without ending'}"


def stream_file(file: SourceFile) -> Iterator[Passage]:
    """Read one file; JSON Lines of any size are streamed.

    Args:
        file: of `list_files`.

    Yields:
        Its passages: those of a document have the ids ``name#1``, ``name#2``, ... and the file's
        name as their source. The same file gives the same passages, whatever lies beside it.

    Raises:
        RaggdError: the file is empty, damaged, locked, or of an unknown kind or encoding.
    """
    kind = _kind(file)
    if not kind:
        raise RaggdError(f"cannot read {file.name}: {_unknown(file)}. Known: {_KNOWN}.")
    module, _, function = READERS[kind].partition(":")
    read = getattr(import_module(f"{__name__}.{module}"), function)
    if kind.startswith(".jsonl"):
        yield from read(file.path, file.name)
        return
    found = False
    try:
        stem = file.name.rpartition("/")[2][: -len(kind)]
        for passage in passages_of(read(file.path), file.name, stem):
            found = True
            yield passage
    except OSError as error:
        raise RaggdError(f"cannot read {file.name}: {error.strerror or error}.") from error
    except ImportError as error:
        raise RaggdError(
            f"reading {file.name} needs the extra `documents`: pip install 'raggd[documents]'."
        ) from error
    except RecursionError as error:
        raise RaggdError(f"cannot read {file.name}: it is nested too deeply.") from error
    except RaggdError as error:
        raise RaggdError(f"cannot read {file.name}: {error}") from error
    if not found:
        scanned = " (scanned pages need text recognition first)" if kind == ".pdf" else ""
        raise RaggdError(f"{file.name} holds no text{scanned}: fill or remove it.")


def read_file(file: SourceFile) -> list[Passage]:
    """Read one file.

    Args:
        file: of `list_files`.

    Returns:
        Its passages, as `stream_file` yields them; what it refuses is refused.
    """
    return list(stream_file(file))


def skip(name: str, error: RaggdError) -> Skipped:
    """Return a file that `read_file` refused, with the reason; its name is said once."""
    reason = str(error).removeprefix("cannot read ").removeprefix(name).lstrip(":, ")
    return Skipped(name, reason)


def read_passages(
    path: Path,
    *,
    strict: bool = False,
    skipped: list[Skipped] | None = None,
    unique: bool = True,
) -> Iterator[Passage]:
    """Stream the passages of a file, or of all files under a folder.

    An id that occurs twice is an error, because exclusion and ties go by id; remembering the ids
    takes about 100 bytes per passage.

    Args:
        path: a file or a folder.
        strict: refuse a folder with a file that cannot be read.
        skipped: files that are left out are appended, as they are met.
        unique: refuse an id that was given before; False remembers no ids, for a reader that
            finds doubles by other means.

    Yields:
        The passages, in the order of the files.

    Raises:
        RaggdError: nothing to read, no file can be read, or one cannot where `strict` says so or
            where it is the only one; an id given twice.
    """
    skipped = [] if skipped is None else skipped
    before = len(skipped)
    files = list_files(path, skipped)
    if strict and len(skipped) > before:
        raise RaggdError(_refusal(path, skipped[before:]))
    seen: set[str] = set()
    found = False
    for file in files:
        try:
            whole = path.is_dir() and file.size < READ_WHOLE
            passages = iter(read_file(file)) if whole else stream_file(file)
        except RaggdError as error:
            if strict:
                raise
            skipped.append(skip(file.name, error))
            continue
        for passage in passages:
            found = True
            if unique and passage.id in seen:
                raise RaggdError(
                    f"the passage id '{passage.id}' occurs twice, the second time in {file.name}: "
                    "ids must be unique in a corpus."
                )
            if unique:
                seen.add(passage.id)
            yield passage
    if not found:
        raise RaggdError(_refusal(path, skipped[before:]))


def _refusal(path: Path, skipped: list[Skipped]) -> str:
    return f"cannot read all of {shown_name(path)}: {summary(skipped)}"


def summary(skipped: Sequence[Skipped]) -> str:
    """Say in one line what was skipped.

    Args:
        skipped: at least one.

    Returns:
        How many, and the first three with their reasons.
    """
    count = f"{len(skipped)} {'file is' if len(skipped) == 1 else 'files are'} skipped"
    named = "; ".join(f"{each.file}: {each.reason}" for each in skipped[:3])
    return f"{count} ({named}{'; ...' if len(skipped) > 3 else ''})"


@cache
def readers_fingerprint() -> str:
    """Return a hash of all that decides how a file becomes passages: our code and the libraries."""
    here = Path(__file__).parent
    code = [*sorted(here.glob("*.py")), here.parent / "text.py"]
    parts = [f"{file.name} {file_hash(file)}" for file in code]
    return content_id(*parts, *(f"{name} {_version(name)}" for name in _LIBRARIES))


_LIBRARIES = ("markdown-it-py", "charset-normalizer", "pypdf", "python-docx", "lxml")


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def corpus_hash(passages: Iterable[Passage]) -> str:
    """Hash a corpus: ids, titles and texts in order (an index stores positions).

    Args:
        passages: the corpus; may be a stream, which is then used up.

    Returns:
        32 hexadecimal digits; equal for equal passages on every machine.
    """
    digest = hashlib.sha256()
    for passage in passages:
        for part in (passage.id, passage.title, passage.text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
    return digest.hexdigest()[:32]
