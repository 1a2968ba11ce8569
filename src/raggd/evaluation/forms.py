"""The form of an answer, read from demonstrations alone, and whether another answer has it.

A user's contract is a few answered questions and nothing else: no schema, no name. What their
answers share is the form; what differs is the content. Where they share nothing, no form is
scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raggd.data.answers import contains_answer
from raggd.data.contracts.letters import LETTERS
from raggd.data.shown import is_refusal, option_markers, parsed_json, refusals_of, shared_ends
from raggd.evaluation.metrics import token_f1
from raggd.records import Demonstration, Passage

SHORT = 12
"""Words of a short answer at most."""
_WRAPPING = tuple("\"'[({<*`#|\\/_-~=«“")
_MARK = re.compile(r"[^\w\s]|\n")
_BULLET = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s+")
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


Values = Callable[[str], tuple[str, ...] | None]
"""What an answer holds in the places that differ; None: it is written otherwise."""


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
    name, split = _shape(answered)
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


# --- how an answer is put together: JSON, a list, or literals around slots


def _shape(answered: Sequence[Demonstration]) -> tuple[str, Values]:
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
    pieces = _template(answered)
    if _sentences(answers) and pieces in ([_Slot("x")], [_Slot("x"), "."]):
        pieces = [_Slot("x")]
    text = "".join(p if isinstance(p, str) else f"<{p.kind}>" for p in pieces)
    slots = {"x": "(.+?)", "n": r"\d+", "t": r"[^\n]+?"}
    pattern = re.compile(
        "".join(re.escape(p) if isinstance(p, str) else slots[p.kind] for p in pieces), re.DOTALL
    )

    def values(answer: str) -> tuple[str, ...] | None:
        match = pattern.fullmatch(answer)
        return match and match.groups()

    return ("" if text == "<x>" else f"written as '{text.replace('<x>', '...')}'"), values


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
        and all(v in _cited_names(d.passages) for v, d in zip(column, answered, strict=True))
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


class _Slot(NamedTuple):
    kind: str  # x: content; n, t: the number or name of a passage


_Pieces = list["str | _Slot"]


def _template(answered: Sequence[Demonstration]) -> _Pieces:
    answers = [d.answer.strip() for d in answered]
    if len(set(answers)) == 1 or all(map(_verbatim, answers, answered)):
        return [_Slot("x")]
    columns = [answers]
    if len({answer.count("\n") for answer in answers}) == 1:
        columns = [list(column) for column in zip(*(a.split("\n") for a in answers), strict=True)]
    pieces: _Pieces = []
    for number, column in enumerate(columns):
        pieces += [*(["\n"] if number else []), *_cited(column, answered)]
    kinds = [piece.kind for piece in pieces if not isinstance(piece, str)]
    if "x" not in kinds:  # the name or number is what is asked for
        pieces = [_Slot("x") if not isinstance(p, str) else p for p in pieces]
    return pieces if kinds else [_Slot("x")]


def _verbatim(text: str, shown: Demonstration) -> bool:
    return any(text in passage.text for passage in shown.passages)


def _cited_names(passages: Sequence[Passage]) -> set[str]:
    names = {part for p in passages for part in (p.title, p.source, p.source.rpartition("/")[2])}
    files = {m.group(1) for p in passages if (m := re.search(r"\(([^()]+\.\w+)\)$", p.title))}
    return {n for n in names | files if n} | {str(i + 1) for i in range(len(passages))}


def _cited(column: Sequence[str], answered: Sequence[Demonstration]) -> _Pieces:
    # a column of texts in which each names a passage of its own, if there is one: split there
    for kind, last in (("t", True), ("n", True), ("t", False), ("n", False)):
        spans = [_citation(t, d, kind, last) for t, d in zip(column, answered, strict=True)]
        if any(span is None for span in spans):
            continue
        left = [t[: s[0]] for t, s in zip(column, spans, strict=True) if s]
        right = [t[s[1] :] for t, s in zip(column, spans, strict=True) if s]
        ends, begins = _shared(left)[1], _shared(right)[0]
        alone = not any(left) or not any(right)
        marked = _MARK.search(ends + begins) or (alone and not any(left) and not any(right))
        if marked and (ends or not any(left)) and (begins or not any(right)):
            return [*_wrapped(left, answered), _Slot(kind), *_wrapped(right, answered)]
    return _wrapped(column, answered)


def _citation(text: str, shown: Demonstration, kind: str, last: bool) -> tuple[int, int] | None:
    names = _cited_names(shown.passages)
    kept = [n for n in names if n.isdigit() == (kind == "n")]
    spans = [
        m.span()
        for name in kept
        for m in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        if len(name) > 2 or kind == "n"
    ]
    if not spans:
        return None
    return max(spans, key=lambda s: (s[1], s[1] - s[0])) if last else min(spans)


def _shared(texts: Sequence[str]) -> tuple[str, str]:
    return (texts[0], texts[0]) if len(set(texts)) == 1 else shared_ends(texts)


def _wrapped(column: Sequence[str], answered: Sequence[Demonstration]) -> _Pieces:
    if not any(column):
        return []
    if len(column) > 1 and len(set(column)) == 1:
        return [column[0]]
    start, end = shared_ends(column) if len(column) > 1 else ("", "")
    start = _without_entity(start, end, column, answered, r"\w[\w,.'-]*[\s_-]+$|\w+[_-]$")
    end = _without_entity(start, end, column, answered, r"^[\s_-]+\w[\w,.'-]*")
    return [*([start] if start else []), _Slot("x"), *([end] if end else [])]


def _without_entity(
    start: str, end: str, column: Sequence[str], answered: Sequence[Demonstration], word: str
) -> str:
    # words that stand beside the entity in the passages too are its own: 'the', 'University of'
    behind = word.startswith("^")
    while match := re.search(word, end if behind else start):
        cut = match.end() if behind else match.start()
        first, last = (len(start), end[cut:]) if behind else (cut, end)
        bare = [text[first : len(text) - len(last)] for text in column]
        if not all(map(_held, bare, answered)):
            break
        start, end = (start, last) if behind else (start[:cut], end)
    return end if behind else start


def _held(text: str, shown: Demonstration) -> bool:
    return contains_answer("\n".join(p.text for p in shown.passages), [text])


# --- what the values share


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
    if repeated and not all(map(_held, values, answered)):
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
        changed = [not _verbatim(value, d) for value, d in pairs]
        if any(changed) and (name != "lower" or any(_respelt(v, d) for v, d in pairs)):
            return [(names[name], lambda value, change=change: change(value) == value)]  # type: ignore[misc]
    return []


def _respelt(value: str, shown: Demonstration) -> bool:
    return not _verbatim(value, shown) and any(
        value in passage.text.lower() for passage in shown.passages
    )


def _sentences(texts: Sequence[str]) -> bool:
    return all(len(text.split()) > 3 and re.search(r"[.!?]\W*$", text) for text in texts)


def _kinds(name: str, shown: Sequence[tuple[str, ...]]) -> list[_Check]:
    values = [value for found in shown for value in found]
    if not values:
        return []
    if all(value.isdecimal() for value in values):
        return [("a number", str.isdecimal)]
    words = [len(value.split()) for value in values]
    long = max(words) > SHORT or _sentences(values)
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
