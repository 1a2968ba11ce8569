"""`raggd study FILE --dry-run`: what is there, what is missing, what the study will take.

Nothing is fetched: what lies on the hub is looked up in the local cache, and counted as published.
Hours come from draws that were answered; ``--time-one-draw`` answers one of each method first,
which stays in the study's folder as a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, TypeVar

import numpy as np

from raggd.assembly import Assembly
from raggd.backbone.embedded import EMBEDDED, embedded_folder
from raggd.backbone.shapes import PUBLISHED as SHAPES
from raggd.backbone.shapes import shape_config
from raggd.core.low_rank import AdapterSpec
from raggd.data.benchmarks import HUB, HUB_CORPUS, HUB_REPOSITORY, scored_questions
from raggd.data.documents import read_passages
from raggd.data.prompts import build_prompt
from raggd.evaluation.statistics import questions_needed
from raggd.files import tensor_header
from raggd.methods.spec import BASE_FILE, FILES_OF
from raggd.progress import Progress
from raggd.records import Question, RaggdError
from raggd.report.contrasts import sample
from raggd.report.grid import load_grid
from raggd.retrieval.build import is_indexed
from raggd.study.folder import (
    check_cells,
    check_folder,
    locked,
    pool_size,
    weight_problems,
    weights_folder,
    write_plan,
)
from raggd.study.plan import Part, all_cells, cell_size
from raggd.study.runner import Pair, StudyRunner, Watch, measured_speed
from raggd.study.settings import StudyBackbone, StudySettings

EFFECTS = (1.0, 2.7)
"""Gains of RAG-GD over the base adapter in the paper, points of EM."""
ASSUMED_CHANGED = 0.10
"""Share of questions whose EM differs between two methods, where no record tells it."""
FETCHED = "on the hub; the study fetches it"
SAMPLED = 16
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `ok`, or what is wrong with it."""

    item: str
    ok: bool
    message: str


class Checks:
    """Collects checks; a refusal becomes a line instead of an end."""

    def __init__(self, progress: Progress) -> None:
        """Start with none."""
        self.found: list[Check] = []
        self._progress = progress

    def add(self, item: str, ok: bool, message: str) -> None:
        """File what was found of one thing."""
        self.found.append(Check(item, ok, message))

    def run(self, item: str, look: Callable[[], _T], said: Callable[[_T], str]) -> _T | None:
        """Return the result of a look at something; None if it was refused."""
        self._progress(item, 0, None)
        try:
            value = look()
        except (RaggdError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.add(item, False, lines[0])
            return None
        self.add(item, True, said(value))
        return value


def _cached(file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(HUB_REPOSITORY, file, repo_type="dataset")
    return isinstance(found, str)


def _benchmark_said(parts: Assembly, name: str, demonstrations: int) -> str:
    pool = pool_size(parts, name, demonstrations)
    return f"{pool} support questions, {len(scored_questions(parts.source, name))} to score"


def _check_data(checks: Checks, study: StudySettings, parts: Assembly) -> dict[str, int]:
    # questions of a cell, by benchmark
    counts = {}
    remote = study.data.folder == HUB
    for name in study.evaluation.benchmarks:
        look = partial(_benchmark_said, parts, name, study.target.demonstrations)
        if remote:
            checks.add(f"benchmark {name}", True, FETCHED)
            counts[name] = cell_size(study, parts, name)
        elif checks.run(f"benchmark {name}", look, str) is not None:
            counts[name] = cell_size(study, parts, name)
        else:
            counts[name] = study.evaluation.questions
    if remote and not study.data.corpus:
        checks.add("corpus", True, "there" if _cached(HUB_CORPUS) else f"{FETCHED} (5.1 GB)")
    else:
        checks.run("corpus", lambda: parts.corpus, str)
    for entry in study.retrievers:
        first = (study.backbones[0].name, entry.name, study.seeds[0])
        own = Assembly(study.run_settings(*first))
        if remote and not study.data.corpus:
            checks.add(f"retriever {entry.name}", True, "21,015,324 passages to index")
        else:
            checks.run(f"retriever {entry.name}", partial(_index_said, own), str)
    return counts


def _index_said(parts: Assembly) -> str:
    there = is_indexed(parts.corpus, parts.settings.retrieval)
    return "its index is there" if there else "its index is made at the start"


def _source(name: str) -> str:
    return str(embedded_folder(name)) if name in EMBEDDED else name


def _is_remote(name: str) -> bool:
    return name not in EMBEDDED and not Path(name).exists() and name.count("/") == 1


def _config(name: str) -> tuple[Any, str]:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(_source(name), local_files_only=True), "is here"
    except (OSError, ValueError) as error:
        if name in SHAPES:
            return shape_config(SHAPES[name]), f"of published size, {FETCHED}"
        if _is_remote(name):
            return None, FETCHED
        raise RaggdError(f"no configuration of backbone '{name}' there.") from error


def _check_base(folder: Path, config: Any) -> str:
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


def _prompt_tokens(study: StudySettings, parts: Assembly, name: str) -> float:
    # mean length of prompts, rendered with the backbone's own tokenizer and template
    from transformers import AutoTokenizer

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
    return fmean(lengths)


def _check_backbone(
    checks: Checks, study: StudySettings, entry: StudyBackbone, part: Part, parts: Assembly
) -> None:
    name = entry.model or entry.name
    found = checks.run(f"{entry.name}: backbone", partial(_config, name), lambda pair: pair[1])
    config = found[0] if found else None
    if study.data.folder != HUB and not _is_remote(name):
        look = partial(_prompt_tokens, study, parts, name)
        checks.run(f"{entry.name}: prompts", look, lambda mean: f"about {mean:.0f} tokens")
    look_at = partial(weights_folder, study, entry.name)
    folder = checks.run(f"{entry.name}: weights folder", look_at, str)
    if folder is None:
        return
    methods = [m for m in entry.methods if FILES_OF[m] and (not part.methods or m in part.methods)]
    problems = [problem for m in methods for problem in weight_problems(folder, m)]
    for problem in problems:
        checks.add(f"{entry.name}: weights", False, problem)
    if not problems:
        checks.add(f"{entry.name}: weights", True, f"{len(methods)} methods have theirs")
    if config is not None and (folder / BASE_FILE).is_file():
        checks.run(f"{entry.name}: base adapter", partial(_check_base, folder, config), str)


def time_one_draw(study: StudySettings, out: Path, part: Part, progress: Progress) -> None:
    """Answer the first draw of one benchmark with every method that has no time yet; it stays."""
    with locked(out):
        check_folder(study, out)
        known = measured_speed(out).spent
        first = {
            pair: cell
            for cell in reversed(all_cells(study, part))
            if (pair := (cell.backbone, cell.method)) not in known
        }
        cells = list(reversed(first.values()))
        check_cells(study, cells)
        write_plan(study, out)
        runner = StudyRunner(study, out, progress)
        watch = Watch(progress, runner.expected(cells))
        for unit in (unit for unit in runner.units(cells) if unit.draw == 0):
            runner.run_unit(unit, watch)
        runner.refuse_failures(len(cells))


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

    Records tell the share of questions whose EM differs, and the deviation of one question's
    difference; without them a share is assumed. ``needed`` is by effect (points of EM),
    ``detectable`` the effect seen with 80 % power. Two-sided, 95 %, paired.
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
    """Look at everything that a study needs; nothing is run or fetched.

    ``ready``, ``checks``, ``cells``, ``questions``, ``hours`` (of the methods with a time, from
    parts in `out`), ``unmeasured`` methods, ``backbones`` (hours by method) and ``power``.
    """
    part.check(study)
    checks = Checks(progress)
    first = (study.backbones[0].name, study.retrievers[0].name, study.seeds[0])
    parts = Assembly(study.run_settings(*first))
    counts = _check_data(checks, study, parts)
    for entry in (b for b in study.backbones if not part.backbones or b.name in part.backbones):
        _check_backbone(checks, study, entry, part, parts)
    cells, speed, waiting = all_cells(study, part), measured_speed(out), dict[Pair, int]()
    for cell in cells:
        pair = (cell.backbone, cell.method)
        waiting[pair] = waiting.get(pair, 0) + counts[cell.benchmark]
    hours: dict[str, dict[str, float | None]] = {}
    for pair, n in waiting.items():
        seconds = (speed.per_question(pair) or 0.0) * n if pair in speed.spent else None
        spent = None if seconds is None else round(seconds / 3600, 3)
        hours.setdefault(pair[0], {})[pair[1]] = spent
    found = [x for by_method in hours.values() for x in by_method.values()]
    return {
        "ready": all(check.ok for check in checks.found),
        "checks": [asdict(check) for check in checks.found],
        "cells": len(cells),
        "questions": sum(waiting.values()),
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
