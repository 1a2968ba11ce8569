"""The form that demonstrations share, read from their answers alone, and whether another has it.

A user's contract is a few answered questions and nothing else: no schema, no name. What their
answers share is the form; what differs is the content. Where they share nothing, no form is scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raggd.data import pieces
from raggd.data.answers import contains_answer, token_f1
from raggd.data.closed import closed_of, named_labels, options_of
from raggd.data.contracts.base import Score
from raggd.data.contracts.letters import LETTERS
from raggd.data.shown import is_refusal, parsed_json, refusals_of
from raggd.records import Demonstration

PARTS = ("form", "content", "exact")  # of a judged answer, as tables have them
Values = Callable[[str], tuple[str, ...] | None]  # in the places that differ, if so written
SHORT = 12  # words of a short answer at most
_BULLET = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s+")
_WRAPPING = tuple("\"'[({<*`#|\\/_-~=«“")
_LANGUAGES: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "English": "the is are was of and in to it with that this by not for from which has",
        "German": "der die das ist sind war und nicht ein eine mit von im den dem auf wird sich",
        "French": "le les est sont et une des du dans avec que qui pas pour sur la réponse",
        "Spanish": "el los las es son y una del con que por para se no en lo respuesta según",
        "Italian": "il gli è sono di che non con per una del della nel si risposta",
    }.items()
}
"""Words that tell languages apart in whole sentences."""


def refusal_scores(refused: Sequence[bool], wanted: Sequence[bool]) -> dict[str, float]:
    """Score refusing as a decision, in percent; ``wrongly``: answerable questions refused."""
    right = sum(a and b for a, b in zip(refused, wanted, strict=True))
    answerable = len(wanted) - sum(wanted)
    precision, recall = right / max(1, sum(refused)), right / max(1, sum(wanted))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    wrongly = (sum(refused) - right) / max(1, answerable)
    shares = {"precision": precision, "recall": recall, "f1": f1, "wrongly": wrongly}
    return {name: round(100 * share, 1) for name, share in shares.items()}


@dataclass(frozen=True)
class Form:
    """What demonstrations share."""

    name: str  # in words; empty where nothing is shared
    values: Values = field(compare=False)  # of an answer of this form
    refusals: tuple[str, ...] = ()  # answers among them that say that the passages hold none
    labels: tuple[str, ...] = ()  # the closed set that values come from; empty where they are open

    def judge(self, answer: str, golds: Sequence[str]) -> Score:
        """Judge an answer; ``golds`` may be written in the form or bare.

        The content is the share of the wanted values (one, or the items of a list) that the answer
        holds; F1 of words for a value of whole sentences.
        """
        answer = answer.strip()
        refused = is_refusal(answer, self.refusals)
        wanted = all(is_refusal(gold, self.refusals) for gold in golds)
        exact = float(answer in {gold.strip() for gold in golds})
        found = self.values(answer)
        if refused or wanted:
            content = float(refused and wanted)
        else:
            text = answer if found is None else "\n".join(found)
            content = max(self._share(text, self.values(gold) or (gold,)) for gold in golds)
        form = max(exact, float(refused or found is not None)) if self.name else None
        return Score(form, max(exact, content), exact, refused, wanted)

    def _share(self, text: str, wanted: Sequence[str]) -> float:
        right = {label for label in self.labels if label.lower() in {w.lower() for w in wanted}}
        if right:
            return float(named_labels(text, self.labels) == right)
        return sum(_says(text, value) for value in wanted) / len(wanted)


def _says(text: str, value: str) -> float:
    # letters aside: a slug says what it was made from
    spelt = [re.sub(r"[-_]+", " ", part) for part in (text, value)]
    if contains_answer(text, [value]) or contains_answer(spelt[0], [spelt[1]]):
        return 1.0
    return token_f1(text, [value]) if len(value.split()) > SHORT else 0.0


def infer_form(demonstrations: Sequence[Demonstration]) -> Form:
    """Read the form of answers from demonstrations, which hold their passages."""
    refusals = refusals_of(demonstrations)
    answered = [d for d in demonstrations if d.answer.strip() not in refusals]
    if not answered:
        return Form("refusal" if refusals else "", lambda _: None, refusals)
    name, split = shape_of(answered)
    shown = [split(d.answer.strip()) or () for d in answered]
    labels = _labels(answered, shown)
    closed = (f"one of {', '.join(labels)}", set(labels).__contains__)
    checks = [closed] if labels else [*_letters(answered, shown), *_kinds(name, shown)]
    languages = set() if labels else {language_of(d.answer) for d in answered}
    language = languages.pop() if len(languages) == 1 else ""
    named = ", ".join([*([name] if name else []), *(n for n, _ in checks if n)])

    def values(answer: str) -> tuple[str, ...] | None:
        found = split(answer.strip())
        if found is None or not all(fits(value) for value in found for _, fits in checks):
            return None
        return found if not language or language_of(answer) in {language, ""} else None

    if language not in {"", "English"}:
        named += f", in {language}"
    if named and refusals:
        named += f", or '{refusals[0]}'"
    return Form(named, values, refusals, labels)


_CHANGED = {"upper": "in capitals", "lower": "in lower case", "slug": "a-slug", "snake": "in_snake"}
_Check = tuple[str, Callable[[str], bool]]  # in words, if any; whether a value is so


def _labels(answered: Sequence[Demonstration], shown: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if any(len(values) != 1 for values in shown):
        return ()
    closed = closed_of([found[0] for found in shown], answered)
    if closed is None or closed.options == "text":
        return ()
    markers = dict.fromkeys(marker for d in answered for marker in options_of(d.question))
    return tuple(markers) if closed.options else closed.labels


def _letters(answered: Sequence[Demonstration], shown: Sequence[tuple[str, ...]]) -> list[_Check]:
    pairs = [(value, d) for values, d in zip(shown, answered, strict=True) for value in values]
    for name in pieces.possible_letters([value for value, _ in pairs]):
        # written so in the passages: nothing was changed
        new = [(value, d) for value, d in pairs if not pieces.verbatim(value, d)]
        respelt = any(v in p.text.lower() for v, d in new for p in d.passages)
        if new and (name != "lower" or respelt):
            return [(_CHANGED[name], partial(_is_spelt, LETTERS[name]))]
    return []


def _is_spelt(change: Callable[[str], str], value: str) -> bool:
    return change(value) == value


def _kinds(name: str, shown: Sequence[tuple[str, ...]]) -> list[_Check]:
    values = [value for found in shown for value in found]
    if not values:
        return []
    if all(value.isdecimal() for value in values):
        return [("a number", str.isdecimal)]
    words = [len(value.split()) for value in values]
    long = max(words) > SHORT or pieces.are_sentences(values)
    if any("\n" in value for value in values) or (long and min(words) <= 3):
        return []
    opened = bool(name) and not name.startswith("written as '...")
    colon = opened or long or any(": " in value for value in values)
    marked = opened or any(value.startswith(_WRAPPING) for value in values)

    def fits(value: str) -> bool:
        count = len(value.split())
        if "\n" in value or value != value.strip() or (": " in value and not colon):
            return False
        if value.startswith(_WRAPPING) and not marked:
            return False
        return count > 3 if long else count <= SHORT and not (count > 4 and value.endswith("."))

    kind = "a sentence" if long else "a short answer"
    return [("" if name else kind, fits)]


def language_of(text: str) -> str:
    """Return the language of a sentence by its small words; empty where they do not tell."""
    words = re.findall(r"\w+", text.lower())
    counts = {name: sum(word in known for word in words) for name, known in _LANGUAGES.items()}
    best = max(counts, key=counts.__getitem__)
    others = max(count for name, count in counts.items() if name != best)
    return best if counts[best] >= 2 and counts[best] > others else ""


# How answers are put together: JSON of one outline, a list, literals around what differs.


def shape_of(answered: Sequence[Demonstration]) -> tuple[str, Values]:
    """Return how answers are put together, in words, and what gives an answer's values."""
    answers = [d.answer.strip() for d in answered]
    parsed = [parsed_json(answer) for answer in answers]
    if all(value is not None for value in parsed):
        outlines = {repr(_outline(value)) for value in parsed}
        return _json_shape(outlines, answered, parsed)
    lines = [answer.split("\n") for answer in answers]
    marks = {m.group() if (m := _BULLET.match(line)) else "" for part in lines for line in part}
    numbered = all(mark.strip()[:-1].isdigit() for mark in marks)
    if max(map(len, lines)) > 1 and "" not in marks and (len(marks) == 1 or numbered):
        return f"lines that begin with '{min(marks).strip()}'", _list_of(marks, numbered)
    parts = pieces.pieces_of(answered)
    shown = {"x": "...", "n": "<n>", "t": "<t>"}
    text = "".join(shown[kind] if kind else text for kind, text in parts)

    def values(answer: str) -> tuple[str, ...] | None:
        found = pieces.read_answer(parts, answer)
        return None if found is None else tuple(p.text for p in found if p.kind == "x")

    return ("" if text == "..." else f"written as '{text}'"), values


def _outline(value: Any) -> Any:
    # keys and types, whatever the values and however many items a list has
    if isinstance(value, dict):
        return {key: _outline(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_outline(inner) for inner in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for item in inner for leaf in _leaves(item)]
    return [str(value)]


def _json_shape(
    outlines: set[str], answered: Sequence[Demonstration], parsed: Sequence[Any]
) -> tuple[str, Values]:
    # a leaf that names a passage in every demonstration is a citation, no content
    columns = list(zip(*map(_leaves, parsed), strict=False)) if len(outlines) == 1 else []
    cites = {
        i
        for i, column in enumerate(columns)
        if len(columns) > 1
        and all(v in pieces.cited_names(d.passages) for v, d in zip(column, answered, strict=True))
    }

    def values(answer: str) -> tuple[str, ...] | None:
        value = parsed_json(answer)
        if value is None or (len(outlines) == 1 and repr(_outline(value)) not in outlines):
            return None
        leaves = [leaf for i, leaf in enumerate(_leaves(value)) if i not in cites]
        return tuple(leaves) or None

    keys = parsed[0] if isinstance(parsed[0], dict) and len(outlines) == 1 else ()
    return "JSON" + (f" with {', '.join(repr(k) for k in keys)}" if keys else ""), values


def _list_of(marks: set[str], numbered: bool) -> Values:
    def values(answer: str) -> tuple[str, ...] | None:
        found = [(_BULLET.match(line), line) for line in answer.split("\n")]
        if not all(m and (numbered or m.group() in marks) for m, _ in found):
            return None
        if numbered and any(m and not m.group().strip()[:-1].isdigit() for m, _ in found):
            return None
        return tuple(line[m.end() :].strip() for m, line in found if m)

    return values
