"""What is there of a study, what is missing, what it will take: ``--status`` and ``--dry-run``.

Nothing is fetched: what lies on the hub is looked up in the local cache, and counted as published.
Hours come from draws that were answered; ``--time-one-draw`` answers one of each method first,
which stays in the study's folder as a part of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer

from raggd.assembly import Assembly
from raggd.backbone.embedded import EMBEDDED, loadable
from raggd.core.low_rank import AdapterSpec
from raggd.data.benchmarks import HUB, HUB_CORPUS, HUB_REPOSITORY, scored_questions
from raggd.data.documents import read_passages
from raggd.data.prompts import build_prompt
from raggd.evaluation.price import PUBLISHED, shape_config
from raggd.evaluation.statistics import SEEN, questions_needed
from raggd.files import first_line, read_json, tensor_header
from raggd.methods.spec import BASE_FILE, FILES_OF
from raggd.progress import Progress
from raggd.records import Question, RaggdError
from raggd.report.contrasts import sample
from raggd.report.grid import load_grid
from raggd.retrieval.build import is_indexed
from raggd.study import run
from raggd.study.plan import Cell, Identities, Pair, StudySettings, cell_size, draws_of

EFFECTS = (1.0, 2.7)  # gains of RAG-GD over the base adapter in the paper, points of EM
ASSUMED_CHANGED = 0.10  # share of questions with another EM, where no record tells it
FETCHED = "on the hub; the study fetches it"
SAMPLED = 16


@dataclass(frozen=True)
class Speed:
    """Seconds and questions of parts that were answered, loss included, by backbone and method."""

    spent: Mapping[Pair, float]
    answered: Mapping[Pair, int]

    def left(self, waiting: Mapping[Pair, int]) -> float | None:
        """Estimate the seconds of waiting questions, by method or backbone; None if unmeasured."""
        if not self.spent:
            return None
        total = 0.0
        for pair, questions in waiting.items():
            near = [k for k in self.spent if k[0] == pair[0]] or list(self.spent)
            near = [pair] if pair in self.spent else near
            answered = sum(self.answered[k] for k in near)
            total += questions * sum(self.spent[k] for k in near) / answered
        return total


def measured_speed(out: Path) -> Speed:
    """Return what the questions of a study took, from the part files in its folder."""
    spent, answered = dict[Pair, float](), Counter[Pair]()
    for path in sorted(out.glob("*/*/seed-*/parts/*.json")):
        found = re.fullmatch(r".+-\d{3}-(.+)\.json", path.name)
        part = read_json(path, what="part file") if found else {}
        if found and part.get("seconds") is not None:
            pair = (path.relative_to(out).parts[0], found[1])
            spent[pair] = spent.get(pair, 0.0) + part["seconds"]
            answered[pair] += len(part["predictions"])
    return Speed(spent, answered)


def status_of(study: StudySettings, out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """Count cells, answers and parts that are there, and the hours left; no model is loaded."""
    identities = Identities(study)
    answered = {
        cell: len(read_json(out / cell.path, what="run record")["predictions"])
        for cell in cells
        if identities.fits(out, cell)
    }

    def count(chosen: Sequence[Cell]) -> dict[str, Any]:
        found = [answered[cell] for cell in chosen if cell in answered]
        return {"cells": len(chosen), "complete": len(found), "questions": sum(found)}

    parts, sizes = Assembly(study.first()), dict[str, int]()
    for name in dict.fromkeys(cell.benchmark for cell in cells):
        try:
            sizes[name] = cell_size(study, parts, name)
        except RaggdError:  # the data are not here: as many draws as the settings say
            sizes[name] = max(study.evaluation.questions, study.evaluation.draws)
    there, planned, waiting = 0, 0, Counter[Pair]()
    for cell in cells:
        size = sizes[cell.benchmark]
        draws = draws_of(study, size)
        record = out / cell.path  # one that no longer fits was made of parts that do not, either
        old = record.stat().st_mtime_ns if cell not in answered and record.exists() else 0
        paths = (out / cell.part(draw) for draw in range(draws))
        found = sum(path.stat().st_mtime_ns > old for path in paths if path.exists())
        there, planned = there + found, planned + draws
        waiting[cell.pair] += max(0, size - size * found // draws)
    seconds = measured_speed(out).left(waiting) if there < planned else 0.0
    names = dict.fromkeys(cell.backbone for cell in cells)
    return {
        **count(cells),
        "parts": there,
        "parts_planned": planned,
        "hours_left": None if seconds is None else round(seconds / 3600, 2),
        "backbones": {name: count([c for c in cells if c.backbone == name]) for name in names},
    }


def status_in_words(found: Mapping[str, Any]) -> Iterator[str]:
    """Put the result of `status_of` into lines for a terminal."""
    for name, one in [*found["backbones"].items(), ("all", found)]:
        counts = f"{one['complete']} of {one['cells']} cells, {one['questions']} answers"
        yield f"{name:<24} {counts}"
    left = "" if found["hours_left"] is None else f", about {found['hours_left']} h left"
    yield f"{found['parts']} of {found['parts_planned']} draws are there{left}"


class Checks:
    """Collects what was looked at: ``item``, ``ok``, ``message``; a refusal becomes a line."""

    def __init__(self, progress: Progress) -> None:
        self.found: list[dict[str, Any]] = []
        self._progress = progress

    def add(self, item: str, message: str, *, ok: bool = True) -> None:
        """File what was found of one thing."""
        self.found.append({"item": item, "ok": ok, "message": message})

    def look(self, item: str, find: Callable[[], object]) -> bool:
        """File what is found of one thing, and return whether it was not refused."""
        self._progress(item, 0, None)
        try:
            self.add(item, str(find()))
        except (RaggdError, OSError, ValueError) as error:
            self.add(item, first_line(error), ok=False)
            return False
        return True


def _check_data(checks: Checks, study: StudySettings, parts: Assembly) -> dict[str, int]:
    # questions of a cell, by benchmark
    counts, remote = {}, study.data.folder == HUB

    def questions(name: str) -> str:
        if remote:
            return FETCHED
        scored = len(scored_questions(parts.source, name))
        return f"{run.pool_size(parts, name)} support questions, {scored} to score"

    for name in study.evaluation.benchmarks:
        found = checks.look(f"benchmark {name}", partial(questions, name))
        counts[name] = cell_size(study, parts, name) if found else study.evaluation.questions
    if remote and not study.data.corpus:
        known = try_to_load_from_cache(HUB_REPOSITORY, HUB_CORPUS, repo_type="dataset")
        checks.add("corpus", "there" if isinstance(known, str) else f"{FETCHED} (5.1 GB)")
        for entry in study.retrievers:
            checks.add(f"retriever {entry.name}", "21,015,324 passages to index")
        return counts
    checks.look("corpus", lambda: parts.corpus)
    for entry in study.retrievers:
        settings = study.run_settings(study.backbones[0].name, entry.name, study.seeds[0])
        checks.look(f"retriever {entry.name}", partial(_index, Assembly(settings)))
    return counts


def _index(parts: Assembly) -> str:
    there = is_indexed(parts.corpus, parts.settings.retrieval)
    return "its index is there" if there else "its index is made at the start"


def _is_remote(name: str) -> bool:
    return name not in EMBEDDED and not Path(name).exists() and name.count("/") == 1


def _config(name: str) -> tuple[Any, str]:
    try:
        return AutoConfig.from_pretrained(loadable(name), local_files_only=True), "is here"
    except (OSError, ValueError) as error:
        if name in PUBLISHED:
            return shape_config(PUBLISHED[name]), f"of published size, {FETCHED}"
        if _is_remote(name):
            return None, FETCHED
        raise RaggdError(f"no configuration of backbone '{name}' there.") from error


def _base_shape(path: Path, config: Any) -> str:
    spec = AdapterSpec.from_json(tensor_header(path)["spec"])
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or hidden // heads
    narrow = config.num_key_value_heads * size
    there = (spec.layers, spec.d_in, spec.d_out)
    wanted = (config.num_hidden_layers, hidden, (heads * size, narrow, narrow))
    if there != wanted:
        raise RaggdError(
            f"{path} has layers, width and projections {there}, the backbone {wanted}: it was "
            "trained for another one."
        )
    return "its shape is that of the backbone"


def _prompt_tokens(study: StudySettings, parts: Assembly, name: str) -> str:
    # mean length of prompts, rendered with the backbone's own tokenizer and template
    tokenizer = AutoTokenizer.from_pretrained(loadable(name), local_files_only=True)
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
    checks: Checks, study: StudySettings, label: str, methods: Sequence[str], parts: Assembly
) -> None:
    own = Assembly(study.first(label))
    name = own.settings.backbone.name
    known = checks.look(f"{label}: backbone", lambda: _config(name)[1])
    if study.data.folder != HUB and not _is_remote(name):
        checks.look(f"{label}: prompts", lambda: _prompt_tokens(study, parts, name))
    if not checks.look(f"{label}: weights folder", lambda: own.weights):
        return
    problems = [problem for m in methods for problem in run.weight_problems(own.weights, m)]
    for problem in problems:
        checks.add(f"{label}: weights", problem, ok=False)
    if not problems:
        checks.add(f"{label}: weights", f"{len(methods)} methods have theirs")
    base, config = own.weights / BASE_FILE, _config(name)[0] if known else None
    if config is not None and base.is_file():
        checks.look(f"{label}: base adapter", lambda: _base_shape(base, config))


def time_one_draw(
    study: StudySettings, out: Path, cells: Sequence[Cell], progress: Progress
) -> None:
    """Answer the first draw of one benchmark with every method that has no time yet; it stays."""
    known, chosen = measured_speed(out).spent, dict[Pair, Cell]()
    for cell in cells:
        if cell.pair not in known:
            chosen.setdefault(cell.pair, cell)
    run.StudyRunner(study, out, progress).run(list(chosen.values()), draws=1)


def _observed(out: Path) -> tuple[float, float] | None:
    # share of questions whose EM differs between RAG-GD and base, and the deviation, over blocks
    try:
        blocks = load_grid(out).blocks
    except RaggdError:
        return None
    found = (sample([b], ("rag-gd", "base"), b.benchmarks, "em", macro=False) for b in blocks)
    differences = np.array([x for s in found if s for x in s.values[:, 0] - s.values[:, 1]])
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
    std = observed_std or math.sqrt(share)
    detectable = 100 * SEEN * std / math.sqrt(max(1, questions))
    return {
        "changed": share,
        "observed": changed is not None,
        "needed": needed,
        "planned": questions,
        "detectable": round(detectable, 2),
    }


def dry_run(
    study: StudySettings, out: Path, cells: Sequence[Cell], progress: Progress
) -> dict[str, Any]:
    """Look at everything that a study needs; nothing is run or fetched. Hours: of timed parts."""
    speed, waiting = measured_speed(out), Counter[Pair]()
    checks, parts = Checks(progress), Assembly(study.first())
    counts = _check_data(checks, study, parts)
    for label in dict.fromkeys(cell.backbone for cell in cells):
        methods = dict.fromkeys(cell.method for cell in cells if cell.backbone == label)
        _check_backbone(checks, study, label, [m for m in methods if FILES_OF[m]], parts)
    for cell in cells:
        waiting[cell.pair] += counts[cell.benchmark]
    hours: dict[str, dict[str, float | None]] = {}
    for pair, n in waiting.items():
        seconds = speed.left({pair: n}) if pair in speed.spent else None
        spent = None if seconds is None else round(seconds / 3600, 3)
        hours.setdefault(pair[0], {})[pair[1]] = spent
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
    share += " (observed)" if power_found["observed"] else " (assumed; too few answers yet)"
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
