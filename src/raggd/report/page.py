"""One HTML page of a study that carries everything in itself: tables, figures, questions.

Every text goes through Jinja2 with autoescape on. The page refuses the network by a content
security policy, which also admits no script but the page's own, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, TypedDict

from raggd.data.answers import normalise_answer
from raggd.methods.spec import SPECS, method_label
from raggd.records import Passage, Prediction, Question, SupportSet
from raggd.report.contrasts import BASE
from raggd.report.grid import Grid
from raggd.report.tables import NOTHING, Bold, Table

if TYPE_CHECKING:
    from markupsafe import Markup


_NUMBER = re.compile(r"^[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=$|[ /])")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading; empty figures and tables without rows are left out.

    Figures and tables go by the names of their files; `filter` is an example of words to filter
    the rows of the tables by, or empty.
    """

    id: str
    title: str
    text: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    filter: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        shown = any(self.figures.values()) or any(t.rows for t in self.tables.values())
        return not shown and (bool(self.figures) or bool(self.tables) or not self.text)


def _sort_value(text: str) -> str | None:
    found = _NUMBER.match(text.replace("< ", "0"))
    if found:
        return found[0]
    return "" if text == NOTHING else None


def study_page(
    *,
    title: str,
    lead: str,
    grid: Grid,
    sections: Sequence[Section],
    cases: Sequence[ExampleCase] = (),
    after: str = "rag-gd",
) -> str:
    """Render the page, a whole HTML document; sections without content are left out.

    Answers to the cases are of the base adapter "before", and of the method `after`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("raggd.report"),
        autoescape=True,  # not select_autoescape: it would leave *.j2 unescaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": method_label,
        "mark": mark_answers,
        "minus": lambda text: text.replace("-", "\N{MINUS SIGN}"),
        "sort_value": _sort_value,
    }
    environment.tests["bold"] = lambda text: isinstance(text, Bold)
    folder = resources.files("raggd.report") / "templates"
    style, script = (Markup((folder / f"page.{kind}").read_text("utf-8")) for kind in ("css", "js"))
    return environment.get_template("study.html.j2").render(
        title=title,
        lead=lead,
        sections=[section for section in sections if not section.empty],
        methods=list(dict.fromkeys(m for block in grid.blocks for m in block.methods)),
        words=SPECS,
        planned=grid.planned,
        missing=grid.missing,
        cases=[(case, change_of(case, after)) for case in cases],
        before=BASE,
        after=after,
        settings=json.dumps(grid.settings, ensure_ascii=False, indent=1),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # ASCII, as normalise_answer removes it
_BETWEEN = r"(?:[\W_]|(?<!\w)(?:a|an|the)(?!\w))+"
_TOO_COMMON = {"yes", "no"}


class ExampleCase(TypedDict):
    """A question with its evidence and what each method answered, by the method's name."""

    question: Question
    passages: Sequence[Passage]
    predictions: Mapping[str, Prediction]
    support: SupportSet


def _answer_patterns(answer: str) -> list[str]:
    """Return patterns of an answer's two forms: SQuAD's (punctuation anywhere) and word by word."""
    if normalise_answer(answer) in _TOO_COMMON | {""}:
        return []
    joined = [
        f"{_PUNCTUATION}*".join(map(re.escape, token)) for token in normalise_answer(answer).split()
    ]
    split = [re.escape(token) for token in re.findall(r"[^\W_]+", answer)]
    forms = [_BETWEEN.join(tokens) for tokens in (joined, split) if tokens]
    return [rf"(?<![^\W_]){form}(?![^\W_])" for form in forms]


def mark_answers(text: str, answers: Iterable[str]) -> Markup:
    """Escape a text for HTML and put ``<mark>`` around the gold answers in it.

    Letter case and punctuation are ignored, "yes" and "no" skipped; nothing of the text is markup.

    >>> mark_answers("<b>Paris</b> in Parisian", ["paris"])
    Markup('&lt;b&gt;<mark>Paris</mark>&lt;/b&gt; in Parisian')
    """
    from markupsafe import Markup, escape

    longest_first = sorted(set(answers), key=lambda answer: (-len(answer), answer))
    patterns = [form for answer in longest_first for form in _answer_patterns(answer)]
    if not patterns:
        return escape(text)
    pieces, end = [], 0
    for found in re.finditer("|".join(patterns), text, re.IGNORECASE):
        pieces += [escape(text[end : found.start()]), Markup("<mark>%s</mark>") % found[0]]
        end = found.end()
    return Markup("").join([*pieces, escape(text[end:])])


def change_of(case: ExampleCase, after: str) -> str:
    """Say how the answer `after` differs from the base's: better, worse, other, or the same."""
    old, new = case["predictions"].get(BASE), case["predictions"].get(after)
    if not old or not new or normalise_answer(old.answer) == normalise_answer(new.answer):
        return "same"
    gain = new.f1 - old.f1
    return "better" if gain > 0 else "worse" if gain < 0 else "other"
