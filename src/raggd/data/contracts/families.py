"""Families of contracts, drawn by seed: hundreds of tasks out of a few lines.

`draw_contract` gives what training may see. What it never does, by code: families of their own
(`HELD_FAMILIES`), the held part of every list of literals, and whatever asks the same as those.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from raggd.data.contracts.base import Contract
from raggd.data.contracts.letters import LETTERS
from raggd.data.contracts.targets import TARGETS
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
_BULLETS = Words(("- ", "* ", "# ", "1. ", "> ", "- [x] ", "=> "), ("+ ", "## "))
_OBJECTS = Words(('{"%s": "$x"}', '{"%s":"$x"}', '{ "%s": "$x" }'), ('{\n "%s": "$x"\n}',))
_CITED = Words(
    ('{"%s": "$x", "passage": $n}', '{"%s": "$x", "source": "$t"}', '{"%s": "$x", "n": $n}'),
    ('{"%s": "$x", "ref": $n}',),
)
_SHAPES = Words(("%s $x", "%s: $x", "$x %s", "(%s) $x", "$x [%s]", "%s=$x"), ("$x/%s",))
_NUMBERS = Words(("$x", "[$x]", "Passage $x"), ("#$x",))
TEMPLATES: Mapping[str, Callable[[Pick], str]] = {
    "prefix": lambda pick: pick(HEADS) + pick(SEPARATORS) + "$x",
    "suffix": lambda pick: "$x" + pick(TAILS),
    "marks": lambda pick: "$x".join(pick(PAIRS).split(" ")),
    "markdown": lambda pick: pick(_BULLETS) + "$x",
    "json": lambda pick: pick(_OBJECTS) % pick(KEYS),
    "json-cited": lambda pick: pick(_CITED) % pick(KEYS),
    "xml": lambda pick: "<{0}>$x</{0}>".format(pick(TAGS)),
    "sentence": lambda pick: pick(SENTENCES),
    "invented": lambda pick: pick(_SHAPES) % (pick(SYLLABLES) + pick(SYLLABLES)),
    "citation": lambda pick: pick(CITES),
    "number": lambda pick: pick(_NUMBERS),
}
"""Families that are a template."""
LABELLED = {"claim": VERDICTS, "choice": MARKERS, "class": LABELS}
"""Targets that choose from labels."""
_TARGET = {"full-sentence": "sentence", "sentence": "entity"}
FAMILIES: Mapping[str, float] = {
    "prefix": 2,
    "suffix": 1,
    "marks": 2,
    "markdown": 1,
    "json": 2.5,
    "json-cited": 2,
    "xml": 1,
    "sentence": 3,
    "upper": 4,
    "lower": 1,
    "slug": 1,
    "invented": 2,
    "citation": 5,
    "number": 1.5,
    "title": 2,
    "full-sentence": 2,
    "first-word": 0.7,
    "last-word": 0.7,
    "claim": 7,
    "choice": 6,
    "class": 2,
    "refusal": 26,
}
"""How often each is drawn."""


def _of_family(name: str, pick: Pick) -> Contract:
    target = _TARGET.get(name, name)
    contract = Contract("", name, target=target if target in TARGETS else "entity")
    if name in TEMPLATES:
        return replace(contract, template=TEMPLATES[name](pick))
    if name in LETTERS:
        return replace(contract, letters=name)
    if name in LABELLED:
        return replace(contract, labels=tuple(pick(LABELLED[name]).split(" ")))
    return replace(contract, refusal=pick(REFUSALS)) if name == "refusal" else contract


WRAPPED_TARGETS = {"claim", "choice", "class", "title", "number", "first-word", "upper", "refusal"}
"""Families that are also shown inside the template of another: compositions."""
_WRAPPERS = ("prefix", "marks", "json", "sentence", "xml", "invented")


def draw_contract(number: int, seed: int = 0) -> Contract:
    """Draw a contract that training may see: a pure function of its arguments.

    A third of the families that allow it stand inside another's template, and some of the others
    are given a refusal.
    """
    draw = random.Random(f"contract {seed} {number}")
    drawn = _drawn(draw)
    while is_held_out(drawn):  # capitals in quotes, composed of two known families
        drawn = _drawn(draw)
    return drawn


def _drawn(draw: random.Random) -> Contract:
    def pick(words: Words) -> str:
        return draw.choice(words.known)

    names = list(FAMILIES)
    name = draw.choices(names, list(FAMILIES.values()))[0]
    contract = replace(_of_family(name, pick), posing=draw.randrange(12))
    if "$t" in contract.template and draw.random() < 0.4:
        contract = replace(contract, files=True, family=f"{name}-file")
    if name in WRAPPED_TARGETS and draw.random() < 0.35:
        wrapper = draw.choice(_WRAPPERS)
        template = TEMPLATES[wrapper](pick)
        family = f"{name}+{wrapper}"
        contract = replace(contract, template=template, family=family)
        contract = replace(contract, wrapped=bool(contract.refusal) and draw.random() < 0.6)
    elif contract.target == "entity" and not contract.refusal and draw.random() < 0.3:
        contract = replace(contract, refusal=pick(REFUSALS), family=f"{name}+refusal")
    if contract.refusal:  # with passages as they are found, too: it is there that one refuses
        contract = replace(contract, whole=draw.random() < 0.4)
    return replace(contract, name=f"{contract.family}-{content_id(repr(contract))[:8]}")


KNOWN: tuple[Contract, ...] = (
    Contract("plain", "natural"),
    Contract("upper", "upper", letters="upper"),
    Contract("lower", "lower", letters="lower"),
    Contract("slug", "slug", letters="slug"),
    Contract("quoted", "marks", template='"$x"'),
    Contract("bold", "markdown", template="**$x**"),
    Contract("bullet", "markdown", template="- $x"),
    Contract("exclamation", "suffix", template="$x!"),
    Contract("answer-prefix", "prefix", template="Answer: $x"),
    Contract("json", "json", template='{"answer": "$x"}'),
    Contract("json-passage", "json-cited", template='{"answer": "$x", "passage": $n}'),
    Contract("xml", "xml", template="<answer>$x</answer>"),
    Contract("sentence", "sentence", template="The answer is $x."),
    Contract("sentence-spanish", "sentence", template="La respuesta es $x."),
    Contract("sentence-german", "sentence", template="Die Antwort ist $x."),
    Contract("cite-number", "citation", template="$x [$n]"),
    Contract("cite-title", "citation", template="$x ($t)"),
    Contract("cite-lines", "citation", template="$x\nSource: $t"),
    Contract("cite-file", "citation-file", template="$x [$t]", files=True),
    Contract("passage-number", "number", target="number"),
    Contract("title", "title", target="title"),
    Contract("full-sentence", "full-sentence", target="sentence"),
    Contract("first-word", "first-word", target="first-word"),
    Contract("yes-no", "claim", target="claim", labels=("yes", "no")),
    Contract("correct-wrong", "claim", target="claim", labels=("correct", "wrong")),
    Contract("choice", "choice", target="choice", labels=("A", "B", "C")),
    Contract("labels", "class", target="class", labels=("red", "blue")),
    Contract("refuse", "refusal", refusal="not in the documents"),
    Contract("refuse-sentence", "refusal", refusal="The passages do not say."),
)
"""Contracts of known families with known literals, for evaluation on new questions."""
NEW: tuple[Contract, ...] = (
    Contract("new-prefix", "prefix", template="Outcome: $x"),
    Contract("new-marks", "marks", template="~~$x~~"),
    Contract("new-json", "json", template='{"result": "$x"}'),
    Contract("new-xml", "xml", template="<result>$x</result>"),
    Contract("new-sentence", "sentence", template="The documents name $x."),
    Contract("new-french", "sentence", template="La réponse est $x."),
    Contract("new-italian", "sentence", template="La risposta è $x."),
    Contract("new-citation", "citation", template="$x according to [$n]"),
    Contract("new-true-false", "claim", target="claim", labels=("true", "false")),
    Contract("new-supported", "claim", target="claim", labels=("supported", "refuted")),
    Contract("new-choice", "choice", target="choice", labels=("1", "2", "3")),
    Contract("new-labels", "class", target="class", labels=("fire", "ice")),
    Contract("new-refuse", "refusal", refusal="No answer found."),
)
"""Known families with literals that training never had."""
HELD: tuple[Contract, ...] = (
    Contract("yaml", "yaml", template="answer:\n  text: $x"),
    Contract("latex", "latex", template="\\textbf{$x}"),
    Contract("call", "call", template="answer('$x')"),
    Contract("json-list", "json-list", template='["$x"]'),
    Contract("json-nested", "json-nested", template='{"data": {"answer": "$x"}}'),
    Contract("table-row", "table-row", template="| answer | $x |"),
    Contract("link", "link", template="[$x]($t)"),
    Contract("assignment", "assignment", template='answer = "$x";'),
    Contract("signature", "signature", template="$x\n-- the archive"),
    Contract("greeting", "greeting", template="Dear reader,\nit is $x."),
    Contract("snake", "snake", letters="snake"),
    Contract("upper-quoted", "upper-quoted", letters="upper", template='"$x"'),
    Contract("initials", "initials", target="initials"),
    Contract("refuse-code", "refuse-code", refusal="ERR_404", template="OK $x"),
    Contract("claim-emoji", "claim-emoji", target="claim", labels=("✓", "✗")),
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


_NEVER = (*NEW, *HELD)
_TEMPLATES = {c.template for c in _NEVER} - {c.template for c in KNOWN}
_LABELS = {c.labels for c in _NEVER} - {()}
_REFUSED = {c.refusal for c in _NEVER} - {""}


def _wanted(contract: Contract) -> tuple[object, ...]:
    return contract.target, contract.template, contract.letters, contract.labels, contract.refusal


_WANTED = set(map(_wanted, _NEVER))


def is_held_out(contract: Contract) -> bool:
    """Return whether training may not see a contract, by its family, a literal or what it wants."""
    return (
        contract.family in HELD_FAMILIES
        or contract.template in _TEMPLATES
        or contract.labels in _LABELS
        or contract.refusal in _REFUSED
        or _wanted(contract) in _WANTED
    )


def check_held_out(contract: Contract) -> None:
    """Refuse a contract that training may not see."""
    if is_held_out(contract):
        raise RaggdError(
            f"contract '{contract.name}' is held out of training: draw contracts by draw_contract."
        )
