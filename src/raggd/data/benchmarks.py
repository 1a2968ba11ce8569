"""The seven benchmarks in FlashRAG's layout, from a folder or the hub; pools and the held-out rule.

The layout is ``<folder>/<name>/{train,dev,test}.jsonl[.gz]`` (or below ``<folder>/qa``), one
``{"id", "question", "golden_answers": [...]}`` per line.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from raggd.data.answers import normalise_answer
from raggd.data.questions import read_questions
from raggd.data.wheels import join_members
from raggd.files import cache_folder, first_line
from raggd.records import Question, RaggdError, content_id, hash_of, known_names, require_known

HUB = "hub"  # the source that stands for FlashRAG's data sets on the Hugging Face hub
HUB_REPOSITORY = "RUC-NLPIR/FlashRAG_datasets"
HUB_CORPUS = "retrieval-corpus/wiki18_100w.zip"
SPLITS = ("train", "dev", "test")
SCORED = ("test", "dev")  # splits to score: the first that there is
SMALLEST_POOL = 12


BENCHMARKS = {
    "nq": "NQ",
    "triviaqa": "TriviaQA",
    "popqa": "PopQA",
    "hotpotqa": "HotpotQA",
    "2wikimultihopqa": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
}
"""The paper's seven sets in the order of its tables: name (of folder and task), title there."""
HELD_OUT = frozenset({"popqa", "bamboogle"})
"""Never trained on (paper section 5); alone of the seven they were published without train file."""


def _local(source: str | Path) -> Path:
    if not Path(source).is_dir():
        raise RaggdError(
            f"no data folder at {source}: give a folder in FlashRAG's layout "
            f"(<folder>/nq/test.jsonl), or '{HUB}'."
        )
    return Path(source)


def files_in(source: str | Path) -> dict[str, dict[str, Path]]:
    """Return a source's files by question set and split, the paper's first; none of the hub's."""
    if str(source) == HUB:
        return {name: {} for name in BENCHMARKS}
    found: dict[str, dict[str, Path]] = {}
    roots = (_local(source), Path(source) / "qa")
    for root, split, ending in product(roots, SPLITS, (".jsonl", ".jsonl.gz")):
        for path in root.glob(f"*/{split}{ending}"):
            found.setdefault(path.parent.name, {}).setdefault(split, path)
    names = [*(n for n in BENCHMARKS if n in found), *sorted(found.keys() - BENCHMARKS.keys())]
    return {name: found[name] for name in names}


def known_benchmarks(names: Sequence[str], source: str | Path = HUB) -> list[str]:
    """Return benchmarks that are named, checked by `known_names`: the paper's, a source's own."""
    # a folder that is not there holds none; that it is missing is said when it is read
    there = files_in(source) if Path(source).is_dir() else {}
    return known_names("benchmark", names, list(BENCHMARKS | there))


def find_file(source: str | Path, name: str, split: str) -> Path | None:
    """Return the file of one split, the hub's downloaded once; None where there is none."""
    known_benchmarks([name], source)
    require_known("split", split, SPLITS)
    if str(source) == HUB:
        return hub_file(f"{name}/{split}.jsonl")
    return files_in(source).get(name, {}).get(split)


def load_questions(source: str | Path, name: str, *splits: str) -> list[Question]:
    """Return the questions of the first of some splits that is there, sorted by id."""
    for split in splits:
        if path := find_file(source, name, split):
            return sorted(read_questions(path, task=name), key=lambda question: question.id)
    wanted = " or ".join(f"'{split}'" for split in splits)
    raise RaggdError(
        f"benchmark '{name}' has no split {wanted} in {source}: expected "
        f"{name}/{splits[0]}.jsonl or .jsonl.gz, directly or below qa/."
    )


def choose_by_hash(questions: Iterable[Question], n: int, seed: int = 0) -> list[Question]:
    """Choose a fixed pseudo-random subset that depends on the ids alone, not on their order.

    Questions are ranked by a hash of the seed and their id; all are chosen if there are fewer than
    `n`. A smaller choice of one seed is the beginning of a larger one.
    """
    ranked = sorted(questions, key=lambda q: (content_id(str(seed), q.id, length=64), q.id))
    return ranked[:n]


def training_questions(source: str | Path, name: str) -> list[Question]:
    """Return those of the train split, sorted by id; held-out benchmarks are refused, for all."""
    if name in HELD_OUT:
        allowed = ", ".join(known for known in BENCHMARKS if known not in HELD_OUT)
        raise RaggdError(
            f"benchmark '{name}' is held out: nothing may be trained on it (paper section 5). "
            f"Train on {allowed}."
        )
    return load_questions(source, name, "train")


def _divided(source: str | Path, name: str) -> tuple[list[Question], list[Question]] | None:
    # pool and scored questions, cut out of one file; None for a benchmark with a train file, and
    # for one that was published with it: there it is missed
    if name in BENCHMARKS.keys() - HELD_OUT or find_file(source, name, "train"):
        return None
    questions = load_questions(source, name, *SCORED)
    size = max(SMALLEST_POOL, len(questions) // 10)
    if len(questions) <= size:
        raise RaggdError(
            f"benchmark '{name}' has {len(questions)} questions and no train file: more than "
            f"{SMALLEST_POOL} are needed, since {SMALLEST_POOL} become the support pool."
        )
    pool = sorted(choose_by_hash(questions, size), key=lambda question: question.id)
    shown = {normalise_answer(question.text) for question in pool}
    return pool, [q for q in questions if normalise_answer(q.text) not in shown]


def support_pool(source: str | Path, name: str) -> list[Question]:
    """Return the questions that demonstrations are drawn from, sorted by id; none is ever scored.

    It is the train split; without one (PopQA and Bamboogle as published) a fixed tenth of the
    questions, at least 12, chosen by a hash of the id; too few to divide are refused.
    """
    divided = _divided(source, name)
    return divided[0] if divided else load_questions(source, name, "train")


def scored_questions(source: str | Path, name: str) -> list[Question]:
    """Return the questions to score, sorted by id: the test split, else dev, less the pool.

    Where the pool is cut out of the same file, a question with the same text as one of the pool
    is left out too.
    """
    divided = _divided(source, name)
    return divided[1] if divided else load_questions(source, name, *SCORED)


def questions_hash(questions: Iterable[Question]) -> str:
    """Hash questions with their answers, whatever the order of these, for a run record."""
    return hash_of(content_id(q.task, q.id, q.text, *sorted(q.answers)) for q in questions)


def hub_file(filename: str) -> Path | None:
    """Return a file of FlashRAG's repository, fetched once and cached; None if it has no such."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    mirror = os.environ.get("HF_ENDPOINT") or None
    try:
        path = hf_hub_download(HUB_REPOSITORY, filename, repo_type="dataset", endpoint=mirror)
    except RemoteEntryNotFoundError:
        return None
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise RaggdError(
            f"cannot fetch {filename} of {HUB_REPOSITORY} from the hub ({first_line(error)}). "
            "Check the network (HF_ENDPOINT names a mirror), or give a local folder in FlashRAG's "
            "layout."
        ) from error
    return Path(path)


def find_corpus(source: str | Path) -> Path:
    """Return the corpus that belongs to a data source: the subfolder ``corpus``.

    On the hub it is FlashRAG's Wikipedia of 2018 (21 million passages, 5.1 GB to fetch), unpacked
    once in the cache folder.

    Raises:
        RaggdError: there is none, or the hub is out of reach.
    """
    if str(source) != HUB:
        folder = _local(source) / "corpus"
        if not folder.is_dir():
            raise RaggdError(f"no corpus at {folder}: name one by the setting data.corpus.")
        return folder
    target = cache_folder() / "corpus" / f"{Path(HUB_CORPUS).stem}.jsonl"
    if target.is_file():
        return target
    archive = hub_file(HUB_CORPUS)
    if archive is None:
        raise RaggdError(f"{HUB_REPOSITORY} has no {HUB_CORPUS}: name a corpus of your own.")
    try:
        with zipfile.ZipFile(archive) as opened:
            member = next(name for name in opened.namelist() if name.endswith(".jsonl"))
        join_members([(archive, member)], target)
    except (zipfile.BadZipFile, EOFError, StopIteration) as error:
        raise RaggdError(
            f"{archive} is damaged, or holds no corpus: remove it and fetch it again."
        ) from error
    return target
