"""Closed answers: an option that the question lists, or one of the labels that examples give.

An option is read by its text, in place of its letter or number: which text is right is what a small
model can tell, and the letter is looked up. Two labels may be verdicts, and then it matters whether
the passages hold the names of the question: what the examples say of that is weighed by Bayes' rule
against the model's own view (`Closed.chance`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raggd.data.answers import held
from raggd.records import Demonstration, Passage

_LINE = re.compile(r"[ \t]*(?:\(?(\w{1,4})[).]|\[(\w{1,4})\]|(\w):)[ \t]+(\S.*)")
_INLINE = re.compile(r"(?<!\S)\(?([A-Ya-y1-9])\)\s+")
_VERDICT_WORDS = (
    "yes no ja nein oui non sí si sì sim não nee nej tak nie ano ne igen nem evet hayır da nu "
    "да нет так ні не ναι όχι 是 否 はい いいえ 예 네 아니요 아니오 نعم لا כן לא हाँ हां नहीं "
    "ใช่ ไม่ có không ya tidak"
)
YES_NO = frozenset(_VERDICT_WORDS.split())
_GRADE = re.compile(r"([A-Za-z]{1,10}[ -]?)\d")  # P1, Level 2
_LONGEST = 3  # words of a label: what is longer and repeated may be a stock reply among free ones
_WHAT = (
    "what|which|who|whom|whose|when|where|why|how|"
    "we[rmn]|was|wann|wo|woher|wohin|womit|wovon|wozu|woraus|woran|worin|warum|wie|welche[rsnm]?|"
    "qui|que|quoi|quand|où|pourquoi|comment|combien|quels?|quelles?|"
    "quién|qué|cuándo|cuánt[ao]s?|dónde|cómo|cuál|chi|che|cosa|quando|dove|perché|come|quale"
)
_ASKING = re.compile(f"{_WHAT}|is|are|was|were|do|does|did|has|have|can")
"""Words that a question begins with, which are written like names there."""
_ASKS_WHAT = re.compile(rf"\W*(?!was\b)(?:{_WHAT})\b", re.IGNORECASE)  # 'Was ...?' may be English
SLOPE, WHOLE, BIAS = 5.1, 2.0, -3.7
"""Log-odds that a claim is right: by the share of its names and numbers that its passages hold, and
more if they hold all; fitted to training questions with a right or a wrong answer (`python -m
benchmarks.claims`)."""
VERDICTS = 0.8  # how likely two labels are verdicts, before the examples are read


def options_of(question: str) -> dict[str, str]:
    r"""Return the texts of the options that a question lists, on lines or in one, by markers.

    >>> options_of("Which is it?\nA) the sea\nB) a lake")
    {'A': 'the sea', 'B': 'a lake'}
    """
    return _listed(question)[1]


def _listed(question: str) -> tuple[str, dict[str, str]]:
    # a question without its options, and these; of two lists the last, which is no earlier turn's
    options: dict[str, str] = {}
    stem: list[str] = []
    for line in question.splitlines():
        if match := _LINE.fullmatch(line):
            marker, text = "".join(match.groups("")[:3]), match[4].strip()
            options = {marker: text} if marker in options else {**options, marker: text}
        else:
            stem.append(line)
    if len(options) < 2:
        stem, options = _listed_in_line(question)
    told = 1 < len(options) == len(set(options.values()))
    return ("\n".join(stem).strip(), options) if told else (question, {})


def _listed_in_line(question: str) -> tuple[list[str], dict[str, str]]:
    run: list[re.Match[str]] = []  # A) ... B) ... C) ...: markers that follow each other
    for match in _INLINE.finditer(question):
        if match[1] in "Aa1":
            run = [match]
        elif run and ord(match[1]) == ord(run[-1][1]) + 1:
            run.append(match)
    pairs = zip(run, [*(match.start() for match in run[1:]), len(question)], strict=False)
    options = {match[1]: question[match.end() : end].strip(" ,;\n") for match, end in pairs}
    return [question[: run[0].start()]] if run else [], options


def asks_what(question: str) -> bool:
    """Return whether a question begins with a word that yes and no do not answer.

    >>> asks_what("Woraus ist es?"), asks_what("Is it steel?")
    (True, False)
    """
    return bool(_ASKS_WHAT.match(question))


def names_held(
    question: str, passages: Sequence[Passage], frame: Collection[str] = ()
) -> float | None:
    """Return the share of a question's names and numbers that its passages hold, None without any.

    `frame` are words that are not the question's own.

    >>> names_held("Who wrote Emma? Jane Austen", [Passage("a", "Emma is by Austen.")])
    0.6666666666666666
    """
    said = re.findall(r"\w+", question)
    # what a question begins with is a capital in any language, and no name
    said = said[1:] if question.rstrip().endswith(("?", "？")) else said
    words = [w for w in said if w[0].isupper() or w[0].isdigit()]
    names = [w for w in map(str.lower, words) if w not in frame and not _ASKING.fullmatch(w)]
    known = set(re.findall(r"\w+", " ".join(f"{p.title} {p.text}" for p in passages).lower()))
    return sum(name in known for name in names) / len(names) if names else None


def _is_right(question: str, passages: Sequence[Passage], frame: Collection[str]) -> float:
    # the chance that a claim is right, by the share of its names that passages hold
    share = names_held(question, passages, frame)
    if share is None:
        return 0.5
    return 1 / (1 + math.exp(-SLOPE * share - WHOLE * (share == 1) - BIAS))


@dataclass(frozen=True, slots=True)
class Closed:
    """What an answer is chosen from."""

    # the ``marker`` or the ``text`` of an option, or both, a ``line``; empty: one of the labels
    options: str = ""
    labels: tuple[str, ...] = ()
    # how likely, after the examples, the first of two labels says that passages hold what the
    # question names, that the second does, and that it has nothing to do with it
    weights: tuple[float, float, float] = (0.0, 0.0, 1.0)
    frame: tuple[str, ...] = ()  # words that the questions of all examples have
    between: str = ""  # what stands between marker and text of a line

    def __str__(self) -> str:
        """Return it in words."""
        if not self.options:
            return f"one of {', '.join(self.labels)}"
        how = {"text": "an option's text", "marker": "an option, by its marker"}
        return how.get(self.options, "an option with its marker")

    def asked(self, question: str) -> str:
        """Return a question as the model reads it: without its options, from which it chooses."""
        return (self.options and _listed(question)[0]) or question

    def choices(self, question: str) -> tuple[str, ...]:
        """Return what the model may answer; nothing where the question lists no options."""
        return tuple(options_of(question).values()) if self.options else self.labels

    def spelled(self, question: str) -> dict[str, str]:
        """Return the texts of a question's options by how answers say them."""
        texts = options_of(question)
        if self.options == "marker":
            return texts
        if self.options == "line":
            return {marker + self.between + text: text for marker, text in texts.items()}
        return {text: text for text in texts.values()}

    def read(self, value: str, question: str) -> str:
        """Return what the model reads, or is to write, in place of a value."""
        return self.spelled(question).get(value, value)

    def written(self, text: str, question: str) -> str:
        """Return the value for what the model wrote."""
        return {t: said for said, t in self.spelled(question).items()}.get(text, text)

    def chance(self, question: str, passages: Sequence[Passage]) -> tuple[float, float] | None:
        """Return the chance of the first of two labels by the evidence, and what weight is left.

        The model's own chance of it, times that weight, is to be added; None where the examples
        are not of two labels, or nothing was found.
        """
        if len(self.labels) != 2 or not passages:
            return None
        right = _is_right(question, passages, self.frame)
        first, second, free = self.weights
        return first * right + second * (1 - right), free


def closed_of(values: Sequence[str], answered: Sequence[Demonstration]) -> Closed | None:
    """Return what the values of examples are chosen from; None where they are free."""
    pairs = list(zip(values, answered, strict=True))
    for closed in (Closed("marker"), Closed("text")):
        if pairs and all(value in closed.spelled(d.question) for value, d in pairs):
            return closed
    labels = labels_of(values, answered)
    if not labels:
        return None
    questions = [set(re.findall(r"\w+", d.question.lower())) for d in answered]
    frame = tuple(sorted(set.intersection(*questions))) if len(answered) > 1 else ()
    return Closed("", labels, _weights(labels, values, answered, frame), frame)


def line_of(shown: Demonstration) -> tuple[str, str, str] | None:
    """Return what stands before, between and behind marker and text of an option in an answer."""
    for marker, text in options_of(shown.question).items():
        line = rf"(.*?)(?<!\w){re.escape(marker)}(\W{{1,9}}){re.escape(text)}(?!\w)(.*)"
        if match := re.fullmatch(line, shown.answer.strip(), re.DOTALL):
            return match[1], match[2], match[3]
    return None


def are_grades(values: Sequence[str]) -> bool:
    """Return whether all values are grades of one scale: P1, P3."""
    scales = {match and match[1] for match in map(_GRADE.fullmatch, values)}
    return len(values) > 1 and len(scales) == 1 and None not in scales


def labels_of(values: Sequence[str], answered: Sequence[Demonstration]) -> tuple[str, ...]:
    """Return the labels that values are: yes and no, or some that come back and few passages hold.

    Grades of one scale, P1 and P3, need not come back, nor yes and no, true and false.

    >>> labels_of(["No", "No"], [])
    ('Yes', 'No')
    """
    if values and {value.lower() for value in values} <= {"yes", "no"}:
        style = str.upper if all(v.isupper() for v in values) else str.lower
        style = str.capitalize if all(v.istitle() for v in values) else style
        return style("yes"), style("no")
    each = set(values)
    two = len(each) == 2 and {value.lower() for value in each} <= YES_NO | {"true", "false"}
    repeated = 1 < len(each) < len(values) and not all(v.isdecimal() for v in values)
    short = all(value and len(value.split()) <= _LONGEST for value in values)
    pairs = list(zip(values, answered, strict=True))
    titles = all(any(value == p.title for p in d.passages) for value, d in pairs)
    # passages that hold all numbers are of places: Schalter 4
    placed = all(held(value.split()[-1], d) for value, d in pairs)
    grades = are_grades(values) and not titles and not placed
    if not short or not (repeated or two or grades):
        return ()
    most = 2 * sum(map(held, values, answered)) > len(values)
    return () if most else tuple(dict.fromkeys(values))


def _weights(
    labels: Sequence[str],
    values: Sequence[str],
    answered: Sequence[Demonstration],
    frame: Collection[str],
) -> tuple[float, float, float]:
    # Bayes' rule: either label may say that names are held, or both have nothing to do with it
    chances = [_is_right(d.question, d.passages, frame) for d in answered]
    pairs = [(value == labels[0], chance) for value, chance in zip(values, chances, strict=True)]
    first = VERDICTS / 2 * math.prod(c if is_first else 1 - c for is_first, c in pairs)
    second = VERDICTS / 2 * math.prod(1 - c if is_first else c for is_first, c in pairs)
    free = (1 - VERDICTS) * 0.5 ** len(values)
    total = first + second + free
    return first / total, second / total, free / total


def named_labels(text: str, labels: Sequence[str]) -> set[str]:
    """Return the labels that a text names as words, in any case; several are no choice.

    Single letters are looked for as they are written first: an article is no letter.

    >>> sorted(named_labels("C) a river", ["A", "B", "C"])), named_labels("No.", ["yes", "no"])
    (['C'], {'no'})
    """
    pattern, letters = r"(?<!\w){}(?!\w)", all(len(label) == 1 for label in labels)
    for flags in (re.NOFLAG, re.IGNORECASE) if letters else (re.IGNORECASE,):
        named = {x for x in labels if re.search(pattern.format(re.escape(x)), text, flags)}
        if named:
            return named
    return set()
