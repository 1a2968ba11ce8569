"""What a study needs, looked at item by item: data, tokenizers, prompts, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from raggd.assembly import Assembly
from raggd.data.benchmarks import scored_questions
from raggd.data.documents import read_passages
from raggd.data.prompts import build_prompt
from raggd.data.sources import HUB
from raggd.files import tensor_header
from raggd.methods.spec import BASE_FILE, FILES_OF
from raggd.records import Passage, Question, RaggdError
from raggd.retrieval.build import estimate_index
from raggd.retrieval.encoder import encoder_width
from raggd.retrieval.memory import show_size
from raggd.study.check import pool_size, weight_problems, weights_folder
from raggd.study.estimate import Lengths
from raggd.study.settings import StudyBackbone, StudySettings
from raggd.study.shapes import Sizes, source_of

PUBLISHED = {
    "nq": 3610,
    "triviaqa": 11313,
    "popqa": 14267,
    "hotpotqa": 7405,
    "2wikimultihopqa": 12576,
    "musique": 2417,
    "bamboogle": 125,
}
"""Questions of FlashRAG's test or dev sets, for estimates where they are not at hand."""
HUB_PASSAGES = 21_015_324
"""Of FlashRAG's Wikipedia of 2018."""
SAMPLED = 16
ANSWER_TOKENS = 6.0
_WORDS_TO_TOKENS = 1.35
Say = Callable[[str], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `ok`, or what is wrong with it."""

    item: str
    ok: bool
    message: str


class Checks:
    """Collects checks; a refusal becomes a line instead of an end."""

    def __init__(self, say: Say) -> None:
        """Start with none.

        Args:
            say: told what is being looked at.
        """
        self.found: list[Check] = []
        self._say = say

    def add(self, item: str, ok: bool, message: str) -> None:
        """File one check.

        Args:
            item: what was looked at.
            ok: whether it will do.
            message: what was found.
        """
        self.found.append(Check(item, ok, message))

    def run(self, item: str, work: Callable[[], _T], told: Callable[[_T], str]) -> _T | None:
        """Look at something that may be refused.

        Args:
            item: what is looked at.
            work: looks.
            told: what to say of the result.

        Returns:
            The result; None if it was refused.
        """
        self._say(item)
        try:
            value = work()
        except (RaggdError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.add(item, False, lines[0])
            return None
        self.add(item, True, told(value))
        return value


def check_benchmarks(checks: Checks, study: StudySettings, parts: Assembly) -> dict[str, int]:
    """Look at every benchmark: its support pool and its questions.

    Args:
        checks: files what is found.
        study: the settings.
        parts: of one of its runs, for the data.

    Returns:
        Questions to be answered per cell, by benchmark; published sizes where data are not here.
    """
    counts, unreachable = {}, ""
    for name in study.evaluation.benchmarks:
        limit = 0 if name in study.evaluation.whole else study.evaluation.questions
        counts[name] = min(limit or PUBLISHED[name], PUBLISHED[name])
        if unreachable:  # one wait for a hub out of reach is enough
            checks.add(f"benchmark {name}", False, unreachable)
            continue
        look = partial(_sizes_of, parts, name, study.target.demonstrations)
        found = checks.run(f"benchmark {name}", look, _sizes_told)
        if found:
            counts[name] = min(limit or found[1], found[1])
        elif study.data.folder == HUB:
            unreachable = checks.found[-1].message
    return counts


def _sizes_told(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} support questions, {sizes[1]} to score"


def _sizes_of(parts: Assembly, name: str, demonstrations: int) -> tuple[int, int]:
    return pool_size(parts, name, demonstrations), len(scored_questions(parts.source, name))


def _is_remote(parts: Assembly) -> bool:
    return parts.settings.data.folder == HUB and not parts.settings.data.corpus


def corpus_told(parts: Assembly) -> str:
    """Say where the passages are.

    Args:
        parts: of a run; that there are none is refused.

    Returns:
        A path, or what is to be fetched.
    """
    if _is_remote(parts):
        return f"FlashRAG's Wikipedia of 2018: 5.1 GB to fetch, {HUB_PASSAGES:,} passages"
    return str(parts.corpus)


def check_retrievers(checks: Checks, study: StudySettings) -> None:
    """Look at every retriever: its encoder, and its index or what building that will take.

    Args:
        checks: files what is found.
        study: the settings.
    """
    for entry in study.retrievers:
        settings = study.run_settings(study.backbones[0].name, entry.name, study.seeds[0])
        look = partial(_index_told, Assembly(settings))
        checks.run(f"retriever {entry.name}", look, str)


def _index_told(parts: Assembly) -> str:
    settings = parts.settings.retrieval
    if _is_remote(parts):
        if settings.retriever == "bm25":
            return f"{HUB_PASSAGES:,} passages to index"
        width = encoder_width(settings.encoder)
        size = show_size(4 * width * HUB_PASSAGES)
        return f"{HUB_PASSAGES:,} passages to encode; their {width} wide vectors take {size}"
    estimate = estimate_index(parts.corpus, settings)
    return "its index is there" if estimate is None else str(estimate)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source_of(name))


def _template_told(tokenizer: Any) -> str:
    known = getattr(tokenizer, "chat_template", None)
    return "with a chat template" if known else "without a chat template: plain text"


def _lengths_told(lengths: Lengths) -> str:
    how = "rendered with the real template" if lengths.measured else "guessed from words"
    return f"about {lengths.prompt:.0f} tokens, {how}"


def _sample_questions(parts: Assembly, study: StudySettings) -> list[Question]:
    for name in study.evaluation.benchmarks:
        if study.data.folder == HUB:
            break
        try:
            return scored_questions(parts.source, name)[:SAMPLED]
        except RaggdError:
            continue
    texts = ("Who wrote the novel on which the film is based?", "When was the bridge opened?")
    return [Question(str(i), texts[i % 2]) for i in range(SAMPLED)]


def _stand_ins(parts: Assembly, k: int) -> list[Passage]:
    words = "a passage of about one hundred words " * 15
    if parts.settings.data.folder != HUB:
        try:
            found = list(islice(read_passages(parts.corpus), SAMPLED * k))
            if found:
                return found
        except RaggdError:
            pass
    return [Passage(str(i), words, "A title") for i in range(SAMPLED * k)]


def _lengths(
    tokenizer: Any, questions: Sequence[Question], passages: Sequence[Passage], k: int, limit: int
) -> Lengths:
    if tokenizer is None:
        words = fmean(len(f"{p.title} {p.text}".split()) for p in passages)
        prompt = (words * k + 45) * _WORDS_TO_TOKENS
        return Lengths(
            prompt, 45 * _WORDS_TO_TOKENS, prompt + ANSWER_TOKENS, ANSWER_TOKENS, measured=False
        )
    full, bare = [], []
    for i, question in enumerate(questions):
        shown = [passages[(i * k + j) % len(passages)] for j in range(k)]
        full.append(len(build_prompt(tokenizer, question.text, shown, limit=limit).tokens))
        bare.append(len(build_prompt(tokenizer, question.text, limit=limit).tokens))
    return Lengths(
        fmean(full), fmean(bare), fmean(full) + ANSWER_TOKENS, ANSWER_TOKENS, measured=True
    )


def check_weights_of(
    checks: Checks,
    study: StudySettings,
    entry: StudyBackbone,
    methods: Sequence[str],
    sizes: Sizes | None,
) -> None:
    """Look at the weights of a backbone's methods.

    Args:
        checks: files what is found.
        study: the settings.
        entry: the backbone.
        methods: those to run on it.
        sizes: its shape, if it is known.
    """
    needing = [m for m in methods if FILES_OF[m]]
    folder = checks.run(
        f"{entry.name}: weights folder", partial(weights_folder, study, entry.name), str
    )
    if folder is None:
        return
    problems = [p for m in needing for p in weight_problems(folder, m)]
    for problem in problems:
        checks.add(f"{entry.name}: weights", False, problem)
    if not problems:
        checks.add(f"{entry.name}: weights", True, f"{len(needing)} methods have theirs")
    if sizes is not None and (folder / BASE_FILE).is_file():
        checks.run(f"{entry.name}: base adapter", partial(_check_base, folder, sizes), str)


def _check_base(folder: Path, sizes: Sizes) -> str:
    from raggd.core.low_rank import AdapterSpec

    path = folder / BASE_FILE
    spec = AdapterSpec.from_json(tensor_header(path)["spec"])
    wanted = (sizes.layers, sizes.hidden, (sizes.width, sizes.kv_width, sizes.kv_width))
    if (spec.layers, spec.d_in, spec.d_out) != wanted:
        raise RaggdError(
            f"{path} has layers, width and projections {(spec.layers, spec.d_in, spec.d_out)}, the "
            f"backbone {wanted}: it was trained for another one."
        )
    return "its shape is that of the backbone"


def check_prompts(
    checks: Checks, study: StudySettings, entry: StudyBackbone, parts: Assembly
) -> Lengths | None:
    """Render prompts of the study with the backbone's own tokenizer, as far as it is here.

    Args:
        checks: files what is found.
        study: the settings.
        entry: the backbone.
        parts: of one of its runs, for questions and passages.

    Returns:
        Mean lengths; guessed from words without a tokenizer.
    """
    name, k = entry.model or entry.name, study.retrieval.top_k
    tokenizer = checks.run(f"{entry.name}: tokenizer", partial(_tokenizer, name), _template_told)
    questions, passages = _sample_questions(parts, study), _stand_ins(parts, max(1, k))
    limit = study.backbone.context_tokens
    look = partial(_lengths, tokenizer, questions, passages, k, limit)
    return checks.run(f"{entry.name}: prompts", look, _lengths_told)
