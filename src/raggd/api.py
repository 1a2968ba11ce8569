"""The method in a few lines of Python: load, adapt, answer, save, export.

rag = raggd.load(corpus="my-documents")
update = rag.adapt([("Who repairs the pump?", "the workshop in Turin")])
answer = rag.answer("When does the warranty end?", update=update)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raggd.assembly import Assembly, Progress
from raggd.data.demonstrations import (
    OWN_TASK,
    Shown,
    parse_demonstrations,
    read_demonstrations,
)
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet
from raggd.retrieval.base import Retriever
from raggd.retrieval.bring_your_own import wrap_retriever
from raggd.retrieval.evidence import evidence_for, make_demonstrations
from raggd.settings import Settings, load_settings

if TYPE_CHECKING:  # torch and transformers load only when a model is needed
    from raggd.adaptation.export import PeftFolder
    from raggd.core.low_rank import Update
    from raggd.data.prompts import Prompt
    from raggd.methods.base import Adapted, Method
    from raggd.retrieval.build import Index

Demonstrations = str | Path | SupportSet | Iterable[Shown]
"""A JSON Lines file, a `SupportSet`, or answered questions (pairs, dictionaries, `Question`)."""

_NOBODY = SupportSet(OWN_TASK, (Demonstration("none", "none", (), "none"),))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it was read from.

    Attributes:
        question: as asked.
        text: the answer.
        passages: the evidence, best first.
        passages_cut: passages that were shortened or left out to fit the context window.
    """

    question: str
    text: str
    passages: tuple[Passage, ...]
    passages_cut: int = 0


class Rag:
    """A retriever, a frozen backbone and its base adapter; everything loads on first use."""

    def __init__(self, parts: Assembly, retriever: Any = None) -> None:
        """Load nothing yet.

        Args:
            parts: made from settings.
            retriever: finds the passages, whatever `wrap_retriever` takes; None: the one that the
                settings name.
        """
        self.parts = parts
        self._retriever: Retriever | None = None
        if retriever is not None:
            self._retriever = wrap_retriever(retriever)
        self._methods: dict[str, Method] = {}

    @property
    def retriever(self) -> Retriever:
        """What finds the passages."""
        if self._retriever is None:
            self._retriever = self.parts.retriever
        return self._retriever

    def index(self, corpus: str | Path) -> Index:
        """Index a corpus (once), and answer from it from now on.

        Args:
            corpus: a file or folder of text, Markdown, PDF or JSON Lines.

        Returns:
            The index.
        """
        index = self.parts.index_of(Path(corpus))
        self._retriever = index.retriever
        return index

    def support(self, demonstrations: Demonstrations) -> SupportSet:
        """Retrieve for answered questions and make a support set of them.

        Args:
            demonstrations: answered questions, three or so; a support set is passed through.

        Returns:
            The support set.
        """
        if isinstance(demonstrations, SupportSet):
            return demonstrations
        if isinstance(demonstrations, str | Path):
            questions = read_demonstrations(Path(demonstrations))
        else:
            questions = parse_demonstrations(demonstrations)
        k = self.parts.settings.retrieval.top_k
        return SupportSet(OWN_TASK, tuple(make_demonstrations(questions, self.retriever, k)))

    def adapt(self, demonstrations: Demonstrations, *, method: str | None = None) -> Update:
        """Turn answered questions into an update of the base adapter (paper Algorithm 1).

        Args:
            demonstrations: answered questions of the task.
            method: what makes the update: the best predictor of the weights (None) or ``rag-gd``,
                in one forward pass; or ``tt-sgd``.

        Returns:
            The update, for `answer`, `Update.save` and the exports.

        Raises:
            RaggdError: the method makes no update.
        """
        method = method or self.parts.adapting
        adapted = self._method(method).adapt([self.support(demonstrations)])[0]
        if adapted.update is None:
            raise RaggdError(
                f"method '{method}' makes no update: adapt with rag-gd or tt-sgd, or ask with "
                f"answer(question, method='{method}')."
            )
        return adapted.update

    def answer(
        self, question: str, *, update: Update | None = None, method: str = "base"
    ) -> Answer:
        """Answer a question from the passages found for it.

        Args:
            question: the question.
            update: from `adapt`; None answers with the base adapter alone.
            method: without an update, another model that needs no demonstrations:
                ``vanilla-rag``, ``query-only``, ``mean-update``.

        Returns:
            The answer with its passages.
        """
        return self.answer_many([question], [update], method=method)[0]

    def answer_many(
        self,
        questions: Sequence[str],
        updates: Sequence[Update | None] | None = None,
        *,
        method: str = "base",
    ) -> list[Answer]:
        """Answer questions in batches, each with its own update.

        Args:
            questions: the questions.
            updates: one per question, None for the base adapter alone; None for all of them.
            method: as in `answer`.

        Returns:
            One answer per question, in order.

        Raises:
            RaggdError: a question is empty, or the numbers of questions and updates differ.
        """
        steps = updates if updates is not None else [None] * len(questions)
        if len(steps) != len(questions):
            raise RaggdError(f"{len(questions)} questions, but {len(steps)} updates: give one per.")
        if any(not question.strip() for question in questions):
            raise RaggdError("the question is empty: expected at least one word.")
        rows = self._rows(steps, method)
        asked = [Question(f"asked-{i}", text, (), OWN_TASK) for i, text in enumerate(questions)]
        evidence = evidence_for(asked, self.retriever, self.parts.settings.retrieval.top_k)
        prompts = [self._prompt(*each) for each in zip(rows, questions, evidence, strict=True)]
        return [
            Answer(question, text, passages, prompt.passages_cut)
            for question, text, passages, prompt in zip(
                questions, self._generate(rows, prompts), evidence, prompts, strict=True
            )
        ]

    def export_peft(self, folder: str | Path, update: Update | None = None) -> PeftFolder:
        """Write base adapter and update as one LoRA that `peft`, vLLM and others load.

        Args:
            folder: to write to.
            update: from `adapt`; None writes the base adapter alone.

        Returns:
            What was written.
        """
        from raggd.adaptation.export import write_peft

        return write_peft(Path(folder), self.parts.backbone, self.parts.base, update)

    def export_gguf(self, file: str | Path, update: Update | None = None) -> Path:
        """Write base adapter and update as one LoRA file for llama.cpp.

        Args:
            file: to write to.
            update: from `adapt`; None writes the base adapter alone.

        Returns:
            The file.
        """
        from raggd.adaptation.export_gguf import write_gguf

        return write_gguf(Path(file), self.parts.backbone, self.parts.base, update)

    def _method(self, name: str) -> Method:
        if name not in self._methods:
            self._methods[name] = self.parts.method(name)
        return self._methods[name]

    def _rows(self, updates: Sequence[Update | None], method: str) -> list[Adapted]:
        from raggd.core.low_rank import check_base
        from raggd.methods.base import Adapted

        if method == "base":
            base = self.parts.base
            for update in updates:
                if update is not None:
                    check_base(base, update)
            return [Adapted(base, update) for update in updates]
        ready = self._method(method)
        if ready.adapts or any(update is not None for update in updates):
            raise RaggdError(
                f"method '{method}' cannot answer with an update, or needs one: make it by "
                "update = rag.adapt(demonstrations, method=...), then answer(..., update=update)."
            )
        return ready.adapt([_NOBODY]) * len(updates)

    def _prompt(self, row: Adapted, question: str, passages: tuple[Passage, ...]) -> Prompt:
        from raggd.methods.answering import bounded_prompt

        return bounded_prompt(self.parts.settings, self.parts.backbone, row, question, passages)

    def _generate(self, rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> list[str]:
        from raggd.methods.answering import answer_batch

        settings = self.parts.settings.evaluation
        found: list[str] = []
        for start in range(0, len(rows), settings.batch):
            part = slice(start, start + settings.batch)
            found += answer_batch(
                self.parts.backbone, rows[part], prompts[part], settings.max_answer_tokens
            )
        return found


def load(
    corpus: str | Path | None = None,
    *,
    retriever: Any = None,
    settings: Settings | str | Path | None = None,
    progress: Progress | None = None,
) -> Rag:
    """Prepare to answer questions; nothing is fetched or loaded before it is needed.

    Args:
        corpus: your documents, a file or folder; None: the embedded Wikipedia leads, or what the
            settings name.
        retriever: finds the passages instead of an index of `corpus`: of LangChain, LlamaIndex,
            or a `raggd.Retriever`.
        settings: `Settings`, or a TOML file of them.
        progress: told about downloads, conversions and indexing; None is silent.

    Returns:
        What adapts and answers.

    Raises:
        RaggdError: both a corpus and a retriever were given.
    """
    if corpus is not None and retriever is not None:
        raise RaggdError("give a corpus or a retriever, not both: a retriever brings its passages.")
    chosen = settings if isinstance(settings, Settings) else load_settings(_path(settings))
    if corpus is not None:
        data = chosen.data.model_copy(update={"corpus": str(corpus)})
        chosen = chosen.model_copy(update={"data": data})
    return Rag(Assembly(chosen, progress), retriever)


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)
