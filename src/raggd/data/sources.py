"""Where data comes from: a local folder in FlashRAG's layout, or its repository on the hub."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from raggd.files import cache_folder, replacing
from raggd.records import RaggdError

HUB = "hub"
"""The source that stands for FlashRAG's data sets on the Hugging Face hub."""

HUB_REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
HUB_CORPUS = "retrieval-corpus/wiki18_100w.zip"


def hub_file(filename: str) -> Path | None:
    """Fetch one file of FlashRAG's repository, once, to the hub's own cache.

    Args:
        filename: path inside the repository.

    Returns:
        The local copy, or None if the repository holds no such file.

    Raises:
        RaggdError: the hub is out of reach or refuses.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        path = hf_hub_download(
            HUB_REPOSITORY,
            filename,
            repo_type="dataset",
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except RemoteEntryNotFoundError:
        return None
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RaggdError(
            f"cannot fetch {filename} of {HUB_REPOSITORY} from the hub ({reason}). Check the "
            "network (HF_ENDPOINT names a mirror), or give a local folder in FlashRAG's layout."
        ) from error
    return Path(path)


def _unpack_corpus(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [name for name in opened.namelist() if name.endswith(".jsonl")]
            if len(members) != 1:
                raise RaggdError(
                    f"{archive} holds {len(members)} .jsonl files: expected the corpus alone."
                )
            with (
                opened.open(members[0]) as packed,
                replacing(target) as temporary,
                temporary.open("wb") as plain,
            ):
                shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, EOFError) as error:
        raise RaggdError(
            f"{archive} is damaged ({error}): remove it and fetch it again."
        ) from error


def find_corpus(source: str | Path) -> Path:
    """Find the corpus that belongs to a data source.

    Args:
        source: a folder with the subfolder ``corpus``, or ``"hub"`` for FlashRAG's Wikipedia of
            2018 (21 million passages, 5.1 GB to fetch), unpacked once in the cache folder.

    Returns:
        A file or folder for `raggd.data.documents.read_passages`.

    Raises:
        RaggdError: there is none, or the hub is out of reach.
    """
    if str(source) != HUB:
        folder = Path(source) / "corpus"
        if folder.is_dir():
            return folder
        if not folder.parent.is_dir():
            raise RaggdError(
                f"no data folder at {folder.parent}: give a folder in FlashRAG's layout, or "
                f"'{HUB}'."
            )
        raise RaggdError(f"no corpus at {folder}: name one by the setting data.corpus.")
    target = cache_folder() / "corpus" / f"{Path(HUB_CORPUS).stem}.jsonl"
    if not target.is_file():
        archive = hub_file(HUB_CORPUS)
        if archive is None:
            raise RaggdError(f"{HUB_REPOSITORY} has no {HUB_CORPUS}: name a corpus of your own.")
        _unpack_corpus(archive, target)
    return target
