"""Learning to follow examples: an interface trained over contracts, the examples in the prompt.

The questions and answers of the examples stand before the question, without their passages. Half
of the lessons are the benchmarks as they are; the others stand under a contract drawn by seed, so
that the same question has different right answers and only the examples tell which. Most are read
as they are answered: without the template that their examples settle (`data.template`).
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raggd.adaptation.optimizer import DEFAULTS, Session, examples_id
from raggd.adaptation.predictors.modulation import Modulation, read_examples
from raggd.backbone.interface import mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import HELD_OUT
from raggd.data.contracts.base import SIZES, Contract, Lesson, draw_lesson
from raggd.data.contracts.families import NATURAL, check_held_out, draw_contract
from raggd.data.prompts import Prompt, build_prompt, follow_text, prefix_tokens
from raggd.data.questions import Prepared
from raggd.data.reading import template_of
from raggd.data.shown import without_passages
from raggd.data.template import REFUSAL
from raggd.records import RaggdError, content_id
from raggd.settings import ExamplesSettings, TrainingSettings

DECIDING = 0.5  # weight of an answer's first token where it decides whether to refuse
NEIGHBOURS = 0.4  # share of lessons with a passage of an example beside the question's own
REFUSING = 0.5  # share of contracts with a refusal; out of a given number they are as drawn
LEFT = 10  # one question in so many is asked by no lesson: whether to refuse is fitted on these
TRIES = 1000  # draws for one lesson, of which most do not apply, before a pool is called too small
MANY = 4096  # lessons from which on all cores draw them
CHUNK = 128  # of which each core draws so many at a time
TOO_FEW = (
    "the prepared file has too few questions to draw lessons from: prepare more of them, from "
    "passages that hold their answers and from near ones that do not."
)
Pools = Mapping[str, list[Prepared]]
"""Questions by the source that they are of."""


class Use(NamedTuple):
    """How a lesson's examples are used."""

    show: bool = True  # they stand before the question
    passages: bool = False  # with their passages, as MetaICL has them
    predict: bool = False  # their states turn the step up and down for each support set
    told: bool = False  # under the instruction of a model that is used as it is


SHOWN = Use()


def without_template(lesson: Lesson) -> Lesson:
    """Return a lesson as a model reads it when it answers: without the template it shows."""
    template, plain = template_of(lesson.support.demonstrations)
    if template is None:
        return lesson
    asked = lesson.asked
    bare = REFUSAL if asked.refused else asked.contents[0]
    if template.closed:
        bare = template.closed.read(bare, asked.question)
    if template.write(bare, asked.passages, asked.question) not in asked.accepted:
        return lesson  # more than the template tells is to be learned
    support = replace(lesson.support, demonstrations=plain)
    read = replace(asked, question=template.asked(asked.question), answer=bare)
    return replace(lesson, support=support, asked=read)


def lesson_prompt(tokenizer: Any, lesson: Lesson, limit: int, use: Use = SHOWN) -> Prompt:
    """Render a lesson with its answer, in `limit` tokens at most."""
    asked, shown = lesson.asked, lesson.support.demonstrations if use.show else ()
    return build_prompt(
        tokenizer,
        asked.question,
        asked.passages,
        answer=asked.answer,
        limit=limit,
        shown=shown if use.passages else without_passages(shown),
        instruction=follow_text(shown, use.told),
    )


def pools_of(rows: Sequence[Prepared]) -> Pools:
    """Sort questions with an answer in their passages by source; held-out sources are refused."""
    if held := {row.task for row in rows} & HELD_OUT:
        raise RaggdError(
            f"the prepared file holds {', '.join(sorted(held))}, which no training may see: "
            "prepare it from training questions."
        )
    pools: dict[str, list[Prepared]] = {}
    for row in rows:
        if row.passages:
            pools.setdefault(row.task, []).append(row)
    if not pools:
        raise RaggdError("the prepared file holds no question whose passages hold its answer.")
    return pools


def is_left(question: str) -> bool:
    """Return whether no training asks a question, by its id: the rule for refusals is fitted on it.

    Of questions that it was trained on, a model knows too well which it can answer.
    """
    return int(content_id(question), 16) % LEFT == 0


def drawn_pool(pools: Pools, draw: random.Random) -> list[Prepared]:
    """Draw the questions of a source, by a root of their number: small ones come more often."""
    tasks = sorted(pools)
    return pools[draw.choices(tasks, [len(pools[task]) ** 0.5 for task in tasks])[0]]


def drawn_lesson(pools: Pools, mixture: ExamplesSettings, seed: int, number: int) -> Lesson:
    """Draw one lesson of a training, a pure function; too few questions for any are refused."""
    draw = random.Random(f"lesson {seed} {number}")
    for _ in range(TRIES):
        pool, contract = drawn_pool(pools, draw), _contract(mixture, draw, seed)
        check_held_out(contract)
        size = draw.choice(SIZES)
        lesson = draw_lesson(contract, pool, draw, size=size, neighbours=NEIGHBOURS)
        if lesson is not None and not is_left(lesson.asked.id):
            return lesson
    raise RaggdError(TOO_FEW)


def _contract(mixture: ExamplesSettings, draw: random.Random, seed: int) -> Contract:
    if draw.random() < mixture.natural:
        return NATURAL
    if mixture.tasks:
        return draw_contract(draw.randrange(mixture.tasks), seed)
    refusing = draw.random() < REFUSING
    drawn = (draw_contract(draw.randrange(10**9), seed) for _ in count())
    return next(contract for contract in drawn if bool(contract.refusal) == refusing)


@dataclass(frozen=True, slots=True)
class Taught:
    """A rendered lesson: its answered prompt, and the examples' tokens where they are read."""

    prompt: Prompt
    examples: tuple[int, ...]
    decides: bool = False  # whether to refuse


def training_lessons(
    tokenizer: Any,
    rows: Sequence[Prepared],
    settings: ExamplesSettings,
    use: Use = SHOWN,
    common: TrainingSettings = DEFAULTS,
) -> list[Taught]:
    """Render ``steps * batch * accumulate`` lessons that fit; refused where nearly none does."""
    wanted = settings.steps * settings.batch * common.accumulate
    teach = partial(_taught, tokenizer, pools_of(rows), settings, use, common)
    lessons: list[Taught] = []
    for number, made in enumerate(_numbered(teach, wanted)):
        if isinstance(made, Taught):
            lessons.append(made)
        elif number > 20 * (len(lessons) + 5):
            raise RaggdError(
                f"of {number + 1} lessons {len(lessons)} fit into training.max_tokens = "
                f"{common.max_tokens}: raise it. The last one: {made}"
            )
        if len(lessons) == wanted:
            break
    return lessons


def _taught(
    tokenizer: Any,
    pools: Pools,
    settings: ExamplesSettings,
    use: Use,
    common: TrainingSettings,
    number: int,
) -> Taught | str:
    # a lesson by its number, or why it does not fit
    lesson = drawn_lesson(pools, settings, common.seed, number)
    read = use.show or use.predict
    if read and random.Random(f"template {common.seed} {number}").random() >= settings.kept:
        lesson = without_template(lesson)
    try:
        prompt = lesson_prompt(tokenizer, lesson, common.max_tokens, use)
    except RaggdError as error:
        return str(error)
    shown = without_passages(lesson.support.demonstrations) if use.predict else ()
    instruction = follow_text(shown, use.told)
    read_first = prefix_tokens(tokenizer, shown, instruction) if shown else ()
    return Taught(prompt, read_first, bool(lesson.contract.refusal))


_TEACH: list[Callable[[int], Taught | str]] = []  # of a process that draws for another


def _begin(teach: Callable[[int], Taught | str]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores draw, too
    _TEACH[:] = [teach]


def _teach(number: int) -> Taught | str:
    return _TEACH[0](number)


def _numbered(teach: Callable[[int], Taught | str], wanted: int) -> Iterator[Taught | str]:
    # lessons by their numbers from 0 on, without end; many by all cores, to the same result
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if wanted < MANY or not cores or cores < 2:
        yield from map(teach, count())
        return
    quick = "forkserver" in multiprocessing.get_all_start_methods()  # imports once for all
    started = multiprocessing.get_context("forkserver" if quick else "spawn")
    if quick:
        started.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(cores, started, _begin, (teach,)) as pool:
        for start in count(0, wanted):
            yield from pool.map(_teach, range(start, start + wanted), chunksize=CHUNK)


def train_following(
    backbone: Backbone,
    base: BaseAdapter,
    lessons: Sequence[Taught],
    session: Session[ExamplesSettings],
    use: Use = SHOWN,
) -> tuple[Modulation, list[float]]:
    """Train one step from W0 on lessons of a use; with it comes the loss of every step."""
    prompts = [lesson.prompt for lesson in lessons]
    width = backbone.model.config.get_text_config().hidden_size
    made = Modulation(base.zero_update(), width, session.common.seed).to(backbone.device)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        update = made.constant()
        if use.predict:
            read = read_examples(backbone, base, [lessons[i].examples for i in numbers])
            update = made(base, *read)
        opening = torch.tensor([DECIDING * lessons[i].decides for i in numbers])
        chosen = [prompts[i] for i in numbers]
        return mean_answer_loss(backbone, chosen, base, update, opening=opening.to(backbone.device))

    identity = content_id("examples", base.fingerprint, str(use), examples_id(prompts))
    named = dict((made if use.predict else made.step).named_parameters())
    lengths = [len(p.tokens) for p in prompts]
    history = session.train(named, lengths, loss_of, identity)
    return made.eval().requires_grad_(False), history
