"""From a question and its passages to tokens: templates, the answer mask, and what is cut.

Every method, training included, renders its prompts here, so all see the same words. A prompt that
is too long loses passage text from the last passage on; never the question or the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raggd.records import Demonstration, Passage, RaggdError, content_id

BRIEF = "Reply with the answer alone, in as few words as possible."
READ = "Use the passages to answer the question."
WITH_PASSAGES = f"{READ} {BRIEF}"
WITHOUT_PASSAGES = f"Answer the question. {BRIEF}"
ANSWER_CUE = "Answer:"
Exchange = tuple[str, str]
"""An earlier question of a conversation, and what was answered."""


def prompt_fingerprint(tokenizer: Any) -> str:
    """Return a hash of instructions and chat template: two tokenizers with one hash ask alike."""
    template = str(getattr(tokenizer, "chat_template", None) or "plain")
    return content_id(WITH_PASSAGES, WITHOUT_PASSAGES, ANSWER_CUE, template)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens of one prompt, with or without its answer.

    Attributes:
        tokens: token ids; the answer, closed by the end token, comes last.
        answer_tokens: how many of them are the answer's (0 when it is to be generated).
        passages_cut: passages that were shortened or dropped to fit.
    """

    tokens: tuple[int, ...]
    answer_tokens: int
    passages_cut: int


def passage_lines(passages: Sequence[Passage]) -> str:
    """Return the passages numbered, one a line, title first."""
    return "\n".join(
        f"[{number}] {p.title + ': ' if p.title else ''}{' '.join(p.text.split())}"
        for number, p in enumerate(passages, start=1)
    )


def user_text(question: str, passages: Sequence[Passage]) -> str:
    """Return what the user's turn says: the passages, then the question."""
    asked = f"Question: {question.strip()}"
    return f"{passage_lines(passages)}\n\n{asked}" if passages else asked


def system_text(reads: bool, instruction: str = "") -> str:
    """Return the system turn.

    Args:
        reads: whether there are passages.
        instruction: how to answer, in the user's words; it stands in place of the built-in one
            that asks for brevity, which would contradict it.

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
) -> list[dict[str, str]]:
    reads = bool(passages or any(d.passages for d in shown))
    turns = [{"role": "system", "content": system_text(reads, instruction)}]
    for demonstration in shown:
        text = user_text(demonstration.question, demonstration.passages)
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": demonstration.answer})
    for asked, answered in earlier:
        turns.append({"role": "user", "content": user_text(asked, ())})
        turns.append({"role": "assistant", "content": answered})
    return [*turns, {"role": "user", "content": user_text(question, passages)}]


def _plain(messages: Sequence[dict[str, str]], cue: str) -> str:
    parts = [messages[0]["content"]]
    for message in messages[1:]:
        if message["role"] == "assistant":
            parts[-1] += " " + message["content"]
        else:
            parts.append(f"{message['content']}\n{cue}")
    return "\n\n".join(parts)


def turn_tokens(
    tokenizer: Any, turns: list[dict[str, str]], *, cue: str = ANSWER_CUE, start: str = ""
) -> list[int]:
    """Render turns up to where the model is to go on.

    Args:
        tokenizer: a Hugging Face tokenizer.
        turns: a system turn, then the user's and the assistant's, the user's last.
        cue: without a chat template, the word that the model's part begins after.
        start: what the model has "already said".

    Returns:
        Token ids.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        text = _plain(turns, cue) + (f" {start}" if start else "")
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [*first, *tokenizer.encode(text, add_special_tokens=False)]
    text = _chat_text(tokenizer, turns) + start
    return list(tokenizer.encode(text, add_special_tokens=False))


def _chat_text(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    options = {"tokenize": False, "add_generation_prompt": True}
    try:
        return str(tokenizer.apply_chat_template(messages, **options))
    except (
        Exception
    ):  # some templates (Gemma 2) refuse a system turn: join it to the first user turn
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        merged = [{"role": "user", "content": joined}, *messages[2:]]
        return str(tokenizer.apply_chat_template(merged, **options))


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """Return the tokens of an answer as the model is to write it, closed by the end token."""
    lead = "" if getattr(tokenizer, "chat_template", None) else " "
    text = lead + answer.strip()
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def _shorten(tokenizer: Any, passage: Passage, tokens: int) -> Passage | None:
    if tokens <= 0:
        return None
    kept = tokenizer.encode(passage.text, add_special_tokens=False)[:tokens]
    words = tokenizer.decode(kept).rsplit(" ", 1)[0].strip()
    return Passage(passage.id, words, passage.title) if words else None


def _cut(tokenizer: Any, passages: list[Passage], excess: int) -> list[Passage]:
    last = passages[-1]
    length = len(tokenizer.encode(last.text, add_special_tokens=False))
    shorter = _shorten(tokenizer, last, length - excess - 2)
    return [*passages[:-1], shorter] if shorter else passages[:-1]


def build_prompt(
    tokenizer: Any,
    question: str,
    passages: Sequence[Passage] = (),
    *,
    answer: str | None = None,
    limit: int,
    reserve: int = 0,
    shown: Sequence[Demonstration] = (),
    instruction: str = "",
    earlier: Sequence[Exchange] = (),
) -> Prompt:
    """Render and tokenise one prompt.

    Args:
        tokenizer: a Hugging Face tokenizer; without a chat template the prompt is plain text.
        question: the question.
        passages: its evidence, best first; none gives the closed-book prompt.
        answer: a gold answer to append (for a loss or an encoding); None to generate.
        limit: most tokens, answer included.
        reserve: tokens to leave free below the limit for generation.
        shown: demonstrations placed before the question (few shot).
        instruction: how to answer, in the user's words; empty asks for few words.
        earlier: turns of the conversation, oldest first; their passages are not repeated.

    Returns:
        The prompt. When it would not fit, passages are shortened from the last.

    Raises:
        RaggdError: the question is empty, or does not fit even without passages.
    """
    if not question.strip():
        raise RaggdError("the question is empty: expected at least one word.")
    end = answer_tokens(tokenizer, answer) if answer is not None else []
    kept = list(passages)
    room = limit - reserve - len(end)

    def messages(passages: Sequence[Passage]) -> list[dict[str, str]]:
        return _messages(question, passages, shown, instruction, earlier)

    while len(tokens := turn_tokens(tokenizer, messages(kept))) > room:
        if not kept:
            raise RaggdError(
                f"the prompt needs {len(tokens) + len(end) + reserve} tokens without any passage, "
                f"more than the limit of {limit}: shorten the question, show fewer demonstrations, "
                "or raise backbone.context_tokens."
            )
        kept = _cut(tokenizer, kept, len(tokens) - room)
    whole = sum(old is new for old, new in zip(passages, kept, strict=False))
    return Prompt((*tokens, *end), len(end), len(passages) - whole)
