"""What a set of demonstrations shows of the answers wanted: which refuse, how long they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from raggd.data.answers import contains_answer, held, normalise_answer
from raggd.data.closed import YES_NO, labels_of, options_of
from raggd.data.documents import READERS
from raggd.data.text import is_boundary
from raggd.records import Demonstration, Passage

_NO = re.compile(
    r"\b(?:not|no|none|nothing|unknown|cannot|missing|insufficient|unanswerable|nichts?|"
    r"kein\w*|unbekannt|pas|rien|aucun\w*|inconnue?s?|non|nessun\w*|sconosciut\w*|sin|ningun\w*|desconocid\w*|"
    r"não|nenhum\w*|geen|onbekend|inte|ingen|ikke|brak|n/a|nie|není|nije|nema|"
    r"nincs\w*|nem|yok\w*|değil\w*|bulunam\w*|không|tidak|нет|не|ничего|"
    r"неизвестн\w*|немає|няма|нема|δεν|άγνωστ\w*|אין|לא|لا|لم|ليس\w*|غير|نیست|ندارد)\b|n't\b|\?\?"
    r"|^(?:[-–—…?∅\"'“”]+|🤷\S*|null|nil|k\. ?a\.|n\.? ?a\.?)$"
    # apologies
    r"|\b(?:sorry|afraid|unable|leider|mir leid|bedauer\w*|désolée?s?|l['’]ignor\w+|siento|lamento|"
    r"dispiace|purtroppo|infelizmente|desculpe\w*|helaas|tyvärr|desværre|dessverre|niestety|bohužel|"
    r"sajnos|maalesef|сожалени\w*)\b|抱歉|申し訳|죄송"
    # scripts whose words have no ends that the module re knows
    r"|没有|沒有|不在|不知|不明|不详|不詳|未找到|未提及|无法|無法|找不到|ません|分からない|わからない|なし|ない$"
    r"|없|모르|모릅|않|नहीं|ไม่|មិន|គ្មាន|ບໍ່|မရှိ|नाही|இல்லை|లేదు|ಇಲ್ಲ|ഇല്ല|নেই|নয়",
    re.IGNORECASE,
)
# "[2]", "(doc 2)", "#2)", also in the brackets of China and Japan; "[1, 3]"
_CITED = re.compile(
    r"[\[(#【（［〔](?:\w+ )?(\d{1,3})[\])】）］〕]"
    r"|[\[【［〔](\d{1,3}(?: ?[,;，、] ?\d{1,3})+)[\]】］〕]"
)
_TOLD = re.compile(r"\w{3,}|\d+")  # words that tell something, and numbers
_FILE = re.compile(rf"[\w-](?:{'|'.join(map(re.escape, READERS))})(?!\w)", re.IGNORECASE)
# between the parts of an answer: lines, marks of lists, of tables, of data
_BETWEEN = re.compile(r"""[^\w .'’&/-]+|(?:^|\s)(?:[-+→–—]|\d+[.)])\s""")
_IN_NUMBER = re.compile(r"\d(?![.,]0+(?!\d))[.,:/-]\d")
_FIGURE = re.compile(r"[+(€$£]?[\d\s.,:/()-]{3,}[%€$£]?")  # a time, a price, a telephone number
_SHORT = 3  # words that are no telling in other words
_AGREES = re.compile(r"\b(\w+)[,.;:!]\s+(?=\S+\s+\S)")


def without_passages(demonstrations: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    """Return demonstrations as a prefix shows them: question and answer alone."""
    return tuple(replace(d, passages=()) for d in demonstrations)


def inside(answers: Sequence[str]) -> list[str]:
    """Return answers without the wrapping that all of them share, cut at whole words.

    >>> inside(['{"answer": "Rome"}', '{"answer": "the sea"}'])
    ['Rome', 'the sea']
    """
    start, end = shared_ends(answers) if len(answers) > 1 else ("", "")
    if any(len(answer) <= len(start) + len(end) for answer in answers):
        return [answer.strip() for answer in answers]
    return [answer[len(start) : len(answer) - len(end)].strip() for answer in answers]


def shared_ends(texts: Sequence[str]) -> tuple[str, str]:
    """Return beginning and end that texts share, cut at whole words; of the same ones, the whole.

    >>> shared_ends(["It is Rome.", "It is Rio."])
    ('It is ', '.')
    """
    if len(set(texts)) == 1:
        return texts[0], texts[0]
    first, start = texts[0], _same(texts)
    end = min(_same([text[::-1] for text in texts]), min(map(len, texts)) - start)
    while not all(may_cut(t, start) for t in texts):
        start -= 1
    while not all(may_cut(t, len(t) - end) for t in texts):
        end -= 1
    return first[:start], first[len(first) - end :]


def may_cut(text: str, at: int) -> bool:
    """Return whether no word, number, date or time goes on across a place; 12.00 may be cut."""
    inside = at and any(_IN_NUMBER.match(text, max(0, at - back)) for back in (1, 2))
    return is_boundary(text, at) and not inside


def _same(texts: Sequence[str]) -> int:
    pairs = zip(min(texts), max(texts), strict=False)  # what these two share, all do
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _lacking(demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
    # whose passages lack the answer, where another one's hold theirs: labels and verdicts, which
    # no passage holds, are no sign of anything
    bare = [_bare([d.answer for d in demonstrations], i) for i in range(len(demonstrations))]
    found = [
        contains_answer("\n".join(f"{p.title}\n{p.text}" for p in d.passages), texts)
        for d, texts in zip(demonstrations, bare, strict=True)
    ]
    if not any(found) and not any(map(_tells, demonstrations)):
        return []
    return [
        d
        for d, has, texts in zip(demonstrations, found, bare, strict=True)
        if (d.passages or _denies(d.answer))  # of what it refuses, nothing may be found at all
        and not has
        and not {normalise_answer(text) for text in texts} & YES_NO
        and not texts[0].isdecimal()
        and texts[0] not in options_of(d.question)
    ]


def _tells(shown: Demonstration) -> bool:
    # an answer, however it is wrapped, that has a name, a number or two words of its passages
    known = set(re.findall(r"\w{2,}", " ".join(p.text for p in shown.passages).lower()))
    words = [w for w in re.findall(r"\w{2,}", shown.answer) if w.lower() in known]
    opens = shown.answer.lstrip().startswith
    named = any(w[0].isdigit() or (w[0].isupper() and (len(w) > 4 or not opens(w))) for w in words)
    return not _denies(shown.answer) and (named or len(words) > 2)


def _bare(answers: Sequence[str], i: int) -> list[str]:
    # an answer without the wrapping that all share, or all but one, which may be a refusal
    rest = [
        inside([*answers[:j], *answers[j + 1 :]])[i - (j < i)]
        for j in range(len(answers))
        if len(answers) > 2 and j != i
    ]
    return [inside(answers)[i], *rest, _unwrapped(answers[i])]


def refusals_of(demonstrations: Sequence[Demonstration]) -> tuple[str, ...]:
    """Find the answers that say that the passages hold none.

    A demonstration whose passages lack its answer shows a refusal, if its answer says no, alone or
    beside others that are answered; and if it alone is of its kind, given twice or without a word
    of question and passages.
    """
    answers = [d.answer.strip() for d in demonstrations]
    if len(set(answers)) == 1 and all(map(says_no, demonstrations)):
        return (answers[0],)
    lacking = _lacking(demonstrations)
    found = {d.answer.strip() for d in demonstrations if d not in lacking}
    texts = {d.answer.strip(): d for d in lacking if d.answer.strip() not in found}
    said = {text for text, d in texts.items() if _denies(text) and not _tells_part(text, d)}
    bare = dict(zip(answers, inside(answers), strict=True))
    kinds = {t for t, d in texts.items() if answers.count(t) > 1 or _strange(d, bare[t])} - said
    others = [d for d in demonstrations if d.answer.strip() not in said | kinds]
    if len(kinds) == 1 and others and all(map(_tells, others)):
        said |= kinds
    return tuple(text for text in texts if text in said)


def _tells_part(answer: str, shown: Demonstration) -> bool:
    # beside the no something that the passages have: '[LOW] it is not writable', if they say so,
    # 'Ada Lovelace (year unknown)'
    told = [p for p in _parts(answer) if held(p, shown) and p not in shown.question]
    return any(_denies(p) or (" " in p and p.istitle()) for p in told)


def unsupported(demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
    """Return demonstrations that lack evidence and do not refuse: they show guesses.

    Of an answer of several parts (a list, values under keys, a citation) one is evidence enough.
    """
    refusals = refusals_of(demonstrations)
    lacking = [d for d in _lacking(demonstrations) if d.answer.strip() not in refusals]
    if not lacking or labels_of(inside([d.answer for d in demonstrations]), demonstrations):
        return []
    parts = [set(_parts(answer)) for answer in {d.answer for d in demonstrations}]
    alike = set.intersection(*parts) if len(parts) > 1 else set()
    return [d for d in lacking if not _holds_part(d, alike)]


def _parts(answer: str) -> list[str]:
    return [part.strip() for part in _BETWEEN.split(answer) if re.search(r"\w", part)]


def _holds_part(shown: Demonstration, alike: set[str]) -> bool:
    # a part that not all answers have, an option; of what is told in other words, a name or number
    parts, text = _parts(shown.answer), "\n".join(p.text for p in shown.passages)
    told = len(shown.answer.split()) > _SHORT and _tells(shown)
    own = [part for part in parts if part not in alike] if len(parts) > 1 else []
    chosen = any(option in shown.answer for option in options_of(shown.question).values())
    return told or chosen or contains_answer(text, own)


def says_no(shown: Demonstration) -> bool:
    """Return whether a demonstration refuses by its words: it says no, and its passages do not."""
    said = shown.answer.strip()
    denies = normalise_answer(said) not in YES_NO and _denies(said)
    return denies and not held(said, shown)


def parsed_json(answer: str) -> dict[str, Any] | list[Any] | None:
    """Return the object or list that an answer is as JSON; None where it is neither."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _denies(answer: str) -> bool:
    value = parsed_json(answer)
    # "No, it closes at nine." is an answer
    said = _AGREES.sub(lambda m: "" if m[1].lower() in YES_NO else m[0], answer)
    return bool(_NO.search(said)) or (value is not None and _is_empty(value))


def _is_empty(value: Any) -> bool:
    # JSON of which all is null, blank or none
    left, leaves = [value], []
    while left:
        one = left.pop()
        if one and isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
        else:
            leaves.append(one)
    blank = any(leaf is None or isinstance(leaf, str | dict | list) for leaf in leaves)
    return blank and not any(leaves)


def _strange(shown: Demonstration, bare: str) -> bool:
    # a code or a sentence of which question and passages have no word; a word or two, a phrase and
    # a name may be answers whose evidence was missed
    answer = _unwrapped(bare)
    words = set(_TOLD.findall(answer.lower()))
    text = " ".join([shown.question, *(p.text for p in shown.passages)]).lower()
    code = answer.isupper() or bool(re.search(r"[\d_]", answer))
    name = all(word[0].isupper() for word in re.findall(r"\w{4,}", answer))
    sentence = answer[:1].isupper() or answer.endswith((".", "!", "?", "…"))
    code = code and not _FIGURE.fullmatch(answer)
    if not code and len(answer.split()) > 3 and sentence and not name:
        words, code = {word for word in words if len(word) > 3}, True  # 'the' is in any text
    return code and bool(words) and words.isdisjoint(_TOLD.findall(text))


def _unwrapped(answer: str) -> str:
    # without keys of JSON and tags, where the wrapping is not the same in all
    return re.sub(r'"\w+":|<[^<>]*>|[{}\[\]"*]', " ", answer).strip()


def names_files(demonstrations: Sequence[Demonstration]) -> bool:
    """Return whether an answer names a file: of one of its passages, or by a document's ending.

    >>> names_files([Demonstration("a", "Who?", (), "Ada [people.md]")])
    True
    """
    return any(
        _FILE.search(d.answer) or any(_names_file(d.answer, passage) for passage in d.passages)
        for d in demonstrations
    )


def _names_file(answer: str, passage: Passage, least: int = 1) -> bool:
    # with its folder or without; names of a few characters may stand there by chance
    files = {passage.source, PurePosixPath(passage.source).name}
    named = (rf"(?<![\w/.-]){re.escape(file)}(?!\w)" for file in files if len(file) >= least)
    return any(re.search(name, answer) for name in named)


def is_refusal(answer: str, refusals: Sequence[str]) -> bool:
    """Return whether an answer is one of the refusals, case and punctuation aside."""
    plain = normalise_answer(answer) or answer.strip()
    return plain in {normalise_answer(refusal) or refusal for refusal in refusals}


def named_passages(answer: str, passages: Sequence[Passage]) -> tuple[int, ...]:
    """Find the passages, from 1, that an answer names: by number in brackets, title or file.

    >>> named_passages("Rome [2]", [Passage("a", "x"), Passage("b", "y")])
    (2,)
    """
    cited = " ".join(map("".join, _CITED.findall(answer)))
    numbers = set(map(int, re.findall(r"\d+", cited)))
    return tuple(
        number
        for number, passage in enumerate(passages, start=1)
        if number in numbers
        or (len(passage.title) > 3 and passage.title in answer)
        or _names_file(answer, passage, least=4)
    )
