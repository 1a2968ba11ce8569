"""PDF files: their text, page by page, with words put together that a line end divides."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from raggd.data.documents.passages import Block
from raggd.data.text import normal_text
from raggd.records import RaggdError

_DIVIDED = re.compile(r"(?<![^\W\d_])([^\W\d_]+)(\xad|[-\u2010])[ \t]*\n[ \t]*([^\W\d_]+)")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# First parts of compounds that keep their hyphen, where the document itself does not tell.
_FIRST_PARTS = frozenset(
    re.findall(
        r"\w+",
        "all anti best co cross double down easy eight ex far fast first five four free full good "
        "half hand hard heavy high home ill large left light long low many mid multi near new "
        "newly nine non north off old on one open out over part post pre quarter quasi ready real "
        "right "
        "second self semi seven short single six slow small so soft south ten third three time "
        "top two under up upper user water well west wide world year",
    )
)


def read(path: Path) -> Iterator[Block]:
    """Read a PDF.

    Args:
        path: the file; one that opens without a password is read, whatever its permissions.

    Yields:
        Its text.

    Raises:
        ImportError: the extra is not installed.
        RaggdError: it is damaged or locked.
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of each oddity it mends
    try:
        reader = pypdf.PdfReader(path)
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except ImportError:
        raise
    except Exception as error:  # a damaged file can break the parser anywhere
        raise RaggdError(
            f"the PDF is damaged or encrypted ({error}): open and save it anew."
        ) from error
    if locked:
        raise RaggdError("the PDF is encrypted: save a copy without a password.")
    yield Block(joined("\n".join(pages)))


def joined(text: str) -> str:
    """Put words together that a hyphen divides at the end of a line.

    Args:
        text: with its line ends.

    Returns:
        The text; a hyphen stays where the document writes that word with one elsewhere, or where
        the first part is one that compounds begin with (``well-known``), and before a capital.
    """
    text = text.replace("\r\n", "\n")
    words = {word.lower() for word in _WORD.findall(text)}

    def whole(found: re.Match[str]) -> str:
        first, mark, rest = found.groups()
        one, two = f"{first}{rest}".lower(), f"{first}-{rest}".lower()
        after = found.start() > 0 and text[found.start() - 1] == "-"  # state-of-the-art
        compound = after or first.lower() in _FIRST_PARTS or rest[0].isupper()
        hyphened = two in words or (compound and one not in words)
        return f"{first}-{rest}" if hyphened and mark != "\xad" else f"{first}{rest}"

    return normal_text(_DIVIDED.sub(whole, text))
