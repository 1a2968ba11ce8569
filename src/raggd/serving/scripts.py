"""Whether two texts are written in the same script: enough to see that a language is foreign."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from raggd.records import Passage


def scripts(text: str) -> set[str]:
    """Name the scripts of a text's letters.

    Returns:
        First words of the letters' Unicode names.

    >>> sorted(scripts("Лима is 3"))
    ['CYRILLIC', 'LATIN']
    """
    letters = {character for character in text if character.isalpha()}
    return {unicodedata.name(letter, "?").split()[0] for letter in letters}


def share_a_script(question: str, passages: Iterable[Passage]) -> bool:
    """Return whether passages were found that could be in the question's language.

    Returns:
        False when there is no passage, or none with a script of the question.
    """
    found = list(passages)
    asked = scripts(question)
    if not asked:
        return bool(found)
    return any(asked & scripts(f"{p.title} {p.text}") for p in found)
