"""What a set of demonstrations shows of the answers wanted: which refuse, how long they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from raggd.data.answers import contains_answer, normalise_answer
from raggd.records import Demonstration, Passage

_YES_NO = {"yes", "no"}
_NO = re.compile(
    r"\b(?:not|no|none|nothing|unknown|cannot|missing|insufficient|unanswerable|nicht|kein\w*|"
    r"pas|aucun\w*|non|nessun\w*|sin|desconocid\w*|n/a)\b|n't\b|\?\?",
    re.IGNORECASE,
)


def without_passages(demonstrations: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    """Return demonstrations as a prefix shows them: question and answer alone."""
    return tuple(replace(d, passages=()) for d in demonstrations)


def inside(answers: Sequence[str]) -> list[str]:
    """Return answers without the wrapping that all of them share, cut at whole words.

    >>> inside(['{"answer": "Rome"}', '{"answer": "the sea"}'])
    ['Rome', 'the sea']
    """
    if len(answers) < 2:
        return [answer.strip() for answer in answers]
    start, end = _same(answers), _same([answer[::-1] for answer in answers])
    if any(len(answer) <= start + end for answer in answers):
        return [answer.strip() for answer in answers]
    first = answers[0]
    while start and first[start - 1].isalnum():
        start -= 1
    while end and first[len(first) - end].isalnum():
        end -= 1
    return [answer[start : len(answer) - end].strip() for answer in answers]


def _same(texts: Sequence[str]) -> int:
    first, last = min(texts), max(texts)  # what these two share, all do
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))


def _lacking(demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
    # whose passages lack the answer, where another one's hold theirs: labels and verdicts, which
    # no passage holds, are no sign of anything
    bare = inside([d.answer for d in demonstrations])
    held = [
        contains_answer("\n".join(p.text for p in d.passages), [text, _unwrapped(d.answer)])
        for d, text in zip(demonstrations, bare, strict=True)
    ]
    if not any(held):
        return []
    return [
        d
        for d, found, text in zip(demonstrations, held, bare, strict=True)
        if d.passages and not found and normalise_answer(text) not in _YES_NO
    ]


def refusals_of(demonstrations: Sequence[Demonstration]) -> tuple[str, ...]:
    """Find the answers that say that the passages hold none.

    A demonstration whose passages lack its answer shows a refusal, if its answer says no, is given
    twice, or has no word in common with question and passages.

    Args:
        demonstrations: of one support set, with their passages.

    Returns:
        The refusals, each once.
    """
    answers = [d.answer.strip() for d in demonstrations]
    return tuple(
        dict.fromkeys(
            d.answer.strip()
            for d in _lacking(demonstrations)
            if _NO.search(d.answer) or answers.count(d.answer.strip()) > 1 or _strange(d)
        )
    )


def unsupported(demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
    """Return demonstrations whose passages lack their answer without refusing: they show guesses.

    Args:
        demonstrations: of one support set, with their passages.
    """
    refusals = refusals_of(demonstrations)
    return [d for d in _lacking(demonstrations) if d.answer.strip() not in refusals]


def remarks_on(demonstrations: Sequence[Demonstration]) -> list[str]:
    """Say what is odd about a set of demonstrations as a whole.

    Args:
        demonstrations: of one support set.

    Returns:
        A sentence each; none where they agree.
    """
    refusals = refusals_of(demonstrations)
    answers = [d.answer.strip() for d in demonstrations if d.answer.strip() not in refusals]
    json_like = sum(_is_json(answer) for answer in answers)
    remarks = []
    if 0 < json_like < len(answers):
        remarks.append(
            f"{json_like} of {len(answers)} answered demonstrations are JSON, the others are not: "
            "examples of one form are followed, mixed ones are not."
        )
    if len(demonstrations) > 1 and len({normalise_answer(d.answer) for d in demonstrations}) == 1:
        remarks.append(
            f"all {len(demonstrations)} demonstrations have the answer "
            f"'{demonstrations[0].answer.strip()}': every question will tend to be answered so."
        )
    return remarks


def _is_json(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict | list)
    except ValueError:
        return False


def _strange(shown: Demonstration) -> bool:
    words = set(re.findall(r"\w{3,}", shown.answer.lower()))
    text = " ".join([shown.question, *(p.text for p in shown.passages)]).lower()
    return words.isdisjoint(re.findall(r"\w{3,}", text))


def _unwrapped(answer: str) -> str:
    # without keys of JSON and tags, where the wrapping is not the same in all
    return re.sub(r'"\w+":|<[^>]*>|[{}\[\]"*]', " ", answer).strip()


def is_refusal(answer: str, refusals: Sequence[str]) -> bool:
    """Return whether an answer is one of the refusals, case and punctuation aside."""
    plain = normalise_answer(answer) or answer.strip()
    return plain in {normalise_answer(refusal) or refusal for refusal in refusals}


def named_passages(answer: str, passages: Sequence[Passage]) -> tuple[int, ...]:
    """Find the passages that an answer names: by number in brackets, title or file.

    Args:
        answer: what the model wrote.
        passages: as numbered in the prompt, from 1.

    Returns:
        Their numbers, ascending.

    >>> named_passages("Rome [2]", [Passage("a", "x"), Passage("b", "y")])
    (2,)
    """
    numbers = {int(found) for found in re.findall(r"[\[(#](?:\w+ )?(\d{1,3})[\])]", answer)}
    return tuple(
        number
        for number, passage in enumerate(passages, start=1)
        if number in numbers or any(name in answer for name in _names(passage))
    )


def _names(passage: Passage) -> list[str]:
    return [name for name in (passage.title, passage.source) if len(name) > 3]
