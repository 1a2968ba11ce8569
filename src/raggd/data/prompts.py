"""From a question and its passages to tokens: templates, the answer mask, and what is cut.

Every method, training included, renders its prompts here, so all see the same words. A prompt that
is too long loses passage text from the last passage on; never the question or the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raggd.data.rendering import text_tokens, turn_tokens
from raggd.records import Demonstration, Passage, RaggdError, content_id

BRIEF = "Reply with the answer alone, in as few words as possible."
READ = "Use the passages to answer the question."
WITH_PASSAGES = f"{READ} {BRIEF}"
WITHOUT_PASSAGES = f"Answer the question. {BRIEF}"
FOLLOW = "Answer in the way the examples show."
"""The instruction that cached examples stand under: it asks for no form of its own."""
ANSWER_CUE = "Answer:"
_LONGEST_TOKEN = 16
"""Characters of a token, on the average over a whole context: what is longer is not looked at."""
Exchange = tuple[str, str]  # an earlier question of a conversation, and what was answered


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
    for demonstration in shown:
        text = user_text(demonstration.question, demonstration.passages, sources)
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": demonstration.answer})
    for asked, answered in earlier:
        turns.append({"role": "user", "content": user_text(asked, ())})
        turns.append({"role": "assistant", "content": answered})
    return [*turns, {"role": "user", "content": user_text(question, passages, sources)}]


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


def _bounded(passage: Passage, most: int) -> Passage:
    if max(len(passage.title), len(passage.text)) <= most:
        return passage
    return replace(passage, title=passage.title[:most], text=passage.text[:most])


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
    """Render and tokenise one prompt; where it would not fit, passages are cut from the last.

    Without a chat template it is plain text.

    Raises:
        RaggdError: the question is empty, or does not fit even without passages.
    """
    if not question.strip():
        raise RaggdError("the question is empty: expected at least one word.")
    end = answer_tokens(tokenizer, answer) if answer is not None else []
    kept = [_bounded(passage, _LONGEST_TOKEN * limit) for passage in passages]
    room = limit - reserve - len(end)

    def messages(passages: Sequence[Passage]) -> list[dict[str, str]]:
        return _messages(question, passages, shown, instruction, earlier, sources)

    while len(tokens := turn_tokens(tokenizer, messages(kept))) > room:
        if not kept:
            raise RaggdError(
                f"the prompt needs {len(tokens) + len(end) + reserve} tokens without any passage, "
                f"more than the limit of {limit}: shorten the question, show fewer demonstrations, "
                "or raise backbone.context_tokens."
            )
        kept = _cut(tokenizer, kept, len(tokens) - room)
    whole = sum(old is new for old, new in zip(passages, kept, strict=False))
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
