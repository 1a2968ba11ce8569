"""Reading passages: every kind of file, every kind of damage."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data.documents import corpus_hash, read_passages, split_words
from raggd.records import Passage, RaggdError

pypdf = pytest.importorskip("pypdf")

SENTENCES = (
    "The cat sat on the mat. It was warm! Was it? Yes, Dr. Brown said so. He left at 5.30 p.m."
)


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


def test_a_short_rest_joins_the_piece_before() -> None:
    text = "One two three four five six seven eight. Nine."
    assert split_words(text, words=8) == [text]
    assert len(split_words(text, words=4)) == 3


@given(st.text(alphabet="ab A.!?\n\"'", max_size=300), st.integers(1, 20))
def test_splitting_loses_nothing(text: str, words: int) -> None:
    pieces = split_words(text, words)
    assert " ".join(pieces).split() == text.split()
    assert all(piece and len(piece.split()) <= 1.25 * words for piece in pieces)


def test_no_room_for_words_is_an_error() -> None:
    with pytest.raises(RaggdError, match="at least 1"):
        split_words("a", 0)


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
        ('{"id": "a", "text": "again"}', "id 'a' occurs twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "text": "good"}\n' + line + "\n")
    with pytest.raises(RaggdError, match=message):
        list(read_passages(path))


def test_markdown_titles_are_headings(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text(
        "Before.\n\n# Manual #\nIntro.\n## Use\nRun it.\n```\n# no heading\n```\n## Empty\n",
        encoding="utf-8",
    )
    found = [(p.id, p.title, p.text) for p in read_passages(path)]
    assert found == [
        ("guide.md#1", "guide", "Before."),
        ("guide.md#2", "Manual", "Intro."),
        ("guide.md#3", "Manual: Use", "Run it. ``` # no heading ```"),
    ]


def test_a_folder_is_read_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / ".y.txt").write_text("hidden")
    (tmp_path / "z" / "a.txt").write_text("﻿" + "Word here. " * 120, encoding="utf-8")
    (tmp_path / "b.txt").write_text("First file.")
    (tmp_path / "page.PDF").write_bytes(pdf_bytes("Bears eat honey."))
    (tmp_path / "notes.docx").write_bytes(b"\x00")
    passages = list(read_passages(tmp_path))
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
        ("a.txt", b"caf\xe9", "not UTF-8.*byte 3 is 0xe9"),
        ("a.txt", b" \n", "holds no text"),
        ("a.md", b"# Only a heading\n", "holds no text"),
        ("a.jsonl", b"\n", "holds no passage"),
        ("a.pdf", b"%PDF-1.4 damaged", "damaged or encrypted"),
        ("a.pdf", pdf_bytes(""), "scanned"),
        ("a.docx", b"x", "cannot read a.docx: no reader for .docx"),
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


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    plain, locked = tmp_path / "plain.pdf", tmp_path / "locked.pdf"
    plain.write_bytes(pdf_bytes("Secret honey."))
    assert next(read_passages(plain)).text == "Secret honey."
    writer = pypdf.PdfWriter(clone_from=plain)
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(locked)
    with pytest.raises(RaggdError, match=r"locked\.pdf is encrypted"):
        list(read_passages(locked))


def test_without_the_extra_a_pdf_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_bytes("Honey."))
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(RaggdError, match=r"raggd\[pdf\]"):
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
