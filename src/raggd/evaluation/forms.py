"""The form of an answer, read from demonstrations alone, and whether another answer has it.

A user's contract is a few answered questions and nothing else: no schema, no name. What their
answers share is the form; what differs is the content. Where they share nothing, no form is
scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raggd.data.answers import contains_answer
from raggd.data.contracts.letters import LETTERS
from raggd.data.pieces import are_sentences, held, verbatim
from raggd.data.shown import is_refusal, option_markers, refusals_of
from raggd.evaluation.metrics import token_f1
from raggd.evaluation.shapes import Values, shape_of
from raggd.records import Demonstration

SHORT = 12
"""Words of a short answer at most."""
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


class Parts(NamedTuple):
    """How an answer is judged against its demonstrations: each from 0 to 1.

    Attributes:
        form: None where the demonstrations share none.
        content: what is said, however it is written: the share of the wanted values (one, or the
            items of a list) that the answer holds; F1 of words for a value of whole sentences.
        exact: the string as wanted.
        refused: whether the answer is a refusal that was shown.
        wanted: whether a refusal was wanted.
    """

    form: float | None
    content: float
    exact: float
    refused: bool
    wanted: bool


@dataclass(frozen=True)
class Form:
    """What demonstrations share.

    Attributes:
        name: in words; empty where nothing is shared.
        values: of an answer of this form.
        refusals: answers among them that say that the passages hold none.
        labels: the closed set that values come from; empty where they are open.
    """

    name: str
    values: Values = field(compare=False)
    refusals: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def judge(self, answer: str, golds: Sequence[str]) -> Parts:
        """Judge an answer; ``golds`` may be written in the form or bare."""
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
        return Parts(form, max(exact, content), exact, refused, wanted)

    def _share(self, text: str, wanted: Sequence[str]) -> float:
        if self.labels:  # a text that names several labels chooses none
            named = {label for label in self.labels if _names(text, label)}
            return float(named == {label for label in self.labels if label in wanted})
        return sum(_says(text, value) for value in wanted) / len(wanted)


def _says(text: str, value: str) -> float:
    # letters aside: a slug says what it was made from
    spelt = [re.sub(r"[-_]+", " ", part) for part in (text, value)]
    if contains_answer(text, [value]) or contains_answer(spelt[0], [spelt[1]]):
        return 1.0
    return token_f1(text, [value]) if len(value.split()) > SHORT else 0.0


def _names(text: str, label: str) -> bool:
    pattern = rf"(?<!\w){re.escape(label)}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def infer_form(demonstrations: Sequence[Demonstration]) -> Form:
    """Read the form of answers from demonstrations, which hold their passages."""
    refusals = refusals_of(demonstrations)
    answered = [d for d in demonstrations if d.answer.strip() not in refusals]
    if not answered:
        return Form("refusal" if refusals else "", lambda _: None, refusals)
    name, split = shape_of(answered)
    shown = [split(d.answer.strip()) or () for d in answered]
    labels = _labels(answered, shown)
    checks = [_one_of(labels)] if labels else [*_letters(answered, shown), *_kinds(name, shown)]
    language = "" if labels else _common_language([d.answer for d in answered])
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


_Check = tuple[str, Callable[[str], bool]]
"""A property in words, empty where it is not worth a word, and whether a value has it."""


def _one_of(labels: Sequence[str]) -> _Check:
    return f"one of {', '.join(labels)}", set(labels).__contains__


def _labels(answered: Sequence[Demonstration], shown: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if any(len(values) != 1 for values in shown):
        return ()
    values = [found[0] for found in shown]
    options = [option_markers(d.question) for d in answered]
    if all(value in known for value, known in zip(values, options, strict=True)):
        return tuple(dict.fromkeys(option for known in options for option in known))
    plain = {value.lower() for value in values}
    if plain <= {"yes", "no"}:
        style = str.upper if all(v.isupper() for v in values) else str.lower
        style = str.capitalize if all(v.istitle() for v in values) else style
        return style("yes"), style("no")
    repeated = 1 < len(set(values)) < len(values) and not all(v.isdecimal() for v in values)
    if repeated and not all(map(held, values, answered)):
        return tuple(dict.fromkeys(values))
    return ()


def _letters(answered: Sequence[Demonstration], shown: Sequence[tuple[str, ...]]) -> list[_Check]:
    pairs = [(value, d) for values, d in zip(shown, answered, strict=True) for value in values]
    names = {
        "upper": "in capitals",
        "lower": "in lower case",
        "slug": "a-slug",
        "snake": "in_snake",
    }
    marks = {"slug": "-", "snake": "_"}
    for name in ("slug", "snake", "upper", "lower"):
        change = LETTERS[name]
        if not pairs or any(change(value) != value for value, _ in pairs):
            continue
        if name in marks and not any(marks[name] in value for value, _ in pairs):
            continue
        if name in {"upper", "lower"} and not any(c.isalpha() for v, _ in pairs for c in v):
            continue
        # written so in the passages: nothing was changed
        changed = [not verbatim(value, d) for value, d in pairs]
        if any(changed) and (name != "lower" or any(_respelt(v, d) for v, d in pairs)):
            return [(names[name], lambda value, change=change: change(value) == value)]  # type: ignore[misc]
    return []


def _respelt(value: str, shown: Demonstration) -> bool:
    return not verbatim(value, shown) and any(
        value in passage.text.lower() for passage in shown.passages
    )


def _kinds(name: str, shown: Sequence[tuple[str, ...]]) -> list[_Check]:
    values = [value for found in shown for value in found]
    if not values:
        return []
    if all(value.isdecimal() for value in values):
        return [("a number", str.isdecimal)]
    words = [len(value.split()) for value in values]
    long = max(words) > SHORT or are_sentences(values)
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


def _common_language(answers: Sequence[str]) -> str:
    found = {language_of(answer) for answer in answers}
    return found.pop() if len(found) == 1 else ""
