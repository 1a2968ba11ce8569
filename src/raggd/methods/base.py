"""The Method protocol: a support set goes in, an adapted model comes out, and answers.

All methods see the same backbone, evidence and demonstrations; what they differ in is how they
adapt. `Adapted` is all that answering needs to know, so rows adapted differently share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from raggd.adaptation.soft_prefix import SoftPrefix
from raggd.backbone.batch import Prefix
from raggd.backbone.refusal import RefusalRule
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.prompts import Prompt
from raggd.data.template import AnswerTemplate
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet


@dataclass(frozen=True, slots=True)
class Adapted:
    """What a question is answered with."""

    base: BaseAdapter | None = None  # the adapter in use; None for the bare backbone
    update: Update | None = None  # a single step from that base; None for none
    reads_evidence: bool = True  # whether the passages go into the prompt
    shown: tuple[Demonstration, ...] = ()  # demonstrations placed before the question (few shot)
    soft: SoftPrefix | None = None  # embeddings placed before the prompt (prompt tuning)
    prefix: Prefix | None = None  # the demonstrations as keys and values, read from `shown`
    instruction: str = ""  # how to answer, in place of the built-in wording; empty keeps that
    lines: bool = False  # whether an answer may have several lines, as those shown have
    most: int = 0  # tokens that an answer like those of the demonstrations may need; 0: not known
    refusals: tuple[str, ...] = ()  # answers shown that say that the passages hold none
    template: AnswerTemplate | None = None  # stands around every value; the model does not write it
    rule: RefusalRule | None = None  # decides whether to refuse, where a refusal was shown
    sources: bool = False  # whether passages are shown with the names of their files

    @property
    def needs_passages(self) -> bool:
        """Whether nothing can be told where no passage is found, as the class of a question can."""
        classes = self.template is not None and self.template.classes
        return self.reads_evidence and (bool(self.refusals) or not classes)

    def refusals_to(self, question: str) -> tuple[str, ...]:
        """Return the refusals that were shown, as they are written for a question."""
        told = self.template.refusals_to(question) if self.template else ()
        return told or self.refusals

    def unasked(self, question: str) -> str:
        """Return the answer where nothing is found: the refusal shown first, or nothing."""
        return next(iter(self.refusals_to(question)), "")

    def given(self) -> tuple[Demonstration, ...]:
        """Return the demonstrations shown, with questions and answers as they were given."""
        if self.template is None:
            return self.shown
        pairs = zip(self.shown, self.template.given, strict=False)
        return tuple(replace(d, question=asked, answer=told) for d, (asked, told) in pairs)

    def written(self, answer: str, prompt: Prompt) -> str:
        """Return what the model wrote in the template that was shown, if one was."""
        if self.template is None:
            return answer
        return self.template.write(answer, prompt.passages, prompt.question, prompt.asked)


@dataclass(frozen=True, slots=True)
class Item:
    """A question with all that is needed to answer and score it; the loss is of the gold answer."""

    question: Question
    passages: tuple[Passage, ...]
    gold: Demonstration
    support: SupportSet


class Method(Protocol):
    """One row of the tables."""

    @property
    def name(self) -> str:
        """Name in records and on the command line, e.g. ``rag-gd``."""

    @property
    def adapts(self) -> bool:
        """Whether it reads the support set; if not, adapting costs nothing."""

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprints of the weights it uses, for the record."""

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Adapt to support sets of equal size, one result each (paper Algorithm 1 for RAG-GD)."""


@runtime_checkable
class Instructed(Protocol):
    """A method that reads demonstrations under the instruction that is answered under."""

    def under(self, instruction: str) -> Method:
        """Return the same method for a user's instruction."""


@runtime_checkable
class Shows(Protocol):
    """A method whose demonstrations stand before the question, or are read for a prefix."""

    def unread(self, support: SupportSet) -> tuple[Adapted, Sequence[int]]:
        """Return the state of a set before it is read, whose prefix has tokens and no layers yet.

        With it come the tokens that are read under W0 for an update; none where none is predicted.
        """


@dataclass(frozen=True, slots=True)
class Control:
    """Predicts as `inner`, RAG-GD, does, from other evidence or demonstrations than the task's."""

    name: str
    inner: Method
    arrange: Callable[[Sequence[Item]], list[Item]]  # exchanges it in the questions of one draw

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Those of RAG-GD."""
        return self.inner.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict as RAG-GD does, for sets of equal size."""
        return self.inner.adapt(supports)


def refuse_control(method: Method) -> None:
    """Refuse a control that exchanges what a benchmark holds, where nothing can be exchanged."""
    if isinstance(method, Control):
        raise RaggdError(
            f"method '{method.name}' is a control of `raggd evaluate`: it exchanges what a "
            "benchmark holds. Choose rag-gd."
        )
