"""Demonstrations made from one's own passages: `raggd demonstrations make` and `compare`.

A drafted question must survive the round trip, as a user would ask it: its passage must be among
those that the retriever finds, and the backbone with its base adapter must answer it from them with
exactly the answer that stands there.

Compared are updates from made demonstrations, from gold ones, and none. There the passages are
those found for the support pool's questions, less all that are evidence of a scored question; the
pool's own questions and answers are not used.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from raggd.adaptation.targets import draw_supports
from raggd.assembly import Assembly
from raggd.data.answers import normalise_answer
from raggd.data.benchmarks import known_benchmarks, scored_questions, support_pool
from raggd.data.documents import read_passages
from raggd.data.drafts import Draft, drafts
from raggd.evaluation.runner import Task, support_sets
from raggd.files import read_json, write_json, write_json_lines
from raggd.methods.answering import answer_rows, bounded_prompt
from raggd.methods.base import Adapted, Control
from raggd.methods.controls import with_supports
from raggd.methods.spec import PREFERRED, SPECS, can_run
from raggd.records import Passage, Question, RaggdError, SupportSet, content_id
from raggd.report.build import SmallReport
from raggd.report.grid import load_grid
from raggd.report.tables import Table
from raggd.retrieval.evidence import Evidence, evidence_for
from raggd.settings import changed
from raggd.study.plan import all_cells, study_of
from raggd.study.run import StudyRunner, locked, write_plan

MADE = "rag-gd-made"
PASSAGES_PER_QUESTION = 10
PASSAGES_PER_PROPOSAL = 200  # drafted from before the search is given up

Review = Callable[[Iterator[Draft]], Iterator[Draft]]
"""Takes proposals and gives on those that are kept, changed or not; it may end before they do."""


@dataclass(slots=True)
class Yield:
    """How far the drafts came."""

    passages: int = 0
    drafts: int = 0
    retrieved: int = 0
    answered: int = 0
    kept: int = 0


def _retrieved(parts: Assembly, tried: Sequence[Draft]) -> list[tuple[Draft, Evidence]]:
    # the drafts whose passage the retriever finds, with all that it found
    asked = [Question(f"draft-{i}", d.question, (d.answer,)) for i, d in enumerate(tried)]
    found = evidence_for(asked, parts.retriever, parts.settings.retrieval.top_k)
    pairs = zip(tried, found, strict=True)
    return [(d, shown) for d, shown in pairs if d.passage.id in {p.id for p in shown}]


def _answered(parts: Assembly, tried: Sequence[tuple[Draft, Evidence]]) -> list[Draft]:
    # the drafts that the backbone answers right in one batch
    settings, backbone, adapted = parts.settings, parts.backbone, Adapted(parts.base)
    prompts = [
        bounded_prompt(settings, backbone, adapted, draft.question, shown) for draft, shown in tried
    ]
    most, rows = settings.evaluation.max_answer_tokens, [adapted] * len(tried)
    answers, _ = answer_rows(backbone, rows, prompts, most)
    return [
        draft
        for (draft, _), answer in zip(tried, answers, strict=True)
        if normalise_answer(answer) == normalise_answer(draft.answer)
    ]


def propose(
    parts: Assembly, passages: Iterable[Passage], seed: int, counted: Yield
) -> Iterator[Draft]:
    """Yield drafts that survived the round trip, batch by batch, until the reader stops.

    At most one per passage, and no answer twice: three alike would teach that answer.
    """
    answers, batch = set[str](), parts.settings.evaluation.batch
    waiting: list[tuple[Draft, Evidence]] = []
    drafted = _drafted(passages, seed, counted)
    while group := list(islice(drafted, 4 * batch)):
        found = _retrieved(parts, group)
        counted.retrieved += len(found)
        waiting += [pair for pair in found if normalise_answer(pair[0].answer) not in answers]
        while len(waiting) >= batch or (waiting and len(group) < 4 * batch):
            part, waiting = waiting[:batch], waiting[batch:]
            kept = _answered(parts, part)
            counted.answered += len(kept)
            for draft in kept:
                key = normalise_answer(draft.answer)
                if key not in answers:
                    answers.add(key)
                    counted.kept += 1
                    yield draft


def _drafted(passages: Iterable[Passage], seed: int, counted: Yield) -> Iterator[Draft]:
    for passage in passages:
        counted.passages += 1
        found = drafts(passage)
        counted.drafts += len(found)
        if found:
            yield min(found, key=lambda d: content_id(str(seed), d.question))


def choose_passages(passages: Iterable[Passage], most: int, seed: int) -> list[Passage]:
    """Return at most `most` passages of a stream, chosen by a hash of what they are."""
    return heapq.nsmallest(most, passages, key=lambda p: content_id(str(seed), p.id, p.text))


def as_line(proposal: Draft) -> dict[str, Any]:
    """Return a proposal as a line that ``--demonstrations`` reads, with what a reviewer needs."""
    return {
        "question": proposal.question,
        "answer": proposal.answer,
        "passage": asdict(proposal.passage),
    }


def edited(proposal: Draft, question: str, answer: str) -> Draft:
    """Return a proposal with a reviewer's words; an empty one is refused."""
    if not question.strip() or not answer.strip():
        raise RaggdError("a demonstration needs a question and an answer: neither may be empty.")
    return replace(proposal, question=question.strip(), answer=answer.strip())


def run_make(
    parts: Assembly, out: Path, count: int, seed: int, review: Review = iter
) -> dict[str, Any]:
    """Propose demonstrations from the corpus; write those that a `review`, if any, keeps."""
    chosen = choose_passages(read_passages(parts.corpus), PASSAGES_PER_PROPOSAL * count, seed)
    counted, lines = Yield(), []
    for kept in islice(review(propose(parts, chosen, seed, counted)), count):
        lines.append(as_line(kept))
        write_json_lines(out, lines)
        parts.progress("demonstrations", len(lines), count)
    if not lines:
        raise RaggdError(
            f"none of {counted.passages} passages led to a demonstration that was kept "
            f"({counted.drafts} questions drafted, {counted.answered} answered right): write some "
            "by hand, or give a corpus with full sentences."
        )
    return {"made": len(lines), "out": str(out), "yield": asdict(counted)}


def pool_passages(parts: Assembly, name: str) -> list[Passage]:
    """Find passages of a task that are no evidence for a scored question, by id."""
    pool = support_pool(parts.source, name)
    scored = scored_questions(parts.source, name)
    found = evidence_for(pool, parts.retriever, PASSAGES_PER_QUESTION)
    top_k = parts.settings.retrieval.top_k
    used = {p.id for shown in evidence_for(scored, parts.retriever, top_k) for p in shown}
    kept = {p.id: p for shown in found for p in shown if p.id not in used}
    return [kept[name] for name in sorted(kept)]


def made_pool(
    parts: Assembly, name: str, count: int, out: Path
) -> tuple[list[Question], dict[str, int]]:
    """Make a task's demonstrations, or read ``made-<name>.json``; and the yield. Few: refused."""
    seed, needed = parts.settings.evaluation.seed, parts.settings.target.demonstrations
    passages = pool_passages(parts, name)
    identity = content_id(
        parts.backbone.fingerprint,
        parts.base.fingerprint,
        parts.retriever.fingerprint,
        f"{count} {seed} {parts.settings.retrieval.top_k}",
        *(p.id for p in passages),
    )
    path = out / f"made-{name}.json"
    known = read_json(path, what="made demonstrations") if path.is_file() else {}
    if known.get("identity") != identity:
        counted, lines = Yield(), []
        chosen = choose_passages(passages, len(passages), seed)
        for proposal in islice(propose(parts, chosen, seed, counted), count):
            lines.append(as_line(proposal))
            parts.progress(f"{name}: making demonstrations", len(lines), count)
        known = {"identity": identity, "yield": asdict(counted), "demonstrations": lines}
        write_json(path, known)
    questions = [
        Question(f"{name}:made-{i}", line["question"], (line["answer"],), name)
        for i, line in enumerate(known["demonstrations"])
    ]
    if len(questions) < needed:
        raise RaggdError(
            f"only {len(questions)} demonstrations could be made from {len(passages)} passages of "
            f"'{name}', a support set needs {needed}: lower target.demonstrations."
        )
    return questions, known["yield"]


def _made_supports(
    parts: Assembly, task: Task, out: Path
) -> tuple[dict[str, SupportSet], dict[str, int]]:
    settings = parts.settings
    own = list(dict.fromkeys(item.support.id for item in task.items))
    size = settings.target.demonstrations
    wanted = size * min(len(own), max(1, settings.evaluation.draws))
    questions, tried = made_pool(parts, task.benchmark, wanted, out)
    drawn = draw_supports(questions, size, len(own), settings.evaluation.seed)
    sets = support_sets(task.benchmark, drawn, parts.retriever, settings.retrieval.top_k)
    return dict(zip(own, sets, strict=True)), tried


def run_compare(
    parts: Assembly, names: Sequence[str], out: Path
) -> tuple[dict[str, Any], list[Table]]:
    """Score base, one update for all, RAG-GD from gold and RAG-GD from made demonstrations."""
    # what predicts updates best with the weights at hand
    able = (name for name in PREFERRED if SPECS[name].control and can_run(name, parts.weights))
    gold, supports = next(able, "rag-gd"), dict[str, SupportSet]()
    benchmarks = known_benchmarks(names, parts.source)
    settings = changed(parts.settings, "evaluation", benchmarks=benchmarks)
    study = study_of(settings, ["base", SPECS[gold].control, gold, MADE])

    def swapped(loaded: Assembly) -> Control:
        exchange = partial(with_supports, choose=lambda support: supports[support.id])
        return Control(MADE, loaded.method(gold), exchange)

    cells, tried = all_cells(study), dict[str, dict[str, int]]()
    runner = StudyRunner(study, out, parts.progress, loaded=parts, own={MADE: swapped})
    with locked(out):
        for name, cell in {cell.benchmark: cell for cell in cells}.items():
            found, tried[name] = _made_supports(parts, runner.task(cell), out)
            supports |= found
        write_plan(study, out)
        runner.compute(cells)  # no record tells from which demonstrations it was made
    report = SmallReport(load_grid(out))
    report.write(out)
    losses = [c for c in report.found if (c.metric, c.subset) == ("loss", "all")]
    result = {
        **report.result,
        "loss_differences": [asdict(c) for c in losses],
        "yield": tried,
        "out": str(out),
    }
    return result, report.tables
