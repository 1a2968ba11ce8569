"""Learning to follow examples: an interface trained over contracts, the examples in the prompt.

The questions and answers of the examples stand before the question, without their passages. Half
of the lessons are the benchmarks as they are; the others stand under a contract drawn by seed, so
that the same question has different right answers and only the examples tell which. Most are read
as they are answered: without the template that their examples settle (`data.template`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Unpack

from torch import Tensor

from raggd.adaptation.optimizer import Session, examples_id, train
from raggd.adaptation.predictors.modulation import Modulation, read_examples
from raggd.backbone.interface import check_fits, mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update, tensors_of
from raggd.data.contracts.families import NATURAL, check_held_out, draw_contract
from raggd.data.contracts.lessons import SIZES, Lesson, draw_lesson
from raggd.data.prepared import Prepared
from raggd.data.prompts import FOLLOW, Prompt, build_prompt, prefix_tokens
from raggd.data.shown import without_passages
from raggd.data.template import REFUSAL, template_of
from raggd.records import RaggdError, content_id
from raggd.settings import ExamplesSettings

NEIGHBOURS = 0.4
"""Share of lessons in which a passage of the examples stands beside the question's own."""
HELD_TASKS = frozenset({"popqa", "bamboogle"})
"""Sources that no training may see."""


def without_template(lesson: Lesson) -> Lesson:
    """Return a lesson as a model reads it when it answers: without the template it shows."""
    template, plain = template_of(lesson.support.demonstrations)
    if template is None:
        return lesson
    asked = lesson.asked
    bare = REFUSAL if asked.refused else asked.contents[0]
    if template.write(bare, asked.passages) not in asked.accepted:
        return lesson  # more than the template tells is to be learned
    support = replace(lesson.support, demonstrations=plain)
    return replace(lesson, support=support, asked=replace(asked, answer=bare))


def lesson_prompt(tokenizer: Any, lesson: Lesson, settings: ExamplesSettings) -> Prompt:
    """Render a lesson with its answer, in `max_tokens` at most."""
    asked, shown = lesson.asked, lesson.support.demonstrations
    if not settings.passages:
        shown = without_passages(shown)
    return build_prompt(
        tokenizer,
        asked.question,
        asked.passages,
        answer=asked.answer,
        limit=settings.max_tokens,
        shown=shown if settings.show else (),
        instruction=FOLLOW,
    )


def pools_of(rows: Sequence[Prepared]) -> Mapping[str, list[Prepared]]:
    """Sort questions whose passages hold an answer by their source.

    Raises:
        RaggdError: a source is held out of training, or nothing is left.
    """
    held = {row.task for row in rows} & HELD_TASKS
    if held:
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


def drawn_pool(pools: Mapping[str, list[Prepared]], draw: random.Random) -> list[Prepared]:
    """Draw the questions of one source, by a root of their number.

    Small sources are seen more often than their share, large ones do not drown them.
    """
    tasks = sorted(pools)
    return pools[draw.choices(tasks, [len(pools[task]) ** 0.5 for task in tasks])[0]]


def draw_lessons(rows: Sequence[Prepared], mixture: ExamplesSettings) -> Iterator[Lesson]:
    """Draw the lessons of a training, without end: a pure function of its arguments.

    A contract that does not apply to its source is drawn anew.
    """
    pools = pools_of(rows)
    for number in count():
        draw = random.Random(f"lesson {mixture.seed} {number}")
        while True:
            pool = drawn_pool(pools, draw)
            contract = NATURAL
            if draw.random() >= mixture.natural:
                at = draw.randrange(mixture.tasks) if mixture.tasks else draw.randrange(10**9)
                contract = draw_contract(at, mixture.seed)
                check_held_out(contract)
            lesson = draw_lesson(
                contract, pool, draw, size=draw.choice(SIZES), neighbours=NEIGHBOURS
            )
            if lesson is not None:
                yield lesson
                break


@dataclass(frozen=True, slots=True)
class Taught:
    """A rendered lesson: an answered prompt, with the examples before the question or without.

    Where something is predicted from the examples, their tokens, as a prefix has them.
    """

    prompt: Prompt
    examples: tuple[int, ...]


def training_lessons(
    tokenizer: Any, rows: Sequence[Prepared], settings: ExamplesSettings
) -> list[Taught]:
    """Render the lessons of a training: ``steps * batch * accumulate`` of them.

    A lesson whose examples alone are longer than `max_tokens` is passed over.
    """
    wanted = settings.steps * settings.batch * settings.accumulate
    lessons: list[Taught] = []
    for number, lesson in enumerate(draw_lessons(rows, settings)):
        read = settings.show or settings.predict
        if read and random.Random(f"template {settings.seed} {number}").random() >= settings.kept:
            lesson = without_template(lesson)
        try:
            prompt = lesson_prompt(tokenizer, lesson, settings)
        except RaggdError:
            continue
        shown = without_passages(lesson.support.demonstrations) if settings.predict else ()
        lessons.append(Taught(prompt, prefix_tokens(tokenizer, shown, FOLLOW) if shown else ()))
        if len(lessons) == wanted:
            break
    return lessons


def train_following(
    backbone: Backbone,
    base: BaseAdapter,
    lessons: Sequence[Taught],
    settings: ExamplesSettings,
    start: Update | None = None,
    **session: Unpack[Session],
) -> tuple[Modulation, list[float]]:
    """Train one step from W0 on lessons, and with `predict` what turns it up and down.

    W0 stays as it is; `start` is a step to go on from. Where nothing is predicted, the network is
    untrained. With it comes the loss of every step.
    """
    begin = start or base.zero_update()
    check_fits(backbone, base, begin)
    prompts = [lesson.prompt for lesson in lessons]
    width = backbone.model.config.get_text_config().hidden_size
    made = Modulation(begin.map(lambda t: t.detach().float()), width, settings.seed)
    made.to(backbone.device)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        update = made.constant()
        if settings.predict:
            read = read_examples(backbone, base, [lessons[i].examples for i in numbers])
            update = made(base, *read)
        return mean_answer_loss(backbone, [prompts[i] for i in numbers], base, update)

    identity = content_id(
        "examples",
        base.fingerprint,
        *(str(float(t.double().sum())) for t in tensors_of(begin.factors).values()),
        examples_id(prompts),
        settings.model_dump_json(exclude={"start"}),
    )
    trained = made if settings.predict else made.step
    lengths = [len(p.tokens) for p in prompts]
    named = dict(trained.named_parameters())
    history = train(named, lengths, loss_of, settings, identity, **session)
    return made.eval().requires_grad_(False), history
