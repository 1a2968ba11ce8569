"""Passages from files as people have them: which files there are, and what stands in each.

    list_files(corpus) -> SourceFile -> stream_file(file) -> Passage

A file that cannot be read never stops a folder: it becomes a `Skipped` with its reason.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from unicodedata import unidata_version

from raggd.data.documents.passages import passages_of
from raggd.data.documents.passages import split_sentences as split_sentences
from raggd.files import file_hash, reason_of
from raggd.provenance import versions
from raggd.records import Passage, RaggdError, content_id, hash_of

_KINDS = {
    "plain:read_lines": ".jsonl .jsonl.gz .ndjson",
    "plain:read_plain": ".txt .text",
    "rst:read": ".rst",
    "plain:read_csv": ".csv .tsv",
    "markdown:read": ".md .markdown .mdown .mkd .mdx .qmd .rmd",
    "markdown:read_notebook": ".ipynb",
    "office:read_pdf": ".pdf",
    "office:read_word": ".docx",
    "web:read": ".html .htm .xhtml",
}
READERS = {ending: reader for reader, endings in _KINDS.items() for ending in endings.split()}
"""Module and function that read each kind: from a path to blocks, or to passages (JSON Lines)."""
_KNOWN = ", ".join(READERS)
_NO_READER = "no reader for"
_LIBRARIES = ("markdown-it-py", "PyYAML", "chardet", "pypdf", "python-docx", "lxml")
_READ_WHOLE = 200_000_000  # bytes of a folder's file that is read before its first passage counts
_is_folder, _is_link = os.path.isdir, os.path.islink  # Path's fail at names that no system has


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a corpus."""

    path: Path
    name: str  # relative to the corpus, as `shown_name` gives it; ids of its passages begin with it
    size: int
    # written or put there, the later: archives and copies bring other bytes under an old time
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file (or link, or folder) that is no part of the corpus, or not the whole of it; why."""

    file: str
    reason: str
    partly: bool = False  # the rest of the file is in the corpus

    @property
    def told(self) -> dict[str, str | bool]:
        """As JSON shows it."""
        more = {"partly": True} if self.partly else {}
        return {"file": self.file, "reason": self.reason, **more}


def shown_name(path: Path) -> str:
    """Return a path as text that any terminal, file and prompt can hold."""
    text = os.fsencode(path.as_posix().replace("\\", r"\\")).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_files(path: Path, skipped: list[Skipped] | None = None) -> list[SourceFile]:
    """Return the files of a corpus that a reader takes, sorted by name; nothing is read.

    A folder is searched recursively without hidden files and folders; a single file is returned
    whatever its kind. Broken links, unknown kinds of files and the like are appended to `skipped`.

    Raises:
        RaggdError: there is none.
    """
    left_out: list[Skipped] = []
    if not _is_folder(path):
        if file := next(_regular(path, shown_name(Path(path.name)), left_out), None):
            return [file]
        raise RaggdError(
            f"no corpus at {shown_name(path)} ({left_out[0].reason}): give a file or a folder of "
            "files."
        )
    found = list(_files_under(path, left_out))
    files = [file for file in found if _kind(file)]
    left_out += [Skipped(f.name, _unknown(f)) for f in found if not _kind(f)]
    if not files:
        others = f"; {summary(left_out)}" if left_out else ""
        raise RaggdError(
            f"no readable file in the folder {shown_name(path)}: expected {_KNOWN} (hidden files "
            f"and folders are left out{others})."
        )
    if skipped is not None:
        skipped += sorted(left_out, key=lambda each: each.file)
    return sorted(files, key=lambda file: file.name)


def _files_under(folder: Path, skipped: list[Skipped]) -> Iterator[SourceFile]:
    # In no particular order; links are followed, each folder once.
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:  # links last: a folder is read under its own name where it has one
        here = folders.pop() if folders else links.pop(0)
        name = shown_name(here.relative_to(folder))
        try:
            state = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(name, f"cannot be opened ({error.strerror})"))
            continue
        if (state.st_dev, state.st_ino) in seen:
            skipped.append(Skipped(name, "a link to a folder that is read already"))
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if _is_folder(path):
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield from _regular(path, shown_name(path.relative_to(folder)), skipped)


def _regular(path: Path, name: str, skipped: list[Skipped]) -> Iterator[SourceFile]:
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = "a broken link" if _is_link(path) else f"cannot be opened ({reason_of(error)})"
        skipped.append(Skipped(name, reason))
        return
    if stat.S_ISREG(state.st_mode):
        yield SourceFile(path, name, state.st_size, max(state.st_mtime_ns, state.st_ctime_ns))
    else:
        skipped.append(Skipped(name, "not a regular file"))


def _kind(file: SourceFile) -> str:
    # The ending that names the reader, whatever blanks are behind it; empty for an unknown kind.
    name = file.path.name.lower().rstrip()
    return next((kind for kind in READERS if name.endswith(kind)), "")


def _unknown(file: SourceFile) -> str:
    ending = shown_name(Path(file.path.suffix.lower().rstrip()))
    return f"{_NO_READER} {ending if len(ending) > 1 else 'a name without ending'}"


def stream_file(file: SourceFile, lost: list[str] | None = None) -> Iterator[Passage]:
    """Yield the passages of one file; JSON Lines of any size are streamed.

    Those of a document have the ids ``name#1``, ``name#2``, ... and the file's name as their
    source. What of it could not be read is appended to `lost`, in words.

    Raises:
        RaggdError: the file is empty, damaged, locked, or of an unknown kind or encoding.
    """
    kind = _kind(file)
    if not kind:
        raise RaggdError(f"cannot read {file.name}: {_unknown(file)}. Known: {_KNOWN}.")
    module, _, function = READERS[kind].partition(":")
    read = getattr(import_module(f"{__name__}.{module}"), function)
    if READERS[kind] == "plain:read_lines":
        yield from read(file.path, file.name)
        return
    found = False
    try:
        bare = file.path.name.rstrip()[: -len(kind)]
        stem = shown_name(Path(bare)) if bare else ""
        lost = [] if lost is None else lost
        for passage in passages_of(read(file.path), file.name, stem, lost):
            found = True
            yield passage
    except ImportError as error:
        raise RaggdError(
            f"reading {file.name} needs the extra `documents`: pip install 'raggd[documents]'."
        ) from error
    except (OSError, RecursionError, RaggdError) as error:
        deep = isinstance(error, RecursionError)
        why = "it is nested too deeply" if deep else reason_of(error).removesuffix(".")
        raise RaggdError(f"cannot read {file.name}: {why}.") from error
    if not found:
        scanned = " (scanned pages need text recognition first)" if kind == ".pdf" else ""
        raise RaggdError(f"{file.name} holds no text{scanned}: fill or remove it.")


def passages_in(file: SourceFile, skipped: list[Skipped], *, alone: bool) -> Iterator[Passage]:
    """Yield the passages of a file; what cannot be read of it is appended to `skipped`.

    A file that is `alone` is refused instead; that one of several is bad is told before its first.
    """
    lost: list[str] = []
    passages: Iterable[Passage] = stream_file(file, lost)
    if not alone and file.size < _READ_WHOLE:
        try:
            passages = list(passages)
        except RaggdError as error:  # its name is said once
            reason = str(error).removeprefix("cannot read ").removeprefix(file.name).lstrip(":, ")
            skipped.append(Skipped(file.name, reason))
            return
    yield from passages
    skipped += [Skipped(file.name, part, partly=True) for part in lost]


def read_passages(path: Path, skipped: list[Skipped] | None = None) -> Iterator[Passage]:
    """Stream the passages of a file, or of all files under a folder, in the order of the files.

    Files that are left out are appended to `skipped`, as they are met.

    Raises:
        RaggdError: nothing to read, no file can be read, or the only one cannot.
    """
    skipped = [] if skipped is None else skipped
    before, found = len(skipped), False
    for file in list_files(path, skipped):
        for passage in passages_in(file, skipped, alone=not _is_folder(path)):
            found = True
            yield passage
    if not found:
        left_out = summary(skipped[before:])
        raise RaggdError(f"cannot read all of {shown_name(path)}: {left_out}")


def summary(skipped: Sequence[Skipped]) -> str:
    """Say in one line how many files were skipped, or read in part, and why three of each were.

    Those are named first that were to be read; of the others the endings are.
    """
    parts = {
        "skipped": [each for each in skipped if not each.partly],
        "read in part": [each for each in skipped if each.partly],
    }
    return ", ".join(_told(own, how) for how, own in parts.items() if own)


def _told(skipped: Sequence[Skipped], how: str) -> str:
    count = f"{len(skipped)} {'file is' if len(skipped) == 1 else 'files are'} {how}"
    ordered = sorted(skipped, key=lambda each: each.reason.startswith(_NO_READER))
    told, rest = [f"{each.file}: {each.reason}" for each in ordered[:3]], ordered[3:]
    kinds = Counter(
        each.reason.removeprefix(_NO_READER) for each in rest if each.reason.startswith(_NO_READER)
    ).most_common(8)
    if kinds:
        named = ",".join(f"{kind} ({number})" if number > 1 else kind for kind, number in kinds)
        told.append(f"{_NO_READER}{named}")
    if len(rest) > sum(number for _, number in kinds):
        told.append("...")
    return f"{count} ({'; '.join(told)})"


@cache
def readers_fingerprint() -> str:
    """Return a hash of all that decides how a file becomes passages: our code and the libraries."""
    here = Path(__file__).parent
    code = [*sorted(here.glob("*.py")), here.parent / "text.py", here.parents[1] / "files.py"]
    parts = [f"{file.name} {file_hash(file)}" for file in code]
    found = versions(*_LIBRARIES)
    parts += [f"{name} {found[name]}" for name in _LIBRARIES]
    return content_id(*parts, f"Unicode {unidata_version}")


def corpus_hash(passages: Iterable[Passage]) -> str:
    """Hash a corpus, or use a stream of it up: ids, titles and texts in order.

    The order counts since an index stores positions. The hash, 32 hexadecimal digits, is equal for
    equal passages on every machine.
    """
    return hash_of((part for p in passages for part in (p.id, p.title, p.text)), length=32)
