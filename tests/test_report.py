"""Summaries, tables, figures and the page: numbers by hand, formats parsed back, nothing unsafe."""

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
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.data.answers import contains_answer
from raggd.evaluation.statistics import Interval, bootstrap_interval, paired_bootstrap
from raggd.methods.spec import FAMILIES, SPECS
from raggd.records import (
    Demonstration,
    Passage,
    Prediction,
    Question,
    RaggdError,
    RunRecord,
    SupportSet,
)
from raggd.report import figures
from raggd.report.figures import Box, Stem, cost_accuracy_figure, place_labels
from raggd.report.page import demo_page, details_of, make_case, mark_answers
from raggd.report.summary import SummaryRow, compare, summary_rows
from raggd.report.tables import Column, Table, comparison_table, summary_table


def record(method, benchmark="nq", scores=(1, 0, 1, 0), *, seed=0, f1=None, **other) -> RunRecord:
    f1 = scores if f1 is None else f1
    predictions = tuple(
        Prediction(f"q{i}", "x", float(em), float(part), support_id=f"s{i % 2}")
        for i, (em, part) in enumerate(zip(scores, f1, strict=True))
    )
    given = {"cost": {"adapt_ms": 0.0, "answer_ms": 100.0}, "hashes": {"data": "9f2c"}} | other
    return RunRecord(
        method, benchmark, "test", "smollm2", "bm25", seed, predictions, **given
    )  # fmt: skip


def demo_records() -> list[RunRecord]:
    costs = {
        "rag-gd": 900.0,
        "tt-sgd": 11000.0,
        "mean-update": 0.0,
        "base": 0.0,
        "vanilla-rag": 0.0,
    }
    return [
        record(
            name,
            benchmark,
            [float((i * 7 + shift) % 5 < 2 + index % 2) for i in range(20)],
            cost={"adapt_ms": cost, "answer_ms": 400.0},
        )
        for index, (name, cost) in enumerate(costs.items())
        for shift, benchmark in enumerate(("nq", "triviaqa"))
    ]


# --- summaries ----------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    records = [
        record("tt-sgd", "nq", [1, 1, 1, 0], cost={"adapt_ms": 2000.0, "answer_ms": 50.0}),
        record("tt-sgd", "popqa", [0, 1], cost={"adapt_ms": 500.0, "answer_ms": 80.0}),
        record("rag-gd", "nq", [1, 0, 0, 0], cost={"adapt_ms": 200.0}, f1=[1, 0.5, 0.5, 0]),
        record("rag-gd", "popqa", [1, 1], cost={"adapt_ms": 50.0, "answer_ms": 80.0}),
    ]
    tt, rag = summary_rows(records)
    assert (tt.method, rag.method) == ("tt-sgd", "rag-gd")
    assert (rag.n, rag.benchmarks) == (6, ("nq", "popqa"))
    assert rag.em.mean == pytest.approx(50)
    assert rag.macro_em.mean == pytest.approx((25 + 100) / 2)
    assert rag.f1.mean == pytest.approx(400 / 6)
    assert rag.macro_f1.mean == pytest.approx(75)
    assert tt.adapt_ms == pytest.approx((4 * 2000 + 2 * 500) / 6)
    assert tt.answer_ms == pytest.approx((4 * 50 + 2 * 80) / 6)
    assert rag.answer_ms is None  # one record did not measure it
    assert rag.relative_cost == pytest.approx(0.1)
    assert tt.relative_cost == 1


def test_intervals_are_those_of_questions_within_benchmarks() -> None:
    records = demo_records()
    row = summary_rows(records)[-1]
    scores, groups = [], []
    for one in (r for r in records if r.method == row.method):
        ordered = sorted(one.predictions, key=lambda p: p.question_id)
        scores += [p.em for p in ordered]
        groups += [one.benchmark] * len(ordered)
    assert row.em == bootstrap_interval(scores, groups=groups).scaled(100)
    assert row.macro_em == bootstrap_interval(scores, groups=groups, macro=True).scaled(100)
    narrow = summary_rows(records, level=0.5, resamples=500)[-1]
    assert narrow.em.high - narrow.em.low < row.em.high - row.em.low


def test_order_of_records_does_not_matter_and_methods_come_in_reading_order() -> None:
    records = [*demo_records(), *[replace(r, method="mine") for r in demo_records()[:2]]]
    rows = summary_rows(records, resamples=50)
    assert rows == summary_rows(records[::-1], resamples=50)
    assert [row.method for row in rows] == [
        *[name for name in SPECS if name in {r.method for r in records}],
        "mine",
    ]
    again = [RunRecord.from_json(r.to_json()) for r in records]
    assert rows == summary_rows(again, resamples=50)


def test_seeds_of_a_question_are_averaged() -> None:
    one, two = record("base", scores=[1, 0, 1, 0]), record("base", scores=[1, 1, 0, 0], seed=1)
    row = summary_rows([one, two])[0]
    assert (row.n, row.em.mean) == (4, 50)
    halves = bootstrap_interval([1, 0.5, 0.5, 0]).scaled(100)
    assert row.em == halves
    assert halves != summary_rows([one])[0].em


def test_without_reference_nothing_is_relative() -> None:
    assert summary_rows([record("base")])[0].relative_cost is None
    free = [record("base"), record("tt-sgd")]  # a reference that costs nothing
    assert summary_rows(free)[0].relative_cost is None
    assert summary_rows(demo_records(), reference="rag-gd", resamples=50)[-1].relative_cost == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no run records"),
        ([record("base"), replace(record("base"), backbone="gemma")], "mix 2 backbones"),
        ([record("base"), replace(record("rag-gd"), retriever="dense")], "mix 2 retrievers"),
        ([record("base"), record("base")], "'q0' of nq was answered twice"),
        (
            [record("base"), record("rag-gd", scores=[1, 0])],
            r"base' answered 4 .*rag-gd' 2, .*'q2'",
        ),
        ([record("base"), record("rag-gd", "popqa")], "not the same ones"),
        ([record("base", scores=[])], "no predictions"),
    ],
)
def test_summary_refuses(records, message: str) -> None:
    with pytest.raises(RaggdError, match=message):
        summary_rows(records)


def test_compare_is_the_paired_bootstrap_with_holm() -> None:
    records = demo_records()
    pairs = [("rag-gd", "base"), ("rag-gd", "tt-sgd")]
    (alone,) = compare(records, pairs[:1])
    first, second = compare(records, pairs)
    order = sorted(range(20), key=lambda i: f"q{i}")
    scores = {
        (r.method, r.benchmark): [r.predictions[i].em for i in order]
        for r in records
    }  # fmt: skip
    a = scores["rag-gd", "nq"] + scores["rag-gd", "triviaqa"]
    b = scores["tt-sgd", "nq"] + scores["tt-sgd", "triviaqa"]
    groups = ["nq"] * 20 + ["triviaqa"] * 20
    assert second.em == paired_bootstrap(a, b, groups=groups).scaled(100)
    assert second.em.mean != 0
    assert alone.em_p == alone.em.p_value
    assert sorted([first.em_p, second.em_p])[0] == pytest.approx(
        min(1, 2 * min(first.em.p_value, second.em.p_value))
    )
    by_support = compare(records, pairs, by_support=True)[1]
    assert by_support.em.mean == pytest.approx(second.em.mean)
    assert (by_support.em.low, by_support.em.high) != (second.em.low, second.em.high)
    with pytest.raises(RaggdError, match=r"'rag-dg'.*did you mean 'rag-gd'"):
        compare(records, [("rag-dg", "base")])


# --- tables -------------------------------------------------------------------------------------

AWKWARD = Table(
    (Column("name"), Column("score", "right")),
    (("a|b_c*d", "1 %"), ("x & y\nz", "$2^3 ~ {#}\\"), ("[link](x) <b>", "")),
    caption="50 % of *all*",
    bold=frozenset({(0, 1), (2, 1)}),
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
        (Column("answer"), Column("n", "right"), Column("c", "center")),
        (("東京", "1", "x"), ("Beyonce\u0301", "10", "xyz"), ("two\nlines", "100", "")),
    )
    assert table.to_text() == (
        "answer       n   c\n"
        "---------  ---  ---\n"
        "東京         1   x\n"
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
    table = Table(
        (Column("a"), Column("b")), tuple(map(tuple, rows)), bold=frozenset(bold)
    )  # fmt: skip
    assert list(csv.reader(io.StringIO(table.to_csv(), newline="")))[1:] == rows
    lines = table.to_markdown().split("\n")[2:-1]
    assert len(lines) == len(rows)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in lines)
    assert len(table.to_latex().strip().split("\n")) == len(rows) + 6


def test_table_errors() -> None:
    with pytest.raises(RaggdError, match="row 1 of the table has 1 cells for 2"):
        Table((Column("a"), Column("b")), (("1", "2"), ("3",)))
    with pytest.raises(RaggdError, match="did you mean 'markdown'"):
        AWKWARD.render("markdwon")
    assert AWKWARD.render("csv") == AWKWARD.to_csv()


def test_summary_table() -> None:
    rows = parts()[0]
    shown = summary_table(rows)
    row = rows[-1]
    assert shown.columns[2].heading == "EM (95 % interval)"
    assert shown.rows[-1] == (
        "RAG-GD",
        "40",
        f"{row.em.mean:.1f} [{row.em.low:.1f}, {row.em.high:.1f}]",
        f"{row.f1.mean:.1f} [{row.f1.low:.1f}, {row.f1.high:.1f}]",
        "900",
        "400",
        "0.082",
    )
    numbers = summary_table(rows, numbers=True, macro=True)
    assert [float(cell) for cell in numbers.rows[-1][2:5]] == pytest.approx(
        [row.macro_em.mean, row.macro_em.low, row.macro_em.high], abs=1e-4
    )
    assert len(numbers.columns) == 11
    lone = summary_rows([record("base", scores=[1])])
    assert summary_table(lone).rows[0][2] == "100.0 [–]"
    assert (
        summary_table(summary_rows(demo_records(), level=0.9, resamples=50))
        .columns[2]
        .heading.startswith("EM (90 %")
    )


def test_comparison_table_is_bold_only_where_significant() -> None:
    better = record("rag-gd", scores=[1] * 30, f1=[0.5] * 30)
    worse = record("base", scores=[0] * 30, f1=[0.5] * 30)
    table = comparison_table(compare([better, worse], [("rag-gd", "base")]))
    assert table.bold == {(0, 1)}
    assert table.rows == (
        (
            "RAG-GD minus Base adapter",
            "+100.0 [+100.0, +100.0]",
            "< 0.001",
            "+0.0 [+0.0, +0.0]",
            "1.000",
        ),
    )


# --- figure -------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def row(method: str, mean: float, cost: float | None, spread: float = 5) -> SummaryRow:
    score = Interval(mean, mean - spread, mean + spread)
    return SummaryRow(method, 100, ("nq",), score, score, score, score, cost, 1.0, None)


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_figure_is_self_contained_and_keeps_its_text() -> None:
    svg = parts()[1]
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert {"RAG-GD", "TT-SGD", "Base adapter", "no adaptation", "1 s", "10 s"} <= set(texts(svg))
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


def test_figure_follows_the_numbers_and_nothing_else() -> None:
    rows, figure, *_ = parts()
    assert cost_accuracy_figure(rows) == figure
    assert cost_accuracy_figure(rows, macro=True) != figure
    moved = [replace(r, f1=Interval(r.f1.mean + 1, r.f1.low, r.f1.high)) for r in rows]
    assert cost_accuracy_figure(moved) != figure


@pytest.mark.parametrize(
    "rows",
    [
        [row("base", 30, 0)],
        [row("base", 30, 0), row("query-only", 10, 0)],
        [row("tt-sgd", 30, 5000)],
        [row("rag-gd", 30, 0.002), row("tt-sgd", 40, 3e6)],
        [row("base", 30, 0), row("rag-gd", 0, 1, spread=0)],
        [row("base", 50, 0, spread=math.inf), row("rag-gd", 40, 10)],
        [row(f"method-{i}", 30 + i % 3, (i % 4) * 250.0) for i in range(16)],
    ],
)
def test_figure_of_odd_rows(rows) -> None:
    shown = texts(cost_accuracy_figure(rows))
    assert {SPECS[r.method].label if r.method in SPECS else r.method for r in rows} <= set(shown)


def test_figure_takes_names_literally() -> None:
    svg = cost_accuracy_figure([row("<b>&$x^2$", 30, 0), row("rag-gd", 40, 10)])
    assert "<b>&$x^2$" in texts(svg)


def test_figure_errors() -> None:
    with pytest.raises(RaggdError, match=r"'rag-gd' give no adaptation cost"):
        cost_accuracy_figure([row("rag-gd", 30, None)])
    with pytest.raises(RaggdError, match="adapt_ms is -1"):
        cost_accuracy_figure([row("rag-gd", 30, -1)])
    with pytest.raises(RaggdError, match="at least one"):
        cost_accuracy_figure([])


def test_equal_costs_stand_side_by_side_others_where_they_are() -> None:
    costs = [0.0, 900.0, 0.0, 900.0, 11000.0, 905.0]
    axis = figures.LogAxis.of(costs)
    places = axis.positions(costs)
    assert len({round(place, 6) for place in places}) == len(costs)
    assert places[0] < places[2] < axis.low <= min(places[1], places[3], places[5])
    assert places[4] == pytest.approx(math.log10(11000))
    assert sum(places[i] for i in (1, 3, 5)) / 3 == pytest.approx(math.log10(900), abs=0.01)
    assert places[5] - places[1] < 0.05 * (axis.high - axis.low + axis.column)


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


def overlaps(boxes: list[Box]) -> float:
    return sum(one.overlap(two) for one, two in combinations(boxes, 2))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(20, 70)),
        min_size=1,
        max_size=6,
        unique_by=lambda point: point[:2],
    )
)
def test_labels_do_not_overlap(points) -> None:
    stems = [Stem(x * 40.0, y * 30.0 + 40, y * 30.0 + 10, y * 30.0 + 70) for x, y, _ in points]
    obstacles = [Box(s.x - 5, s.y - 5, s.x + 5, s.y + 5) for s in stems]
    sizes = [(float(width), 12.0) for _, _, width in points]
    bounds = Box(-30, 0, 400, 330)
    naive = [Box(s.x, s.y, s.x + w, s.y + h) for s, (w, h) in zip(stems, sizes, strict=True)]
    assert overlaps([*naive, *obstacles]) > 0  # left alone they would cover the markers
    boxes = place_labels(stems, sizes, obstacles, bounds, gap=7)
    assert overlaps(boxes) == 0
    assert all(box.overlap(other) == 0 for box in boxes for other in obstacles)
    assert all(box.overlap(bounds) == pytest.approx(box.area) for box in boxes)


def test_a_free_label_stands_beside_its_point() -> None:
    (box,) = place_labels([Stem(100, 100, 80, 120)], [(40, 10)], [], Box(0, 0, 300, 200), gap=7)
    assert box == Box(107, 95, 147, 105)
    (pushed,) = place_labels([Stem(290, 100, 80, 120)], [(40, 10)], [], Box(0, 0, 300, 200), gap=7)
    assert pushed == Box(243, 95, 283, 105)


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


def case(evil: str = "", answer: str = "Paris", base: str = "Rome"):
    question = Question("q1", "what is the capital of france" + evil, ("Paris" + evil,), "nq")
    shown = Demonstration("d1", "who wrote emma" + evil, (), "Jane Austen" + evil)
    return make_case(
        question,
        [Passage("p1", f"Paris is in France. {evil} Parisian", "Paris" + evil)],
        {
            "base": Prediction("q1", base + evil, 0, 0),
            "rag-gd": Prediction("q1", answer + evil, float(answer == "Paris"), 0.5),
        },
        SupportSet("nq", (shown,)),
    )


@cache
def parts():
    records = demo_records()
    rows = summary_rows(records, resamples=200)
    comparisons = compare(records, [("rag-gd", "base")], resamples=200)
    return rows, cost_accuracy_figure(rows), comparisons, details_of(records)


def page(evil: str = "", **other) -> str:
    rows, figure, comparisons, details = parts()
    given = {
        "title": "Title" + evil,
        "rows": rows,
        "figure_svg": figure,
        "cases": [case(evil), case(evil, answer="Rome"), case(evil, answer="Nice")],
        "notes": ["A note." + evil],
        "command": "raggd demo" + evil,
        "comparisons": comparisons,
        "details": details | {"more" + evil: {"key" + evil: evil}},
    }
    return demo_page(**given | other)


def test_page_has_its_parts_and_needs_nothing_else() -> None:
    html = page()
    outline = Outline(html)
    assert html.startswith("<!doctype html>")
    assert outline.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(outline.all("meta"))
    assert len(outline.all("h1")) == 1
    assert len(outline.all("caption")) == len(outline.all("table")) == 5
    scopes = {attributes.get("scope") for attributes in outline.all("th")}
    assert scopes == {"col", "row"}
    assert "9f2c" in html  # hashes, in the folded part
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


def test_page_escapes_method_names_too() -> None:
    records = [replace(r, method=EVIL) if r.method == "base" else r for r in demo_records()]
    rows = summary_rows(records, resamples=50)
    html = page(
        rows=rows,
        figure_svg=cost_accuracy_figure(rows),
        comparisons=compare(records, [("rag-gd", EVIL)]),
    )
    assert len(Outline(html).all("script")) == 1
    assert not Outline(html).all("img")


def test_page_shows_what_changed() -> None:
    outline = Outline(page())
    assert [a["data-change"] for a in outline.all("article")] == ["better", "same", "better"]
    worse = case(base="Paris", answer="Rome")
    worse["predictions"]["base"]["f1"] = 1.0
    other = case(answer="Nice")
    other["predictions"]["rag-gd"]["f1"] = 0.0
    changes = [a["data-change"] for a in Outline(page(cases=[worse, other])).all("article")]
    assert changes == ["worse", "other"]
    highlighted = [a["class"].split() for a in outline.all("tr") if a.get("class")]
    assert highlighted.count(["after", "changed"]) == 2
    assert highlighted.count(["after"]) == 2  # the summary and the unchanged case


def test_page_without_the_optional_parts() -> None:
    bare = page(figure_svg="", cases=[], notes=[], comparisons=(), details=None)
    outline = Outline(bare)
    assert not outline.all("svg")
    assert not outline.all("article")
    assert not outline.all("form")
    assert len(outline.all("table")) == 1
    unknown = summary_rows([record("mine", scores=[1], cost={})])
    assert "interval unknown" in page(rows=unknown, figure_svg="")


def test_page_errors() -> None:
    with pytest.raises(RaggdError, match="at least one summary row"):
        page(rows=[])
    broken = case()
    del broken["answers"]
    with pytest.raises(RaggdError, match="case 0 lacks 'answers'"):
        page(cases=[broken])
    for bad in (
        "<p>no</p>",
        "<svg><script>1</script></svg>",
        "<svg onload='x()'></svg>",
        "<svg><a/></svg>",
        "<svg><text style='fill:URL( x.png)'/></svg>",
        "<svg><use href='https://x.org/a.svg'/></svg>",
        "<svg></svg><p>",
        "<svg><style>@import 'x'</style></svg>",
        "<svg style='fill:url(x.png)'></svg>",
        "<svg><foreignObject/></svg>",
        "<svg><p></svg>",
        "<svg><text><![CDATA[x]]></text></svg>",
    ):
        with pytest.raises(RaggdError, match="figure cannot be put into the page"):
            page(figure_svg=bad)


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


def test_details_of_records() -> None:
    one, two = record("base"), replace(record("rag-gd"), hashes={"data": "other"}, seed=0)
    found = details_of([one, two])
    assert found["backbone"] == "smollm2"
    assert found["hashes"] == {
        "base on nq": {"data": "9f2c"},
        "rag-gd on nq": {"data": "other"},
    }
    assert details_of([]) == {}


def test_imports_stay_light() -> None:
    code = (
        "import sys, raggd.report.page, raggd.report.figures, raggd.evaluation.cost\n"
        "heavy = {'matplotlib', 'jinja2', 'rich', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
