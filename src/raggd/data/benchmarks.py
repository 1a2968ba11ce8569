"""The seven benchmarks in FlashRAG's layout, from a folder or the hub; pools and the held-out rule.

The layout is ``<folder>/<name>/{train,dev,test}.jsonl[.gz]`` (or below ``<folder>/qa``), one
``{"id", "question", "golden_answers": [...]}`` per line. Paper section 5 keeps PopQA and
Bamboogle out of all training: `training_questions` refuses them, and where they have no train
file their support pool is cut out of the questions and never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raggd.data.answers import normalise_answer
from raggd.data.questions import read_questions
from raggd.data.sources import HUB, hub_file
from raggd.records import Question, RaggdError, content_id, known_names, require_known

SPLITS = ("train", "dev", "test")
SMALLEST_POOL = 12

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One of the paper's question sets.

    Attributes:
        name: folder in the layout, and the task of its questions.
        title: name in the paper's tables.
        train_split: split to train and to draw support from; empty if none is published.
        evaluation_splits: splits to score; the first that exists is taken.
        held_out: never trained on (paper section 5).
    """

    name: str
    title: str
    train_split: str = "train"
    evaluation_splits: tuple[str, ...] = ("test", "dev")
    held_out: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark("nq", "NQ"),
        Benchmark("triviaqa", "TriviaQA"),
        Benchmark("popqa", "PopQA", train_split="", evaluation_splits=("test",), held_out=True),
        Benchmark("hotpotqa", "HotpotQA"),
        Benchmark("2wikimultihopqa", "2Wiki"),
        Benchmark("musique", "MuSiQue"),
        Benchmark(
            "bamboogle", "Bamboogle", train_split="", evaluation_splits=("test",), held_out=True
        ),
    )
}
"""The paper's seven sets by name, in the order of its tables."""


def own_tasks(source: str | Path) -> list[str]:
    """Return the names of a local source's question sets that are none of the paper's."""
    roots = [Path(source), Path(source) / "qa"] if str(source) != HUB else []
    files = [path for root in roots for split in SPLITS for path in root.glob(f"*/{split}.jsonl*")]
    return sorted({path.parent.name for path in files} - set(BENCHMARKS))


def find_benchmark(name: str, source: str | Path = HUB) -> Benchmark:
    """Look a benchmark up by name.

    Args:
        name: e.g. ``"nq"``.
        source: a folder may hold question sets of one's own, ``<folder>/<name>/test.jsonl``.

    Returns:
        Its entry in `BENCHMARKS`, or an entry for a set of one's own, which need not have a train
        file: then a part of it is the support pool.

    Raises:
        RaggdError: there is none of that name; the nearest is offered.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    own = own_tasks(source)
    require_known("benchmark", name, [*BENCHMARKS, *own])
    return Benchmark(name, name, train_split="", evaluation_splits=("test", "dev"))


def known_benchmarks(names: Sequence[str], source: str | Path = HUB) -> list[str]:
    """Return the benchmarks that a setting names, checked by `known_names`."""
    return known_names("benchmark", names, [*BENCHMARKS, *own_tasks(source)])


def _local_file(folder: Path, name: str, split: str) -> Path | None:
    for root in (folder, folder / "qa"):
        for ending in (".jsonl", ".jsonl.gz"):
            path = root / name / f"{split}{ending}"
            if path.is_file():
                return path
    return None


def find_file(source: str | Path, name: str, split: str) -> Path | None:
    """Find the file of one split; on the hub this downloads it (once, to the hub's cache).

    Args:
        source: ``"hub"``, or a folder that is FlashRAG's layout or holds it as ``qa``.
        name: the benchmark.
        split: ``"train"``, ``"dev"`` or ``"test"``.

    Returns:
        The file, or None where the split does not exist.

    Raises:
        RaggdError: the benchmark or split is unknown, the folder is missing, the hub is out of
            reach.
    """
    find_benchmark(name, source)
    require_known("split", split, SPLITS)
    if str(source) == HUB:
        return hub_file(f"{name}/{split}.jsonl")
    folder = Path(source)
    if not folder.is_dir():
        raise RaggdError(
            f"no data folder at {folder}: give a folder in FlashRAG's layout "
            f"(<folder>/{name}/{split}.jsonl), or '{HUB}'."
        )
    return _local_file(folder, name, split)


def load_questions(source: str | Path, name: str, split: str) -> list[Question]:
    """Load one split of a benchmark.

    Args:
        source: ``"hub"``, or a folder that is FlashRAG's layout or holds it as ``qa``.
        name: the benchmark.
        split: ``"train"``, ``"dev"`` or ``"test"``.

    Returns:
        The questions in the order of the file, with `Question.task` = `name`.

    Raises:
        RaggdError: the split is not there, or `find_file` or `read_questions` refuses.
    """
    path = find_file(source, name, split)
    if path is None:
        raise RaggdError(
            f"benchmark '{name}' has no split '{split}' in {source}: expected "
            f"{name}/{split}.jsonl or .jsonl.gz, directly or below qa/."
        )
    return read_questions(path, task=name)


def _question_id(item: Any) -> str:
    return str(item.id)


def choose_by_hash(
    items: Iterable[_Item],
    n: int,
    seed: int = 0,
    key: Callable[[_Item], str] = _question_id,
) -> list[_Item]:
    """Choose a fixed pseudo-random subset that depends on what the items are, not on their order.

    Items are ranked by a hash of the seed and their key. A smaller choice of one seed is the
    beginning of a larger one.

    Args:
        items: e.g. questions.
        n: how many; all of them if there are fewer.
        seed: another seed ranks anew.
        key: identity of an item; its `id` by default.

    Returns:
        The chosen items, in rank order.

    Raises:
        RaggdError: `n` is negative.
    """
    if n < 0:
        raise RaggdError(f"cannot choose {n} items: give 0 or more.")
    named = [(key(item), item) for item in items]
    ranked = sorted(named, key=lambda pair: (content_id(str(seed), pair[0], length=64), pair[0]))
    return [item for _, item in ranked[:n]]


def training_questions(source: str | Path, name: str) -> list[Question]:
    """Load what may be trained on. All training goes through here.

    Args:
        source: ``"hub"`` or a folder in FlashRAG's layout.
        name: the benchmark.

    Returns:
        The questions of its train split, sorted by id.

    Raises:
        RaggdError: the benchmark is held out from training, or cannot be loaded.
    """
    benchmark = find_benchmark(name, source)
    if benchmark.held_out:
        allowed = ", ".join(entry.name for entry in BENCHMARKS.values() if not entry.held_out)
        raise RaggdError(
            f"benchmark '{name}' is held out: nothing may be trained on it (paper section 5). "
            f"Train on {allowed}."
        )
    return _sorted(load_questions(source, name, benchmark.train_split or "train"))


def _sorted(questions: Iterable[Question]) -> list[Question]:
    return sorted(questions, key=_question_id)


def _evaluation_questions(source: str | Path, benchmark: Benchmark) -> list[Question]:
    for split in benchmark.evaluation_splits:
        path = find_file(source, benchmark.name, split)
        if path is not None:
            return read_questions(path, task=benchmark.name)
    tried = " or ".join(benchmark.evaluation_splits)
    raise RaggdError(
        f"benchmark '{benchmark.name}' has nothing to score in {source}: expected "
        f"{benchmark.name}/<split>.jsonl or .jsonl.gz with the split {tried}."
    )


def _divide(source: str | Path, benchmark: Benchmark) -> tuple[list[Question], list[Question]]:
    # Cut a set without a train file into pool and scored questions.
    questions = _evaluation_questions(source, benchmark)
    size = max(SMALLEST_POOL, len(questions) // 10)
    if len(questions) <= size:
        raise RaggdError(
            f"benchmark '{benchmark.name}' has {len(questions)} questions and no train file: more "
            f"than {SMALLEST_POOL} are needed, since {SMALLEST_POOL} become the support pool."
        )
    pool = choose_by_hash(questions, size)
    shown = {normalise_answer(question.text) for question in pool}
    return pool, [entry for entry in questions if normalise_answer(entry.text) not in shown]


def _has_train(source: str | Path, benchmark: Benchmark) -> bool:
    return bool(benchmark.train_split) or find_file(source, benchmark.name, "train") is not None


def support_pool(source: str | Path, name: str) -> list[Question]:
    """Load the questions that support demonstrations are drawn from; none of them is ever scored.

    It is the train split; without one (PopQA and Bamboogle as published) a fixed tenth of the
    questions, at least 12, chosen by a hash of the id.

    Args:
        source: ``"hub"`` or a folder in FlashRAG's layout.
        name: the benchmark.

    Returns:
        The pool, sorted by id, whatever the order of the file.

    Raises:
        RaggdError: the benchmark is unknown or cannot be loaded, or it has too few questions to
            be divided.
    """
    benchmark = find_benchmark(name, source)
    if _has_train(source, benchmark):
        return _sorted(load_questions(source, name, "train"))
    return _sorted(_divide(source, benchmark)[0])


def scored_questions(source: str | Path, name: str) -> list[Question]:
    """Load the questions that scores are computed on: the test split, else dev, less the pool.

    Where the pool is cut out of the same file, a question with the same text as one of the pool
    is left out too.

    Args:
        source: ``"hub"`` or a folder in FlashRAG's layout.
        name: the benchmark.

    Returns:
        The questions, sorted by id, whatever the order of the file.

    Raises:
        RaggdError: the benchmark is unknown or cannot be loaded, or it has too few questions to
            be divided.
    """
    benchmark = find_benchmark(name, source)
    if _has_train(source, benchmark):
        return _sorted(_evaluation_questions(source, benchmark))
    return _sorted(_divide(source, benchmark)[1])


def available(source: str | Path) -> Iterator[tuple[Benchmark, str, Path]]:
    """List the benchmark files of a local folder.

    Args:
        source: a folder in FlashRAG's layout.

    Yields:
        Benchmark, split and file, in the order of the paper's tables.
    """
    for benchmark in BENCHMARKS.values():
        for split in SPLITS:
            path = _local_file(Path(source), benchmark.name, split)
            if path is not None:
                yield benchmark, split, path


def tasks_in(source: str | Path) -> list[str]:
    """Return the names of the benchmarks that a source holds, the paper's first, in its order."""
    if str(source) == HUB:
        return list(BENCHMARKS)
    named = dict.fromkeys(benchmark.name for benchmark, _, _ in available(source))
    return [*named, *own_tasks(source)]


def questions_hash(questions: Iterable[Question]) -> str:
    """Hash questions with their answers, for a run record.

    Args:
        questions: in the order that counts; the order of the answers does not.

    Returns:
        16 hexadecimal digits.
    """
    parts = [
        content_id(entry.task, entry.id, entry.text, *sorted(entry.answers)) for entry in questions
    ]
    return content_id(*parts)
