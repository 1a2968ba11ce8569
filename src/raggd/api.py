"""The method in a few lines of Python: load, adapt, answer, save, export.

rag = raggd.load(corpus="my-documents")
adapted = rag.adapt([("Who repairs the pump?", "the workshop in Turin")])
answer = rag.answer("When does the warranty end?", adapted)

The command line, the server and the vLLM plugin stand on the same object.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from raggd.assembly import Assembly
from raggd.data.questions import NOBODY, OWN_TASK, Shown, parse_demonstrations, read_demonstrations
from raggd.data.remarks import DemonstrationWarning, remarks_on
from raggd.data.shown import is_refusal, named_passages
from raggd.data.text import normal_text
from raggd.progress import Progress, silent
from raggd.records import Answer, RaggdError, SupportSet, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.bring_your_own import wrap_retriever
from raggd.retrieval.evidence import make_demonstrations
from raggd.settings import Settings, changed, load_settings

if TYPE_CHECKING:  # torch and transformers load only when a model is needed
    from raggd.adaptation.export import PeftFolder
    from raggd.core.low_rank import Update
    from raggd.data.prompts import Turns
    from raggd.methods.base import Adapted, Method
    from raggd.methods.store import Store
    from raggd.retrieval.build import Index

Demonstrations: TypeAlias = str | Path | SupportSet | Iterable[Shown]
"""A JSON Lines file, a `SupportSet`, or answered questions (pairs, dictionaries, `Question`)."""
State: TypeAlias = Union["Adapted", "Update", str, Path]
"""What `Rag.adapt` gave, an update, or the file of one."""
States: TypeAlias = State | Sequence[State | None] | None  # one for all, or one per question


class Rag:
    """A retriever, a frozen backbone and its base adapter; everything loads on first use.

    Several threads may use one object: whoever needs the model waits for the others.
    """

    def __init__(self, parts: Assembly, retriever: Any = None) -> None:
        """Load nothing yet; `retriever` is whatever `wrap_retriever` takes, None the settings'."""
        self.parts = parts
        self._retriever = None if retriever is None else wrap_retriever(retriever)
        self._methods: dict[str, Method] = {}
        self._lock = threading.RLock()

    @property
    def retriever(self) -> Retriever:
        """What finds the passages."""
        with self._lock:
            return self.parts.retriever if self._retriever is None else self._retriever

    @cached_property
    def store(self) -> Store:
        """Support sets that were added, and what was adapted to, in memory and on disk."""
        from raggd.methods.store import Store

        serving = self.parts.settings.serving
        folder = Path(serving.supports) if serving.supports else None
        return Store(folder, serving.updates_mb << 20)

    @cached_property
    def identity(self) -> str:
        """Hash of all that an adapted state depends on but support set and method's files."""
        from raggd.data.prompts import prompt_fingerprint

        backbone, target = self.parts.backbone, self.parts.settings.target
        names = (str(backbone.dtype), prompt_fingerprint(backbone.tokenizer))
        return content_id(backbone.fingerprint, *names, target.model_dump_json())

    def key(self, support: SupportSet, *, instruction: str = "") -> str:
        """Return the key in the store of what `adapt` makes of a set."""
        from raggd.methods.store import state_key

        with self._lock:
            return state_key(support, self.method(instruction=instruction), self.identity)

    def method(self, name: str | None = None, *, instruction: str = "") -> Method:
        """Return a method, made once; None is what adapts best. A control is refused."""
        from raggd.methods.base import Instructed, refuse_control

        with self._lock:
            name = str(name) if name else self.parts.adapting
            if name not in self._methods:
                made = self.parts.method(name)
                refuse_control(made)
                self._methods[name] = made
            ready, told = self._methods[name], self._told(instruction)
            return ready.under(told) if told and isinstance(ready, Instructed) else ready

    def _told(self, instruction: str) -> str:
        said = _text(instruction or "", "the instruction").strip()
        return normal_text(said or self.parts.settings.serving.instruction.strip())

    def index(self, corpus: str | Path) -> Index:
        """Index a file or folder of documents (once), and answer from it from now on."""
        index = self.parts.index_of(_corpus_path(corpus))
        self._retriever = index.retriever
        return index

    def support(self, demonstrations: Demonstrations) -> SupportSet:
        """Retrieve for answered questions, three or so; a support set is passed through."""
        if isinstance(demonstrations, SupportSet):
            return demonstrations
        if isinstance(demonstrations, str | Path):
            questions = read_demonstrations(Path(demonstrations))
        else:
            questions = parse_demonstrations(demonstrations)
        k = self.parts.settings.retrieval.top_k
        with self._lock:
            return SupportSet(OWN_TASK, tuple(make_demonstrations(questions, self.retriever, k)))

    def remarks(self, demonstrations: Demonstrations) -> list[str]:
        """Say in a sentence each what is odd about demonstrations; `adapt` warns of it."""
        support = self.support(demonstrations)
        with self._lock:
            tokenizer = self.parts.backbone.tokenizer
        searched = self.parts.settings.retrieval.top_k > 0
        return remarks_on(support.demonstrations, tokenizer, searched=searched)

    def adapt(
        self,
        demonstrations: Demonstrations | None = None,
        *,
        method: str | None = None,
        instruction: str = "",
    ) -> Adapted:
        """Adapt the model to answered questions (paper Algorithm 1); the second time, look it up.

        Args:
            demonstrations: answered questions of the task; None for a method that reads none.
            method: how: what adapts best with the weights (None); ``rag-gd``, in one forward pass;
                ``tt-sgd`` by gradient steps; ``base-few-shot`` by showing them; or any other.
                Without demonstrations, None is ``base``.
            instruction: how to answer, in your words, instead of raggd's own; empty: the settings'
                (`serving.instruction`). Examples that stand before the question are read under it.

        Raises:
            RaggdError: the method needs demonstrations and has none.
        """
        with self._lock:
            name = method or (None if demonstrations is not None else "base")
            ready, told = self.method(name, instruction=instruction), self._told(instruction)
            if demonstrations is not None:
                support = self.support(demonstrations)
                for remark in self.remarks(support):
                    warnings.warn(remark, DemonstrationWarning, stacklevel=2)
            elif ready.adapts:
                raise RaggdError(
                    f"method '{ready.name}' adapts from demonstrations: give some (--demonstrations"
                    f" FILE.jsonl; rag.adapt(demonstrations, method='{ready.name}')), or choose "
                    "base."
                )
            else:
                support = NOBODY
            if ready.adapts:
                base = self.parts.base if "base" in ready.hashes else None
                state = self.store.adapt(ready, [support], self.identity, base)[0]
            else:
                state = ready.adapt([support])[0]
            return replace(state, instruction=told) if told else state

    def answer(
        self,
        question: str,
        adapted: State | None = None,
        *,
        method: str | None = None,
        guess: bool = False,
        instruction: str = "",
    ) -> Answer:
        """Answer a question from the passages found for it.

        Args:
            adapted: from `adapt`; an update or its file do too.
            method: without an adapted state, the model that answers: ``base`` (None), or another
                that needs no demonstrations, e.g. ``vanilla-rag``, ``query-only``.
            guess: ask the model even where no passage was found; else the answer is then the
                refusal that the examples show, or empty.
            instruction: how to answer, in your words, instead of the state's (`adapt` takes one,
                too, and then reads examples under it once).
        """
        return self.answer_many(
            [question], adapted, method=method, guess=guess, instruction=instruction
        )[0]

    def answer_many(
        self,
        questions: Sequence[str],
        adapted: States = None,
        *,
        method: str | None = None,
        guess: bool = False,
        instruction: str = "",
    ) -> list[Answer]:
        """Answer questions in batches: as `answer`, with one state for all, or one per question."""
        from raggd.methods.answering import answer_batch, batches_of, bounded_prompt

        if isinstance(questions, str | bytes | Mapping) or not isinstance(questions, Iterable):
            kind = "one text" if isinstance(questions, str) else f"a {type(questions).__name__}"
            raise RaggdError(f"the questions are {kind}: give a list, or call answer for one.")
        questions = [normal_text(_text(question, "the question")) for question in questions]
        if any(not question.strip() for question in questions):
            raise RaggdError("the question is empty: expected at least one word.")
        with self._lock:
            settings = self.parts.settings
            found = self.retriever.search(questions, settings.retrieval.top_k)
            evidence = [tuple(hit.passage for hit in hits) for hits in found]
            rows = self._rows(len(questions), adapted, method, instruction)
            backbone = self.parts.backbone
            prompts = [
                bounded_prompt(settings, backbone, row, question, passages)
                for row, question, passages in zip(rows, questions, evidence, strict=True)
            ]
            texts = {i: row.unasked(questions[i]) for i, row in enumerate(rows)}
            guess = guess or not settings.retrieval.top_k
            told = [i for i, r in enumerate(rows) if guess or evidence[i] or not r.needs_passages]
            size, most = settings.evaluation.batch, settings.evaluation.max_answer_tokens
            for batch in batches_of(rows, told, size):
                parts = [rows[i] for i in batch], [prompts[i] for i in batch]
                texts |= zip(batch, answer_batch(backbone, *parts, most), strict=True)
        return [
            Answer(
                question,
                texts[i],
                evidence[i],
                prompts[i].passages_cut,
                is_refusal(texts[i], rows[i].refusals_to(question)),
                named_passages(texts[i], evidence[i]),
            )
            for i, question in enumerate(questions)
        ]

    def _rows(
        self, count: int, adapted: States, method: str | None, instruction: str
    ) -> list[Adapted]:
        several = isinstance(adapted, Sequence) and not isinstance(adapted, str)
        states: Sequence[Any] = adapted if several else [adapted] * count  # type: ignore[assignment]
        if method is not None and any(state is not None for state in states):
            raise RaggdError(
                f"method '{method}' was named beside an adapted state, which brings its own: leave "
                "one of them out."
            )
        rows = [self.adapt(method=method) if s is None else self.state(s) for s in states]
        if len(states) != count:
            raise RaggdError(
                f"{count} questions, but {len(states)} adapted states: give one per question, or "
                "one for all."
            )
        return [
            replace(row, instruction=self._told(instruction or row.instruction)) for row in rows
        ]

    def state(self, given: State) -> Adapted:
        """Return an adapted state in any of its forms as one; refuse one of another base."""
        from raggd.core.low_rank import Update, check_base
        from raggd.methods.base import Adapted
        from raggd.methods.store import read_state

        if isinstance(given, str | Path):
            return read_state(Path(given), self.parts.base)
        if isinstance(given, Adapted):
            return given
        if not isinstance(given, Update):
            raise RaggdError(
                f"a {type(given).__name__} is no adapted state: give what rag.adapt() returned, "
                "an update, or the path of a saved one."
            )
        check_base(self.parts.base, given.base)
        return Adapted(self.parts.base, given.to(self.parts.base.device))

    def save(self, adapted: State, file: str | Path) -> None:
        """Write an adapted state for `answer` and the exports; refuse one that holds nothing."""
        from raggd.methods.store import write_state

        if not write_state(Path(file), self.state(adapted), {}):
            raise RaggdError("this state holds neither an update nor a prefix that could be saved.")

    def export_peft(self, folder: str | Path, adapted: State | None = None) -> PeftFolder:
        """Return the folder written: base adapter and update as a LoRA for `peft`, vLLM, others.

        Beside it lie the prompt that it needs and a chat template, which holds the examples that
        the state shows: they take the place of a prefix, which no LoRA holds.
        """
        from raggd.adaptation.export import write_peft, write_prompt

        state, turns = self._exported(adapted)
        made = write_peft(Path(folder), self.parts.backbone, self.parts.base, state.update)
        write_prompt(made.folder, self.parts.backbone.tokenizer, turns, sources=state.sources)
        return made

    def export_gguf(self, file: str | Path, adapted: State | None = None) -> Path:
        """Return the file written: the same as one LoRA for llama.cpp; the prompt lies beside."""
        from raggd.adaptation.export import write_gguf, write_prompt

        (state, turns), path, backbone = self._exported(adapted), Path(file), self.parts.backbone
        made = write_gguf(path, backbone, self.parts.base, state.update)
        stem, sources = f"{path.stem}.", state.sources
        write_prompt(path.parent, backbone.tokenizer, turns, stem, sources=sources)
        return made

    def _exported(self, adapted: State | None) -> tuple[Adapted, Turns]:
        # with the turns of its prompt before the user's own
        from raggd.adaptation.export import opening_turns

        state = self.adapt(method="base") if adapted is None else self.state(adapted)
        if state.base is None or state.soft is not None:
            raise RaggdError(
                "this adapted state stands on no base adapter, so that there is no LoRA to export: "
                "adapt by a method that has one, such as base-few-shot, tt-sgd or rag-gd."
            )
        tokenizer = self.parts.backbone.tokenizer
        return state, opening_turns(tokenizer, state.given(), state.instruction)


def load(
    corpus: str | Path | None = None,
    *,
    retriever: Any = None,
    settings: Settings | Mapping[str, Any] | str | Path | None = None,
    progress: Progress = silent,
) -> Rag:
    """Prepare to answer questions; nothing is fetched or loaded before it is needed.

    Args:
        corpus: your documents, a file or folder; None: the embedded Wikipedia leads, or what the
            settings name.
        retriever: finds the passages instead of an index of `corpus`: of LangChain, LlamaIndex,
            or a `raggd.Retriever`.
        settings: `Settings`, a TOML file of them, or a dictionary like one.
        progress: told about downloads, conversions and indexing.

    Raises:
        RaggdError: both a corpus and a retriever were given.
    """
    if corpus is not None and retriever is not None:
        raise RaggdError("give a corpus or a retriever, not both: a retriever brings its passages.")
    chosen = settings if isinstance(settings, Settings) else load_settings(settings)
    if corpus is not None:
        chosen = changed(chosen, "data", corpus=str(_corpus_path(corpus)))
    return Rag(Assembly(chosen, progress), retriever)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RaggdError(f"{what} is a {type(value).__name__}: expected text.")
    return value


def _corpus_path(corpus: Any) -> Path:
    if not isinstance(corpus, str | Path):
        raise RaggdError(
            f"the corpus is a {type(corpus).__name__}: expected the path of a file or folder; what "
            "finds passages elsewhere is a retriever."
        )
    if not str(corpus):
        raise RaggdError("the path of the corpus is empty: name a file or a folder.")
    return Path(corpus)
