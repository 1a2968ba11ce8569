"""`raggd study FILE --dry-run`: what is there, what is missing, what the study will take.

Nothing is fetched: what lies on the hub is looked up in the local cache, and counted as published.
Hours come from draws that were answered; ``--time-one-draw`` answers one of each method first,
which stays in the study's folder as a part of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer

from raggd.assembly import Assembly
from raggd.backbone.embedded import EMBEDDED, embedded_folder
from raggd.core.low_rank import AdapterSpec
from raggd.data.benchmarks import HUB, HUB_CORPUS, HUB_REPOSITORY, scored_questions
from raggd.data.documents import read_passages
from raggd.data.prompts import build_prompt
from raggd.evaluation.price import PUBLISHED, shape_config
from raggd.evaluation.statistics import questions_needed
from raggd.files import tensor_header
from raggd.methods.spec import BASE_FILE, FILES_OF
from raggd.progress import Progress
from raggd.records import Question, RaggdError
from raggd.report.contrasts import sample
from raggd.report.grid import load_grid
from raggd.retrieval.build import is_indexed
from raggd.study import run
from raggd.study.plan import Pair, Part, StudyBackbone, StudySettings, all_cells, cell_size
from raggd.study.runner import StudyRunner, measured_speed

EFFECTS = (1.0, 2.7)  # gains of RAG-GD over the base adapter in the paper, points of EM
ASSUMED_CHANGED = 0.10  # share of questions with another EM, where no record tells it
FETCHED = "on the hub; the study fetches it"
SAMPLED = 16


class Checks:
    """Collects what was looked at: ``item``, ``ok``, ``message``; a refusal becomes a line."""

    def __init__(self, progress: Progress) -> None:
        self.found: list[dict[str, Any]] = []
        self._progress = progress

    def add(self, item: str, message: str, *, ok: bool = True) -> None:
        """File what was found of one thing."""
        self.found.append({"item": item, "ok": ok, "message": message})

    def run(self, item: str, look: Callable[..., Any], *given: Any) -> Any:
        """Return the result of a look at something, which is its message; None if it is refused."""
        self._progress(item, 0, None)
        try:
            found = look(*given)
        except (RaggdError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.add(item, lines[0], ok=False)
            return None
        self.add(item, str(found))
        return found


def _pool_and_questions(parts: Assembly, name: str) -> str:
    scored = len(scored_questions(parts.source, name))
    return f"{run.pool_size(parts, name)} support questions, {scored} to score"


def _check_data(checks: Checks, study: StudySettings, parts: Assembly) -> dict[str, int]:
    # questions of a cell, by benchmark
    counts, remote = {}, study.data.folder == HUB
    for name in study.evaluation.benchmarks:
        if remote:
            checks.add(f"benchmark {name}", FETCHED)
        if remote or checks.run(f"benchmark {name}", _pool_and_questions, parts, name):
            counts[name] = cell_size(study, parts, name)
        else:
            counts[name] = study.evaluation.questions
    whole = remote and not study.data.corpus
    if whole:
        known = try_to_load_from_cache(HUB_REPOSITORY, HUB_CORPUS, repo_type="dataset")
        checks.add("corpus", "there" if isinstance(known, str) else f"{FETCHED} (5.1 GB)")
    else:
        checks.run("corpus", lambda: parts.corpus)
    for entry in study.retrievers:
        if whole:
            checks.add(f"retriever {entry.name}", "21,015,324 passages to index")
        else:
            first = (study.backbones[0].name, entry.name, study.seeds[0])
            checks.run(f"retriever {entry.name}", _index, Assembly(study.run_settings(*first)))
    return counts


def _index(parts: Assembly) -> str:
    there = is_indexed(parts.corpus, parts.settings.retrieval)
    return "its index is there" if there else "its index is made at the start"


def _source(name: str) -> str:
    return str(embedded_folder(name)) if name in EMBEDDED else name


def _is_remote(name: str) -> bool:
    return name not in EMBEDDED and not Path(name).exists() and name.count("/") == 1


def _config(name: str) -> tuple[Any, str]:
    try:
        return AutoConfig.from_pretrained(_source(name), local_files_only=True), "is here"
    except (OSError, ValueError) as error:
        if name in PUBLISHED:
            return shape_config(PUBLISHED[name]), f"of published size, {FETCHED}"
        if _is_remote(name):
            return None, FETCHED
        raise RaggdError(f"no configuration of backbone '{name}' there.") from error


def _base_shape(folder: Path, config: Any) -> str:
    path = folder / BASE_FILE
    spec = AdapterSpec.from_json(tensor_header(path)["spec"])
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or hidden // heads
    narrow = config.num_key_value_heads * size
    wanted = (config.num_hidden_layers, hidden, (heads * size, narrow, narrow))
    if (spec.layers, spec.d_in, spec.d_out) != wanted:
        raise RaggdError(
            f"{path} has layers, width and projections {(spec.layers, spec.d_in, spec.d_out)}, the "
            f"backbone {wanted}: it was trained for another one."
        )
    return "its shape is that of the backbone"


def _prompt_tokens(study: StudySettings, parts: Assembly, name: str) -> str:
    # mean length of prompts, rendered with the backbone's own tokenizer and template
    tokenizer = AutoTokenizer.from_pretrained(_source(name), local_files_only=True)
    k, limit = study.retrieval.top_k, study.backbone.context_tokens
    passages = list(islice(read_passages(parts.corpus), SAMPLED * max(1, k)))
    asked: Sequence[Question] = ()
    for benchmark in study.evaluation.benchmarks:
        asked = asked or scored_questions(parts.source, benchmark)[:SAMPLED]
    lengths = [
        len(build_prompt(tokenizer, q.text, passages[i * k : i * k + k], limit=limit).tokens)
        for i, q in enumerate(asked)
    ]
    return f"about {fmean(lengths):.0f} tokens"


def _check_backbone(
    checks: Checks, study: StudySettings, entry: StudyBackbone, part: Part, parts: Assembly
) -> None:
    name, config = entry.model or entry.name, None
    try:
        config, found = _config(name)
        checks.add(f"{entry.name}: backbone", found)
    except RaggdError as error:
        checks.add(f"{entry.name}: backbone", str(error), ok=False)
    if study.data.folder != HUB and not _is_remote(name):
        checks.run(f"{entry.name}: prompts", _prompt_tokens, study, parts, name)
    own = Assembly(study.first(entry.name))
    folder = checks.run(f"{entry.name}: weights folder", lambda: own.weights)
    if folder is None:
        return
    methods = [m for m in entry.methods if FILES_OF[m] and (not part.methods or m in part.methods)]
    problems = [problem for m in methods for problem in run.weight_problems(folder, m)]
    for problem in problems:
        checks.add(f"{entry.name}: weights", problem, ok=False)
    if not problems:
        checks.add(f"{entry.name}: weights", f"{len(methods)} methods have theirs")
    if config is not None and (folder / BASE_FILE).is_file():
        checks.run(f"{entry.name}: base adapter", _base_shape, folder, config)


def time_one_draw(study: StudySettings, out: Path, part: Part, progress: Progress) -> None:
    """Answer the first draw of one benchmark with every method that has no time yet; it stays."""
    with run.locked(out):
        run.check_folder(study, out)
        known = measured_speed(out).spent
        every = reversed(all_cells(study, part))
        first = {cell.pair: cell for cell in every if cell.pair not in known}
        cells = list(reversed(first.values()))
        run.check_cells(study, cells)
        run.write_plan(study, out)
        StudyRunner(study, out, progress).run(cells, draws=1)


def _observed(out: Path) -> tuple[float, float] | None:
    # share of questions whose EM differs between RAG-GD and base, and the deviation, over blocks
    try:
        blocks = load_grid(out).blocks
    except RaggdError:
        return None
    pair = ("rag-gd", "base")
    both = [b for b in blocks if set(pair) <= set(b.methods)]
    found = [s for b in both if (s := sample([b], pair, b.benchmarks, "em")) is not None]
    differences = np.concatenate([s.values[:, 0] - s.values[:, 1] for s in found] or [np.zeros(0)])
    if len(differences) < 30:
        return None
    return float(np.mean(differences != 0)), float(differences.std())


def power(
    questions: int, changed: float | None = None, observed_std: float | None = None
) -> dict[str, Any]:
    """Tell how many questions show the paper's effects, and which effect the planned ones show.

    Of the share of questions whose EM differs and the deviation of their difference, both from
    records (else a share is assumed); at 80 % power, two-sided, 95 %, paired.
    """
    share = ASSUMED_CHANGED if changed is None else changed
    needed = {
        f"{effect:g}": questions_needed(
            effect / 100, observed_std or math.sqrt(max(share - (effect / 100) ** 2, 0.0))
        )
        for effect in EFFECTS
    }
    quantile = NormalDist().inv_cdf
    std = observed_std or math.sqrt(share)
    detectable = 100 * (quantile(0.975) + quantile(0.8)) * std / math.sqrt(max(1, questions))
    return {
        "changed": share,
        "observed": changed is not None,
        "needed": needed,
        "planned": questions,
        "detectable": round(detectable, 2),
    }


def dry_run(study: StudySettings, out: Path, part: Part, progress: Progress) -> dict[str, Any]:
    """Look at everything that a study needs; nothing is run or fetched. Hours: of timed parts."""
    part.check(study)
    checks, parts = Checks(progress), Assembly(study.first())
    counts = _check_data(checks, study, parts)
    for entry in (b for b in study.backbones if not part.backbones or b.name in part.backbones):
        _check_backbone(checks, study, entry, part, parts)
    cells, speed, waiting = all_cells(study, part), measured_speed(out), Counter[Pair]()
    for cell in cells:
        waiting[cell.pair] += counts[cell.benchmark]
    hours: dict[str, dict[str, float | None]] = {}
    for (backbone, method), n in waiting.items():
        pair = (backbone, method)
        seconds = speed.left({pair: n}) if pair in speed.spent else None
        spent = None if seconds is None else round(seconds / 3600, 3)
        hours.setdefault(backbone, {})[method] = spent
    found = [x for by_method in hours.values() for x in by_method.values()]
    return {
        "ready": all(check["ok"] for check in checks.found),
        "checks": checks.found,
        "cells": len(cells),
        "questions": waiting.total(),
        "hours": round(sum(x for x in found if x is not None), 2),
        "unmeasured": found.count(None),
        "power": power(sum(counts.values()), *(_observed(out) or ())),
        "backbones": hours,
    }


def in_words(found: Mapping[str, Any]) -> Iterator[str]:
    """Put the result of a dry run into lines for a terminal."""
    for check in found["checks"]:
        yield f"{'ok ' if check['ok'] else 'NO '} {check['item']}: {check['message']}"
    yield ""
    for name, by_method in found["backbones"].items():
        for method, hours in by_method.items():
            yield f"{name}, {method:<22} {'not timed yet' if hours is None else f'{hours:.2f} h'}"
    power_found = found["power"]
    share = f"{power_found['changed']:.1%} of the questions"
    share += " (observed)" if power_found["observed"] else " (assumed; no records yet)"
    needed = ", ".join(f"{e} EM: {n}" for e, n in power_found["needed"].items())
    some = found["unmeasured"]
    more = f", and what {some} methods take: --time-one-draw answers one of each" if some else ""
    yield ""
    yield f"{found['cells']} cells, {found['questions']} answers, {found['hours']} h{more}"
    yield (
        f"Questions needed to see the paper's gains at 80 % power, two methods differing on "
        f"{share}: {needed}. Planned per block: {power_found['planned']}, which shows "
        f"{power_found['detectable']} EM."
    )
    yield "Everything is there." if found["ready"] else "Not everything is there: see NO above."
