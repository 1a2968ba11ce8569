r"""Passages from files: JSON Lines, text, Markdown, PDF, or a folder of them; streamed.

JSON Lines hold one ready passage per line: ``{"id", "contents": "Title\ntext"}``, FlashRAG's
form, or ``{"id", "title", "text"}``. The other kinds are split to about 100 words at sentence ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raggd.files import read_json_lines
from raggd.records import Passage, RaggdError

PASSAGE_WORDS = 100
"""Words of a passage, about: the size of the Wikipedia passages that the paper retrieves."""

KINDS = (".jsonl", ".jsonl.gz", ".txt", ".md", ".markdown", ".pdf")
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_GAP = re.compile(r"(?<=[.!?…])[\"'”’)\]]*(\s+)(?=[\"'“‘(\[]*[^\Wa-z_])")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Gen|Col|Sen|Jr|Sr|No|vs|etc|e\.g|i\.e|cf)\.$"
)
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def _sentences(text: str) -> Iterator[list[str]]:
    """Yield the words of each sentence; a blank line ends one, an abbreviation does not."""
    for paragraph in _PARAGRAPH.split(text):
        start = 0
        for gap in _SENTENCE_GAP.finditer(paragraph):
            if not _ABBREVIATION.search(paragraph[start : gap.start()]):
                yield paragraph[start : gap.start(1)].split()
                start = gap.end(1)
        yield paragraph[start:].split()


def split_sentences(text: str) -> list[str]:
    """Split a text into its sentences, white space made single.

    Args:
        text: any text.

    Returns:
        The sentences, none empty.

    >>> split_sentences("Dr. Who left.  Nobody saw him.")
    ['Dr. Who left.', 'Nobody saw him.']
    """
    return [" ".join(words) for words in _sentences(text) if words]


def split_words(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Split a text into pieces of about `words` words that end where a sentence ends.

    Whole sentences are put together while they fit; only a sentence longer than `words` is cut
    inside. A last piece of less than a quarter of `words` joins the one before.

    Args:
        text: any text; runs of white space count as one space.
        words: size of a piece, at least 1.

    Returns:
        The pieces, none empty, none longer than 1.25 x `words`; joined by spaces they give
        every word of the text in order.

    Raises:
        RaggdError: `words` is less than 1.

    >>> split_words("One two three. Four five. Six seven eight nine.", words=5)
    ['One two three. Four five.', 'Six seven eight nine.']
    """
    if words < 1:
        raise RaggdError(f"passages of {words} words are not possible: give at least 1.")
    pieces: list[list[str]] = [[]]
    for sentence in _sentences(text):
        for start in range(0, len(sentence), words):
            part = sentence[start : start + words]
            if len(pieces[-1]) + len(part) > words:
                pieces.append([])
            pieces[-1].extend(part)
    if len(pieces) > 1 and 4 * len(pieces[-1]) < words:
        last = pieces.pop()
        pieces[-1].extend(last)
    return [" ".join(piece) for piece in pieces if piece]


def _passage_of(value: dict[str, Any], fallback_id: str, where: str) -> Passage:
    # Turn one JSON object into a passage.
    if "contents" in value:
        first, newline, rest = str(value["contents"]).partition("\n")
        title, text = (first.strip().strip('"'), rest) if newline else ("", first)
    elif "text" in value:
        title, text = str(value.get("title") or ""), str(value["text"] or "")
    else:
        raise RaggdError(
            f'{where}: not a passage. Expected {{"id", "contents": "Title\\ntext"}} or '
            f'{{"id", "title", "text"}}, found the keys {", ".join(value) or "(none)"}.'
        )
    name = fallback_id if value.get("id") is None else str(value["id"])
    if not text.strip():
        raise RaggdError(f"{where}: passage '{name}' is empty. Give it a text or remove the line.")
    return Passage(id=name, text=text.strip(), title=title.strip())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RaggdError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): "
            "convert it to UTF-8, or remove it from the folder."
        ) from error
    except OSError as error:
        raise RaggdError(f"cannot read {path}: {error.strerror}.") from error


def _markdown_sections(text: str, stem: str) -> Iterator[tuple[str, str]]:
    """Yield (title, text) per heading; a deeper heading is named after the document's first one."""
    top, title, lines, fenced = "", stem, list[str](), False
    for line in text.splitlines():
        fenced ^= bool(_FENCE.match(line))
        heading = None if fenced else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        yield title, "\n".join(lines)
        lines = []
        if len(heading[1]) == 1 or not top:
            top = title = heading[2]
        else:
            title = f"{top}: {heading[2]}"
    yield title, "\n".join(lines)


def _pdf_text(path: Path) -> str:
    try:
        import pypdf
    except ImportError as error:
        raise RaggdError(
            f"{path} is a PDF, and reading it needs the extra `pdf`: pip install 'raggd[pdf]'."
        ) from error
    try:
        reader = pypdf.PdfReader(path)
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except Exception as error:  # a damaged file can break the parser anywhere
        raise RaggdError(
            f"cannot read the PDF {path} ({error}): it is damaged or encrypted. Open and save it "
            "anew, or remove it from the folder."
        ) from error
    if locked:
        raise RaggdError(f"the PDF {path} is encrypted: save a copy without a password.")
    return _HYPHENATED.sub("", "\n".join(pages))


def document_passages(path: Path, name: str) -> Iterator[Passage]:
    """Yield the passages of a text, Markdown or PDF file, numbered from 1."""  # noqa: DOC501
    kind = path.suffix.lower()
    if kind in {".md", ".markdown"}:
        sections = _markdown_sections(_read_text(path), path.stem)
    else:
        text = _pdf_text(path) if kind == ".pdf" else _read_text(path)
        sections = iter([(path.stem, text)])
    number = 0
    for title, section in sections:
        for piece in split_words(section):
            number += 1
            yield Passage(id=f"{name}#{number}", text=piece, title=title, source=name)
    if not number:
        scanned = " (scanned pages need text recognition first)" if kind == ".pdf" else ""
        raise RaggdError(f"{path} holds no text{scanned}: fill or remove it.")


def line_passages(path: Path, name: str) -> Iterator[Passage]:
    """Yield the passages of a JSON Lines file; one without an id is named by its line."""  # noqa: DOC501
    found = False
    for number, value in read_json_lines(path):
        found = True
        yield _passage_of(value, f"{name}#{number}", f"{path}, line {number}")
    if not found:
        raise RaggdError(f"{path} holds no passage: expected one JSON object per line.")
