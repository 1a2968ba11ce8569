"""Families of contracts, drawn by seed: hundreds of tasks out of a few lines.

`draw_contract` gives what training may see; `held_contracts` what it never does, by code: families
of their own (`HELD_FAMILIES`) and the held part of every list of literals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from raggd.data.contracts.base import Contract
from raggd.data.contracts.words import (
    CITES,
    HEADS,
    KEYS,
    LABELS,
    MARKERS,
    PAIRS,
    REFUSALS,
    SENTENCES,
    SEPARATORS,
    SYLLABLES,
    TAGS,
    TAILS,
    VERDICTS,
    Words,
)
from raggd.records import RaggdError, content_id, require_known

NATURAL = Contract("natural", "natural", whole=True)
"""The benchmarks as they are: full passages, a short entity."""

Pick = Callable[[Words], str]
"""Chooses a literal; training's choice never gives a held one."""


def _made_up(pick: Pick) -> str:
    return pick(SYLLABLES) + pick(SYLLABLES)


def _around(pair: str, inside: str = "$x") -> str:
    first, last = pair.split(" ")
    return first + inside + last


def _prefix(pick: Pick) -> Contract:
    return Contract("", "prefix", template=f"{pick(HEADS)}{pick(SEPARATORS)}$x")


def _suffix(pick: Pick) -> Contract:
    return Contract("", "suffix", template=f"$x{pick(TAILS)}")


def _marks(pick: Pick) -> Contract:
    return Contract("", "marks", template=_around(pick(PAIRS)))


def _bullet(pick: Pick) -> Contract:
    mark = pick(Words(("- ", "* ", "# ", "1. ", "> ", "- [x] ", "=> "), ("+ ", "## ")))
    return Contract("", "markdown", template=f"{mark}$x")


def _json(pick: Pick) -> Contract:
    template = pick(
        Words(('{"%s": "$x"}', '{"%s":"$x"}', '{ "%s": "$x" }'), ('{\n "%s": "$x"\n}',))
    )
    return Contract("", "json", template=template % pick(KEYS))


def _json_cited(pick: Pick) -> Contract:
    second = pick(Words(('"passage": $n', '"source": "$t"', '"n": $n'), ('"ref": $n',)))
    return Contract("", "json-cited", template=f'{{"{pick(KEYS)}": "$x", {second}}}')


def _xml(pick: Pick) -> Contract:
    tag = pick(TAGS)
    return Contract("", "xml", template=f"<{tag}>$x</{tag}>")


def _sentence(pick: Pick) -> Contract:
    return Contract("", "sentence", template=pick(SENTENCES))


def _upper(pick: Pick) -> Contract:
    return Contract("", "upper", letters="upper")


def _lower(pick: Pick) -> Contract:
    return Contract("", "lower", letters="lower")


def _slug(pick: Pick) -> Contract:
    return Contract("", "slug", letters="slug")


def _invented(pick: Pick) -> Contract:
    shape = pick(Words(("%s $x", "%s: $x", "$x %s", "(%s) $x", "$x [%s]", "%s=$x"), ("$x/%s",)))
    return Contract("", "invented", template=shape % _made_up(pick))


def _cited(pick: Pick) -> Contract:
    return Contract("", "citation", template=pick(CITES))


def _target(kind: str) -> Callable[[Pick], Contract]:
    return lambda pick: Contract("", kind, target=kind)


def _number(pick: Pick) -> Contract:
    template = pick(Words(("$x", "[$x]", "Passage $x"), ("#$x",)))
    return Contract("", "number", target="number", template=template)


def _claim(pick: Pick) -> Contract:
    labels = tuple(pick(VERDICTS).split(" "))
    return Contract("", "claim", target="claim", labels=labels)


def _choice(pick: Pick) -> Contract:
    markers = tuple(pick(MARKERS).split(" "))
    return Contract("", "choice", target="choice", labels=markers)


def _class(pick: Pick) -> Contract:
    return Contract("", "class", target="class", labels=tuple(pick(LABELS).split(" ")))


def _refusal(pick: Pick) -> Contract:
    return Contract("", "refusal", refusal=pick(REFUSALS))


FAMILIES: Mapping[str, tuple[Callable[[Pick], Contract], float]] = {
    "prefix": (_prefix, 2),
    "suffix": (_suffix, 1),
    "marks": (_marks, 2),
    "markdown": (_bullet, 1),
    "json": (_json, 2.5),
    "json-cited": (_json_cited, 2),
    "xml": (_xml, 1),
    "sentence": (_sentence, 3),
    "upper": (_upper, 4),
    "lower": (_lower, 1),
    "slug": (_slug, 1),
    "invented": (_invented, 2),
    "citation": (_cited, 5),
    "number": (_number, 1.5),
    "title": (_target("title"), 2),
    "full-sentence": (_target("sentence"), 2),
    "first-word": (_target("first-word"), 0.7),
    "last-word": (_target("last-word"), 0.7),
    "claim": (_claim, 7),
    "choice": (_choice, 6),
    "class": (_class, 2),
    "refusal": (_refusal, 26),
}
"""By name: how one is drawn, and how often."""
WRAPPED_TARGETS = {"claim", "choice", "class", "title", "number", "first-word", "upper", "refusal"}
"""Families that are also shown inside the template of another: compositions."""
_WRAPPERS = ("prefix", "marks", "json", "sentence", "xml", "invented")


def _named(contract: Contract, name: str = "") -> Contract:
    return replace(contract, name=name or f"{contract.family}-{content_id(repr(contract))[:8]}")


def draw_contract(number: int, seed: int = 0) -> Contract:
    """Draw a contract that training may see: a pure function of its arguments.

    A third of the families that allow it stand inside another's template, and some of the others
    are given a refusal.
    """
    draw = random.Random(f"contract {seed} {number}")

    def pick(words: Words) -> str:
        return draw.choice(words.known)

    names = list(FAMILIES)
    name = draw.choices(names, [FAMILIES[n][1] for n in names])[0]
    contract = replace(FAMILIES[name][0](pick), posing=draw.randrange(12))
    if "$t" in contract.template and draw.random() < 0.4:
        contract = replace(contract, files=True, family=f"{name}-file")
    if name in WRAPPED_TARGETS and draw.random() < 0.35:
        wrapper = draw.choice(_WRAPPERS)
        template = FAMILIES[wrapper][0](pick).template
        family = f"{name}+{wrapper}"
        contract = replace(contract, template=template, family=family)
        contract = replace(contract, wrapped=bool(contract.refusal) and draw.random() < 0.6)
    elif contract.target == "entity" and not contract.refusal and draw.random() < 0.3:
        contract = replace(contract, refusal=pick(REFUSALS), family=f"{name}+refusal")
    if contract.refusal:  # with passages as they are found, too: it is there that one refuses
        contract = replace(contract, whole=draw.random() < 0.4)
    return _named(contract)


def _fixed(name: str, family: str, **fields: object) -> Contract:
    return Contract(name, family, **fields)  # type: ignore[arg-type]


KNOWN: tuple[Contract, ...] = (
    _fixed("plain", "natural"),
    _fixed("upper", "upper", letters="upper"),
    _fixed("lower", "lower", letters="lower"),
    _fixed("slug", "slug", letters="slug"),
    _fixed("quoted", "marks", template='"$x"'),
    _fixed("bold", "markdown", template="**$x**"),
    _fixed("bullet", "markdown", template="- $x"),
    _fixed("exclamation", "suffix", template="$x!"),
    _fixed("answer-prefix", "prefix", template="Answer: $x"),
    _fixed("json", "json", template='{"answer": "$x"}'),
    _fixed("json-passage", "json-cited", template='{"answer": "$x", "passage": $n}'),
    _fixed("xml", "xml", template="<answer>$x</answer>"),
    _fixed("sentence", "sentence", template="The answer is $x."),
    _fixed("sentence-spanish", "sentence", template="La respuesta es $x."),
    _fixed("sentence-german", "sentence", template="Die Antwort ist $x."),
    _fixed("cite-number", "citation", template="$x [$n]"),
    _fixed("cite-title", "citation", template="$x ($t)"),
    _fixed("cite-lines", "citation", template="$x\nSource: $t"),
    _fixed("cite-file", "citation-file", template="$x [$t]", files=True),
    _fixed("passage-number", "number", target="number"),
    _fixed("title", "title", target="title"),
    _fixed("full-sentence", "full-sentence", target="sentence"),
    _fixed("first-word", "first-word", target="first-word"),
    _fixed("yes-no", "claim", target="claim", labels=("yes", "no")),
    _fixed("correct-wrong", "claim", target="claim", labels=("correct", "wrong")),
    _fixed("choice", "choice", target="choice", labels=("A", "B", "C")),
    _fixed("labels", "class", target="class", labels=("red", "blue")),
    _fixed("refuse", "refusal", refusal="not in the documents"),
    _fixed("refuse-sentence", "refusal", refusal="The passages do not say."),
)
"""Contracts of known families with known literals, for evaluation on new questions."""
NEW: tuple[Contract, ...] = (
    _fixed("new-prefix", "prefix", template="Outcome: $x"),
    _fixed("new-marks", "marks", template="~~$x~~"),
    _fixed("new-json", "json", template='{"result": "$x"}'),
    _fixed("new-xml", "xml", template="<result>$x</result>"),
    _fixed("new-sentence", "sentence", template="The documents name $x."),
    _fixed("new-french", "sentence", template="La réponse est $x."),
    _fixed("new-italian", "sentence", template="La risposta è $x."),
    _fixed("new-citation", "citation", template="$x according to [$n]"),
    _fixed("new-true-false", "claim", target="claim", labels=("true", "false")),
    _fixed("new-supported", "claim", target="claim", labels=("supported", "refuted")),
    _fixed("new-choice", "choice", target="choice", labels=("1", "2", "3")),
    _fixed("new-labels", "class", target="class", labels=("fire", "ice")),
    _fixed("new-refuse", "refusal", refusal="No answer found."),
)
"""Known families with literals that training never had."""
HELD: tuple[Contract, ...] = (
    _fixed("yaml", "yaml", template="answer:\n  text: $x"),
    _fixed("latex", "latex", template="\\textbf{$x}"),
    _fixed("call", "call", template="answer('$x')"),
    _fixed("json-list", "json-list", template='["$x"]'),
    _fixed("json-nested", "json-nested", template='{"data": {"answer": "$x"}}'),
    _fixed("table-row", "table-row", template="| answer | $x |"),
    _fixed("link", "link", template="[$x]($t)"),
    _fixed("assignment", "assignment", template='answer = "$x";'),
    _fixed("signature", "signature", template="$x\n-- the archive"),
    _fixed("greeting", "greeting", template="Dear reader,\nit is $x."),
    _fixed("snake", "snake", letters="snake"),
    _fixed("upper-quoted", "upper-quoted", letters="upper", template='"$x"'),
    _fixed("initials", "initials", target="initials"),
    _fixed("refuse-code", "refuse-code", refusal="ERR_404", template="OK $x"),
    _fixed("claim-emoji", "claim-emoji", target="claim", labels=("✓", "✗")),
)
"""Families that training never sees."""
HELD_FAMILIES = frozenset(contract.family for contract in HELD)
SETS: Mapping[str, tuple[Contract, ...]] = {"known": KNOWN, "new": NEW, "unseen": HELD}
"""What `raggd evaluate --contracts` measures, by name."""
LETTER_CHANGES = frozenset({"upper", "lower", "slug", "snake", "upper-quoted", "initials"})
"""Families that change the answer's own letters; reported apart."""


def contract_set(name: str) -> tuple[Contract, ...]:
    """Return the contracts to evaluate that are ``known``, ``new`` or ``unseen``."""
    require_known("set of contracts", name, list(SETS))
    return SETS[name]


def check_held_out(contract: Contract) -> None:
    """Refuse a contract that training may not see.

    Raises:
        RaggdError: its family or a literal is held out.
    """
    known = {c.template for c in KNOWN}
    literals = {c.template for c in (*NEW, *HELD)} - known
    labels = {c.labels for c in (*NEW, *HELD)} - {()}
    refusals = {c.refusal for c in (*NEW, *HELD)} - {""}
    if (
        contract.family in HELD_FAMILIES
        or contract.template in literals
        or contract.labels in labels
        or contract.refusal in refusals
    ):
        raise RaggdError(
            f"contract '{contract.name}' is held out of training: draw contracts by draw_contract."
        )
