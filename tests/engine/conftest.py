"""vLLM on a processor, and the questions that both paths answer. Run by ``make engine-test``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

QUESTIONS, SETS, MOST_TOKENS = 50, 3, 24


@dataclass(frozen=True)
class Case:
    """A question that is answered with an adapter, and by the bare model."""

    question: str
    tokens: tuple[int, ...]
    adapter: str
    row: Any


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Support sets and adapters of these tests; backbone and index stay where they are."""
    from raggd.data import supports
    from raggd.engines import adapters

    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "supports_folder", lambda: folder / "supports")
        patch.setattr(adapters, "cache_folder", lambda: folder)
        patch.setattr(supports, "supports_folder", lambda: folder / "supports")
        yield folder


@pytest.fixture(scope="session")
def rag() -> Any:
    """SmolLM2 in float32, so that rounding decides as little as possible."""
    import raggd

    return raggd.load(settings=raggd.load_settings(assignments=["backbone.dtype=float32"]))


@pytest.fixture(scope="session")
def cases(rag: Any, cache: Path) -> list[Case]:
    """Fifty test questions of NQ and TriviaQA, the base adapter and three updates in turn."""
    from raggd.data.benchmarks import choose_by_hash, scored_questions, support_pool
    from raggd.data.supports import save_support
    from raggd.methods.answering import render
    from raggd.methods.base import Adapted
    from raggd.retrieval.evidence import evidence_for

    source = rag.parts.source
    asked, sets = [], []
    for name in ("nq", "triviaqa"):
        asked += choose_by_hash(scored_questions(source, name), QUESTIONS // 2)
        pool = choose_by_hash(support_pool(source, name), 3 * SETS)
        sets += [rag.support(pool[3 * i : 3 * i + 3]) for i in range(SETS)]
    rows = {"raggd/base": Adapted(rag.parts.base)}
    for support in sets[1 : 1 + SETS]:  # of both tasks
        save_support(cache / "supports", support)
        rows[f"raggd/{support.id}"] = Adapted(rag.parts.base, rag.adapt(support))
    names = list(rows)
    found = []
    for i, (question, shown) in enumerate(
        zip(asked, evidence_for(asked, rag.retriever, 3), strict=True)
    ):
        row = rows[names[i % len(names)]]
        prompt = render(
            rag.parts.backbone, row, question.text, shown, limit=1024, reserve=MOST_TOKENS
        )
        found.append(Case(question.text, prompt.tokens, names[i % len(names)], row))
    return found
