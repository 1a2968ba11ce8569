"""Making an index and bringing it up to date: one way for every kind, stopped and resumed.

What is the same as in the earlier version of the index is carried over: the passages of files that
did not change, their postings, and the vectors of all passages whose title and text were encoded
before. The rest is read, sorted or encoded, and the new version takes the place of the old one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from raggd.data.documents import Skipped, readers_fingerprint
from raggd.files import cache_folder, read_json, write_json
from raggd.progress import Progress, silent
from raggd.records import RaggdError, content_id
from raggd.retrieval.base import Budget, Count, parse_size
from raggd.retrieval.bm25 import BM25Kind
from raggd.retrieval.corpus import (
    Changes,
    Listing,
    changes_between,
    look_at,
    skipped_in,
    unchanged,
    write_store,
)
from raggd.retrieval.dense import DenseKind
from raggd.retrieval.encoder import load_encoder
from raggd.retrieval.folders import STATE, building, clear, open_folder, publish, read_manifest
from raggd.retrieval.store import (
    HybridRetriever,
    PassageStore,
    StoredFile,
    StoredRetriever,
    hash_of_files,
)
from raggd.settings import RetrievalSettings

FUSED = ("bm25", "dense")
"""The kinds of index that ``hybrid`` fuses."""


@dataclass(frozen=True, slots=True)
class Index:
    """An index, opened; `built` if it was made or brought up to date now.

    `changes` are those since it was last made, `skipped` the files that are not in it.
    """

    folder: Path
    retriever: StoredRetriever
    built: bool
    changes: Changes = field(default_factory=Changes)
    skipped: tuple[Skipped, ...] = ()


Kind = BM25Kind | DenseKind
"""What differs between kinds of index: what is computed for passages, and how it is opened."""


@dataclass(frozen=True, slots=True)
class _Old:
    # The version of an index that is there: its data and what of it still holds.
    data: Path
    store: PassageStore
    files: list[StoredFile]  # none if files are read otherwise now
    same_rules: bool


def _old_version(folder: Path, kind: Kind) -> _Old | None:
    # What cannot be read as an index is replaced by one, so it is no error here.
    try:
        manifest = read_manifest(folder, kind.name)
        data = folder / str(manifest["data"])
        store = PassageStore(data)
    except (RaggdError, OSError, ValueError, KeyError, TypeError):
        return None
    files = store.files if manifest.get("readers") == readers_fingerprint() else []
    rules = kind.rules()
    return _Old(data, store, files, all(manifest.get(name) == rules[name] for name in rules))


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
    if any(same[file.name] != file for file in old.files):  # touched, but not changed
        with suppress(RaggdError):  # where it cannot be noted, it is looked at again
            write_json(old.data / "files.json", [asdict(same[file.name]) for file in old.files])
    return True


def open_index(folder: Path, kind: Kind) -> StoredRetriever:
    """Return the index in a folder as it is, memory-mapped."""
    return open_folder(
        folder, kind.name, lambda data, manifest: kind.open(data, str(manifest["fingerprint"]))
    )


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
    size, corpus = len(store), hash_of_files(store.files)
    kind.make(work, size, old.data if old else None, count)
    manifest = {"kind": kind.name, "passages": size, "corpus": listing.key, "corpus_hash": corpus}
    fingerprint = kind.fingerprint(corpus, size)
    publish(work, folder, {**manifest, "fingerprint": fingerprint, "readers": readers, **rules})
    return changes


def _start(listing: Listing, kind: Kind, work: Path, old: _Old | None, count: Count) -> Changes:
    same = unchanged(listing, old.files) if old else {}
    kept = write_store(work, listing, same, old.store if old else None, count)
    store, copied = PassageStore(work), int(kept.sum())
    if old and old.same_rules:
        kind.carry(old.data, kept, work, len(store) - copied)
    return changes_between(old.store if old else None, store, copied, len(same))


def build_index(
    corpus: Path,
    settings: RetrievalSettings,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Index:
    """Open the index of a file or folder, making it or bringing it up to date unless it is so.

    An index belongs to the place of a corpus and to the settings: files that did not change since
    are not read again, and there is one version of it, the newest. Without `folder` it lies in the
    cache.
    """
    parts = _parts(settings)
    kinds = [_kind(part) for part in parts]
    listing, made = look_at(corpus), list[Index]()
    for part, kind in zip(parts, kinds, strict=True):
        named = folder / part.retriever if folder and len(parts) > 1 else folder
        where = named or _cached_folder(listing, part)
        made.append(update_index(listing, where, kind, progress))
    if len(made) == 1:
        return made[0]
    retriever, built = HybridRetriever([p.retriever for p in made]), any(p.built for p in made)
    return Index(folder or made[0].folder, retriever, built, made[0].changes, made[0].skipped)


def is_indexed(corpus: Path, settings: RetrievalSettings) -> bool:
    """Return whether `build_index` with its cached folder has nothing to do."""
    listing = look_at(corpus)
    return ":" in settings.retriever or all(
        _is_there(listing, _cached_folder(listing, part), _kind(part)) for part in _parts(settings)
    )


def _parts(settings: RetrievalSettings) -> list[RetrievalSettings]:
    kinds = FUSED if settings.retriever == "hybrid" else (settings.retriever,)
    return [settings.model_copy(update={"retriever": kind}) for kind in kinds]


def _kind(settings: RetrievalSettings) -> Kind:
    if settings.retriever == "bm25":
        return BM25Kind(Budget.of(parse_size(settings.memory)))
    if settings.retriever == "dense":
        encoder = load_encoder(settings.encoder, precision=settings.precision)
        return DenseKind(encoder, settings.index_factory)
    raise RaggdError(
        f"retrieval.retriever={settings.retriever} brings its own index: there is none to build. "
        "Fill it with the means of its library."
    )


def _cached_folder(listing: Listing, settings: RetrievalSettings) -> Path:
    parts = [settings.retriever, listing.key]
    if settings.retriever == "dense":
        parts += [settings.encoder, settings.precision, settings.index_factory]
    return cache_folder() / "indexes" / f"{settings.retriever}-{content_id(*parts)}"
