"""The round trip that a drafted question must survive, as a user would ask it.

Its passage must be among those that the retriever finds, and the backbone with its base adapter
must answer it from them with exactly the answer that stands there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.answers import normalise_answer
from raggd.making.drafts import Draft, drafts
from raggd.methods.answering import answer_rows, render
from raggd.methods.base import Adapted
from raggd.records import Passage, Question, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import Evidence, evidence_for


@dataclass(slots=True)
class Yield:
    """How far the drafts came."""

    passages: int = 0
    drafts: int = 0
    retrieved: int = 0
    answered: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Maker:
    """What tries drafts.

    Attributes:
        backbone: answers questions with the base adapter.
        base: the shared interface.
        retriever: finds the passages.
        k: passages per question.
        limit: most tokens per prompt.
        max_tokens: most tokens per answer.
        batch: prompts per batch.
    """

    backbone: Backbone
    base: BaseAdapter
    retriever: Retriever
    k: int
    limit: int
    max_tokens: int
    batch: int

    def retrieved(self, tried: Sequence[Draft]) -> list[tuple[Draft, Evidence]]:
        """Ask the retriever.

        Args:
            tried: drafts.

        Returns:
            Those whose passage was found, with all that was found.
        """
        asked = [Question(f"draft-{i}", d.question, (d.answer,)) for i, d in enumerate(tried)]
        found = evidence_for(asked, self.retriever, self.k)
        pairs = zip(tried, found, strict=True)
        return [(d, shown) for d, shown in pairs if d.passage.id in {p.id for p in shown}]

    def answered(self, tried: Sequence[tuple[Draft, Evidence]]) -> list[Draft]:
        """Ask the backbone, one batch.

        Args:
            tried: drafts with their evidence.

        Returns:
            Those that it answers right.
        """
        adapted = Adapted(self.base)
        sized = partial(render, self.backbone, adapted, limit=self.limit, reserve=self.max_tokens)
        prompts = [sized(draft.question, shown) for draft, shown in tried]
        rows = [adapted] * len(prompts)
        answers, _ = answer_rows(self.backbone, rows, prompts, self.max_tokens)
        return [
            draft
            for (draft, _), answer in zip(tried, answers, strict=True)
            if normalise_answer(answer) == normalise_answer(draft.answer)
        ]


def propose(
    maker: Maker, passages: Iterable[Passage], seed: int, counted: Yield
) -> Iterator[Draft]:
    """Propose questions with answers, batch by batch, until the reader stops.

    Args:
        maker: tries them.
        passages: in the order in which they are tried.
        seed: changes the sentences that are tried.
        counted: counts on.

    Yields:
        Drafts that survived the round trip, at most one per passage, no answer twice: three
        demonstrations with one answer would teach that answer.
    """
    answers: set[str] = set()
    waiting: list[tuple[Draft, Evidence]] = []
    drafted = _drafted(passages, seed, counted)
    while group := list(islice(drafted, 4 * maker.batch)):
        found = maker.retrieved(group)
        counted.retrieved += len(found)
        waiting += [pair for pair in found if normalise_answer(pair[0].answer) not in answers]
        while len(waiting) >= maker.batch or (waiting and len(group) < 4 * maker.batch):
            part, waiting = waiting[: maker.batch], waiting[maker.batch :]
            kept = maker.answered(part)
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
