"""What a corpus holds, and its index: made, brought up to date, stopped and resumed.

There is one way for every kind of index. What is the same as in the earlier version is carried
over: the passages of files that did not change, their postings, and the vectors of all passages
whose title and text were encoded before. The rest is read, sorted or encoded, and the new version
takes the place of the old one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raggd.data.documents import (
    Skipped,
    SourceFile,
    corpus_hash,
    list_files,
    passages_in,
    read_passages,
    readers_fingerprint,
    summary,
)
from raggd.files import cache_folder, file_hash, read_json, write_json
from raggd.progress import Progress, silent
from raggd.records import RaggdError, content_id
from raggd.retrieval.base import Budget, Count, counted, parse_size
from raggd.retrieval.bm25 import BM25Kind
from raggd.retrieval.dense import DenseKind
from raggd.retrieval.encoder import load_encoder
from raggd.retrieval.folders import STATE, building, clear, open_folder, publish, read_manifest
from raggd.retrieval.store import (
    HybridRetriever,
    PassageStore,
    StoredFile,
    StoredRetriever,
    StoreWriter,
)
from raggd.settings import RetrievalSettings

_TICK_NS = 2_000_000_000
"""A file younger than this when it is read may change again without another time stamp."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a corpus as they are now; its `key`, the path, stands in its index's name."""

    files: tuple[SourceFile, ...]
    key: str
    skipped: tuple[Skipped, ...]


def look_at(corpus: Path) -> Listing:
    """Return what a file or folder holds now; no file is read."""
    skipped: list[Skipped] = []
    return Listing(tuple(list_files(corpus, skipped)), str(corpus.resolve()), tuple(skipped))


def passages_hash(path: Path) -> str:
    """Return the hash of all passages of a file or folder, which are read for it."""
    return corpus_hash(read_passages(path))


def _hash_of(file: SourceFile) -> str:
    try:
        return file_hash(file.path)
    except OSError:  # it cannot be opened
        return ""


def unchanged(listing: Listing, old: Sequence[StoredFile]) -> dict[str, StoredFile]:
    """Return what was stored of files with the same size and time, or bytes, as of now."""
    known = {file.name: file for file in old}
    same = {}
    for now in listing.files:
        before = known.get(now.name)
        if before is None or before.size != now.size or "pip install" in before.skipped:
            continue  # or what it needs may be there by now
        # no time stamp tells that a file which could not be opened can be now
        settled = before.content and before.mtime_ns == now.mtime_ns != 0
        if settled or before.content == _hash_of(now):
            same[now.name] = replace(before, mtime_ns=_settled(now.mtime_ns))
    return same


def _settled(mtime_ns: int) -> int:
    return mtime_ns if time.time_ns() - mtime_ns > _TICK_NS else 0


def write_store(
    work: Path,
    listing: Listing,
    same: dict[str, StoredFile],
    old: PassageStore | None,
    count: Count,
) -> NDArray[np.bool_]:
    """Write a store, copying `same` files first; return which rows of `old` were, shape (rows,)."""
    writer = StoreWriter(work, old)
    kept = np.zeros(len(old) if old else 0, dtype=bool)
    for file in same.values():
        kept[file.start : file.start + file.count] = True
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).reshape(-1, 2)
    for start, end in edges.tolist():
        writer.copy(start, end)
    place = np.cumsum(kept) - 1
    stored = []
    for now in listing.files:
        if now.name in same:
            before = same[now.name]
            start = int(place[before.start]) if before.count else 0
            stored.append(replace(before, start=start))
        else:
            stored.append(_read(writer, listing, now, count))
    if not len(writer):
        raise RaggdError(f"nothing to index: {summary([*listing.skipped, *skipped_in(stored)])}.")
    writer.finish(stored)
    return kept


def _read(writer: StoreWriter, listing: Listing, now: SourceFile, count: Count) -> StoredFile:
    start = len(writer)
    state = StoredFile(now.name, now.size, _settled(now.mtime_ns), _hash_of(now))
    lost: list[Skipped] = []
    passages = passages_in(now, lost, alone=len(listing.files) == 1)
    hashed = writer.add(counted(passages, start, None, count))
    why = "; ".join(each.reason for each in lost)
    if not (read := len(writer) - start):  # left out of the index, with its reason
        return replace(state, skipped=why)
    return replace(state, passages=hashed, start=start, count=read, partly=why)


def skipped_in(files: Sequence[StoredFile]) -> list[Skipped]:
    """Return the files of a store that could not be read, or not whole, with their reasons."""
    told = [Skipped(f.name, f.skipped or f.partly, partly=not f.skipped) for f in files]
    return [each for each in told if each.reason]


@dataclass(frozen=True, slots=True)
class Changes:
    """How many files and passages came, changed and went since the index was last made.

    A passage is known by its id; it changed if its title or text did.
    """

    files_added: int = 0
    files_changed: int = 0
    files_removed: int = 0
    passages_added: int = 0
    passages_changed: int = 0
    passages_removed: int = 0

    def __str__(self) -> str:
        counts = [f"{count} {name.partition('_')[2]}" for name, count in asdict(self).items()]
        return f"files: {', '.join(counts[:3])}; passages: {', '.join(counts[3:])}"


@dataclass(frozen=True, slots=True)
class Index:
    """An index, opened."""

    folder: Path
    retriever: StoredRetriever
    built: bool  # or brought up to date, now
    changes: Changes = Changes()  # since it was last made
    skipped: tuple[Skipped, ...] = ()  # files that are not in it, or not whole


Kind = BM25Kind | DenseKind
"""What differs between kinds of index: what is computed for passages, and how it is opened."""


@dataclass(frozen=True, slots=True)
class _Old:
    # The version of an index that is there, and what of it still holds.
    store: PassageStore
    files: list[StoredFile]  # none if files are read otherwise now
    same_rules: bool


def _old_version(folder: Path, kind: Kind) -> _Old | None:
    # What cannot be read as an index is replaced by one, so it is no error here.
    try:
        manifest = read_manifest(folder, kind.name)
        store = PassageStore(folder / str(manifest["data"]))
    except (RaggdError, OSError, ValueError, KeyError, TypeError):
        return None
    files = store.files if manifest.get("readers") == readers_fingerprint() else []
    return _Old(store, files, kind.rules().items() <= manifest.items())


def update_index(listing: Listing, folder: Path, kind: Kind, progress: Progress = silent) -> Index:
    """Return the index of a corpus in a folder, made or brought up to date."""
    changes = None
    if not _is_there(listing, folder, kind):
        with building(folder) as work:
            if not _is_there(listing, folder, kind):  # another process may have made it meanwhile
                count = partial(progress, "indexing passages")
                changes = _build(listing, folder, kind, work, count)
    retriever = open_index(folder, kind)
    skipped = (*listing.skipped, *skipped_in(retriever.store.files))
    return Index(folder, retriever, changes is not None, changes or Changes(), skipped)


def _is_there(listing: Listing, folder: Path, kind: Kind) -> bool:
    old = _old_version(folder, kind)
    if old is None:
        return False
    same = unchanged(listing, old.files)
    if not (old.same_rules and len(same) == len(listing.files) == len(old.store.files)):
        return False
    now = [same[file.name] for file in old.files]
    if now != old.files:  # touched, but not changed
        with suppress(RaggdError):  # where it cannot be noted, it is looked at again
            write_json(old.store.folder / "files.json", list(map(asdict, now)))
    return True


def open_index(folder: Path, kind: Kind) -> StoredRetriever:
    """Return the index in a folder as it is, memory-mapped."""
    return open_folder(folder, kind.name, kind.open)


def _build(listing: Listing, folder: Path, kind: Kind, work: Path, count: Count) -> Changes:
    old = _old_version(folder, kind)
    rules, readers = kind.rules(), readers_fingerprint()
    target = {**rules, "listing": content_id(listing.key, *map(repr, listing.files), readers)}
    state = read_json(work / STATE, what="state of the build") if (work / STATE).is_file() else {}
    if state.get("target") != target:
        clear(work)
        changes = _start(listing, kind, work, old, count)
        write_json(work / STATE, {"target": target, "changes": asdict(changes)})
    else:
        changes = Changes(**state["changes"])
    store = PassageStore(work)
    size, hashes = len(store), [file.passages for file in store.files if file.count]
    corpus = hashes[0] if len(hashes) == 1 else content_id(*hashes, length=32)
    kind.make(work, size, old.store.folder if old else None, count)
    manifest = {"kind": kind.name, "passages": size, "corpus": listing.key, "corpus_hash": corpus}
    fingerprint = kind.fingerprint(corpus, size)
    publish(work, folder, {**manifest, "fingerprint": fingerprint, "readers": readers, **rules})
    return changes


def _start(listing: Listing, kind: Kind, work: Path, old: _Old | None, count: Count) -> Changes:
    # Write the passages, and carry over what was made of those that stay.
    same = unchanged(listing, old.files) if old else {}
    kept = write_store(work, listing, same, old.store if old else None, count)
    store, copied = PassageStore(work), int(kept.sum())
    if not old:
        return Changes(files_added=len(store.files), passages_added=len(store))
    if old.same_rules:
        kind.carry(old.store.folder, kept, work, len(store) - copied)
    before, now = ({file.name for file in each.files} for each in (old.store, store))
    shared, changed = store.shared_with(old.store, copied)
    return Changes(
        files_added=len(now - before),
        files_changed=len(now & before) - len(same),
        files_removed=len(before - now),
        passages_added=len(store) - copied - shared,
        passages_changed=changed,
        passages_removed=len(old.store) - copied - shared,
    )


def build_index(
    corpus: Path,
    settings: RetrievalSettings,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Index:
    """Open the index of a file or folder, making it or bringing it up to date unless it is so.

    An index belongs to the place of a corpus and to the settings: files that did not change since
    are not read again, and only its newest version stays. Without `folder` it lies in the cache.
    """
    wanted, listing = list(_wanted(corpus, settings, folder)), look_at(corpus)
    made = [update_index(listing, where, kind, progress) for kind, where in wanted]
    first = made[0]
    if len(made) == 1:
        return first
    retriever, built = HybridRetriever([p.retriever for p in made]), any(p.built for p in made)
    return replace(first, folder=folder or first.folder, retriever=retriever, built=built)


def is_indexed(corpus: Path, settings: RetrievalSettings) -> bool:
    """Return whether `build_index` with its cached folder has nothing to do."""
    listing, wanted = look_at(corpus), _wanted(corpus, settings)
    return ":" in settings.retriever or all(_is_there(listing, at, kind) for kind, at in wanted)


def _wanted(
    corpus: Path, settings: RetrievalSettings, folder: Path | None = None
) -> Iterator[tuple[Kind, Path]]:
    # The indexes that are searched: the kind of each, and where it lies.
    names = ("bm25", "dense") if settings.retriever == "hybrid" else (settings.retriever,)
    for name in names:
        kind: Kind
        decides = [name, str(corpus.resolve())]
        if name == "bm25":
            kind = BM25Kind(Budget.of(parse_size(settings.memory)))
        elif name == "dense":
            encoder = load_encoder(settings.encoder, precision=settings.precision)
            kind = DenseKind(encoder, settings.index_factory)
            decides += [settings.encoder, settings.precision, settings.index_factory]
        else:
            raise RaggdError(
                f"retrieval.retriever={name} brings its own index: there is none to build. "
                "Fill it with the means of its library."
            )
        named = folder / name if folder and len(names) > 1 else folder
        yield kind, named or cache_folder() / "indexes" / f"{name}-{content_id(*decides)}"
