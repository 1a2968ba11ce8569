"""Reading passages: every kind of file, every kind of damage."""

import gzip
import io
import json
import os
import random
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raggd.data.documents import (
    READERS,
    Skipped,
    corpus_hash,
    list_files,
    read_passages,
    stream_file,
    summary,
)
from raggd.data.documents.markdown import front_matter
from raggd.data.documents.office import joined
from raggd.data.documents.passages import Block, split_blocks, split_sentences
from raggd.data.text import normal_text
from raggd.records import Passage, RaggdError

pypdf = pytest.importorskip("pypdf")

SENTENCES = (
    "The cat sat on the mat. It was warm! Was it? Yes, Dr. Brown said so. He left at 5.30 p.m."
)


def split_words(text: str, words: int) -> list[str]:
    return split_blocks([Block(text)], words)


def write_lines(path: Path, *objects: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(value) for value in objects) + "\n", encoding="utf-8")
    return path


def pdf_bytes(text: str) -> bytes:
    """Build a one-page PDF by hand: five objects, one line of Helvetica."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 6\n0000000000 65535 f \n"
    return (
        out + head + table + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    )


def test_sentences_stay_whole() -> None:
    pieces = split_words(SENTENCES, words=8)
    assert pieces == [
        "The cat sat on the mat.",
        "It was warm! Was it?",
        "Yes, Dr. Brown said so.",
        "He left at 5.30 p.m.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Der Laden ist am 3. Oktober zu.",
        "See Fig. 2 and vol. 12 of it.",
        "Siehe Art. 5 Abs. 2 und Abb. 3 dort.",
        "2. Then drain it.",
        "Mme. Durand et la Sra. Gil.",
    ],
)
def test_a_full_stop_that_ends_no_sentence(sentence: str) -> None:
    text = f"One ends. {sentence} No. That is 12 in May. 3 end in p."
    ends = ["One ends.", sentence, "No.", "That is 12 in May.", "3 end in p."]
    assert split_sentences(text.replace("No. That", "No... That")) == [
        each.replace("No.", "No...") for each in ends
    ]


@pytest.mark.parametrize("sign", ["สั", "e\u0331", "\U0001f469\u200d\U0001f680"])
def test_no_cut_within_a_character(sign: str) -> None:
    for before in range(4):
        pieces = split_words("a" * before + sign * 2000, words=30)
        assert len(pieces) > 3
        assert all(piece.lstrip("a").startswith(sign) and piece.endswith(sign) for piece in pieces)


def test_a_short_rest_joins_the_piece_before() -> None:
    text = "One two three four five six seven eight. Nine."
    assert split_words(text, words=8) == [text]
    assert len(split_words(text, words=4)) == 3


@pytest.mark.fuzz
@given(st.text(alphabet="ab A.!?\n\"'", max_size=300), st.integers(1, 20))
def test_splitting_loses_nothing(text: str, words: int) -> None:
    pieces = split_words(text, words)
    assert "".join("".join(pieces).split()) == "".join(text.split())  # long words are cut
    assert all(piece and len(piece.split()) <= 1.25 * words for piece in pieces)


def test_both_forms_of_json_lines(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl",
        {"id": 7, "contents": '"Paris"\nCapital.\nOf France.'},
        {"id": "b", "title": "Rome", "text": " Capital of Italy. "},
        {"contents": "Only text"},
    )
    assert list(read_passages(path)) == [
        Passage("7", "Capital.\nOf France.", "Paris"),
        Passage("b", "Capital of Italy.", "Rome"),
        Passage("c.jsonl#3", "Only text", ""),
    ]


def test_packed_lines_equal_plain_ones(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "c.jsonl", {"id": "1", "contents": "Å\nÖ"})
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_passages(packed)) == list(read_passages(plain))
    packed.write_bytes(packed.read_bytes()[:-10])
    with pytest.raises(RaggdError, match=r"p\.jsonl\.gz"):
        list(read_passages(packed))


def test_reading_streams(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"id": "1", "text": "first"})
    with path.open("a") as out:
        out.write("not json\n")
    stream = read_passages(path)
    assert next(stream).text == "first"
    with pytest.raises(RaggdError, match=r"c\.jsonl, line 2"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1]", "line 2: expected one JSON object"),
        ('{"id": "x", "body": "t"}', "line 2: not a passage.*id, body"),
        ('{"id": "x", "contents": "Title\\n  "}', "line 2: passage 'x' is empty"),
        ('{"id": "x", "text": null}', "line 2: passage 'x' is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "text": "good"}\n' + line + "\n")
    with pytest.raises(RaggdError, match=message):
        list(read_passages(path))


def test_a_folder_is_read_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / ".y.txt").write_text("hidden")
    (tmp_path / "z" / "a.txt").write_text("﻿" + "Word here. " * 120, encoding="utf-8")
    (tmp_path / "b.txt").write_text("First file.")
    (tmp_path / "page.PDF").write_bytes(pdf_bytes("Bears eat honey."))
    (tmp_path / "notes.docx").write_bytes(b"\x00")
    (tmp_path / "program.exe").write_bytes(b"\x00")
    skipped: list[Skipped] = []
    passages = list(read_passages(tmp_path, skipped=skipped))
    assert [(each.file, each.reason[:13]) for each in skipped] == [
        ("program.exe", "no reader for"),
        ("notes.docx", "it is no whol"),
    ]
    assert passages[0] == Passage("b.txt#1", "First file.", "b", "b.txt")
    assert [p.id for p in passages] == [
        "b.txt#1",
        "page.PDF#1",
        "z/a.txt#1",
        "z/a.txt#2",
        "z/a.txt#3",
    ]
    assert passages[1].text == "Bears eat honey."
    assert passages[1].title == "page"
    assert passages[2].text.startswith("Word here.")
    assert len(passages[2].text.split()) == 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", random.Random(5).randbytes(300).translate(None, bytes(range(32))), "not UTF-8"),
        ("a.txt", bytes(range(256)), "not text"),
        ("a.txt", b"\xff\xfea", "no UTF-16"),
        ("a.txt", b" \n", "holds no text"),
        ("a.md", b"![](data:image/png;base64,AAAA)\n", "holds no text"),
        ("a.html", b"<script>let a = 1</script>", "holds no text"),
        ("a.csv", b"\n,,\n", "holds no text"),
        ("a.jsonl", b"\n", "holds no passage"),
        ("a.pdf", b"%PDF-1.4 damaged", "damaged or encrypted"),
        ("a.pdf", pdf_bytes(""), "scanned"),
        ("a.docx", b"x", "cannot read a.docx: it is no whole"),
        ("a.bin", b"x", "cannot read a.bin: no reader for .bin"),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RaggdError, match=message) as caught:
        list(read_passages(path))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.txt", pdf_bytes("Honey."), "a PDF"),
        ("a.html", pdf_bytes("Honey."), "a PDF"),
        ("a.md", rb"{\rtf1\ansi Honey.}", "RTF"),
        ("a.csv", b"%!PS-Adobe-3.0\n(Honey) show", "PostScript"),
    ],
)
def test_another_format_under_the_name_of_text(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    with pytest.raises(RaggdError, match=rf"cannot read {name}: it is {what}, whatever its name"):
        read_one(tmp_path / name, content)


def test_a_word_goes_over_to_the_next_page(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter()
    for text in ("Maintenance first. Then main-", "tenance again.", "Third page."):
        (tmp_path / "one.pdf").write_bytes(pdf_bytes(text))
        writer.append(tmp_path / "one.pdf")
    writer.write(tmp_path / "a.pdf")
    ((_, text),) = read_one(tmp_path / "a.pdf", (tmp_path / "a.pdf").read_bytes())
    assert text == "Maintenance first. Then maintenance again.\n\nThird page."


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    plain, locked = tmp_path / "plain.pdf", tmp_path / "locked.pdf"
    plain.write_bytes(pdf_bytes("Secret honey."))
    assert next(read_passages(plain)).text == "Secret honey."
    writer = pypdf.PdfWriter(clone_from=plain)
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(locked)
    with pytest.raises(RaggdError, match=r"locked\.pdf: the PDF is encrypted"):
        list(read_passages(locked))


@pytest.mark.parametrize(("kind", "module"), [("pdf", "pypdf"), ("docx", "docx")])
def test_without_the_extra_a_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(pdf_bytes("Honey."))
    for name in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RaggdError, match=r"raggd\[documents\]"):
        list(read_passages(path))


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no readable file in the folder"):
        list(read_passages(tmp_path))
    with pytest.raises(RaggdError, match="no corpus at"):
        list(read_passages(tmp_path / "absent"))


def test_the_hash_sees_every_part_and_the_order() -> None:
    one, two = Passage("1", "text", "title"), Passage("2", "text", "title")
    whole = corpus_hash([one, two])
    others = [
        corpus_hash([two, one]),
        corpus_hash([one]),
        corpus_hash([one, Passage("2", "text", "Title")]),
        corpus_hash([one, Passage("2", "Text", "title")]),
        corpus_hash([one, Passage("2", "titletext", "")]),
    ]
    assert len({whole, *others}) == 6
    assert corpus_hash(iter([one, two])) == whole


def read_one(path: Path, content: str | bytes) -> list[tuple[str, str]]:
    """Title and text of the passages of one file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(p.title, p.text) for p in read_passages(path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # heading paths, deeper levels skipped, siblings, two documents in one
        (
            "Before.\n\n# A #\none\n### C\ntwo\n## B\nthree\n# D\nfour\n",
            [("m", "Before."), ("A", "one"), ("A > C", "two"), ("A > B", "three"), ("D", "four")],
        ),
        # headings without a body, the last one too; a parent's stands in its children's titles
        ("# A\n## B\n## C\ntext\n## D", [("A > B", "B"), ("A > C", "text"), ("A > D", "D")]),
        # marks that belong to a heading and marks that do not
        ("## *Fast* `x#` [and](u) \\#1 <!-- no --> ##\nt", [("Fast x# and #1", "t")]),
        ("#hash\n\n####### seven\n", [("m", "#hash\n\n####### seven")]),
        # setext headings; a rule; underlines of one mark
        ("Top\n=\na\n\nSub\n-\nb\n\n---\n\nc", [("Top", "a"), ("Top > Sub", "b\n\nc")]),
        # fences: in lists, longer than their content, never closed
        ("# A\n- x\n  ```\n  # no\n  ```\n## B\ny",
         [("A", "- x\n  ```\n  # no\n  ```"), ("A > B", "y")]),
        ("# <img src=a alt=Logo> Two\nsee <IMG ALT='B &amp; c'> `<img alt=x>`",
         [("Logo Two", "see B & c `<img alt=x>`")]),
        ("# A\n~~~~\n~~~\n# no\n~~~~\n", [("A", "~~~~\n~~~\n# no\n~~~~")]),
        ("# A\n```\n# no\n", [("A", "```\n# no")]),
        ("    # code\n\n# A\nb", [("m", "    # code"), ("A", "b")]),
        # front matter: YAML, TOML, none but a rule; equal to the first heading
        ("---\ntitle: 'A: b'\nby: me\n---\n# C\nd", [("A: b", "by: me"), ("A: b > C", "d")]),
        ('+++\ntitle = "A"\n+++\n# A\nd', [("A", "d")]),
        ("---\n\ntext\n\n---\n", [("m", "text")]),
        # lines stay, of prose, code and lists; images go, escapes and entities are undone
        ("one\ntwo\n\n- a\n- b\n\n```\ndef f():\n    pass\n```", [
            ("m", "one\ntwo\n\n- a\n- b\n\n```\ndef f():\n    pass\n```")]),
        ("![plan](data:image/png;base64,AA==) a\\_b &amp; `\\_&amp;` ![][x]<img src=q>",
         [("m", "plan a_b & `\\_&amp;`")]),
        ("<pre><code>\nif &lt;a&gt;:\n    b\n</code></pre>\n", [("m", "if <a>:\n    b")]),
        ("| a | b |\n|---|---|\n| c \\| d | `e\\|f` \\* |\n",
         [("m", "| a | b |\n|---|---|\n| c \\| d | `e\\|f` * |")]),
        # headings and tables in HTML, tags inside a line, scripts; a type's name is no tag
        ("<h2 align=center>A</h2>\n\nb\n\n<h3>C</h3>\nd\n\n"
         "# E<br>C<sub>2</sub> <a id=x></a> `<f>` <T>\n\n"
         "g<br>h <b>i</b>\n",
         [("A", "b"), ("A > C", "d"), ("E C2 <f> <T>", "g h i")]),
        ("<table><tr><th>a</th><th>b</th></tr></table>\n\n<script>\nx\n</script>\n\nc\n",
         [("m", "a | b\n\nc")]),
        ("<p>H<sub>2</sub>O</p>\n", [("m", "H2O")]),
        ("---\nby: me\ntitle: >-\n  A\n  b\n---\nc", [("A b", "by: me\n\nc")]),
        # code in lists and marks of comments in code stay, as what is never closed does
        ("- x\n\n  ```html\n  <!-- y --> <b>z</b> \\_ &amp;\n  ```\n- `<!-- w -->` v <!-- no -->\n",
         [("m", "- x\n\n  ```html\n  <!-- y --> <b>z</b> \\_ &amp;\n  ```\n- `<!-- w -->` v")]),
        ("> ~~~\n> <i>a</i>\n> ```\n> ~~~\n> <i>b</i>\n",
         [("m", "> ~~~\n> <i>a</i>\n> ```\n> ~~~\n> b")]),
        ("Begin by <!-- and go on.\n\nMore.\n", [("m", "Begin by <!-- and go on.\n\nMore.")]),
        ("<!-- never closed\n\nMore.\n", [("m", "<!-- never closed\n\nMore.")]),
        ("<script> is kept out.\n\nMore.\n", [("m", "<script> is kept out.\n\nMore.")]),
        ("<p>x <script>y\nz\n\nMore.\n", [("m", "<p>x <script>y\nz\n\nMore.")]),
        ("<Style>\n\nMore.\n", [("m", "<Style>\n\nMore.")]),
        ("<?php tag\n\n# Two\n", [("m", "<?php tag\n\n# Two")]),
        ("<script>\na\n\nb</script>\n\nMore.\n", [("m", "More.")]),
        ("<!-- not\nshown --><b>x</b>\n\n[x]: http://e.org", [("m", "x\n\n[x]: http://e.org")]),
        # formulas stay, sums of money are text; a line that a backslash ends
        ("about $10\\,000$ in $$x\\_1 \\\\\n\\{y\\}$$, $5 \\& $7 \\& so\n",
         [("m", "about $10\\,000$ in $$x\\_1 \\\\\n\\{y\\}$$, $5 & $7 & so")]),
        ("one\\\ntwo\\\n\nC:\\\\\n", [("m", "one\ntwo\\\n\nC:\\")]),
    ],
)  # fmt: skip
def test_markdown(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    found = read_one(tmp_path / "m.md", text)
    assert [(t, b.strip()) for t, b in found] == [(t, b.strip()) for t, b in expected]


@pytest.mark.parametrize(
    ("front", "title", "rest"),
    [
        # the first and the last are nearly YAML and TOML
        ("---\ntitle: Pumps: an overview\nby: me\n---\n", "Pumps: an overview", "by: me"),
        ("---\n'title': >\n  Pumps\n  and valves\n\nby: me\n---\n", "Pumps and valves", "by: me"),
        ("---\n# ours\nTITLE: |-\n  Pumps\nby:\n  title: nobody\n...\n", "Pumps",
         "# ours\nby:\n  title: nobody"),
        ("---\n{title: Pumps, by: me}\n---\n", "Pumps", "{title: Pumps, by: me}"),
        ("---\nby: me\ntitle: ~\n---\n", "", "by: me\ntitle: ~"),
        ("---\n- title: no\n---\n", "", None),
        ("---\njust a line\n---\n", "", None),
        ("+++\ntitle = '''\nPumps''' # ours\n[by]\ntitle = 'x'\n+++\n", "Pumps",
         "[by]\ntitle = 'x'"),
        ("+++\nby = 'me'\n[extra]\ntitle = 'x'\n+++\n", "", "by = 'me'\n[extra]\ntitle = 'x'"),
        ("+++\ntitle = Pumps\n+++\n", "Pumps", ""),
        ('{\n "by": {"name": "me"},\n "Title": "Pumps  and valves"\n} \n', "Pumps and valves",
         'by: {"name": "me"}'),
        ('{"title": ["Pumps"], "draft": true}\n', "", 'title: ["Pumps"]\ndraft: true'),
        # text that begins with a brace: a template, an object in a sentence, a key given twice
        ("{% raw %}\n", "", None),
        ('{"title": "Pumps"} is JSON.\n', "", None),
        ('{"title": "Pumps", "title": "Valves"}\n', "", None),
        ("{}\n", "", None),
        ("[1]\n", "", None),
    ],
)  # fmt: skip
def test_front_matter(front: str, title: str, rest: str | None) -> None:
    whole = front + "Body: text\n"
    expected = ("", "", whole) if rest is None else (title, rest, "Body: text\n")
    assert front_matter(whole) == expected


@pytest.mark.fuzz
@given(
    st.text(st.characters(exclude_categories=("C",), include_characters="\n'\"\\"), min_size=1),
    st.sampled_from([None, "'", '"', "|", ">"]),
    st.integers(20, 200),
)
def test_a_title_comes_back_however_it_is_quoted(title: str, style: str | None, width: int) -> None:
    import yaml

    said = yaml.dump({"by": "me", "title": title}, default_style=style, width=width,
                     allow_unicode=True)  # fmt: skip
    said = said.removesuffix("...\n")  # open-ended text closes its document
    found, others, rest = front_matter(f"---\n{said}---\nBody.")
    assert found.split() == title.split()
    assert "me" in others
    assert "title" not in others
    assert rest == "Body."


@pytest.mark.fuzz
@given(
    st.dictionaries(
        st.sampled_from(["title", "Title", "by", "tags"]),
        st.recursive(
            st.text("ab ,:{}[]\"'\\", max_size=8) | st.integers() | st.booleans(),
            lambda inner: st.lists(inner, max_size=3),
        ),
        min_size=1,
    ),
    st.sampled_from([None, 1, "\t"]),
)
def test_json_before_a_document_is_kept(front: dict[str, Any], width: Any) -> None:
    title, others, rest = front_matter(json.dumps(front, indent=width) + "\nBody.")
    assert rest == "Body."
    read = f"{title} {others}"
    said = [value for value in front.values() if isinstance(value, str)]
    assert all(word in read for value in said for word in value.split())


@pytest.mark.fuzz
@given(st.text(st.sampled_from("-:=+#[]{}\"' \n\tatitle\\&*!|>%@"), max_size=60))
def test_no_front_matter_is_lost_or_breaks(inner: str) -> None:
    for mark in ("---", "+++"):
        title, others, rest = front_matter(f"{mark}\n{inner}\n{mark}\nBody.")
        letters = [c for c in f"{title}{others}{rest}" if c.isalpha()]
        assert rest.endswith("Body.")
        assert len(letters) >= len([c for c in inner if c.isalpha()]) + 4 - len("title")


TABLE_OF_LISTS = """.. list-table:: Prices
   of parts
   :header-rows: 1
   :widths: 10 20

   * - Part
     - Price
   * - hose, or a
       tube

       - short
     - 7
   * -
     - 9

After it.
"""
TABLE_OF_CSV = """.. csv-table::
   :header: Part; "Price;
      in euros"
   :delim: ;

   hose; "a
   tube"
   valve; 9

After it.
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TABLE_OF_LISTS, "Prices\n\nof parts\nPart | Price\nhose, or a tube - short | 7\n | 9"),
        (TABLE_OF_CSV, "Part | Price; in euros\nhose | a tube\nvalve | 9"),
    ],
)
def test_tables_of_directives(tmp_path: Path, text: str, expected: str) -> None:
    whole = f"Parts\n=====\n\n{text}"
    assert read_one(tmp_path / "a.rst", whole) == [("Parts", f"{expected}\n\nAfter it.")]
    # inside another one, and longer than a passage: every piece has the header
    rows = "".join(f"   * - part {n}\n     - {n} euros\n" for n in range(200))
    long = indent(TABLE_OF_LISTS.replace("   * -\n", f"{rows}   * -\n"), "   ")
    found = read_one(tmp_path / "b.rst", f".. note::\n\n{long}")
    assert len(found) > 3
    assert all("Part | Price" in body for _, body in found)
    assert "part 117 | 117 euros" in "\n".join(body for _, body in found)


def test_a_header_without_rows_is_a_row(tmp_path: Path) -> None:
    one_row = ".. list-table::\n   :header-rows: 3\n\n   * - Part\n     - Price\n"
    assert read_one(tmp_path / "a.rst", one_row) == [("a", "Part | Price")]
    for words in (40, 49, 50, 51, 60, 200):
        cell = " ".join(f"w{n}" for n in range(words))
        found = read_one(tmp_path / "b.rst", one_row.replace("Part", cell))
        assert " ".join(body for _, body in found).split() == [*cell.split(), "|", "Price"]


@pytest.mark.parametrize(
    "text",
    [
        ".. csv-table:: Prices\n   :file: prices.csv",
        ".. csv-table:: Prices\n   :file: prices.csv\n\n   hose, 7",
        ".. list-table::\n\n   no list",
        ".. list-table::",
        ".. csv-table::\n   :delim: ab\n\n   1ab2",
        ".. list-table::\n   :header-rows: one\n\n   * - a",
    ],
)
def test_what_is_no_table_stays_as_it_is(tmp_path: Path, text: str) -> None:
    assert read_one(tmp_path / "a.rst", f"{text}\n\nAfter it.") == [("a", f"{text}\n\nAfter it.")]


@pytest.mark.fuzz
@given(st.lists(st.sampled_from([*TABLE_OF_LISTS.splitlines(), *TABLE_OF_CSV.splitlines()])))
@example([".. list-table::", "   :widths: 10 20", "   of parts", "", "   * - Part"])
@example([".. list-table::", "   :header: Part", "", "   * - hose"])
@example([".. list-table::", "   :header: Part", "   :header: Price", "", "   * - hose"])
def test_no_table_of_a_directive_loses_a_word(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rst") / "a.rst"
    path.write_text("\n".join([*lines, "End."]))
    read = " ".join(f"{p.title} {p.text}" for p in read_passages(path))
    held = Counter(re.findall(r"[a-z]+", read))
    options = {"header", "rows", "widths", "delim", "list", "csv", "table"}
    said = Counter(re.findall(r"[a-z]+", "\n".join(lines)))
    assert all(held[word] >= said[word] for word in said if word not in options)


TABLES = {
    "grid": ("+----+\n| hd |\n+====+\n", "| {} |\n+----+\n", "+====+"),
    "of a database": ("+----+\n| hd |\n+----+\n", "| {} |\n", "+----+"),
    "Org": ("| hd |\n|----|\n", "| {} |\n", "|----|"),
    "rules": ("====  ===\nhd    x\n====  ===\n", "{}    y\n", "====  ==="),
}


@pytest.mark.parametrize("kind", ["txt", "md", "rst"])
@pytest.mark.parametrize("style", TABLES)
def test_tables_that_are_drawn_keep_their_header(tmp_path: Path, kind: str, style: str) -> None:
    head, row, rule = TABLES[style]
    end = f"{rule}\n" if style == "rules" else ""
    rows = [f"part {n} has. A size of {n * n} mm" for n in range(60)]
    text = f"Before.\n\n{head}{''.join(map(row.format, rows))}{end}\nAfter."
    texts = [text for _, text in read_one(tmp_path / f"a.{kind}", text)]
    assert len(texts) > 2
    for text in texts:
        assert ("hd" in text and rule in text) or "part" not in text
        assert text.count("part") == text.count(" mm")
    held = "\n".join(texts)
    assert all(row in held for row in ["Before.", *rows, "After."])


def test_a_table_of_html_in_markdown_keeps_its_header(tmp_path: Path) -> None:
    rows = "".join(
        f"<tr>\n <td>part {n}</td>\n <td>a <b>word</b> or two</td>\n <td></td></tr>\n"
        for n in range(60)
    )
    whole = f"<table border=1>\n<tr><th>what\n<th>how<th>x</tr>\n{rows}</table>\n\nAfter.\n"
    texts = [text for _, text in read_one(tmp_path / "a.md", whole)]
    assert len(texts) > 2
    assert all(text.startswith("what | how | x\npart") for text in texts)
    assert "part 59 | a word or two |\n\nAfter." in texts[-1]


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("## Install {#setup}", "Install"),
        ("## Install {: .first #setup }", "Install"),
        ("## {#setup}", "{#setup}"),
        ("## Use {{ .Values.x }}", "Use {{ .Values.x }}"),
        ("## A set {a}", "A set {a}"),
        ("##" + " " * 500 + "{" + " " * 500 + "x", "{ x"),
    ],
)
def test_attributes_of_headings(tmp_path: Path, content: str, title: str) -> None:
    assert read_one(tmp_path / "a.md", f"{content}\n\nText.\n") == [(title, "Text.")]


@pytest.mark.parametrize("kind", ["md", "txt", "rst", "csv", "html"])
@pytest.mark.parametrize(
    "address",
    [
        "data:image/png;base64," + "iVBOR/+a" * 400 + "==",
        "data:;base64," + "AA-_" * 400,
        "data:text/plain;charset=utf-8," + "a%20b" * 400,
        "data:font/woff2;charset=utf-8;base64," + "d09G" * 400,
    ],
)
def test_a_file_within_a_text_is_dropped(tmp_path: Path, kind: str, address: str) -> None:
    text = f"what\nbefore {address} after\nmore\n"
    ((_, found),) = read_one(tmp_path / f"a.{kind}", text)
    assert found.split() == ["what", "before", "after", "more"]


def test_a_table_is_cut_between_rows_under_its_header(tmp_path: Path) -> None:
    rows = [f"| part {n} | a word or two | {n * n} mm |" for n in range(60)]
    head = ["| Part | Remark | Length |", "|---|:-:|--:|"]
    found = read_one(tmp_path / "m.md", "\n".join(["Lengths of all parts:", "", *head, *rows]))
    assert len(found) > 3
    for number, (_, text) in enumerate(found):
        lines = text.split("\n")[0 if number else 2 :]
        assert lines[:2] == head
        assert set(lines[2:]) <= set(rows)
    assert [line for _, text in found for line in text.split("\n") if line in rows] == rows


def test_restructured_text(tmp_path: Path) -> None:
    text = (
        "====\nBook\n====\n\nPart\n----\nOne.\n\nSub\n~~~\n::\n\n   code\n\nPart 2\n------\nTwo\n"
    )
    assert read_one(tmp_path / "a.rst", text) == [
        ("Book > Part", "One."),
        ("Book > Part > Sub", "::\n\n   code"),
        ("Book > Part 2", "Two"),
    ]
    short = "A title of words\n====\n\nOne\n\nGoes on\n---\n\n=====\nAlso one\n=====\n\nTwo"
    assert read_one(tmp_path / "c.rst", short) == [
        ("A title of words", "One\n\nGoes on\n---"),
        ("A title of words > Also one", "Two"),
    ]
    assert read_one(
        tmp_path / "b.rst", "C\n=\n\nOf C.\n\nGo\n--\n\nOf Go::\n\n  x\n..\n\nD\n:::\nE."
    ) == [
        ("C", "Of C."),
        ("C > Go", "Of Go::\n\n  x\n.."),
        ("C > Go > D", "E."),
    ]


SAMPLES = {
    "French, Windows": ("L’élève a payé 5 € à l'entrée du musée.", "cp1252"),
    "German, Latin-1": ("Die Öffnungszeiten für Gäste", "latin-1"),
    "Polish": ("Zażółć gęślą jaźń", "cp1250"),
    "Russian": ("Насос ремонтирует мастерская в Турине.", "cp1251"),
    "Russian, Unix": ("Музей открыт каждый день с девяти до пяти.", "koi8_r"),
    "Greek": ("Το μουσείο είναι ανοιχτό κάθε μέρα.", "cp1253"),
    "Japanese": ("図書館は駅の北口にあります。営業時間は九時から五時までです。", "shift_jis"),
    "Chinese": ("图书馆在河边。图书馆星期一关门。", "gb18030"),
    "Russian, DOS": ("Насос ремонтирует мастерская в Турине.", "cp866"),
    "Turkish": ("Müze sabah dokuzda açılır. Giriş ücretsiz.", "cp1254"),
    "Icelandic": ("Það er opið frá níu til fimm á mánudögum.", "cp1252"),
    "French, Latin-9": ("Un œuf coûte 2 € dans la sœur Œuvre.", "iso8859-15"),
    "Japanese, mail": ("図書館は駅の北口にあります。Open at nine.", "iso2022_jp"),
    "Czech": ("Knihovna je otevřena každý den od devíti hodin.", "cp1250"),
    "Hungarian": ("A könyvtár minden nap nyitva az erdő mellett.", "cp1250"),
    "Croatian": ("Knjižnica je otvorena uključujući i nedjelju a čuva građu.", "cp1250"),
    "Czech Latin-2": ("Knihovna je otevřena každý den a šťastný.", "iso8859-2"),
    "French, Latin-9, the euro alone": ("Le café coûte 2 € œufs compris.", "iso8859-15"),
    "Czech Latin-2, many marks": ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "iso8859-2"),
    "Lithuanian": ("Muziejus atidarytas nuo devintos valandos įėjimas žmonėms", "cp1257"),
    "Latvian": ("Muzejs ir atvērts katru dienu no deviņiem ieeja bērniem brīva.", "cp1257"),
    "Danish": ("Biblioteket er åbent hver dag også på søndage med æbler.", "cp1252"),
    "Hebrew": ("הספרייה פתוחה בכל יום משעה תשע", "cp1255"),
    "Ukrainian": ("Музей відкритий щодня з дев'ятої до п'ятої.", "cp1251"),
    "UTF-16, no mark, little end": ("Один два\n", "utf-16-le"),
    "UTF-16, no mark, big end": ("one two\n", "utf-16-be"),
    "UTF-32, no mark": ("one two\n", "utf-32-be"),
    "UTF-16": ("öne 图书馆", "utf-16"),
    "UTF-32": ("öne 图书馆", "utf-32"),
    "UTF-8": ("öne 图书馆", "utf-8-sig"),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_encodings(tmp_path: Path, sample: str) -> None:
    text, coding = SAMPLES[sample]
    assert read_one(tmp_path / "a.txt", text.encode(coding)) == [("a", text.strip())]
    assert read_one(tmp_path / "a.csv", text.encode(coding)) == [("a", text.strip())]


SHORT = {
    "cp1252": ["Ça a été reçu à Noël", "Größe", "coûté", "It\u2019s 5\xa0€"],
    "latin-1": ["L'école fermée", "Übergröße", "El niño"],
    "cp850": ["Größe", "Straße über"],
    "mac_roman": ["Straße über", "Übergröße"],
    "cp1255": ["שלום עולם", "ירושלים"],
    "cp1256": ["القاهرة عاصمة مصر"],
    "iso8859_6": ["المضخة تزن خمسة كيلوغرامات وهي جديدة."],
    "cp1251": ["Привет, мир", "Москва", "Мир и труд", "Цена 100 рублей"],
    "koi8_r": ["Привет, мир", "Цена сто рублей", "Склад закрыт"],
    "koi8_u": ["Ціна сто гривень"],
    "cp1254": ["Şişe", "Açık"],
    "cp949": ["서울", "회사 소개", "설치 안내", "이름,도시\n김철수,서울"],
    "gb18030": ["产品说明书", "公司简介", "名称,城市\n小王,北京", "第一章 总则"],
    "big5": ["使用說明", "名稱,城市\n小王,臺北"],
    "cp932": ["会社概要", "インストール手順", "名前,都市\n田中,東京"],
    "euc_jp": ["サーバーの設定", "価格は百円です"],
    "tis_620": ["ราคา 100 บาท"],
}


@pytest.mark.parametrize("coding", SHORT)
def test_short_text_is_read_right_or_refused(tmp_path: Path, coding: str) -> None:
    for text in SHORT[coding]:
        try:
            found = read_one(tmp_path / "a.txt", text.encode(coding))
        except RaggdError:
            assert coding in {"cp850", "mac_roman", "iso8859_6"}
        else:
            assert found == [("a", normal_text(text))]


def test_names_too_long_for_the_system(tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no corpus at xxx"):
        list(read_passages(Path("x" * 5000)))
    (tmp_path / "a.txt").write_text("Near.")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    skipped: list[Skipped] = []
    assert [p.text for p in read_passages(tmp_path, skipped=skipped)] == ["Near."]
    assert [each.reason for each in skipped] == ["cannot be opened (File name too long)"]


def test_names_with_odd_endings(tmp_path: Path) -> None:
    for name in ("a.MD ", "b.txt\t", "c.x\ty", "d. "):
        (tmp_path / name).write_text("Honey.")
    skipped: list[Skipped] = []
    found = [(p.title, p.id) for p in read_passages(tmp_path, skipped)]
    assert found == [("a", "a.MD #1"), ("b", r"b.txt\t#1")]
    assert [each.reason for each in skipped] == [
        r"no reader for .x\ty",
        "no reader for a name without ending",
    ]


def test_a_folder_without_a_readable_file_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to(tmp_path)
    with pytest.raises(RaggdError, match=r"1 file is skipped \(round: a link to a folder"):
        list_files(tmp_path)


def test_a_path_that_no_system_has(tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match=r"no corpus at .*a\\x00b \(cannot be opened"):
        list_files(tmp_path / "a\0b")


def test_a_book_in_one_line_is_no_passage(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"id": "x", "text": "honey " * 200_000})
    with pytest.raises(RaggdError, match=r"a\.jsonl, line 1: passage 'x' has 1200000 characters"):
        list(read_passages(tmp_path / "a.jsonl"))


def test_the_endings_of_many_unread_files_are_told(tmp_path: Path) -> None:
    names = ["a.adoc", "b.adoc", "c.adoc", "d.adoc", "e.adoc", "f.py", "g.py", "h.log", "i.txt"]
    for name in [*names, *(f"z{n}.x{n}" for n in range(8))]:
        (tmp_path / name).write_text("Text." if name != "i.txt" else "")
    (tmp_path / "j.txt").write_text("Text.")
    skipped: list[Skipped] = []
    list(read_passages(tmp_path, skipped=skipped))
    told = summary(skipped)
    assert told.startswith("17 files are skipped (i.txt: holds no text")
    assert "; no reader for .adoc (3), .py (2), .log" in told
    assert told.endswith("; ...)"), "some endings are not named"
    few = [each for each in skipped if each.file in {*names[:6], "i.txt"}]
    assert summary(few).endswith("; no reader for .adoc (3), .py)"), few


@pytest.mark.parametrize("ending", ["mdown", "mkd", "mdx", "qmd", "Rmd", "MARKDOWN"])
def test_markdown_by_its_other_names(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_text("# Oil\n\nTwo litres.")
    assert [(p.title, p.text) for p in read_passages(tmp_path)] == [("Oil", "Two litres.")]


def test_what_was_to_be_read_is_named_first(tmp_path: Path) -> None:
    for name in ("a.txt", "b.bin", "c.bin", "d.bin"):
        (tmp_path / name).write_text("Text.")
    (tmp_path / "z.txt").write_text("")
    skipped: list[Skipped] = []
    list(read_passages(tmp_path, skipped=skipped))
    assert summary(skipped).startswith("4 files are skipped (z.txt: holds no text")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"The end.\x1a", "The end."),
        ("Größe zwölf\x1a".encode("cp1252"), "Größe zwölf"),
        (b"One stray\0 " + b"word " * 40, "One stray " + "word " * 40),
        ("A goat \U0001f410".encode("utf-16", "surrogatepass").decode("utf-16").encode(), None),
        (b"A goat \xed\xa0\xbd\xed\xb0\x90.", "A goat \U0001f410."),  # halves of a pair
    ],
)
def test_odd_bytes_of_text(tmp_path: Path, data: bytes, text: str | None) -> None:
    assert read_one(tmp_path / "a.txt", data) == [("a", (text or data.decode()).strip())]


@pytest.mark.parametrize(
    "data",
    [
        b"a,b\0c\n1,2\n",  # as UTF-16 it would be Chinese
        b"<p>a\0b</p>\n",
        "Музей открыт с девяти до пяти. Вход для детей.".encode("mac_cyrillic"),
        "Музей открыт каждый день".encode("mac_cyrillic"),
        "Die Öffnungszeiten für Gäste".encode("mac_roman"),
        "Die Öffnungszeiten für Gäste".encode("cp850"),
        b"\x7fELF\1\1\1\0" * 20,
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RaggdError, match=r"a\.txt: it is not"):
        read_one(tmp_path / "a.txt", data)


def test_a_damaged_character_costs_that_character(tmp_path: Path) -> None:
    text = ("Größe und Maße für Gäste. " * 3).encode() + b"\xff end"
    assert read_one(tmp_path / "a.txt", text)[0][1].endswith("Gäste. \ufffd end")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("infor-\nmation", "information"),
        ("a self-\ncontained part", "a self-contained part"),
        ("out-of-the-\nway", "out-of-the-way"),
        ("user-friendly, user-\nfriendly", "user-friendly, user-friendly"),
        ("firewall and fire-\nwall", "firewall and firewall"),
        ("fire-wall and fire-\nwall", "fire-wall and fire-wall"),
        ("Jean-\nPaul", "Jean-Paul"),
        ("main\xad\ntenance", "maintenance"),
        ("pages 3-\n4", "pages 3-\n4"),
        ("eﬃ-\ncient", "efficient"),
    ],
)
def test_words_divided_at_line_ends(text: str, whole: str) -> None:
    assert joined(text) == whole


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_with_permissions_alone_is_read(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "plain.pdf"
    path.write_bytes(pdf_bytes("Open honey."))
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt("", owner_password="owner", algorithm=algorithm)
    writer.write(tmp_path / "locked.pdf")
    assert next(read_passages(tmp_path / "locked.pdf")).text == "Open honey."


def test_word(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Manual", 0)
    document.add_paragraph("Before all.")
    document.add_heading("Pump", 1)
    document.add_paragraph("Check it.", style="List Bullet")
    document.add_heading("Parts", 2)
    table = document.add_table(rows=3, cols=2)
    for row, cells in enumerate([("Part", "Price"), ("hose", "7 €"), ("valve", "9 €")]):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    document.save(str(tmp_path / "a.docx"))
    assert [(p.title, p.text) for p in read_passages(tmp_path / "a.docx")] == [
        ("Manual", "Before all."),
        ("Manual > Pump", "- Check it."),
        ("Manual > Pump > Parts", "Part | Price\nhose | 7 €\nvalve | 9 €"),
    ]


def test_merged_cells_of_word(tmp_path: Path) -> None:
    document = pytest.importorskip("docx").Document()
    table = document.add_table(rows=3, cols=2)
    for row, cells in enumerate([("Part", "Size"), ("hose", "S"), ("", "L")]):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    document.save(str(tmp_path / "a.docx"))
    assert [p.text for p in read_passages(tmp_path / "a.docx")] == [
        "Part | Size\nhose | S\nhose | L"
    ]


def test_tables_of_word_that_are_there_for_their_looks(tmp_path: Path) -> None:
    document = pytest.importorskip("docx").Document()
    code = document.add_table(rows=1, cols=1).cell(0, 0)
    code.text = "a = 1"
    code.add_paragraph("b = 2")
    left, right = document.add_table(rows=1, cols=2)._cells
    left.paragraphs[0].style = document.styles["Heading 1"]
    left.paragraphs[0].text = "Oil"
    left.add_paragraph("Seven litres.")
    right.text = "Use gloves."
    for number, cell in enumerate(document.add_table(rows=2, cols=2)._cells):
        cell.text = f"cell{number}"
        if number < 2:  # a header that looks like a heading
            cell.paragraphs[0].style = document.styles["Heading 2"]
    document.save(str(tmp_path / "a.docx"))
    assert [(p.title, p.text) for p in read_passages(tmp_path / "a.docx")] == [
        ("a", "a = 1\n\nb = 2"),
        ("Oil", "Seven litres.\n\nUse gloves.\n\ncell0 | cell1\ncell2 | cell3"),
    ]


@given(st.lists(st.sampled_from(["sdt", "customXml", "smartTag"]), max_size=3), st.integers(0, 2))
def test_no_cell_of_word_is_lost_in_what_surrounds_it(wrappers: list[str], at: int) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    table = document.add_table(rows=2, cols=2)
    for number, cell in enumerate(table._cells):
        cell.text = f"cell{number}"
    row = table._tbl.tr_lst[1]
    inner = [row, *row.tc_lst][at]
    for tag in wrappers:
        word = inner.nsmap["w"]
        outer = docx.oxml.parse_xml(f'<w:{tag} xmlns:w="{word}"/>')
        inner.addprevious(outer)
        outer.append(inner)
        inner = outer
    with tempfile.TemporaryDirectory() as folder:
        document.save(str(Path(folder, "a.docx")))
        (found,) = read_passages(Path(folder, "a.docx"))
    assert found.text == "cell0 | cell1\ncell2 | cell3"


def test_readings_tabs_fractions_and_wide_cells_of_word(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    table = document.add_table(rows=2, cols=3)
    for number, cell in enumerate(table._cells):
        cell.text = "" if number == 1 else str(number)
    table.cell(0, 0).merge(table.cell(0, 1))
    word = f'xmlns:w="{table._tbl.nsmap["w"]}"'
    for inner in [
        "<w:ruby><w:rt><w:r><w:t>と</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>図</w:t></w:r>"
        "</w:rubyBase></w:ruby>",
        "<w:t>left</w:t><w:ptab/><w:t>right</w:t>",
        f"<m:f {word.replace(':w', ':m')}><m:num><m:t>1</m:t></m:num>"
        "<m:den><m:t>2</m:t></m:den></m:f>",
    ]:
        document.element.body[-1].addprevious(
            docx.oxml.parse_xml(f"<w:p {word}><w:r>{inner}</w:r></w:p>")
        )
    document.save(str(tmp_path / "a.docx"))
    (found,) = read_passages(tmp_path / "a.docx")
    assert found.text == "0 |  | 2\n3 | 4 | 5\n\n図\n\nleft\tright\n\n1/2"


def test_word_headings_of_own_styles_revisions_and_notes(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    document.styles.add_style("Ours", 1).base_style = document.styles["Heading 1"]
    document.add_paragraph("Pump", style="Ours")
    ranked = document.add_paragraph("Oil")
    ranked._p.get_or_add_pPr().append(docx.oxml.parse_xml(f'<w:outlineLvl {word} w:val="1"/>'))
    moved = document.add_paragraph("Two litres.")
    for tag, text in [("moveFrom", " Gone."), ("ins", " New.")]:
        run = (
            f'<w:{tag} {word} w:id="1"><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:{tag}>'
        )
        moved._p.append(docx.oxml.parse_xml(run))
    notes = f"<w:footnotes {word}><w:footnote><w:p><w:r><w:t>Cold oil.</w:t></w:r></w:p>"
    uri, kind = docx.opc.packuri.PackURI("/word/footnotes.xml"), "application/xml"
    part = docx.opc.part.Part(uri, kind, f"{notes}</w:footnote></w:footnotes>".encode())
    document.part.relate_to(part, "footnotes")
    document.save(str(tmp_path / "a.docx"))
    assert [(p.title, p.text) for p in read_passages(tmp_path / "a.docx")] == [
        ("Pump > Oil", "Two litres. New.\n\nCold oil."),
    ]


def test_what_stands_over_and_under_the_pages_of_word(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    document = docx.Document()
    section = document.sections[0]
    section.different_first_page_header_footer = True
    for header in (section.header, section.first_page_header):
        header.paragraphs[0].text = "Drawing 47-11"
    table = section.header.add_table(1, 2, docx.shared.Inches(5))
    table.cell(0, 0).text, table.cell(0, 1).text = "Version", "3"
    section.footer.add_paragraph()
    said = ("Page ", "For our own use only, ")
    for words, paragraph in zip(said, section.footer.paragraphs, strict=True):
        paragraph.add_run(words)
        field = f'<w:fldSimple {word} w:instr="PAGE"><w:r><w:t>1</w:t></w:r></w:fldSimple>'
        paragraph._p.append(docx.oxml.parse_xml(field))
    document.add_heading("Oil", 1)
    document.add_paragraph("Two litres.")
    document.save(str(tmp_path / "a.docx"))
    assert [(p.title, p.text) for p in read_passages(tmp_path / "a.docx")] == [
        ("a", "Drawing 47-11\n\nVersion | 3\n\nFor our own use only, 1"),
        ("Oil", "Two litres."),
    ]


def scanned_between(path: Path, pages: list[str], width: int = 1) -> None:
    """Write a PDF; a page that ends in ``*`` has a picture, an empty one shows nothing."""
    writer = pypdf.PdfWriter()
    for text in pages:
        writer.append(io.BytesIO(pdf_bytes(text.replace("*", ""))))
        if text.endswith("*"):
            name, number = pypdf.generic.NameObject, pypdf.generic.NumberObject
            picture = pypdf.generic.StreamObject()
            picture.update({name("/Subtype"): name("/Image")})
            picture.update({name("/Width"): number(width), name("/Height"): number(1000)})
            drawn = pypdf.generic.DictionaryObject({name("/P"): writer._add_object(picture)})
            writer.pages[-1]["/Resources"][name("/XObject")] = drawn
    writer.write(path)


@pytest.mark.parametrize("values", [{}, {"Serial number": "K90-1234", "Place": "Lübeck"}])
def test_what_is_filled_into_a_form_is_read(tmp_path: Path, values: dict[str, str]) -> None:
    made = pypdf.generic
    writer = pypdf.PdfWriter(io.BytesIO(pdf_bytes("Form 7")))
    fields = made.ArrayObject()
    for name, value in [*values.items(), ("Paid", "/Yes"), ("Left empty", "")]:
        named = {"FT": "Tx", "Type": "Annot", "Subtype": "Widget"}
        field = {f"/{key}": made.NameObject(f"/{kind}") for key, kind in named.items()}
        field |= {"/T": made.TextStringObject(name), "/V": made.TextStringObject(value)}
        entries = {made.NameObject(key): held for key, held in field.items()}
        fields.append(writer._add_object(made.DictionaryObject(entries)))
    form = made.DictionaryObject({made.NameObject("/Fields"): fields})
    writer._root_object[made.NameObject("/AcroForm")] = form
    writer.write(tmp_path / "a.pdf")
    (found,) = read_passages(tmp_path / "a.pdf")
    told = "\n".join(f"{name}: {value}" for name, value in values.items())
    assert found.text == "Form 7" + (f"\n\n{told}" if told else "")


@pytest.mark.parametrize("printed", ["Form 7", ""])
def test_what_was_typed_on_a_page_is_read(tmp_path: Path, printed: str) -> None:
    made = pytest.importorskip("pypdf.annotations")
    writer = pypdf.PdfWriter(io.BytesIO(pdf_bytes(printed)))
    seen, hidden, closed = (
        made.FreeText(text=text, rect=(1, 1, 9, 9)) for text in ("7 bar", "8 bar", "9 bar")
    )
    hidden[pypdf.generic.NameObject("/F")] = pypdf.generic.NumberObject(2)
    closed[pypdf.generic.NameObject("/Subtype")] = pypdf.generic.NameObject("/Text")
    for note in (seen, hidden, closed):
        writer.add_annotation(0, note)
    writer.write(tmp_path / "a.pdf")
    (found,) = read_passages(tmp_path / "a.pdf")
    assert found.text == "\n\n".join(filter(None, (printed, "7 bar")))


def test_pages_without_text_are_named(tmp_path: Path) -> None:
    scanned_between(tmp_path / "a.pdf", ["One.", "", "*", "*", "Two.", "*"])
    scanned_between(tmp_path / "b.pdf", ["Three.", ""])
    (tmp_path / "c.txt").write_text("")
    skipped: list[Skipped] = []
    texts = [p.text for p in read_passages(tmp_path, skipped)]
    assert texts == ["One.\n\nTwo.", "Three."]
    reason = "pages 3-4, 6 of 6 hold no text (scanned pages need text recognition first)"
    assert skipped[0] == Skipped("a.pdf", reason, partly=True)
    assert [each.file for each in skipped[1:]] == ["c.txt"]
    assert summary(skipped) == (
        "1 file is skipped (c.txt: holds no text: fill or remove it.), "
        f"1 file is read in part (a.pdf: {reason})"
    )


def test_scanned_pages_with_a_stamp_are_named(tmp_path: Path) -> None:
    pages = ["One two three.", "Page 3 of 9*", "COPY*", "What the picture shows.*", "Page 6", "7"]
    for width, told in ((800, ["pages 2-3 of 6 hold a picture and next to no text"]), (100, [])):
        scanned_between(tmp_path / "a.pdf", pages, width)
        skipped: list[Skipped] = []
        (passage,) = read_passages(tmp_path, skipped)
        assert all(page.rstrip("*") in passage.text for page in pages)
        assert [each.reason.partition(" (")[0] for each in skipped] == told
        assert all(each.partly for each in skipped)


def test_a_damaged_page_stops_no_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned_between(tmp_path / "a.pdf", ["One.", "Bad.", "Two."])
    extract = pypdf.PageObject.extract_text

    def broken(page: pypdf.PageObject) -> str:
        text = extract(page)
        return text if "Bad" not in text else str(1 // 0)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", broken)
    skipped: list[Skipped] = []
    assert [p.text for p in read_passages(tmp_path, skipped)] == ["One.\n\nTwo."]
    assert skipped == [Skipped("a.pdf", "page 2 of 3 holds what cannot be read", partly=True)]
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: 1 // 0)
    with pytest.raises(RaggdError, match=r"damaged or encrypted \(no page can be read\)"):
        list(read_passages(tmp_path / "a.pdf"))


def test_html(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>Shop</title><style>p{}</style></head><body>
    <nav><a href=x>Menu</a></nav><h1>Opening <em>hours</em></h1><p>Nine
    to <b>five</b>.<br>Daily.</p><!-- no --><ul><li>Mon<li>Tue</ul>
    <h2>Code</h2><pre>a = 1
    b = 2</pre><table><tr><th>Day<th>Hour<tr><td>Sun<td>10</table><script>x</script>tail"""
    assert read_one(tmp_path / "a.html", page) == [
        ("Shop > Opening hours", "Nine to five.\nDaily.\n\n- Mon\n\n- Tue"),
        ("Shop > Opening hours > Code", "a = 1\n    b = 2\n\nDay | Hour\nSun | 10\n\ntail"),
    ]
    declared = '<meta charset="windows-1251"><p>Музей'.encode("cp1251")
    assert read_one(tmp_path / "b.htm", declared) == [("b", "Музей")]
    cells = (
        "<h1>K90<svg><title>Link</title></svg></h1><table><tr><td><img alt=yes><script>x</script>"
    )
    assert read_one(tmp_path / "e.html", cells) == [("K90", "yes")]
    glued = "<h1>A<br>b</h1><table><tr><td>H<sub>2</sub>O<br>c<td><p>d</p><!--x--><p>e</table>"
    assert read_one(tmp_path / "d.html", glued) == [("A b", "H2O c | d e")]
    xml = "<?xml version='1.0' encoding='koi8-r'?><html><body><p>Музей <img alt='план'/>"
    assert read_one(tmp_path / "c.xhtml", xml.encode("koi8-r")) == [("c", "Музей план")]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<ol start=3><li>stop<li><p>turn</p><ol><li>left</ol></ol>", "3. stop|4. turn|1. left"),
        ("<ol><li>a<li value=7>b<li>c</ol><ul><li><p>d</ul>", "1. a|7. b|8. c|- d"),
        ("<ol><li><pre>make</pre>it<li></ol>end", "make|it|end"),
        ("<dl><dt>Oil<dd><p>7 l</p><p>clean</p></dl>", "Oil|: 7 l|clean"),
        ("<p>It costs <del>7</del> <ins>9</ins>: <button>Buy</button> it", "It costs 7 9: Buy it"),
        ("<p>where <math><mi>x</mi><mo>=</mo><mn>2</mn></math> holds", "where x=2 holds"),
        ('<dl><dt>stop()<a href="#stop">¶</a><dd>ends it</dl>', "stop()|: ends it"),
        ('<card title="Speed limit">50 km/h</card><p title=x>y', "Speed limit\n50 km/h|y"),
        ('<x-tab label="Linux"><p>apt</p></x-tab>', "Linux|apt"),
        (
            "where <math><msub><mi>x</mi><mn>1</mn></msub><mo>=</mo><mfrac> <mn>1</mn> <mn>2</mn>"
            "</mfrac></math><table><td><math><msup><mi>c</mi><mn>2</mn></msup></math></table>",
            "where x_1= 1/2|c^2",
        ),
        ("<p>Click <svg><title>x</title></svg> Save <script>x</script>now", "Click Save now"),
        (
            "<p>so <span><math><mi>E</mi><annotation>E</annotation></math>"
            "<span aria-hidden=true>E</span></span> costs <a aria-label='7 euros'>"
            "<b aria-hidden=true>7 €</b></a><div aria-hidden=true>behind a tab",
            "so E costs 7 €|behind a tab",
        ),
    ],
)
def test_what_stands_before_an_entry_and_within_a_sentence(
    tmp_path: Path, page: str, expected: str
) -> None:
    ((title, text),) = read_one(tmp_path / "a.html", page)
    assert (title, text.split("\n\n")) == ("a", expected.split("|"))


@pytest.mark.parametrize("mark", ["¶", "#", "\U0001f517", "\u200b"])
def test_a_link_to_its_own_heading_is_none_of_it(tmp_path: Path, mark: str) -> None:
    page = f'<h1>Oil in C#<a class="headerlink" href="#oil">{mark}</a></h1>text'
    assert read_one(tmp_path / "a.html", page) == [("Oil in C#", "text")]


def test_lists_in_the_cells_of_a_table_with_headers(tmp_path: Path) -> None:
    table = "<table><tr><{0}>Part<{0}>Colours<tr><td>hose<td><ul><li>red<li>blue</ul></table>"
    headed = read_one(tmp_path / "a.html", table.format("th"))
    assert headed == [("a", "Part | Colours\nhose | red blue")]
    ((_, laid_out),) = read_one(tmp_path / "b.html", table.format("td"))
    assert "- red\n\n- blue" in laid_out


def test_cells_over_several_rows_and_readings_over_words(tmp_path: Path) -> None:
    page = """<table><tr><th>Part<th>Size<th>Price<tr><td rowspan=2>hose<td>S<td rowspan="3">7
    <tr><td>L<tr><td>valve<td>M</table>"""
    rows = "Part | Size | Price\nhose | S | 7\nhose | L | 7\nvalve | M | 7"
    assert read_one(tmp_path / "a.html", page) == [("a", rows)]
    wide = """<table><tr><th rowspan=2>Part<th colspan=2>Weight<th>Price<tr><th>kg<th>lb<th>in $
    <tr><td>hose<td>3<td>7<td>9<tr><td colspan="99999">all<td rowspan=2 colspan=1000>x<td>y
    </table>"""
    rows = "Part | Weight |  | Price\nPart | kg | lb | in $\nhose | 3 | 7 | 9\nall | x |"
    ((_, text),) = read_one(tmp_path / "d.html", wide)
    assert text.startswith(rows)
    assert len(text) < 200
    bomb = "<table>" + "<tr><td rowspan=9999>a<td>b" * 500
    assert sum(len(text) for _, text in read_one(tmp_path / "e.html", bomb)) < 10 * len(bomb)
    nested = "<table><tr><td>a<table><tr><td rowspan=x>b<td>c</table></table>"
    assert read_one(tmp_path / "b.html", nested) == [("b", "a\n\nb | c")]
    ruby = "<p><ruby>図<rp>(</rp><rt>と</rt>書<rt>しょ</rt></ruby>館</p>"
    assert read_one(tmp_path / "c.html", f"<h1>{ruby[3:-4]}</h1>{ruby}") == [("図書館", "図書館")]


@pytest.mark.parametrize(
    ("head", "shown"),
    [
        ("<tr><th>Part<th>Price", "Part | Price"),
        ("<thead><tr><td>Part<td>Price</thead>", "Part | Price"),
        ("<tr><td><th>2019<th>2020", " | 2019 | 2020"),
        ("<tr><th rowspan=2>Part<th colspan=2>Price<tr><th>EU<th>US",
         "Part | Price\nPart | EU | US"),
    ],
)  # fmt: skip
def test_the_header_of_a_table_stands_over_each_piece(
    tmp_path: Path, head: str, shown: str
) -> None:
    rows = "".join(f"<tr><th>part {n}<td>{n} long words<td>{n}" for n in range(60))
    found = read_one(tmp_path / "a.html", f"<table>{head}{rows}</table>")
    assert len(found) > 2
    assert all(text.startswith(f"{shown}\npart") for _, text in found)
    assert "\n".join(text for _, text in found).count("part") == 60


def test_what_stands_behind_too_many_nested_elements_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>before" + "<font>" * 3000 + "inside</font><p>behind")
    (tmp_path / "b.html").write_text("<p>before" + "<font>" * 1000 + "inside</font><p>behind")
    skipped: list[Skipped] = []
    found = {p.id: p.text for p in read_passages(tmp_path, skipped)}
    whole, read = found["b.html#1"], found["a.html#1"]
    assert whole == "beforeinside\n\nbehind"
    cut = read == "before"
    assert cut or read == whole, "the parser of lxml 5 knows no such bound"
    assert [(each.file, each.partly) for each in skipped] == [("a.html", True)] * cut


def test_sections_of_xhtml_are_text(tmp_path: Path) -> None:
    page = "<p>one <![CDATA[a < b & <i>]]> two<![CDATA[]]>"
    page += "<script>//<![CDATA[\nrun()\n//]]></script>. <![CDATA[three"
    assert read_one(tmp_path / "a.xhtml", page) == [("a", "one a < b & <i> two. <![CDATA[three")]


@pytest.mark.parametrize(
    ("declared", "coding"),
    [
        ("iso-8859-1", "cp1252"),
        ("us-ascii", "cp1252"),
        ("undefined", "utf-8"),
        ("idna", "utf-8"),
        ("none", "utf-8"),
        ("hex", "cp1252"),
        ("utf-16", "utf-8"),
        ("utf-16", "cp1252"),
        ("windows-1252", "utf-8"),
    ],
)
def test_a_page_that_declares_another_encoding(tmp_path: Path, declared: str, coding: str) -> None:
    text = "It\u2019s 5 \u20ac \u2013 the caf\xe9\u2019s price."
    page = f'<meta charset="{declared}"><p>{text}'.encode(coding)
    assert read_one(tmp_path / "a.html", page) == [("a", text)]
    plain = f'<meta charset="{declared}"><p>Plain'.encode()
    assert read_one(tmp_path / "b.html", plain) == [("b", "Plain")]


@pytest.mark.parametrize(
    ("kind", "mark"), [("html", "<h1>A</h1>x<h2>B</h2>"), ("md", "# A\n\nx\n\n## B\n\n")]
)
def test_the_title_of_a_picture_is_none_of_the_page(tmp_path: Path, kind: str, mark: str) -> None:
    picture = "<div><svg><title>Icon</title></svg>here</div>\n"
    found = read_one(tmp_path / f"a.{kind}", f"{mark}{picture}")
    assert found == [("A", "x"), ("A > B", "here")]


CELLS = st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["cells", "worksheets", "cell_type", "source", "input", "outputs", "data", "text",
             "text/plain", "level", "image/png"]
        ) | st.text(max_size=3),
        inner | st.sampled_from(["code", "markdown", "raw"]), max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.fuzz
@given(CELLS)
def test_any_notebook_is_passages_or_one_error(book: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder, "a.ipynb"), book)
        try:
            found = list(read_passages(Path(folder, "a.ipynb")))
        except RaggdError:
            return
    assert all(p.text.strip() for p in found)


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "raw", "source": ["---\n", "title: Pumps\n", "---"]},
        {"cell_type": "markdown", "source": ["# Oil\n", "\n", "<b>Two</b> ![](b.png)litres."]},
        {
            "cell_type": "code",
            "source": ["a = 1\n", "a"],
            "outputs": [
                {"output_type": "stream", "text": ["10%\r100%\r\n", "\x1b[31mdone\x1b[0m\n"]},
                {"data": {"text/plain": ["   n\n", "0  1"], "text/html": ["<table>"]}},
                {"data": {"text/plain": ["<Figure>"], "image/png": "iVBO"}},
                {"data": {"text/plain": ["<M object>"], "text/markdown": ["# Sum\n", "7 *l*"]}},
                {"data": {"text/html": "<h2>All</h2><p>8&nbsp;l</p>"}},
                {"output_type": "error", "ename": "E", "traceback": ["t"]},
            ],
        },
        {"cell_type": "code", "source": [], "outputs": []},
        {"cell_type": "markdown", "source": "## Filter\nEach month."},
    ]
    book = write_lines(tmp_path / "a.ipynb", {"cells": cells, "nbformat": 4})
    assert [(p.title, p.text) for p in read_passages(book)] == [
        (
            "Pumps > Oil",
            "Two litres.\n\n```\na = 1\na\n```\n\n100%\ndone\n\n   n\n0  1"
            "\n\nSum\n\n7 *l*\n\nAll\n\n8 l",
        ),
        ("Pumps > Oil > Filter", "Each month."),
    ]
    heading = {"cell_type": "heading", "level": 2, "source": ["Oil"]}
    code = {"cell_type": "code", "input": ["a"], "outputs": [{"text": ["7"]}]}
    old = write_lines(tmp_path / "b.ipynb", {"worksheets": [{"cells": [heading, code]}]})
    assert [(p.title, p.text) for p in read_passages(old)] == [("Oil", "```\na\n```\n\n7")]


def test_csv(tmp_path: Path) -> None:
    text = 'name;price\n"hose; green";7\nvalve;9;late\n'
    assert read_one(tmp_path / "a.csv", text) == [
        ("a", "name: hose; green; price: 7\nname: valve; price: 9; late")
    ]
    assert read_one(tmp_path / "b.tsv", "1\t2\n3\t4\n") == [("b", "1; 2\n3; 4")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sep=;\nname;price\nhose;7,5\n", "name: hose; price: 7,5"),
        ("Prices of May\n\nname,price\nhose,7\n", "Prices of May\n\nname: hose; price: 7"),
        ("Name, in full;price\nhose, green;7\n", "Name, in full: hose, green; price: 7"),
        ('name,size\nhose,"3 inch\nvalve,2\n', 'name: hose; size: "3 inch\nname: valve; size: 2'),
        ('name,size\n"hose ""A""",3\n', 'name: hose "A"; size: 3'),
        (r"name,size" "\n" r'"hose \"A\", red",3' "\n", 'name: hose "A", red; size: 3'),
        ('name, size\n"hose", "3, long"\n', "name: hose; size: 3, long"),
        ('name, alias\nBob, "Big" B\n', 'name: Bob; alias: "Big" B'),
        (",name\n0,hose\n1,valve\n", "0; name: hose\n1; name: valve"),  # pandas' index
        ("part,2019,2020\nhose,7,1950\n", "part: hose; 2019: 7; 2020: 1950"),
        ("hose,2019\nvalve,2020\n", "hose; 2019\nvalve; 2020"),
        ("hose,7.5\nvalve,8\n", "hose; 7.5\nvalve; 8"),
        ("name,,price\nhose,,7\n", "name: hose; price: 7"),  # a column that only makes room
        (
            "name,size\nhose,3\n\ufeffname,size\nvalve,2\n",
            "name: hose; size: 3\nname: valve; size: 2",
        ),
    ],
)
def test_tables_as_programs_export_them(tmp_path: Path, text: str, expected: str) -> None:
    assert read_one(tmp_path / "a.csv", text) == [("a", expected)]


@pytest.mark.parametrize("header", ["name,text,price", "1,2,3"])
def test_pieces_of_a_long_cell_say_which_row_it_is_of(tmp_path: Path, header: str) -> None:
    long = " ".join(f"word{n}" for n in range(250))
    found = read_one(tmp_path / "a.csv", f"{header}\nhose,short,7\nvalve,{long},9\ntap,end,3\n")
    pieces = [text for _, text in found if "word" in text]
    assert len(pieces) == 3
    assert all("valve" in piece and "9" in piece.split("\n")[0] for piece in pieces)
    assert [w for piece in pieces for w in piece.split() if w.startswith("word")] == long.split()
    assert sum("hose" in text for _, text in found) == sum("tap" in text for _, text in found) == 1


@given(st.sampled_from("éあ각ё"), st.sampled_from(["a.md", "a.txt", "a/b.csv"]))
def test_what_names_a_document_is_in_the_normal_form(letter: str, name: str) -> None:
    apart = unicodedata.normalize("NFD", letter * 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{apart}{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_text("Hello there.")
        (found,) = read_passages(Path(folder))
    assert found.source == normal_text(found.source)
    assert found.title == normal_text(found.title)
    assert found.id == f"{apart}{name}#1"  # two files whose names differ in that alone stay two


def test_links_pipes_and_odd_names(tmp_path: Path) -> None:
    corpus, beside = tmp_path / "corpus", tmp_path / "beside"
    (corpus / "deep").mkdir(parents=True)
    beside.mkdir()
    (beside / "far.txt").write_text("Far away.")
    (corpus / "deep" / "near.txt").write_text("Near by.")
    (corpus / "a link").symlink_to(beside)
    (corpus / "again").symlink_to(corpus / "deep")
    (corpus / "deep" / "loop").symlink_to(corpus)
    (corpus / "broken.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "one.txt").symlink_to(corpus / "two.txt")
    (corpus / "two.txt").symlink_to(corpus / "one.txt")
    for name in (b"caf\xe9.txt", rb"caf\xe9.txt", b"new\nline.txt", "ü.txt".encode()):
        Path(os.fsdecode(os.fsencode(corpus) + b"/" + name)).write_text("Odd name.")
    skipped: list[Skipped] = []
    passages = list(read_passages(corpus, skipped=skipped))
    assert [p.source for p in passages] == [
        "a link/far.txt",
        "caf\\\\xe9.txt",
        "caf\\xe9.txt",
        "deep/near.txt",
        "new\\nline.txt",
        "ü.txt",
    ]
    assert {each.file: each.reason for each in skipped} == {
        "again": "a link to a folder that is read already",
        "deep/loop": "a link to a folder that is read already",
        "broken.txt": "a broken link",
        "one.txt": "a broken link",
        "two.txt": "a broken link",
        "pipe.txt": "not a regular file",
    }
    assert "6 files are skipped" in summary(skipped)
    str([p.id for p in passages]).encode()


def test_files_are_read_alone_and_the_same(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("# One\n\nTwo. " * 100)
    files = list_files(tmp_path)
    before = [list(stream_file(file)) for file in files]
    (tmp_path / "a.txt").unlink()
    assert [list(stream_file(file)) for file in list_files(tmp_path)] == before[1:]
    assert files[0].size == 1200
    assert files[0].mtime_ns > 0


WORDS = st.text("ab .!?'\"\n\t#*`|-=[]()<>&\\_éß图书ไท\u0301\xad", max_size=400)


def _kept(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


@pytest.mark.fuzz
@given(WORDS, st.integers(1, 20))
def test_pieces_hold_all_text_and_are_bounded(text: str, words: int) -> None:
    pieces = split_words(text, words)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() and len(piece) <= 20 * words for piece in pieces)


@pytest.mark.fuzz
@given(WORDS, st.sampled_from([".txt", ".rst", ".csv"]))
def test_no_text_is_lost_between_file_and_passages(text: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{kind}")
        path.write_text(text, encoding="utf-8")
        try:
            passages = list(read_passages(path))
        except RaggdError:
            assert not _kept(normal_text(text)) or kind == ".csv"
            return
    held = " ".join(["".join(p.text for p in passages), *(p.title for p in passages)])
    for word in re.findall(r"[ab]+", normal_text(text)):
        assert word in held, (kind, text, passages)
    assert all(len(p.text) < 2500 and len(p.title) < 2000 for p in passages)


@pytest.mark.fuzz
@given(st.lists(st.sampled_from([
    "# top\n", "## sub\n", "###### deep\n", "text here\n", "\n", "- item\n", "```\n", "    code\n",
    "| a | b |\n|---|---|\n| c | d |\n", "> quote\n", "title\n===\n", "<div>html</div>\n", "---\n",
    "[ref]: link\n", "1. one\n", "<quote@x.org>\n", "&lt;entity&gt;\n", "`span` *x*\n",
]), max_size=25))  # fmt: skip
def test_no_word_of_markdown_is_lost(lines: list[str]) -> None:
    numbered = [
        re.sub(r"[a-z]{3,}", lambda m, n=n: f"{m[0]}{n}", line) for n, line in enumerate(lines)
    ]
    text = "".join(numbered)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.md")
        path.write_text(text)
        try:
            held = " ".join(f"{p.title} {p.text}" for p in read_passages(path))
        except RaggdError:
            held = ""
    wanted = set(
        re.findall(
            r"(?:top|sub|deep|text|here|item|code|quote|title|html|ref|link|one|span)\d+", text
        )
    )
    assert wanted <= set(re.findall(r"\w+", held))


TAGS = re.findall(
    r"\w+",
    "p div b ul li table tr td th h1 h3 pre br hr caption dl dt dd html body a button option span "
    "section form thead tbody code blockquote label font center",
)


@pytest.mark.fuzz
@given(
    st.lists(
        st.sampled_from(
            ["W", "<img alt=W>", "<td rowspan=2>", "<td colspan=3>", "<!-- c -->", "\n"]
        )
        | st.sampled_from(TAGS).map("<{}>".format)
        | st.sampled_from(TAGS).map("</{}>".format),
        max_size=14,
    )
)
@example(["<table>", "<td>", "W", "<td>", "<img alt=W>"])
@example(["<h1>", "<img alt=W>"])
@example(["W", "</html>", "<p>", "W", "</body>", "</html>", "W"])
@example(["<table>", "W", "<tr>", "<td>", "W"])
@example(["<title>t</title>", "<td>", "W"])
def test_no_word_of_a_page_is_lost(parts: list[str]) -> None:
    numbered = [part.replace("W", f"word{n}w") for n, part in enumerate(parts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.html")
        path.write_text("".join(numbered))
        try:
            held = " ".join(f"{p.title} {p.text}" for p in read_passages(path))
        except RaggdError:
            held = ""
    assert set(re.findall(r"word\d+w", "".join(numbered))) <= set(re.findall(r"word\d+w", held))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != ".jsonl.gz"])
def test_any_bytes_are_passages_or_one_error(kind: str) -> None:
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"a{kind}")
            path.write_bytes(data)
            try:
                passages = list(read_passages(path))
            except RaggdError as error:
                str(error).encode()
                return
        assert passages
        for passage in passages:
            assert passage.text.strip()
            f"{passage.id}{passage.title}{passage.text}{passage.source}".encode()

    check()


def _whole(folder: Path, kind: str) -> bytes:
    path = folder / f"a.{kind}"
    if kind == "pdf":
        return pdf_bytes("Bears eat honey.")
    if kind == "html":
        return b"<title>A</title><h1>B</h1><table><tr><th>c<td>d</table><p>e &amp; f<br>g"
    document = pytest.importorskip("docx").Document()
    document.add_heading("A", 1)
    document.add_table(1, 2).cell(0, 0).text = "b"
    document.save(str(path))
    return path.read_bytes()


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["pdf", "docx", "html"])
def test_damaged_documents_are_passages_or_one_error(tmp_path: Path, kind: str) -> None:
    whole = _whole(tmp_path, kind)

    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=3)), max_size=5),
        st.integers(0, len(whole)),
    )
    def check(changes: list[tuple[int, bytes]], end: int) -> None:
        data = bytearray(whole)
        for at, other in changes:
            data[at : at + len(other)] = other
        path = tmp_path / f"b.{kind}"
        path.write_bytes(data[: end or None])
        try:
            passages = list(read_passages(path))
        except RaggdError as error:
            str(error).encode()
            return
        assert all(passage.text.strip() for passage in passages)

    check()


@pytest.mark.parametrize(
    ("kind", "repeat"),
    [
        ("md", "[" ), ("md", "- "), ("md", "<!--"), ("md", "**a"), ("md", "|a"), ("md", "`a"),
        ("md", "> "), ("md", "\n "), ("md", "![a]("), ("md", "&a"), ("txt", "A. "), ("txt", ".'"),
        ("txt", "a"), ("txt", "图"), ("txt", " "), ("html", "<div>"), ("html", "<!--"),
        ("rst", "=\n"), ("csv", '"'), ("md", "<h1>"), ("md", "\n<p>\n<script>"), ("csv", ",a;"),
        ("md", "- ```\n"), ("md", "`<!--"), ("md", "> ~~~\n"), ("md", "<table><tr>"),
        ("md", "<tr><td>"), ("txt", "|a|\n"), ("txt", "== ==\n"), ("txt", "data:a/"),
        ("txt", "data:;a"), ("csv", '"\\"'), ("rst", "|"),
        ("rst", ".. list-table::\n\n"), ("rst", ".. csv-table:: t\n   a"), ("csv", ",b\0\nc"),
    ],
)  # fmt: skip
def test_reading_is_linear(tmp_path: Path, kind: str, repeat: str) -> None:
    def steps(count: int) -> int:
        path = tmp_path / f"a.{kind}"
        parts = (part * count for part in repeat.split("\0"))  # several, one after the other
        path.write_text("# T\n\nx" + "\n".join(parts) + "y\n")
        calls = 0

        def count_calls(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_calls)  # calls, not seconds: no busy machine changes them
        try:
            list(read_passages(path))
        except RaggdError:
            pass
        finally:
            sys.setprofile(None)
        return calls

    steps(2000)  # the first reading imports what reads this kind, and calls for that
    assert steps(2000) < 2.6 * steps(1000) + 2000
