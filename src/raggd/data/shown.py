"""What a set of demonstrations shows of the answers wanted: which refuse, how long they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raggd.data.answers import contains_answer, normalise_answer
from raggd.records import Demonstration, Passage

_YES_NO = {"yes", "no"}


def inside(answers: Sequence[str]) -> list[str]:
    """Return answers without the wrapping that all of them share, cut at whole words.

    >>> inside(['{"answer": "Rome"}', '{"answer": "the sea"}'])
    ['Rome', 'the sea']
    """
    start, end = _same(answers), _same([answer[::-1] for answer in answers])
    if len(answers) < 2 or any(len(answer) <= start + end for answer in answers):
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


def refusals_of(demonstrations: Sequence[Demonstration]) -> tuple[str, ...]:
    """Find the answers that say that the passages hold none.

    A demonstration whose passages lack its answer shows a refusal, if another one's passages hold
    theirs; labels and verdicts, which no passage holds, are none.

    Args:
        demonstrations: of one support set, with their passages.

    Returns:
        The refusals, each once.
    """
    bare = inside([d.answer for d in demonstrations])
    held = [
        contains_answer("\n".join(p.text for p in d.passages), [text, _unwrapped(d.answer)])
        for d, text in zip(demonstrations, bare, strict=True)
    ]
    if not any(held):
        return ()
    lacking = [
        d.answer.strip()
        for d, held_, text in zip(demonstrations, held, bare, strict=True)
        if d.passages and not held_ and normalise_answer(text) not in _YES_NO
    ]
    answers = [d.answer.strip() for d in demonstrations]
    common = [a for a in lacking if answers.count(a) > 1 or len(lacking) < len(answers)]
    return tuple(dict.fromkeys(common))


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
