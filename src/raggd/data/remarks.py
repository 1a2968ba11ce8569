"""What is odd about a set of demonstrations, so that answers may not be what its user expects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from raggd.data.answers import held
from raggd.data.closed import YES_NO
from raggd.data.reading import template_of
from raggd.data.shown import inside, parsed_json, refusals_of, says_no, unsupported
from raggd.records import Demonstration

_SPELLED = 1.5  # tokens a character from which on a script is one that the tokenizer hardly knows
_NAMED = 3
_FEW, _MANY = 3, 16  # examples of which one is odd
_MIXED = "examples of one form are followed, mixed ones are not."


class DemonstrationWarning(UserWarning):
    """Demonstrations will not show what they are meant to show."""


def remarks_on(
    demonstrations: Sequence[Demonstration], tokenizer: Any = None, *, searched: bool = False
) -> list[str]:
    """Say in a sentence each what is odd about a set; the tokenizer is the backbone's.

    `searched` says that passages were looked for, although no demonstration has any.
    """
    refusals = refusals_of(demonstrations)
    return [
        *_of_forms([d for d in demonstrations if d.answer.strip() not in refusals]),
        *_of_repetitions(demonstrations),
        *_of_answers(demonstrations),
        *(_of_script(demonstrations, tokenizer) if tokenizer is not None else ()),
        *_of_passages(demonstrations, refusals, searched),
    ]


def _of_forms(answered: Sequence[Demonstration]) -> Iterator[str]:
    values = [value for d in answered if (value := parsed_json(d.answer.strip())) is not None]
    keys = dict.fromkeys(", ".join(v) if isinstance(v, dict) else "a list" for v in values)
    if not values:
        yield from _of_frames(answered)
    elif len(values) < len(answered):
        some = f"{len(values)} of {len(answered)} answered demonstrations are JSON"
        yield f"{some}, the others are not: {_MIXED}"
    elif len(keys) > 1:
        told = "; ".join(map(_short, list(keys)[:_NAMED]))
        forms = f"the JSON of the answered demonstrations is of {len(keys)} forms"
        yield f"{forms} (keys: {told}): {_MIXED}"


def _of_frames(answered: Sequence[Demonstration]) -> list[str]:
    # one that is written otherwise than all the others
    told = []
    for at, one in enumerate(answered) if _FEW <= len(answered) <= _MANY else ():
        frame = template_of([*answered[:at], *answered[at + 1 :]])[0]
        literal = frame.joined({}) if frame else ""
        # a word alone may be a unit that two values happen to share, or what both agree to
        agreed = set(re.findall(r"\w+", literal.lower())) & YES_NO
        if frame is None or agreed or not re.search(r"[^\w\s]", literal):
            continue
        if frame.value_of(frame.without(one.question, one.answer)) is None:
            most = f"{len(answered) - 1} of {len(answered)} answered demonstrations are {frame}"
            told.append(f"{most}, '{_short(one.answer)}' is not: {_MIXED}")
    return told if len(told) == 1 else []


def _of_repetitions(demonstrations: Sequence[Demonstration]) -> Iterator[str]:
    pairs = dict.fromkeys((d.question.strip(), d.answer.strip()) for d in demonstrations)
    count = len(demonstrations)
    if twice := count - len(pairs):
        repeated = f"{twice} of {count} demonstrations repeat another one"
        yield f"{repeated}: they take room and show nothing new."
    for question, ways in Counter(question for question, _ in pairs).items():
        if ways > 1:
            asked = f"the question '{_short(question)}' is answered in {ways} ways"
            yield f"{asked}: which of them is followed is open."


def _of_answers(demonstrations: Sequence[Demonstration]) -> Iterator[str]:
    count, answers = len(demonstrations), {d.answer.strip() for d in demonstrations}
    bare = inside([d.answer for d in demonstrations])  # 'No problem: ...' refuses nothing
    if all(says_no(replace(d, answer=a)) for d, a in zip(demonstrations, bare, strict=True)):
        what = f"all {count} demonstrations refuse" if count > 1 else "the demonstration refuses"
        yield f"{what}: every question will tend to be refused. Show one that is answered, too."
    elif len({d.question.strip() for d in demonstrations}) > 1 and len(answers) == 1:
        what = f"all {count} demonstrations have the answer '{_short(*answers)}'"
        yield f"{what}: every question will tend to be answered so."


def _of_script(demonstrations: Sequence[Demonstration], tokenizer: Any) -> Iterator[str]:
    if all(d.answer.isascii() for d in demonstrations):  # most: their template is not read for it
        return
    # of the values alone: what stands around all of them is not written by the model
    letters = "".join(c for d in template_of(demonstrations)[1] for c in d.answer if c.isalpha())
    foreign = "".join(c for c in letters if not c.isascii())
    tokens = tokenizer.encode(foreign, add_special_tokens=False)
    if 2 * len(foreign) > len(letters) and len(tokens) > _SPELLED * len(foreign):
        yield (
            f"the backbone's tokenizer spells the answers' script ('{foreign[:8]}') byte by byte, "
            "so that it was hardly trained on it: expect wrong answers, or copies of those shown. "
            "Answer in the language of the passages, or choose a backbone that was trained on this "
            "one."
        )


def _of_passages(
    demonstrations: Sequence[Demonstration], refusals: Sequence[str], searched: bool
) -> Iterator[str]:
    bare = [
        d for d in demonstrations if not (d.passages or says_no(d) or d.answer.strip() in refusals)
    ]
    lacking = unsupported(demonstrations)
    template, read = template_of(demonstrations) if bare or lacking else (None, ())
    if template and template.classes:
        return
    if not any(d.passages for d in demonstrations):
        if searched and bare:
            yield (
                "No passage was found for any demonstration (are they in the language of the "
                "documents?): they show no use of passages."
            )
        return
    for d in bare:
        yield f"No passage at all was found for the demonstration '{_short(d.question)}'."
    respelled = {d.id for d in read if held(d.answer, d)}  # as the passages spell it
    for d in lacking:
        if d.id not in respelled:
            yield f"No passage found for the demonstration '{_short(d.question)}' holds its answer."


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}\u2026"
