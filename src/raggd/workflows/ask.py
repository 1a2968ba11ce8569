"""`raggd ask` and `raggd index`: one's own documents, and one's own demonstrations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.demonstrations import OWN_TASK, read_demonstrations
from raggd.data.prompts import prompt_fingerprint
from raggd.evaluation.cost import Stopwatch
from raggd.files import cache_folder
from raggd.methods.answering import answer_batch, bounded_prompt
from raggd.methods.base import Method, Rearranges
from raggd.methods.remembered import Remembered
from raggd.methods.spec import METHODS
from raggd.provenance import seconds_since_start
from raggd.records import (
    Demonstration,
    Passage,
    Question,
    RaggdError,
    SupportSet,
    content_id,
    require_known,
)
from raggd.retrieval.estimate import Estimate
from raggd.retrieval.evidence import evidence_for, make_demonstrations, without_evidence
from raggd.retrieval.memory import peak_memory

NOBODY = SupportSet(OWN_TASK, (Demonstration("none", "none", (), "none"),))
"""Stands in where a method that does not adapt is asked to."""


def own_support(parts: Assembly, questions: Sequence[Question]) -> SupportSet:
    """Retrieve for one's own answered questions and make a support set of them.

    Args:
        parts: gives the retriever.
        questions: with answers.

    Returns:
        The support set.
    """
    k = parts.settings.retrieval.top_k
    return SupportSet(OWN_TASK, tuple(make_demonstrations(questions, parts.retriever, k)))


def _passage_view(passages: Sequence[Passage]) -> list[dict[str, str]]:
    return [{"id": p.id, "title": p.title, "text": p.text} for p in passages]


def _remembered(parts: Assembly, method: Method) -> Method:
    # the same demonstrations again cost a file to read, not a forward pass
    if not method.adapts:
        return method
    backbone, target = parts.backbone, parts.settings.target
    identity = content_id(
        backbone.fingerprint,
        str(backbone.dtype),
        prompt_fingerprint(backbone.tokenizer),
        target.model_dump_json(),
    )
    base = parts.base if "base" in method.hashes else None
    return Remembered(method, identity, cache_folder() / "updates", base)


def run_ask(
    parts: Assembly, question: str, demonstrations: Path | None, method: str | None
) -> dict[str, Any]:
    """Answer one question from the corpus, adapted to demonstrations when there are some.

    Args:
        parts: settings with the corpus; backbone and weights.
        question: the question.
        demonstrations: file of answered questions; None answers unadapted.
        method: name of a method; None chooses the adapting one with demonstrations, else
            ``base``.

    Returns:
        ``question``, ``answer``, ``method``, ``adapted``, ``without_evidence`` (demonstrations
        whose passages lack their answer), ``passages``, ``passages_cut`` and ``timings`` in
        milliseconds: ``start`` is what went before (Python, imports), and ``total``
        counts from the start of the process where the system tells it.

    Raises:
        RaggdError: the question is empty, or the method needs demonstrations and has none.
    """
    started = time.perf_counter()
    if not question.strip():
        raise RaggdError("the question is empty: expected at least one word.")
    watch = Stopwatch()
    before = seconds_since_start()
    if before is not None:
        watch.add("start", before * 1000)
    shown = read_demonstrations(demonstrations) if demonstrations else []
    name = method or (parts.adapting if shown else "base")
    require_known("method", name, METHODS)
    with watch.timed("index"):
        parts.retriever  # noqa: B018
    with watch.timed("load"):
        ready = parts.method(name)
        backbone = parts.backbone
    if isinstance(ready, Rearranges):
        raise RaggdError(
            f"method '{name}' is a control of `raggd evaluate`: it needs other questions. Choose "
            "--method rag-gd."
        )
    if ready.adapts and not shown:
        raise RaggdError(
            f"method '{name}' adapts from demonstrations: give some by --demonstrations "
            "FILE.jsonl, or choose --method base."
        )
    asked = Question("asked", question, (), OWN_TASK)
    with watch.timed("retrieve"):
        passages = evidence_for([asked], parts.retriever, parts.settings.retrieval.top_k)[0]
        support = own_support(parts, shown) if shown else None
    with watch.timed("adapt"):
        adapted = _remembered(parts, ready).adapt([support] if support else [NOBODY])[0]
    prompt = bounded_prompt(parts.settings, backbone, adapted, question, passages)
    with watch.timed("answer"):
        most = parts.settings.evaluation.max_answer_tokens
        answer = answer_batch(backbone, [adapted], [prompt], most)[0]
    timings = {stage: round(cost.median_ms, 1) for stage, cost in watch.costs().items()}
    spent = (time.perf_counter() - started) * 1000
    timings["total"] = round(spent + timings.get("start", 0.0), 1)
    return {
        "question": question,
        "answer": answer,
        "method": name,
        "adapted": adapted.update is not None,
        "demonstrations": len(shown),
        "without_evidence": [d.question for d in without_evidence(support)] if support else [],
        "passages": _passage_view(passages),
        "passages_cut": prompt.passages_cut,
        "timings": timings,
    }


def run_index(
    parts: Assembly,
    path: Path,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Index a corpus, once.

    Args:
        parts: settings of the retriever.
        path: the corpus.
        announce: told in one line what a long build will take, before it starts.

    Returns:
        ``passages``, ``fingerprint``, ``folder``, ``built`` (false: it was there), ``seconds``,
        ``peak_memory`` (bytes that the process held at most) and ``estimate`` (of a long build,
        else None).
    """
    started = time.perf_counter()
    estimates: list[Estimate] = []

    def told(estimate: Estimate) -> None:
        estimates.append(estimate)
        if announce is not None:
            announce(f"{estimate}.")

    index = parts.index_of(path, told)
    return {
        "passages": len(index.retriever),
        "fingerprint": index.retriever.fingerprint,
        "folder": str(index.folder),
        "built": index.built,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory": peak_memory(),
        "estimate": asdict(estimates[0]) if estimates else None,
    }
