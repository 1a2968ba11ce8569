"""What is odd about a set of demonstrations, so that answers may not be what its user expects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raggd.data.closed import YES_NO
from raggd.data.pieces import held
from raggd.data.reading import template_of
from raggd.data.shown import inside, parsed_json, refusals_of, says_no, unsupported
from raggd.records import Demonstration

_SPELLED = 1.5  # tokens a character from which on a script is one that the tokenizer hardly knows
_NAMED = 3
_FEW, _MANY = 3, 16  # examples of which one is odd


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
        *_of_forms(demonstrations, refusals),
        *_of_repetitions(demonstrations),
        *_of_answers(demonstrations),
        *(_of_script(demonstrations, tokenizer) if tokenizer is not None else ()),
        *_of_passages(demonstrations, refusals, searched),
    ]


def _of_forms(demonstrations: Sequence[Demonstration], refusals: Sequence[str]) -> list[str]:
    answered = [d for d in demonstrations if d.answer.strip() not in refusals]
    answers = [d.answer.strip() for d in answered]
    values = [value for value in map(parsed_json, answers) if value is not None]
    if not values:
        return _of_frames(answered)
    if len(values) < len(answers):
        return [
            f"{len(values)} of {len(answers)} answered demonstrations are JSON, the others are "
            "not: examples of one form are followed, mixed ones are not."
        ]
    keys = dict.fromkeys(
        ", ".join(map(str, v)) if isinstance(v, dict) else "a list" for v in values
    )
    if len(keys) == 1:
        return []
    return [
        f"the JSON of the answered demonstrations is of {len(keys)} forms (keys: "
        f"{'; '.join(map(_short, list(keys)[:_NAMED]))}): examples of one form are followed, mixed "
        "ones are not."
    ]


def _of_frames(answered: Sequence[Demonstration]) -> list[str]:
    # one that is written otherwise than all the others
    if len(answered) < _FEW or len(answered) > _MANY:
        return []
    told = []
    for at, one in enumerate(answered):
        frame = template_of([*answered[:at], *answered[at + 1 :]])[0]
        literal = "".join(text for kind, text in frame.pieces if not kind) if frame else ""
        # a word alone may be a unit that two values happen to share, or what both agree to
        agreed = set(re.findall(r"\w+", literal.lower())) & YES_NO
        if (
            frame
            and not agreed
            and re.search(r"[^\w\s]", literal)
            and frame.value_of(frame.without(one.question, one.answer)) is None
        ):
            told.append(
                f"{len(answered) - 1} of {len(answered)} answered demonstrations are {frame}, "
                f"'{_short(one.answer)}' is not: examples of one form are followed, mixed ones are "
                "not."
            )
    return told if len(told) == 1 else []


def _of_repetitions(demonstrations: Sequence[Demonstration]) -> list[str]:
    pairs = dict.fromkeys((d.question.strip(), d.answer.strip()) for d in demonstrations)
    twice, asked = len(demonstrations) - len(pairs), Counter(question for question, _ in pairs)
    repeated = (
        f"{twice} of {len(demonstrations)} demonstrations repeat another one: they take room and "
        "show nothing new."
    )
    told = (
        f"the question '{_short(question)}' is answered in {ways} ways: which of them is followed "
        "is open."
        for question, ways in asked.items()
        if ways > 1
    )
    return [*([repeated] if twice else []), *told]


def _of_answers(demonstrations: Sequence[Demonstration]) -> list[str]:
    count, answers = len(demonstrations), {d.answer.strip() for d in demonstrations}
    bare = inside([d.answer for d in demonstrations])  # 'No problem: ...' refuses nothing
    if all(says_no(replace(d, answer=a)) for d, a in zip(demonstrations, bare, strict=True)):
        what = f"all {count} demonstrations refuse" if count > 1 else "the demonstration refuses"
        return [f"{what}: every question will tend to be refused. Show one that is answered, too."]
    if len({d.question.strip() for d in demonstrations}) > 1 and len(answers) == 1:
        return [
            f"all {count} demonstrations have the answer '{_short(*answers)}': every question will "
            "tend to be answered so."
        ]
    return []


def _of_script(demonstrations: Sequence[Demonstration], tokenizer: Any) -> list[str]:
    if all(d.answer.isascii() for d in demonstrations):  # most: their template is not read for it
        return []
    # of the values alone: what stands around all of them is not written by the model
    letters = "".join(c for d in template_of(demonstrations)[1] for c in d.answer if c.isalpha())
    foreign = "".join(c for c in letters if not c.isascii())
    if 2 * len(foreign) <= len(letters):
        return []
    if len(tokenizer.encode(foreign, add_special_tokens=False)) <= _SPELLED * len(foreign):
        return []
    return [
        f"the backbone's tokenizer spells the answers' script ('{foreign[:8]}') byte by byte, so "
        "that it was hardly trained on it: expect wrong answers, or copies of those shown. Answer "
        "in the language of the passages, or choose a backbone that was trained on this one."
    ]


def _of_passages(
    demonstrations: Sequence[Demonstration], refusals: Sequence[str], searched: bool
) -> list[str]:
    bare = [
        d for d in demonstrations if not (d.passages or says_no(d) or d.answer.strip() in refusals)
    ]
    lacking = unsupported(demonstrations)
    if not (bare or lacking):
        return []
    template, read = template_of(demonstrations)
    if template and template.classes:
        return []
    if not any(d.passages for d in demonstrations):
        told = (
            "No passage was found for any demonstration (are they in the language of the "
            "documents?): they show no use of passages."
        )
        return [told] if searched and bare else []
    none = "No passage at all was found for the demonstration '{}'."
    other = "No passage found for the demonstration '{}' holds its answer."
    respelled = {d.id for d in read if held(d.answer, d)}  # as the passages spell it
    pairs = [(none, d) for d in bare]
    pairs += [(other, d) for d in lacking if d.id not in respelled]
    return [told.format(_short(d.question)) for told, d in pairs]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}\u2026"
