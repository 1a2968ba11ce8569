"""Fabricated data in FlashRAG's layout, a tiny backbone on disk, and runs of the command line."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from raggd.assembly import Assembly
from raggd.data.contracts.base import Lesson
from raggd.data.questions import Prepared
from raggd.progress import Progress, silent
from raggd.records import Hit, Passage
from raggd.settings import ExamplesSettings, Settings

KINDS = ("red", "blue", "green", "big", "small", "old", "new", "long", "short", "first")
THINGS = ("city", "river", "bird", "fish", "tree", "bee", "coast", "stone")
ANSWERS = ("Lima", "Oslo", "Rome", "Cairo", "Quito", "honey", "salt", "the old king")
TRAIN, TEST, HELD_OUT = 18, 10, 24
ENGLISH = [
    Passage("d", "The river Thames flows through London and past Oxford.", "Thames"),
    Passage("b", "London is the capital of England. London has many bridges.", "London"),
    Passage("a", "Paris is the capital of France, on the river Seine.", "Paris"),
    Passage("c", "Bees make honey; a hive of bees has one queen.", "Bee"),
    Passage("e", "The queen of England lives in London near the river.", "Queen"),
]
"""A corpus in plain English, ids out of order."""


@dataclass(frozen=True)
class Fact:
    """One passage and the question that it answers, in words that the tiny tokenizer knows."""

    number: int
    thing: str
    answer: str

    @property
    def passage(self) -> dict[str, str]:
        text = f"The {self.thing} lies near {self.answer} in the north of the country."
        return {"id": f"p{self.number:02d}", "contents": f"{self.thing}\n{text}"}

    @property
    def question(self) -> dict[str, Any]:
        return {
            "id": f"{self.number:02d}",
            "question": f"what lies near the {self.thing} ?",
            "golden_answers": [self.answer, f"alias {self.number}"],
        }


def facts() -> list[Fact]:
    """Eighty facts about different things."""
    things = [f"{kind} {thing}" for thing, kind in product(THINGS, KINDS)]
    return [Fact(i, name, ANSWERS[(3 * i) % len(ANSWERS)]) for i, name in enumerate(things)]


def write_lines(path: Path, values: Iterable[object]) -> Path:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def write_data(folder: Path) -> Path:
    """Write a corpus, NQ and TriviaQA with train and test, and PopQA without a train file."""
    everything = facts()
    write_lines(folder / "corpus" / "facts.jsonl", [fact.passage for fact in everything])
    at = 0
    for name, split, count in (
        ("nq", "train", TRAIN),
        ("nq", "test", TEST),
        ("triviaqa", "train", TRAIN),
        ("triviaqa", "test", TEST),
        ("popqa", "test", HELD_OUT),
    ):
        questions = [fact.question for fact in everything[at : at + count]]
        write_lines(folder / "qa" / name / f"{split}.jsonl", questions)
        at += count
    return folder


def settings_text(data: Path, backbone: str = "tiny", weights: str = "shipped") -> str:
    """Settings of a run that takes a second: tiny in every respect."""
    return f"""
        [backbone]
        name = {json.dumps(str(backbone))}
        dtype = "float32"
        context_tokens = 256
        [data]
        folder = {json.dumps(str(data))}
        [retrieval]
        top_k = 2
        [adapter]
        rank = 2
        alpha = 6.0
        weights = {json.dumps(str(weights))}
        [training]
        max_tokens = 160
        [base_training]
        steps = 4
        batch = 2
        learning_rate = 1e-2
        [target]
        benchmarks = ["nq", "triviaqa"]
        demonstrations = 2
        steps = 2
        learning_rate = 0.1
        per_benchmark = 4
        max_tokens = 160
        [predictor]
        latent = 4
        steps = 6
        batch = 4
        [evaluation]
        benchmarks = ["nq", "triviaqa"]
        questions = 6
        draws = 2
        batch = 4
        max_answer_tokens = 4
    """


def parts_with(settings: Settings, backbone: Any) -> Assembly:
    """An assembly whose backbone is there already."""
    parts = Assembly(settings)
    parts.__dict__["backbone"] = backbone  # where a cached property keeps its value
    return parts


def stage(
    name: str,
    parts: Assembly,
    out: Path,
    store: Path | None = None,
    progress: Progress = silent,
    **others: Any,
) -> dict[str, Any]:
    """Run one stage of a training; targets go to `out`, others read them from `store`."""
    from raggd.training.run import Run
    from raggd.training.stages import run_stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "progress", progress)
        return run_stage(name, Run(parts, out, (store or out,), **others))


def save_backbone(backbone: Any, folder: Path) -> Path:
    """Write model and tokenizer as a Hugging Face folder, for the real way of loading."""
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def write_weights(folder: Path, backbone: Any) -> Path:
    """Write a base adapter, a predictor whose update depends on what it reads, and a mean."""
    import torch

    from raggd.adaptation.base_adapter import save_base
    from raggd.adaptation.predictors.base import MeanPredictor, MLPPredictor, save_predictor
    from raggd.methods.spec import BASE_FILE, MEAN_FILE, PREDICTOR_FILE
    from tiny import random_base, random_update

    base = random_base(backbone)
    width = backbone.model.config.hidden_size
    predictor = MLPPredictor(base.spec, base.fingerprint, width, 8, 4)
    updates = torch.stack([random_update(base, seed).vector() for seed in range(4)])
    predictor.fit_units(torch.randn(4, 2, width, generator=torch.Generator()), updates, 0)
    with torch.no_grad():
        predictor.head.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    save_base(folder / BASE_FILE, base)
    save_predictor(folder / PREDICTOR_FILE, predictor)
    mean = MeanPredictor(base.spec, base.fingerprint, updates.mean(0))
    save_predictor(folder / MEAN_FILE, mean)
    return folder


def prepared_row(number: int, task: str = "nq") -> Prepared:
    """An answered question with a passage that holds its answer and others that do not."""
    kinds = ("who wrote", "when was", "where is", "how many people saw")
    names = ("Anna Maria Berg", "12 May 1931", "Port Louis", "4,500", "Old Tom Reed", "June 1999")
    gold = f"{names[number % len(names)]} {number}"
    text = f"It was known early. The thing is {gold} as all say. So be it."
    held = Passage(f"p{number}", text, f"Title {number}")
    other = Passage(f"o{number}", f"Nothing of that kind {number} is here.", f"Other {number}")
    near = Passage(f"n{number}", f"A near text {number} without it. It goes on.", f"Near {number}")
    question = f"{kinds[number % 4]} the thing {number}"
    return Prepared(f"q{number}", task, question, (gold,), gold, (other, held), (near, near))


def drawn_lessons(rows: Sequence[Prepared], mixture: ExamplesSettings) -> Iterator[Lesson]:
    """The lessons of a training, in their order, without end."""
    from raggd.adaptation.following import drawn_lesson, pools_of

    pools = pools_of(rows)
    return (drawn_lesson(pools, mixture, 0, number) for number in itertools.count())


class StubRetriever:
    """Finds passages by counting from the length of the query: no index, no cache."""

    fingerprint = "stub"

    def __init__(self, size: int = 40) -> None:
        self.found = [Passage(f"p{i}", f"passage {i} about Lima", "title") for i in range(size)]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        starts = [sum(map(ord, query)) % (len(self.found) - k) for query in queries]
        return [[Hit(p, 1.0) for p in self.found[at : at + k]] for at in starts]


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object on one line and nothing else."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        assert self.out.endswith("\n")
        value = json.loads(self.out, parse_constant=_no_number)
        assert isinstance(value, dict)
        return value

    def refusal(self) -> str:
        """The one message of a `RaggdError`: exit code 2, no traceback, nothing on stdout."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        assert self.err.startswith("raggd: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.removeprefix("raggd: ").strip()


def run_cli(*arguments: object) -> Ran:
    """Run ``raggd`` in this process, through `main`, as the console script does."""
    from raggd.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["raggd", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(bool(left.code))
    return Ran(code, out.getvalue(), err.getvalue())


def files_under(folder: Path) -> list[str]:
    """Every file below a folder, hidden and temporary ones included; none if it does not exist."""
    found = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())
