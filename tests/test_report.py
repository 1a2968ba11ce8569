"""Tables, figures and the page of a small study: formats parsed back, nothing unsafe."""

import base64
import csv
import hashlib
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.data.answers import contains_answer
from raggd.methods.spec import FAMILIES, NAMED, SPECS
from raggd.records import Demonstration, Passage, Prediction, Question, SupportSet
from raggd.report import figures
from raggd.report.build import SmallReport
from raggd.report.contrasts import contrasts
from raggd.report.figures import cost_figure
from raggd.report.grid import Grid, ScoredAnswer, StudyBlock
from raggd.report.page import ExampleCase, Section, mark_answers, study_page
from raggd.report.study_tables import contrast_table, loss_table, scores_table
from raggd.report.tables import Bold, Column, Table, interval_text
from sampled import bootstrap_interval

COSTS = {"vanilla-rag": 0.0, "base": 0.0, "mean-update": 0.0, "tt-sgd": 11000.0, "rag-gd": 900.0}


def block(
    scores: dict[str, list[float]] | None = None, costs: dict[str, dict[str, float]] | None = None
) -> StudyBlock:
    """Twenty questions of two benchmarks in five draws, by every method of `COSTS`."""
    if scores is None:
        scores = {
            name: [float((i * 7) % 5 < 2 + index % 2) for i in range(20)]
            for index, name in enumerate(COSTS)
        }
    answers = {
        name: {
            benchmark: tuple(
                ScoredAnswer(f"q{i}", 0, i % 5, em, em, 1.0 - em, None)
                for i, em in enumerate(given)
            )
            for benchmark in ("nq", "triviaqa")
        }
        for name, given in scores.items()
    }
    if costs is None:
        costs = {m: {"adapt_ms": COSTS.get(m, 1.0), "answer_ms": 400.0} for m in scores}
    return StudyBlock("smollm2", "bm25", tuple(scores), ("nq", "triviaqa"), answers, costs, 200)


# --- tables -------------------------------------------------------------------------------------


AWKWARD = Table(
    (Column("name"), Column("score", "right")),
    (("a|b_c*d", Bold("1 %")), ("x & y\nz", "$2^3 ~ {#}\\"), ("[link](x) <b>", Bold(""))),
    caption="50 % of *all*",
)


def test_markdown() -> None:
    assert AWKWARD.to_markdown() == (
        "50 % of \\*all\\*\n\n"
        "| name | score |\n"
        "| :--- | ---: |\n"
        "| a\\|b\\_c\\*d | **1 %** |\n"
        "| x & y z | $2^3 ~ {#}\\\\ |\n"
        "| [link\\](x) \\<b> |  |\n"
    )


def test_latex() -> None:
    lines = AWKWARD.to_latex().splitlines()
    assert lines[:4] == [
        "\\begin{table}",
        "\\centering",
        "\\caption{50 \\% of *all*}",
        "\\begin{tabular}{lr}",
    ]
    assert "a|b\\_c*d & \\textbf{1 \\%} \\\\" in lines
    assert (
        "x \\& y z & \\$2\\textasciicircum{}3 \\textasciitilde{} \\{\\#\\}\\textbackslash{} \\\\"
        in lines
    )
    plain = replace(AWKWARD, caption="").to_latex()
    assert plain.startswith("\\begin{tabular}")
    assert plain.endswith("\\end{tabular}\n")


def test_text_is_aligned_also_with_wide_and_combining_characters() -> None:
    table = Table(
        (Column("answer"), Column("n", "right"), Column("c")),
        (("東京", "1", "x"), ("Beyonce\u0301", "10", "xyz"), ("two\nlines", "100", "")),
    )
    assert table.to_text() == (
        "answer       n  c\n"
        "---------  ---  ---\n"
        "東京         1  x\n"
        "Beyonce\u0301     10  xyz\n"
        "two lines  100\n"
    )


@settings(deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=4),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 1))),
)
def test_formats_keep_rows_and_cells(rows, bold) -> None:
    rows = [[cell.replace("\r", "") for cell in row] for row in rows]  # csv readers fold it
    marked = [
        [Bold(cell) if (i, j) in bold else cell for j, cell in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    table = Table((Column("a"), Column("b")), marked)
    assert list(csv.reader(io.StringIO(table.to_csv(), newline="")))[1:] == rows
    lines = table.to_markdown().split("\n")[2:-1]
    assert len(lines) == len(rows)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)
    assert len(table.to_latex().strip().split("\n")) == len(rows) + 6


def test_the_scores_of_a_small_study() -> None:
    shown = block()
    table = scores_table(shown)
    draws = [f"{b} {i % 5}" for b in ("nq", "triviaqa") for i in range(20)]
    groups = ["nq"] * 20 + ["triviaqa"] * 20
    em = [a.em for b in shown.benchmarks for a in shown.answers["rag-gd"][b]]
    by_draw = bootstrap_interval(em, groups=groups, clusters=draws, macro=True, resamples=500)
    alone = bootstrap_interval(em, groups=groups, macro=True, resamples=500)
    assert interval_text(by_draw.scaled(100)) != interval_text(alone.scaled(100))
    text = interval_text(by_draw.scaled(100))
    assert table.rows[-1] == ["RAG-GD", "40", text, text, "900", "400", "0.082"]
    assert table.rows[0][-1] == "0"
    without = scores_table(block({"base": [1.0] * 20}))
    assert without.rows[0][-1] == "–", "nothing to compare the cost with"


def test_differences_are_bold_only_where_significant() -> None:
    shown = block({"base": [0.0] * 20, "rag-gd": [1.0] * 20, "tt-sgd": [0.0] * 20})
    found = contrasts([shown], NAMED)
    table = contrast_table(found, "all", "")
    rows = {row[0]: row for row in table.rows}
    assert set(rows) == {
        "RAG-GD minus Base adapter", "RAG-GD minus TT-SGD", "TT-SGD minus Base adapter",
    }  # fmt: skip
    assert rows["RAG-GD minus Base adapter"][2] == "+100.0 [+100.0, +100.0]"
    assert rows["TT-SGD minus Base adapter"][2:4] == ["+0.0 [+0.0, +0.0]", "1.000"]
    bold = {row[0] for row in table.rows if any(isinstance(cell, Bold) for cell in row)}
    assert bold == {"RAG-GD minus Base adapter", "RAG-GD minus TT-SGD"}


def test_answer_losses_by_benchmark() -> None:
    table = loss_table(block({"base": [0.0] * 20, "rag-gd": [1.0] * 10 + [0.0] * 10}))
    assert table.rows == [
        ["Base adapter", "1.000", "1.000", "1.000"],
        ["RAG-GD", "0.500", "0.500", "0.500"],
    ]


# --- figure -------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_figure_is_self_contained_and_keeps_its_text() -> None:
    svg = cost_figure(block())
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert {"RAG-GD", "TT-SGD", "Base adapter", "1 s", "10 s"} <= set(texts(svg))
    assert "Mean update" not in texts(svg), "controls cost what they control"
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", svg)
    assert "http" not in outside
    assert "<script" not in svg
    for node in root.iter():
        for name, value in node.attrib.items():
            assert not name.endswith("href") or value.startswith("#")
            assert not name.startswith("on")
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "RAG-GD: F1" in root.attrib["aria-label"]
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))


def test_a_hostile_name_is_text_in_a_figure() -> None:
    svg = cost_figure(replace(block(), backbone=EVIL))
    root = ElementTree.fromstring(svg)
    assert any(EVIL in text for text in texts(svg))
    assert EVIL in root.attrib["aria-label"]
    assert {node.tag for node in root.iter()} == {
        node.tag for node in ElementTree.fromstring(cost_figure(block())).iter()
    }


def test_figure_follows_the_numbers_and_nothing_else() -> None:
    svg = cost_figure(block())
    assert cost_figure(block()) == svg
    moved = block({name: [1.0 - (i % 3 == 0)] * 20 for i, name in enumerate(COSTS)})
    assert cost_figure(moved) != svg


@pytest.mark.parametrize(
    "costs",
    [
        {"base": 3.0},
        {"base": 0.002, "tt-sgd": 3e6},
        {f"method-{i}": (i % 4 + 1) * 250.0 for i in range(12)},
        {"<b>&$x^2$": 30.0, "rag-gd": 40.0},
    ],
)
def test_figure_of_odd_rows(costs: dict[str, float]) -> None:
    given = {m: {"adapt_ms": cost, "answer_ms": 0.001} for m, cost in costs.items()}
    shown = block({m: [i % 2.0 for i in range(20)] for m in costs}, given)
    names = {SPECS[m].label if m in SPECS else m for m in costs}
    assert names <= set(texts(cost_figure(shown)))


def test_no_figure_without_costs() -> None:
    assert cost_figure(block(costs={name: {} for name in COSTS})) == ""


def test_equal_costs_stand_side_by_side_others_where_they_are() -> None:
    costs = [900.0, 900.0, 11000.0, 905.0]
    places = figures.side_by_side(costs)
    assert len({round(place, 6) for place in places}) == len(costs)
    assert places[2] == 11000
    logs = [math.log10(place) for place in places]
    assert sum(logs[i] for i in (0, 1, 3)) / 3 == pytest.approx(math.log10(900), abs=0.01)
    assert abs(logs[3] - logs[0]) < 0.05 * (1 + math.log10(11000 / 900))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_on_light_and_dark_pages() -> None:
    for colour in FAMILIES.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour
        assert (luminance(colour) + 0.05) / (luminance("#14171a") + 0.05) >= 3, colour
    marks = figures.marks_of(["rag-gd", *(f"m{i}" for i in range(12)), "base"])
    assert len(set(marks)) == 14


def test_labels_cover_neither_each_other_nor_points(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    place = figures.label_points

    def watched(figure: object, axes: object, *others: object) -> None:
        place(figure, axes, *others)  # type: ignore[arg-type]
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]  # type: ignore[attr-defined]
        for i, one in enumerate(boxes):
            for two in boxes[:i]:
                across = min(one.x1, two.x1) - max(one.x0, two.x0)
                along = min(one.y1, two.y1) - max(one.y0, two.y0)
                seen.append((across, along))

    monkeypatch.setattr(figures, "label_points", watched)
    given = {f"m{i}": {"adapt_ms": 100.0 + 3 * i, "answer_ms": 1.0} for i in range(8)}
    rng = np.random.default_rng(0)
    cost_figure(block({m: list(rng.integers(0, 2, 20) * 1.0) for m in given}, given))
    assert len(seen) == 28
    assert not [pair for pair in seen if min(pair) > 2]


# --- page ---------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Outline(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "path", "use", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def case(evil: str = "", answer: str = "Paris", base: str = "Rome", f1: float = 0.5) -> ExampleCase:
    question = Question("q1", "what is the capital of france" + evil, ("Paris" + evil,), "nq")
    shown = Demonstration("d1", "who wrote emma" + evil, (), "Jane Austen" + evil)
    return ExampleCase(
        question=question,
        passages=[Passage("p1", f"Paris is in France. {evil} Parisian", "Paris" + evil)],
        predictions={
            "base": Prediction("q1", base + evil, 0, 1.0 if base == "Paris" else 0.0),
            "rag-gd": Prediction("q1", answer + evil, float(answer == "Paris"), f1),
        },
        support=SupportSet("nq", (shown,)),
    )


@cache
def report() -> SmallReport:
    shown = block()
    grid = Grid({"backbone": {"name": "smollm2"}}, (shown,), 10, ())
    return SmallReport(grid)


def page(evil: str = "", cases: list[ExampleCase] | None = None) -> str:
    if cases is None:
        cases = [case(evil), case(evil, answer="Rome"), case(evil, answer="Nice")]
    return report().page("Title" + evil, "Lead" + evil, "A note." + evil, cases, "rag-gd")


def test_the_result_of_a_small_study() -> None:
    found = report().result
    assert (found["n"], found["benchmarks"]) == (40, ["nq", "triviaqa"])
    assert found["methods"]["tt-sgd"]["adapt_ms"] == 11000
    base = found["methods"]["base"]
    assert base["em"] + 100 * found["answer_loss"]["base"]["nq"] == pytest.approx(100)


def test_page_has_its_parts_and_needs_nothing_else() -> None:
    html = page()
    outline = Outline(html)
    assert html.startswith("<!doctype html>")
    assert outline.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(outline.all("meta"))
    assert len(outline.all("h1")) == 1
    assert len(outline.all("table")) == 6  # scores, differences, losses, three cases
    scopes = {attributes.get("scope") for attributes in outline.all("th")}
    assert scopes == {"col", "row"}
    assert SPECS["rag-gd"].explanation in html
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.tags:
        for name, value in attributes.items():
            if name in {"href", "src", "xlink:href"}:
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
            if name in {"aria-labelledby", "for"}:
                assert value in ids
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"|http-equiv', "", html)
    assert "@import" not in html


def test_page_admits_only_its_own_script() -> None:
    html = page()
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in Outline(html).all("meta") if "http-equiv" in m]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_page_escapes_every_field() -> None:
    clean, attacked = Outline(page()), Outline(page(EVIL))
    assert page(EVIL).count("alert(1)") >= 15  # the attack is on the page, as text
    assert [tag for tag, _ in attacked.tags].count("script") == 1
    assert not attacked.all("img")
    assert not [name for _, attrs in attacked.tags for name in attrs if name.startswith("on")]
    assert [tag for tag, _ in attacked.tags if tag != "mark"] == [
        tag for tag, _ in clean.tags if tag != "mark"
    ]


def test_page_escapes_tables_and_method_names_too() -> None:
    table = Table((Column(EVIL),), ((EVIL,),), caption=EVIL)
    grid = Grid({EVIL: EVIL}, (replace(block(), methods=(EVIL,)),), 2, (EVIL,))
    sections = [Section("one", EVIL, EVIL, {}, {EVIL: table}, EVIL)]
    html = study_page(title=EVIL, lead=EVIL, grid=grid, sections=sections)
    assert len(Outline(html).all("script")) == 1
    assert not Outline(html).all("img")


def test_page_shows_what_changed() -> None:
    outline = Outline(page())
    assert [a["data-change"] for a in outline.all("article")] == ["better", "same", "better"]
    worse, other = case(base="Paris", answer="Rome"), case(answer="Nice", f1=0.0)
    changes = [a["data-change"] for a in Outline(page(cases=[worse, other])).all("article")]
    assert changes == ["worse", "other"]
    highlighted = [a["class"].split() for a in outline.all("tr") if a.get("class")]
    assert highlighted.count(["after", "changed"]) == 2
    assert highlighted.count(["after"]) == 1  # the unchanged case


def test_page_without_the_optional_parts() -> None:
    table = Table((Column("a"),), (("1",),))
    grid = Grid({}, (block({"base": [1.0] * 20}),), 1, ())
    sections = [Section("one", "One", "", {}, {"a": table})]
    bare = study_page(title="x", lead="y", grid=grid, sections=sections)
    outline = Outline(bare)
    assert not outline.all("svg")
    assert not outline.all("article")
    assert not outline.all("form")
    assert len(outline.all("table")) == 1


@pytest.mark.parametrize(
    ("text", "answers", "marked"),
    [
        ("Paris, in PARIS; Parisian", ["paris"], ["Paris", "PARIS"]),
        ("the U.S. and the US, not USSR", ["US"], ["U.S", "US"]),
        ("Jay-Z or Jay Z, not Jayz2", ["Jay-Z"], ["Jay-Z", "Jay Z"]),
        ("1940-1944, 19440", ["1944"], ["1944"]),
        ("Tower of the\n Bridge", ["tower of bridge"], ["Tower of the\n Bridge"]),
        (
            "New York City and New York",
            ["New York", "New York City"],
            ["New York City", "New York"],
        ),
        ("yes, no and a thing", ["yes", "no", "The", "", "!"], []),
        ("C++ (a.b) $x", ["c++", "(a.b)"], ["C", "a.b"]),
        ("Beyoncé sang", ["beyoncé"], ["Beyoncé"]),
        ("x & y < z", ["y"], ["y"]),
    ],
)
def test_marks(text: str, answers: list[str], marked: list[str]) -> None:
    html = str(mark_answers(text, answers))
    outline = Outline(f"<p>{html}</p>")
    assert outline.words.get("mark", []) == marked
    assert re.sub(r"</?mark>", "", html) == str(mark_answers(text, []))


WORDS = st.lists(
    st.sampled_from(["red", "Red.", "the", "a", "r-e-d", "sea", "<", "U.S."]), max_size=7
)


@settings(deadline=None)
@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_marks_where_the_answer_is_held(text: str, answer: str) -> None:
    html = str(mark_answers(text, [answer]))
    assert ("<mark>" in html) == contains_answer(text, [answer])


def test_imports_stay_light() -> None:
    code = (
        "import sys, raggd.report.page, raggd.report.figures, raggd.evaluation.timing\n"
        "heavy = {'matplotlib', 'jinja2', 'rich', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
