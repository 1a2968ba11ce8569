"""Families of contracts, drawn by seed: hundreds of tasks out of a few lines.

`draw_contract` gives what training may see, made of the literals in the lists here. What it never
sees: literals that are in none of them (`NEW`), families of their own (`HELD`), and whatever asks
the same as those.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from raggd.data.contracts.base import Contract
from raggd.records import RaggdError, content_id

HEADS = (
    "Answer|ANSWER|Reply|A|Ans|Response|Out|Final answer|Solution|Found|Entity|Value|It is|"
    "Short answer|So|Fact|Verdict|answer|reply|out|Key|Named|Assistant".split("|")
)
SEPARATORS = (": ", " = ", " -> ", " - ", ":\n", " | ", " => ")
KEYS = (
    "answer|value|text|entity|a|reply|name|short_answer|output|data|content|ans|Answer|final|found"
).split("|")
TAGS = "a answer ans b value entity span out em reply".split()
PAIRS = (
    "\" \"", "' '", "( )", "[ ]", "{ }", "< >", "« »", "“ ”", "** **", "* *", "` `", "__ __",
    "<< >>", "(( ))", "# #", "| |",
)  # fmt: skip
"""Marks around an answer, their two halves parted by a space."""
TAILS = ("!", "?", ".", ";", " .", "...", " (end)", " #", "!!", " <")
SENTENCES = (
    "The answer is $x.", "It is $x.", "I think it is $x.", "That would be $x.", "You want $x.",
    "The passages say $x.", "According to the documents, it is $x.", "Here it is: $x.",
    "The right answer is $x, I believe.", "Certainly! It is $x.", "My answer: $x, as shown.",
    "La respuesta es $x.", "Es $x.", "Según los textos, es $x.",
    "Die Antwort ist $x.", "Es ist $x.", "Laut den Texten: $x.",
    "Die richtige Antwort lautet $x.",
    "A resposta é $x.", "É $x.", "Het antwoord is $x.", "Svaret är $x.", "Odpowiedź to $x.",
    "Vastaus on $x.", "Cevap: $x.", "Jawabannya adalah $x.",
)  # fmt: skip
REFUSALS = (
    "not in the documents", "Not in the documents.", "I don't know.", "unknown", "N/A",
    "The passages do not say.", "not found", "NOT FOUND", "No information.", "none",
    "I cannot find this in the texts.", "insufficient evidence", "Not stated.", "???",
    "The context does not answer this question.", "Das steht nicht in den Dokumenten.",
    "No lo sé.", "missing", "Sorry, the documents do not mention it.", "unanswerable",
    "no evidence",
)  # fmt: skip
CITES = (
    "$x [$n]", "$x ($n)", "$x [passage $n]", "$x (see $n)", "[$n] $x", "$x {$n}",
    "$x ($t)", "$x - $t", "$x [$t]", "$x, from: $t", "$t: $x", "$x [source: $t]",
    "$x\nSource: [$n]", "$x\nSource: $t", "Answer: $x\nPassage: $n", "- $x\n- [$n]",
    "$x^[$n]",
)  # fmt: skip
VERDICTS = (
    "yes no|vero falso|Yes No|YES NO|correct wrong|right wrong|correct incorrect|valid invalid|"
    "ok bad|ja nein|sí no|oui non|accept reject|1 0|agree disagree|T F|good bad|true untrue"
).split("|")
"""Two labels of a claim: right, wrong. Each says which it is: examples are read without passages,
so words that mean nothing could not tell it."""
MARKERS = "A B C|a b c|A B|i ii iii|X Y Z|a b|P Q|M N O".split("|")
LABELS = (
    "red blue|cat dog|foo bar|alpha beta|one two|left right|moon sun|up down|zim zam|person time|"
    "PERSON DATE|spring autumn|K L|oak elm"
).split("|")
"""Two words without meaning for two kinds of question."""
SYLLABLES = "ba ko zu mi ter lan qua vex pol dri sam fu nok rel".split()

Pick = Callable[[Sequence[str]], str]
"""Chooses a literal."""
_BULLETS = ("- ", "* ", "# ", "1. ", "> ", "- [x] ", "=> ")
_OBJECTS = ('{"%s": "$x"}', '{"%s":"$x"}', '{ "%s": "$x" }')
_CITED = ('{"%s": "$x", "passage": $n}', '{"%s": "$x", "source": "$t"}', '{"%s": "$x", "n": $n}')
_SHAPES = ("%s $x", "%s: $x", "$x %s", "(%s) $x", "$x [%s]", "%s=$x")
_NUMBERS = ("$x", "[$x]", "Passage $x")


class Family(NamedTuple):
    """A kind of contracts, which differ in the literals that are picked."""

    weight: float  # how often it is drawn
    template: Callable[[Pick], str] = lambda pick: "$x"
    target: str = "entity"
    letters: str = "same"
    labels: Sequence[str] = ()  # lists of labels to choose one from


FAMILIES: Mapping[str, Family] = {
    "prefix": Family(2, lambda pick: pick(HEADS) + pick(SEPARATORS) + "$x"),
    "suffix": Family(1, lambda pick: "$x" + pick(TAILS)),
    "marks": Family(2, lambda pick: "$x".join(pick(PAIRS).split(" "))),
    "markdown": Family(1, lambda pick: pick(_BULLETS) + "$x"),
    "json": Family(2.5, lambda pick: pick(_OBJECTS) % pick(KEYS)),
    "json-cited": Family(2, lambda pick: pick(_CITED) % pick(KEYS)),
    "xml": Family(1, lambda pick: "<{0}>$x</{0}>".format(pick(TAGS))),
    "sentence": Family(3, lambda pick: pick(SENTENCES)),
    "upper": Family(4, letters="upper"),
    "lower": Family(1, letters="lower"),
    "slug": Family(1, letters="slug"),
    "invented": Family(2, lambda pick: pick(_SHAPES) % (pick(SYLLABLES) + pick(SYLLABLES))),
    "citation": Family(5, lambda pick: pick(CITES)),
    "number": Family(1.5, lambda pick: pick(_NUMBERS), target="number"),
    "title": Family(2, target="title"),
    "full-sentence": Family(2, target="sentence"),
    "first-word": Family(0.7, target="first-word"),
    "last-word": Family(0.7, target="last-word"),
    "claim": Family(7, target="claim", labels=VERDICTS),
    "choice": Family(6, target="choice", labels=MARKERS),
    "class": Family(2, target="class", labels=LABELS),
    "refusal": Family(26),
}
WRAPPED = {"claim", "choice", "class", "title", "number", "first-word", "upper", "refusal"}
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
    pick = draw.choice
    name = draw.choices(list(FAMILIES), [family.weight for family in FAMILIES.values()])[0]
    told, family = name, FAMILIES[name]
    template = family.template(pick)
    labels = tuple(pick(family.labels).split(" ")) if family.labels else ()
    refusal, wrapped = pick(REFUSALS) if name == "refusal" else "", False
    posing = draw.randrange(12)
    files = "$t" in template and draw.random() < 0.4
    if files:
        told = f"{name}-file"
    if name in WRAPPED and draw.random() < 0.35:
        wrapper = draw.choice(_WRAPPERS)
        told, template = f"{name}+{wrapper}", FAMILIES[wrapper].template(pick)
        wrapped = bool(refusal) and draw.random() < 0.6
    elif family.target == "entity" and not refusal and draw.random() < 0.3:
        told, refusal = f"{name}+refusal", pick(REFUSALS)
    # with passages as they are found, too: it is there that one refuses
    whole = bool(refusal) and draw.random() < 0.4
    contract = Contract("", told, family.target, template, family.letters, labels, posing, refusal)
    contract = replace(contract, wrapped=wrapped, whole=whole, files=files)
    return replace(contract, name=f"{told}-{content_id(repr(contract))[:8]}")


NATURAL = Contract("natural", "natural", whole=True)
"""The benchmarks as they are: full passages, a short entity."""
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
"""Known families with literals that training never has: they are in none of the lists above."""
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
"""All contracts that `raggd evaluate --contracts` measures, by name."""
REFUSING = tuple(contract for members in SETS.values() for contract in members if contract.refusal)
"""Those of them under which a question may be refused."""
LETTER_CHANGES = frozenset({"upper", "lower", "slug", "snake", "upper-quoted", "initials"})
"""Families that change the answer's own letters; reported apart."""


_NEVER = (*NEW, *HELD)
_TEMPLATES = {c.template for c in _NEVER} - {c.template for c in KNOWN}
_LABELS = {c.labels for c in _NEVER} - {()}
_REFUSED = {c.refusal for c in _NEVER} - {""}
_wanted = attrgetter("target", "template", "letters", "labels", "refusal")
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
