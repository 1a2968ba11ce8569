"""The literals that contracts are made of. The last quarter of each list is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Words(NamedTuple):
    """One list of literals, cut into those that training may use and those it may not."""

    known: tuple[str, ...]
    held: tuple[str, ...]


def _cut(words: Sequence[str]) -> Words:
    at = len(words) - max(2, len(words) // 4)
    return Words(tuple(words[:at]), tuple(words[at:]))


HEADS = _cut(
    "Answer|ANSWER|Reply|A|Ans|Response|Out|Final answer|Solution|Found|Entity|Value|It is|"
    "Short answer|So|Fact|Verdict|answer|reply|out|Key|Named|Assistant|RESULT|Conclusion|Output|"
    "result|Outcome|Finding|Response text".split("|")
)
"""Words before an answer."""
SEPARATORS = _cut([": ", " = ", " -> ", " - ", ":\n", " | ", " => ", " ~ ", " :: "])
KEYS = _cut(
    "answer|value|text|entity|a|reply|name|short_answer|output|data|content|ans|Answer|final|found|"
    "response|result|label|item|solution".split("|")
)
"""Keys of JSON objects."""
TAGS = _cut("a|answer|ans|b|value|entity|span|out|em|reply|result|output|final".split("|"))
"""Names of XML elements."""
PAIRS = _cut(
    [
        "\" \"", "' '", "( )", "[ ]", "{ }", "< >", "« »", "“ ”", "** **", "* *", "` `", "__ __",
        "<< >>", "(( ))", "# #", "| |", "[[ ]]", "{{ }}", "/ /", "~~ ~~", "== ==",
    ]
)  # fmt: skip
"""Marks around an answer, their two halves parted by a space."""
TAILS = _cut(
    ["!", "?", ".", ";", " .", "...", " (end)", " #", "!!", " <", " [done]", " //", " <=="]
)
"""Marks behind an answer."""
SENTENCES = _cut(
    [
        "The answer is $x.", "It is $x.", "I think it is $x.", "That would be $x.", "You want $x.",
        "The passages say $x.", "According to the documents, it is $x.", "Here it is: $x.",
        "The right answer is $x, I believe.", "Certainly! It is $x.", "My answer: $x, as shown.",
        "La respuesta es $x.", "Es $x.", "Según los textos, es $x.",
        "Die Antwort ist $x.", "Es ist $x.", "Laut den Texten: $x.",
        "Die richtige Antwort lautet $x.",
        "A resposta é $x.", "É $x.", "Het antwoord is $x.", "Svaret är $x.", "Odpowiedź to $x.",
        "Vastaus on $x.", "Cevap: $x.", "Jawabannya adalah $x.",
        "La réponse est $x.", "C'est $x.", "La risposta è $x.", "Răspunsul este $x.",
        "The documents name $x.", "We find $x here.", "Svar: det er $x.", "Das wäre $x.",
    ]
)  # fmt: skip
"""Sentences around an answer, in several languages."""
REFUSALS = _cut(
    [
        "not in the documents", "Not in the documents.", "I don't know.", "unknown", "N/A",
        "The passages do not say.", "not found", "NOT FOUND", "No information.", "none",
        "I cannot find this in the texts.", "insufficient evidence", "Not stated.", "???",
        "The context does not answer this question.", "Das steht nicht in den Dokumenten.",
        "No lo sé.", "missing", "Sorry, the documents do not mention it.", "unanswerable",
        "no evidence", "No answer found.", "Cannot tell.", "not mentioned", "Keine Angabe.",
        "I could not find an answer.", "nothing",
    ]
)  # fmt: skip
"""What is answered where the passages lack the answer."""
CITES = _cut(
    [
        "$x [$n]", "$x ($n)", "$x [passage $n]", "$x (see $n)", "[$n] $x", "$x {$n}",
        "$x ($t)", "$x - $t", "$x [$t]", "$x, from: $t", "$t: $x", "$x [source: $t]",
        "$x\nSource: [$n]", "$x\nSource: $t", "Answer: $x\nPassage: $n", "- $x\n- [$n]",
        "$x^[$n]", "$x <$t>", "$x according to [$n]", "Source: $t\n$x", "$x #$n", "$x\n($t)",
    ]
)  # fmt: skip
"""Answers that name the passage they stand in."""
VERDICTS = _cut(
    "yes no|vero falso|Yes No|YES NO|correct wrong|right wrong|correct incorrect|valid invalid|"
    "ok bad|ja nein|sí no|oui non|accept reject|1 0|agree disagree|T F|good bad|true untrue|"
    "true false|supported refuted|True False|proven unproven|fits fails|pass fail".split("|")
)
"""Two labels of a claim: right, wrong. Each says which it is: examples are read without passages,
so words that mean nothing could not tell it."""
MARKERS = _cut("A B C|a b c|A B|i ii iii|X Y Z|a b|P Q|M N O|1 2 3|I II III".split("|"))
"""Labels of options."""
LABELS = _cut(
    "red blue|cat dog|foo bar|alpha beta|one two|left right|moon sun|up down|zim zam|person time|"
    "PERSON DATE|spring autumn|K L|oak elm|plip plop|west east|green gold|fire ice".split("|")
)
"""Two words without meaning for two kinds of question."""
SYLLABLES = _cut("ba ko zu mi ter lan qua vex pol dri sam fu nok rel gy hup wex jor".split(" "))
"""What made-up words are made of."""
