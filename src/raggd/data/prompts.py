"""From a question and its passages to tokens: what is said, how it is rendered, and what is cut.

Every method, training included, renders its prompts here, so all see the same words. What a chat
template writes may be control tokens, what people wrote is text: a passage that holds
``<|im_end|>`` must not close a turn. A mark is put inside every control word of a content before
the template is rendered; the text is cut at the marks, and the pieces are encoded one by one, so
that no piece of a content holds a control word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from raggd.data.template import REFUSAL
from raggd.records import Demonstration, Passage, RaggdError, content_id

BRIEF = "Reply with the answer alone, in as few words as possible."
READ = "Use the passages to answer the question."
WITH_PASSAGES = f"{READ} {BRIEF}"
WITHOUT_PASSAGES = f"Answer the question. {BRIEF}"
FOLLOW = "Answer in the way the examples show."  # asks for no form of its own
ALONE = "Reply with the answer alone."
SHORT = 6  # words of answers that are to be alone
ANSWER_CUE = "Answer:"
_LONGEST_TOKEN = 16  # characters, on the average over a context: what is longer is not looked at
Exchange = tuple[str, str]  # an earlier question of a conversation, and what was answered
Turns = Sequence[dict[str, str]]  # a conversation: ``role`` and ``content`` of each turn
_TODAY = datetime(2024, 7, 26)
"""The date in every prompt: the one that Llama's templates write where they know none."""
_ASKS_FOR_DATE = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
_CHANGING = re.compile(r"strftime_now\s*\(|\|\s*random\b|\blipsum\b")
_THINKING = re.compile(r"<(think|thinking|thought|reasoning|seed:think)>\s*\Z")


@dataclass(frozen=True)
class ControlWords:
    """The words that a tokenizer takes for more than text, as looked up for a chat template."""

    template: str | None
    words: re.Pattern[str]
    ids: frozenset[int]  # without the one that stands for unknown text too

    def count(self, tokens: Sequence[int]) -> int:
        """Return how many tokens are control tokens."""
        return sum(map(self.ids.__contains__, tokens))


_KNOWN: WeakKeyDictionary[Any, ControlWords] = WeakKeyDictionary()


def template_of(tokenizer: Any) -> str | None:
    """Return the chat template, the default one where there are several; None without any."""
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def control_of(tokenizer: Any) -> ControlWords:
    """Return a tokenizer's control words: its special tokens, and those that its template names."""
    template = template_of(tokenizer)
    known = _KNOWN.get(tokenizer)
    if known is not None and known.template == template:
        return known
    special, named = set(tokenizer.all_special_tokens), str(template or "")
    ids = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip() and (token.special or str(token) in special or str(token) in named)
    }
    longest_first = sorted(ids, key=len, reverse=True)
    words = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    proving = frozenset(ids.values()) - {tokenizer.unk_token_id}
    _KNOWN[tokenizer] = known = ControlWords(template, words, proving)
    return known


def _marked(control: ControlWords, contents: Sequence[str]) -> tuple[list[str], str]:
    # contents with a mark in every control word, and the mark
    mark = "\ufdd0"  # no character: text does not hold it, or the mark grows
    while any(mark in content for content in contents):
        mark += "\ufdd1"
    said = list(contents)
    while any(map(control.words.search, said)):  # again, for a word inside another
        said = [control.words.sub(lambda m: f"{m[0][0]}{mark}{m[0][1:]}", text) for text in said]
    return said, mark


def _encode(tokenizer: Any, pieces: Sequence[str]) -> list[int]:
    return [t for p in pieces if p for t in tokenizer.encode(p, add_special_tokens=False)]


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, none of them a control token, without begin and end."""
    control = control_of(tokenizer)
    (said,), mark = _marked(control, [text])
    tokens = _encode(tokenizer, said.split(mark))
    # a tokenizer that normalises first (full-width forms) may still find one
    return _encode(tokenizer, list(text)) if control.count(tokens) else tokens


def _templated(tokenizer: Any, template: str, turns: Turns) -> str:
    fixed = _ASKS_FOR_DATE.sub(lambda m: repr(_TODAY.strftime(m[1] or m[2] or "")), template)
    if changing := _CHANGING.search(fixed):
        raise RaggdError(
            f"the chat template of this backbone uses '{changing[0]}': its prompts would change "
            "from time to time. Write a fixed text there in its chat_template.jinja."
        )
    apply = partial(
        tokenizer.apply_chat_template,
        chat_template=fixed,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        thinking=False,
        date_string=_TODAY.strftime("%d %b %Y"),
    )
    system, first, *others = turns
    joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
    for said in (turns, [joined, *others]):
        try:
            text, problem = str(apply(list(said))), ""
        except Exception as error:  # some templates (Gemma 2) refuse a system turn
            text, problem = "", f"cannot be rendered ({error})"
        if system["content"].strip() in text:  # ... and others drop it
            break
    lost = [turn["content"] for turn in turns if turn["content"].strip() not in text]
    if lost:
        problem = problem or f"leaves out what is said to it ('{lost[0][:40]}')"
        raise RaggdError(
            f"the chat template of this backbone {problem}: mend its chat_template.jinja, or "
            "remove it to ask in plain text."
        )
    thinks = _THINKING.search(text)
    return f"{text.rstrip()}\n\n</{thinks[1]}>\n\n" if thinks else text


def render_turns(tokenizer: Any, turns: Turns) -> str:
    """Render a system turn, then the user's and the assistant's, up to the model's next word.

    The text is the same on every day: a date is a fixed one, and a block of thinking is closed.
    Without a chat template the model's part begins after `ANSWER_CUE`. A template that cannot say
    all the turns is refused by a `RaggdError`.
    """
    template = template_of(tokenizer)
    if template is not None:
        return _templated(tokenizer, template, turns)
    parts = [turns[0]["content"]]
    for turn in turns[1:]:
        if turn["role"] == "assistant":
            parts[-1] += " " + turn["content"]
        else:
            parts.append(f"{turn['content']}\n{ANSWER_CUE}")
    return "\n\n".join(parts)


def turn_tokens(tokenizer: Any, turns: Turns) -> list[int]:
    """Return the tokens of rendered turns; where text could pass for control tokens, refuse."""
    control = control_of(tokenizer)
    said, mark = _marked(control, [turn["content"] for turn in turns])
    for thorough in (False, True):  # a tokenizer that normalises first finds more of them
        if thorough:
            found = [control.count(_encode(tokenizer, text.split(mark))) for text in said]
            apart = [mark.join(text.replace(mark, "")) for text in said]
            said = [a if n else text for a, n, text in zip(apart, found, said, strict=True)]
        shown = [{**turn, "content": c} for turn, c in zip(turns, said, strict=True)]
        pieces = render_turns(tokenizer, shown).split(mark)
        tokens = _encode(tokenizer, pieces)
        if control.count(tokens) <= sum(len(control.words.findall(piece)) for piece in pieces):
            return _begun(tokenizer, tokens)
    raise RaggdError(
        "this backbone's tokenizer takes text for control tokens, and raggd cannot keep them "
        "apart: use a backbone whose tokenizer does not rewrite its special tokens."
    )


def _begun(tokenizer: Any, tokens: list[int]) -> list[int]:
    # exactly one begin token, whoever writes it; a template without one has its reasons
    begin = tokenizer.bos_token_id
    if begin is None:
        return tokens
    if template_of(tokenizer) is None:
        return tokens if tokens[:1] == [begin] else [begin, *tokens]
    while tokens[:2] == [begin, begin]:
        tokens = tokens[1:]
    return tokens


def prompt_fingerprint(tokenizer: Any) -> str:
    """Return a hash of instructions and chat template: two tokenizers with one hash ask alike."""
    template = str(getattr(tokenizer, "chat_template", None) or "plain")
    return content_id(WITH_PASSAGES, WITHOUT_PASSAGES, ANSWER_CUE, template)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens of one prompt, with or without its answer."""

    tokens: tuple[int, ...]  # token ids; the answer, closed by the end token, comes last
    answer_tokens: int  # how many of them are the answer's (0 when it is to be generated)
    passages_cut: int  # passages that were shortened or dropped to fit
    passages: tuple[Passage, ...] = ()  # those that it shows
    question: str = ""  # that it ends with, behind the one before it
    asked: str = ""  # that it ends with, as it was asked


def _heading(passage: Passage, sources: bool) -> str:
    title, source = passage.title, passage.source if sources else ""
    heading = f"{title} ({source})" if title and source else title or source
    return f"{' '.join(heading.splitlines())}: " if heading else ""


def passage_lines(passages: Sequence[Passage], sources: bool = False) -> str:
    """Return the passages numbered, one a line, title first, with their files where wanted."""
    return "\n".join(
        f"[{number}] {_heading(p, sources)}{' '.join(p.text.split())}"
        for number, p in enumerate(passages, start=1)
    )


def user_text(question: str, passages: Sequence[Passage], sources: bool = False) -> str:
    """Return what the user's turn says: the passages, then the question."""
    asked = f"Question: {question.strip()}"
    return f"{passage_lines(passages, sources)}\n\n{asked}" if passages else asked


def system_text(reads: bool, instruction: str = "") -> str:
    """Return the system turn, with passages to read or without.

    An instruction in the user's words stands in place of the built-in one, which asks for brevity
    and would contradict it.

    >>> system_text(True, "Answer in German.")
    'Use the passages to answer the question. Answer in German.'
    """
    if not instruction.strip():
        return WITH_PASSAGES if reads else WITHOUT_PASSAGES
    return f"{READ} {instruction.strip()}" if reads else instruction.strip()


def _messages(
    question: str,
    passages: Sequence[Passage],
    shown: Sequence[Demonstration],
    instruction: str,
    earlier: Sequence[Exchange],
    sources: bool,
) -> list[dict[str, str]]:
    reads = bool(passages or any(d.passages for d in shown))
    turns = [{"role": "system", "content": system_text(reads, instruction)}]
    said = [(user_text(d.question, d.passages, sources), d.answer) for d in shown]
    said += [(user_text(asked, ()), answered) for asked, answered in earlier]
    for asked, answered in said:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*turns, {"role": "user", "content": user_text(question, passages, sources)}]


def follow_text(shown: Sequence[Demonstration], told: bool) -> str:
    """Return the instruction that examples stand under.

    A model that is used as it is, is `told` what a trained W0 has learned: to answer in a word
    where the examples do, and when to refuse.
    """
    if not told:
        return FOLLOW
    said = [FOLLOW]
    if all(len(d.answer.split()) <= SHORT and "\n" not in d.answer for d in shown):
        said.append(ALONE)
    if any(d.answer == REFUSAL for d in shown):
        said.append(f"If the passages do not hold the answer, reply: {REFUSAL}")
    return " ".join(said)


def answer_lead(tokenizer: Any) -> str:
    """Return what an answer begins with: a space, where no chat template ends the prompt."""
    return "" if getattr(tokenizer, "chat_template", None) else " "


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """Return the tokens of an answer as the model is to write it, closed by the end token."""
    text = answer_lead(tokenizer) + answer.strip()
    return [*text_tokens(tokenizer, text), tokenizer.eos_token_id]


def _cut(tokenizer: Any, passages: list[Passage], excess: int) -> list[Passage]:
    *others, last = passages
    tokens = text_tokens(tokenizer, last.text)
    kept = tokens[: max(0, len(tokens) - excess - 2)]
    words = tokenizer.decode(kept).rsplit(" ", 1)[0].strip()
    # some texts do not come back from their tokens as they were: they go, or this would not end
    shorter = 0 < len(words) < len(last.text)
    return [*others, replace(last, text=words)] if shorter else others


def build_prompt(
    tokenizer: Any,
    question: str,
    passages: Sequence[Passage] = (),  # best first; none gives the closed-book prompt
    *,
    answer: str | None = None,  # a gold one to append, for a loss or an encoding
    limit: int,  # most tokens, answer included
    reserve: int = 0,  # tokens to leave free below the limit, for generation
    shown: Sequence[Demonstration] = (),  # before the question (few shot)
    instruction: str = "",  # how to answer, in the user's words; empty asks for few words
    earlier: Sequence[Exchange] = (),  # oldest first; their passages are not repeated
    sources: bool = False,  # show passages with the names of their files
) -> Prompt:
    """Render and tokenise one prompt, passages cut from the last to fit; refuse what never fits."""
    if not question.strip():
        raise RaggdError("the question is empty: expected at least one word.")
    end = answer_tokens(tokenizer, answer) if answer is not None else []
    most = _LONGEST_TOKEN * limit
    kept = [replace(p, title=p.title[:most], text=p.text[:most]) for p in passages]
    room = limit - reserve - len(end)
    while True:
        turns = _messages(question, kept, shown, instruction, earlier, sources)
        tokens = turn_tokens(tokenizer, turns)
        if len(tokens) <= room:
            break
        if not kept:
            raise RaggdError(
                f"the prompt needs {len(tokens) + len(end) + reserve} tokens without any passage, "
                f"more than the limit of {limit} ({len(end) + reserve} are the answer's): shorten "
                "question or answer, show fewer demonstrations, or raise backbone.context_tokens."
            )
        kept = _cut(tokenizer, kept, len(tokens) - room)
    whole = sum(old == new for old, new in zip(passages, kept, strict=False))
    asked = " ".join([*(before for before, _ in earlier[-1:]), question])  # a follow-up names less
    return Prompt((*tokens, *end), len(end), len(passages) - whole, tuple(kept), asked)


def prefix_tokens(
    tokenizer: Any, shown: Sequence[Demonstration], instruction: str
) -> tuple[int, ...]:
    """Return what every prompt with these demonstrations begins with, up to the user's turn."""
    turns = _messages("?", [Passage("", "?")], shown, instruction, (), False)
    rendered = [
        turn_tokens(tokenizer, [*turns[:-1], {"role": "user", "content": start}])
        for start in ("[1] ?", "Question: ?", "1")
    ]
    first, last = min(rendered), max(rendered)  # what these two share, all do
    return tuple(first[: next(i for i, a in enumerate(first) if a != last[i])])
