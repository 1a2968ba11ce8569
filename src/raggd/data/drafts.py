"""Questions with their answers, drafted from the sentences of a passage alone.

A sentence is turned into a question for a part of it, in its own words, so that the answer is right
by construction: "The timeout defaults to 5 seconds." gives "What does the timeout default to?".
Code, tables and headings are no sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from raggd.data.answers import contains_answer
from raggd.data.documents import split_sentences
from raggd.records import Passage


@dataclass(frozen=True, slots=True)
class Draft:
    """A question in a passage's words with its answer as it stands there, not yet tried."""

    passage: Passage
    question: str
    answer: str


_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
_NO_PROSE = re.compile(r"^(?:\s{4}|\t|[|#>!:=+~^]|\.\. |-{3}|```|@|\$)|[{}=;#]|\w\(|^[^.!?]*$")
_MARKER = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])")
_MARKUP = re.compile(
    r"\*\*|__|</?[a-z][^<>]*>|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)|\{\w+\}(?=`)|`(?=`)"
)
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_WORDS = (5, 32)  # fewest and most words of a sentence that is asked about

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}})"
_CODE = r"`[^`]+`"
_NUMBER = r"\d[\d,.]*(?: (?:million|billion))? (?:(?:per|square) )?[a-z]{3,}"
_CAPITAL = r"[A-Z][\w'’/-]*(?:\.[\w'’/-]+)*"
_NAME = rf"{_CAPITAL}(?: (?:of |the |de |von |van )?{_CAPITAL}){{0,3}}"
_SMALL = (
    r"(?!(?:to|or|and|been|be|after|before|between|through|as|from|that|in|on|at|by|of|for|with|into"
    r"|not|but|when|if|unless|which|because|so|while)\b)"
)
_THEN = "but|when|if|unless|which|because|so|while|by default|instead|for|with|in|on|at"
_END = rf"(?=\.?$|,| (?:{_THEN})\b)"
_SHORT = (
    rf"(?:(?:(?:an? |the )?{_CODE}(?: [a-z]+)?|{_NUMBER}|{_NAME})(?=\.?$|,| (?:and|or|{_THEN})\b)"
    rf"|(?:an? |the |no )?{_SMALL}[a-z][\w-]*(?: {_SMALL}[\w-]+){{1,2}}"
    rf"|(?:an? |the |no )?{_SMALL}[a-z][\w-]*(?=\.?$| (?:{_THEN})\b))"
)
_WORD = rf"(?:{_CODE}|[\w.'’/-]+)"
_SUBJECT = rf"(?P<subject>(?:(?:The|A|An|Each|Every) )?{_WORD}(?: {_WORD}){{0,5}}?)"
_TIME = rf"(?P<answer>{_DATE}|{_MONTH} \d{{4}}|(?:1\d|20)\d\d)(?![\w–-])"
_AUX = r"(?P<aux>is|are|was|were)"
_IRREGULAR = "written|built|made|won|led|held|sung|drawn|begun|sold|taken|given|found|shot"
_PLACED = (
    "located|published|produced|directed|noted|released|founded|based|used|developed|created|formed"
    "|established|owned|designed"
)
_DONE = rf"(?:(?:\w+ly|first|later) )?(?:\w+e[dn]|{_IRREGULAR})(?: [^,;:]*?)?"
_TAIL = r"(?P<tail>(?: (?:in|on|at|for|from|after|before|during|to|with|by|as)\b[^,;:]*?)?)\.?$"
_VERBS = (
    "accepts|adds|controls|creates|defaults to|defines|describes|disables|enables|expects|gives|"
    "indicates|means|needs|prints|raises|refers to|removes|replaces|represents|requires|returns|"
    "sets|shows|specifies|stores|takes|uses|writes"
)
_MANY = "allows|contains|has|holds|includes|lists|offers|provides|supports"
_DOES = (
    rf"(?:{_VERBS}|{_MANY}|can be|is used|lets|makes|tells|turns|changes|determines|must be"
    "|should be|will)"
)
_PATTERNS = tuple(
    (re.compile(pattern), question)
    for pattern, question in (
        (rf"^{_SUBJECT} {_AUX} (?P<rest>{_DONE}) (?:in|on|since) {_TIME}{_TAIL}",
         "When {aux} {subject} {rest}{tail}?"),
        (rf"^{_SUBJECT} {_AUX} (?P<rest>{_DONE}) by (?P<answer>{_NAME})(?! of){_TAIL}",
         "By whom {aux} {subject} {rest}{tail}?"),
        (rf"^{_SUBJECT} (?:now |also )?(?P<verb>{_VERBS}) (?P<answer>{_SHORT}){_END}",
         "What does {subject} {verb}?"),
        (rf"^(?P<subject>The {_WORD}(?: {_WORD}){{1,4}}?) (?P<verb>{_MANY})"
         rf" (?P<answer>{_SHORT}){_END}", "What does {subject} {verb}?"),
        (rf"^{_SUBJECT} (?P<aux>is|was) (?P<rest>located|set|written|found|based|called|named|known"
         r"|stored|defined|released|published|caused|raised|derived)"
         rf"(?P<in> in| at| to| under| by| as| from)? (?P<answer>{_SHORT}){_END}",
         "What {aux} {subject} {rest}{in}?"),
        (rf"^(?:The )?(?P<answer>{_CODE})(?P<noun> [a-z]+)? (?P<rest>{_DOES}\b[^,;:()]{{15,90}}?)"
         r"\.?$", "What{noun} {rest}?"),
        (rf"^(?:You can |You should |You |Please )?[Uu]se (?:the )?(?P<answer>{_CODE})"
         r"(?P<noun> [a-z]+)? (?P<to>to|for) (?P<rest>[^,;:]+?)\.?$",
         "What{noun} is used {to} {rest}?"),
        (rf"^(?P<to>To [^,;:]{{8,60}}), (?:you can |you should |you must |please )?"
         rf"(?P<verb>use|set|pass|run|add|call|install|import|enable) (?:the )?(?P<answer>{_CODE})",
         "{to}, what do you {verb}?"),
        (rf"^The (?P<subject>{_WORD}(?: {_WORD}){{0,5}}?) is (?P<answer>{_CODE}|{_NUMBER}|{_NAME})"
         rf"{_END}", "What is the {subject}?"),
        (rf"^{_SUBJECT} (?P<aux>can|must|should|may) be (?P<rest>\w+ed(?: [^,;:]*?)?)"
         rf" (?:with|using|by|via|through) (?:the )?(?P<answer>{_CODE}(?: [a-z]+)?){_END}",
         "What {aux} {subject} be {rest} with?"),
        (rf"^(?:You|We) (?:can|should|must) (?P<rest>(?:also )?[^,;:]{{8,60}}?)"
         r" (?:with|using|via|through|by using|by passing|by setting) (?:the )?"
         rf"(?P<answer>{_CODE}(?: [a-z]+)?){_END}",
         "With what can you {rest}?"),
        (rf"^(?P<subject>{_CODE}|(?:The|An?) {_NAME}|[A-Z]\w+) (?P<aux>is|was) (?P<answer>an? "
         r"[\w' -]{3,40}?)(?=\.?$|,| (?:that|which|who|for|in|of|from|with|by|and|to|on|known"
         rf"|{_PLACED}|{_IRREGULAR})\b)", "What {aux} {subject}?"),
        (rf"^{_SUBJECT} (?P<verb>has|is|contains|lasts|takes|weighs|costs|runs for|covers) "
         rf"(?:about |nearly |over )?(?P<answer>{_NUMBER})"
         rf"(?P<tail>(?: long| high| wide| deep| old)?){_END}",
         "{subject} {verb} how many {unit}{tail}?"),
        (rf"^{_SUBJECT} (?P<rest>(?:leads|belongs|flows|lies|lives|grows|ends|goes|opens|works"
         rf"|begins)(?: \w+){{0,3}}) (?P<answer>{_NAME}|{_NUMBER}){_END}",
         "{subject} {rest} what?"),
    )
)  # fmt: skip
_LIFE = re.compile(rf"^(?!The )(?P<subject>{_NAME}) \((?:born )?(?P<answer>{_DATE})\b")
_OPENING = re.compile(r"^(?:By default|Note that|Currently|Note|Internally|Also|However),? ")
_CONDITION = re.compile(r"^(?P<when>(?:If|When|Once|Unless) [^,;:]{8,70}), (?P<main>[\w`].+)$")
_NO_SUBJECT = re.compile(
    r"^(?:It|Its|Their|Your|His|Her|He|She|They|This|These|That|Those|There|You|We|I|Both|Such|Some"
    r"|Other|One|Any|All|Most|Many|What|When|Where|Which|Who|How|Why|If|Here|In|On|At|As|By|For|From"
    r"|With|After|Before|During|Since|Until|Although|While|Because|Unlike|Like|Also|And|But|Or|Once"
    r"|Note|Make|See|Support|Using|Do|Does|\w+ing|\w+ly|\w+ed)\b"
    r"|\b(?:that|which|who|where|when|it|this|these|those|following|above|below|you|we|our|is|are"
    r"|was|were|can|will|should|must|and|or|but|to)\b"
)
_ARTICLE = re.compile(r"^(?:The|A|An|Each|Every|All|This)\b")
_UNIT = re.compile(r"^\d[\d,.]* (?:(?:million|billion) )?")
_ANSWER = re.compile(r"(?!\w+(?:ing|ed)$)(?:--?)?\w[\w .,'’%/-]*\w|\d")
_VAGUE = re.compile(
    r"\b(?:it|them|that|ones?|same|following|above|way|number|lot|there|this|these|those|so|you"
    r"|your)\b",
    re.IGNORECASE,
)
_ASKED_OF = re.compile(r"\b(?:do|can) you\b")
_QUESTION_WORDS = (4, 22)


def sentences(passage: Passage) -> list[str]:
    """Return the sentences of a passage's prose, without markup but for code in backticks."""
    parts: list[list[str]] = [[]]
    for line in _FENCE.sub("\n", passage.text).split("\n"):
        bare = _MARKUP.sub("", _LINK.sub(r"\1", _MARKER.sub("", line))).strip()
        if _MARKER.match(line) or not bare:
            parts.append([])
        parts[-1].append(bare)
    found = (sentence for part in parts for sentence in split_sentences(" ".join(part)))
    return [s for s in found if not _NO_PROSE.search(s) and s.count("`") % 2 == 0]


def drafts(passage: Passage) -> list[Draft]:
    """Draft questions for parts of a passage's sentences, at most one per sentence, in their order.

    The title stands for a pronoun, unless it is a path of headings.

    >>> text = "The timeout defaults to `5 seconds`. It was opened in 1934."
    >>> [(d.question, d.answer) for d in drafts(Passage("1", text, "Vik Bridge"))]
    [('What does the timeout default to?', '5 seconds'), ('When was Vik Bridge opened?', '1934')]
    """
    found: list[Draft] = []
    for sentence in sentences(passage):
        asked = _asked(_told(sentence, passage.title))
        good = (Draft(passage, *pair) for pair in asked if _is_good(*pair))
        found += islice(good, 1)
    return found


def _told(sentence: str, title: str) -> str:
    # The title stands for a pronoun, where it is a name and not a path.
    opened = _OPENING.sub("", sentence)
    opened = opened[:1].upper() + opened[1:]
    subject = "" if " > " in title else _BRACKETS.sub("", title).strip()
    return re.sub(r"^(?:It|He|She|They)\b", lambda pronoun: subject or pronoun[0], opened)


def _asked(sentence: str) -> Iterator[tuple[str, str]]:
    if life := _LIFE.match(sentence):
        yield f"When was {life['subject']} born?", life["answer"]
    plain = _BRACKETS.sub("", sentence)
    if not _WORDS[0] <= len(plain.split()) <= _WORDS[1]:
        return
    told = _CONDITION.match(plain)
    main = told["main"][0].upper() + told["main"][1:] if told else plain
    end = f", {told['when'][0].lower()}{told['when'][1:]}?" if told else "?"
    for pattern, question in _PATTERNS:
        found = pattern.match(main)
        if found and not _NO_SUBJECT.search(found.groupdict().get("subject") or "The"):
            asked = _filled(question, found).removesuffix("?") + end.replace("`", "")
            yield asked, found["answer"].strip("`")


def _filled(question: str, found: re.Match[str]) -> str:
    parts = {name: text or "" for name, text in found.groupdict().items()}
    if "subject" in parts and not question.startswith("{subject"):
        parts["subject"] = _ARTICLE.sub(lambda a: a[0].lower(), parts["subject"])
    if "does" in question:
        verb, _, rest = parts["verb"].partition(" ")
        verb = "have" if verb == "has" else re.sub(r"ie$", "y", verb.removesuffix("s"))
        parts["verb"] = f"{verb} {rest}".strip()
    parts["unit"] = _UNIT.sub("", parts["answer"])
    return " ".join(question.format(**parts).replace("`", "").split()).replace(" ?", "?")


def _is_good(question: str, answer: str) -> bool:
    # Short, of telling words, and not with its own answer in it.
    fewest, most = _QUESTION_WORDS
    short = len(answer.split()) <= 6 and fewest <= len(question.split()) <= most
    vague = _VAGUE.search(answer) or _VAGUE.search(_ASKED_OF.sub("", question))
    telling = _ANSWER.fullmatch(answer) and not vague
    return bool(short and telling) and not contains_answer(question, [answer])
