"""Retrieval: building and searching at growing sizes; against bm25s, rank_bm25, and faiss."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.growth import fit_exponent
from benchmarks.measure import apart, build_bm25s, build_ours
from benchmarks.measured import Measured
from benchmarks.setting import BenchSetting
from raggd.data.benchmarks import scored_questions
from raggd.data.documents import read_passages
from raggd.evaluation.timing import Ratio, in_turn, ratio_of
from raggd.retrieval.base import parse_size, top_k
from raggd.retrieval.bm25 import BM25Kind
from raggd.retrieval.build import open_index
from raggd.retrieval.dense import import_faiss, nearest
from raggd.retrieval.store import PassageStore
from raggd.retrieval.terms import tokenize

ABOUT = "retrieval: BM25 against bm25s and rank_bm25, dense search against faiss, growth"
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
"""First passages of the corpus that are indexed, besides all of them."""
TOP = 10
QUESTIONS = 200
PEERS_UP_TO = 350_000
"""Passages beyond which bm25s, which holds everything in memory, is left out."""
RANK_BM25_UP_TO, RANK_BM25_QUESTIONS = 100_000, 10
DENSE_UP_TO, WIDTH = 100_000, 384
TARGET = 21_015_324
"""Passages of the Wikipedia corpus of FlashRAG, to which growth is extrapolated."""
PYSERINI = {
    "natural_questions_2.7m": {"queries_per_second": 11.04, "passages_per_second": 6652.33},
    "trec_covid_171k": {"queries_per_second": 8.53, "passages_per_second": 3768.1},
    "source": "https://github.com/xhluca/bm25-benchmarks, README: one core of an Intel Xeon at "
    "2.2 GHz. Quoted, not measured here.",
}

Search = Callable[[str], object]


def run(setting: BenchSetting) -> Measured:
    """Build and search the first passages of the settings' corpus, at growing sizes.

    Returns:
        ``bm25_vs_bm25s`` (median query, largest size that bm25s was built for) and
        ``dense_vs_faiss``; by size what building took and how long queries take; fits and their
        extrapolation.
    """
    corpus = setting.parts.corpus
    total = sum(1 for _ in read_passages(corpus))
    sizes = [*(size for size in SIZES if size < 0.9 * total), total]
    asked = [q.text for q in scored_questions(setting.parts.source, setting.benchmark)][:QUESTIONS]
    ratios: dict[str, Ratio] = {}
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="raggd-bench-") as folder:
        for size in sizes:
            setting.say(f"retrieval: {size:,} passages")
            point, ratio = _at_size(setting, corpus, size, Path(folder) / str(size), asked)
            points.append(point)
            if ratio is not None:
                ratios["bm25_vs_bm25s"] = ratio
    dense = _dense(min(total, DENSE_UP_TO), setting.rounds)
    ratios["dense_vs_faiss"] = ratio_of(dense["ours"], dense["faiss flat"])
    times = {f"dense query, {name}, {min(total, DENSE_UP_TO):,}": ms for name, ms in dense.items()}
    for point in points:
        for name, ms in point["query_rounds"].items():
            times[f"BM25 query, {name}, {point['passages']:,}"] = ms
    facts = {"points": points, "pyserini": PYSERINI, "extrapolated_to_21_million": fits(points)}
    return Measured(ratios, times, {**facts, "growth": axes(points)})


def _at_size(
    setting: BenchSetting, corpus: Path, size: int, folder: Path, asked: Sequence[str]
) -> tuple[dict[str, Any], Ratio | None]:
    bound = parse_size(setting.parts.settings.retrieval.memory)
    folder.mkdir()
    point: dict[str, Any] = {"passages": size}
    point["build"] = {"ours": asdict(apart(build_ours, corpus, size, folder / "ours", bound))}
    ours = open_index(folder / "ours", BM25Kind())
    searches: dict[str, Search] = {"ours": lambda query: ours.search([query], TOP)}
    if size <= PEERS_UP_TO:
        theirs = asdict(apart(build_bm25s, corpus, size, folder / "bm25s", bound))
        point["build"]["bm25s"] = theirs
        index = _open_bm25s(folder / "bm25s", "numpy")
        searches["bm25s"] = _search_of(index)
        # Without the selection of the best, which takes bm25s most of its time in NumPy.
        searches["bm25s, scores alone"] = _scores_of(index)
        if find_spec("numba"):
            searches["bm25s with numba"] = _search_of(_open_bm25s(folder / "bm25s", "numba"))
        point["same_top_10"] = _same(ours, index, folder / "ours", asked)
    rounds = _query_ms(searches, asked, setting.rounds)
    point["query_ms"] = {name: _summary(values) for name, values in rounds.items()}
    point["query_rounds"] = {n: [median(one) for one in values] for n, values in rounds.items()}
    if size <= RANK_BM25_UP_TO:
        point["query_ms"] |= _rank_bm25(corpus, size, asked)
    medians = point["query_rounds"]
    if "bm25s" not in medians:
        return point, None
    return point, ratio_of(medians["ours"], medians["bm25s"])


def _open_bm25s(folder: Path, backend: str) -> Any:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s.BM25.load(folder, mmap=True, backend=backend, show_progress=False)


def _search_of(index: Any) -> Search:
    return lambda query: index.retrieve([tokenize(query)], k=TOP, show_progress=False)


def _scores_of(index: Any) -> Search:
    return lambda query: index.get_scores_from_ids(index.get_tokens_ids(tokenize(query)))


def _query_ms(
    searches: Mapping[str, Search], asked: Sequence[str], rounds: int
) -> dict[str, list[list[float]]]:
    # Milliseconds by name, round and question; all answer a question in turn, in changing order,
    # after a round that is not counted.
    found: dict[str, list[list[float]]] = {name: [] for name in searches}
    for number in range(rounds + 1):
        for times in found.values():
            times.append([])
        for query in asked:
            for name in reversed(list(searches)) if number % 2 else searches:
                start = time.perf_counter()
                searches[name](query)
                found[name][-1].append((time.perf_counter() - start) * 1000)
    return {name: times[1:] for name, times in found.items()}


def _summary(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    # Of each question its best round: a busy machine disturbs single ones.
    best = np.array(rounds).min(axis=0)
    p50, p95 = np.percentile(best, [50, 95])
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def _same(ours: Any, index: Any, folder: Path, asked: Sequence[str]) -> float:
    # Share of questions with the ten passages, in order, and scores of one index of everything.
    ranks, store, same = PassageStore(folder / "data-1").rank, PassageStore(folder / "data-1"), 0
    for query in asked:
        terms = index.get_tokens_ids(tokenize(query))
        scores = index.get_scores_from_ids(terms)
        rows = top_k(scores, ranks, TOP, above=0.0).tolist()
        expected = [(p.id, float(scores[row])) for row, p in zip(rows, store.at(rows), strict=True)]
        same += expected == [(h.passage.id, h.score) for h in ours.search([query], TOP)[0]]
    return same / len(asked)


def _rank_bm25(corpus: Path, size: int, asked: Sequence[str]) -> dict[str, Any]:
    try:
        from rank_bm25 import BM25Okapi
    except ImportError:
        return {}
    passages = islice(read_passages(corpus), size)
    index = BM25Okapi([tokenize(f"{p.title}\n{p.text}") for p in passages])
    searches: dict[str, Search] = {"rank_bm25": lambda q: index.get_scores(tokenize(q))}
    found = _query_ms(searches, asked[:RANK_BM25_QUESTIONS], 1)
    return {name: _summary(values) for name, values in found.items()}


def _dense(count: int, rounds: int) -> dict[str, list[float]]:
    # Random vectors: exact search does the same work whatever they are.
    faiss = import_faiss()
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    query, ties = vectors[:1], np.arange(count)
    works = {
        "ours": lambda: nearest(vectors, query, TOP, ties),
        "faiss flat": lambda: flat.search(query, TOP),
    }
    return in_turn(works, 5 * rounds)


def axes(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fit how a query and a build grow with the corpus, for the figure of growth.

    `points` are, by size, what `run` collects; the result is empty with one size.
    """
    if len(points) < 2:
        return {}
    sizes = [point["passages"] for point in points]
    curves = {
        "passages in the corpus (BM25 query)": [point["query_rounds"]["ours"] for point in points],
        "passages in the corpus (BM25 index)": [
            [1000 * point["build"]["ours"]["cpu_seconds"]] for point in points
        ],
    }
    found = {}
    for axis, ms in curves.items():
        exponent, explained = fit_exponent(sizes, [median(one) for one in ms])
        found[axis] = {"sizes": sizes, "ms": ms, "exponent": exponent, "explained": explained}
    return found


def fits(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fit how our costs grow with the corpus, and extrapolate them to 21 million passages.

    Returns:
        By cost the exponent over the three largest sizes, the variance explained, and the value at
        `TARGET`; empty with fewer than three sizes of 10,000 passages or more.
    """
    # Small corpora are left out: what every query and every build takes anyway hides the growth.
    large = [point for point in points if point["passages"] >= 10_000][-3:]
    if len(large) < 3:
        return {}
    sizes = [point["passages"] for point in large]
    costs = {
        "cpu_seconds": [p["build"]["ours"]["cpu_seconds"] for p in large],
        "disk": [p["build"]["ours"]["disk"] for p in large],
        "query_p50_ms": [p["query_ms"]["ours"]["p50"] for p in large],
        "query_p95_ms": [p["query_ms"]["ours"]["p95"] for p in large],
    }
    found = {}
    for name, values in costs.items():
        exponent, explained = fit_exponent(sizes, values)
        last = values[-1] * (TARGET / sizes[-1]) ** exponent
        found[name] = {"exponent": exponent, "explained": explained, "at_21_million": last}
    return found
