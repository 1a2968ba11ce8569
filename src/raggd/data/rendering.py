"""Turns to tokens: what a template writes may be control tokens, what people wrote is text.

A passage that holds ``<|im_end|>`` must not close a turn. A mark is put inside every control word
of a content before the template is rendered; the text is cut at the marks, and the pieces are
encoded one by one, so that no piece of a content holds a control word. Where nothing is marked,
the text is encoded in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from raggd.records import RaggdError

Turns = Sequence[dict[str, str]]  # a conversation: ``role`` and ``content`` of each turn

_TODAY = datetime(2024, 7, 26)
"""The date in every prompt: the one that Llama's templates write where they know none."""
_ASKS_FOR_DATE = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
_CHANGING = re.compile(r"strftime_now\s*\(|\|\s*random\b|\blipsum\b")
_THINKING = re.compile(r"<(think|thinking|thought|reasoning|seed:think)>\s*\Z")


@dataclass(frozen=True)
class ControlWords:
    """The words that a tokenizer takes for more than text, as looked up for a chat template.

    `ids` leaves out the one that stands for unknown text too.
    """

    template: str | None
    words: re.Pattern[str]
    ids: frozenset[int]

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
    added = {str(token): (i, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_tokens)
    named = str(template or "")
    ids = {
        word: number
        for word, (number, marked) in added.items()
        if word.strip() and (marked or word in special or word in named)
    }
    longest_first = sorted(ids, key=len, reverse=True)
    words = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    proving = frozenset(ids.values()) - {tokenizer.unk_token_id}
    _KNOWN[tokenizer] = known = ControlWords(template, words, proving)
    return known


def _mark_for(contents: Sequence[str]) -> str:
    mark = "\ufdd0"  # no character: text does not hold it, or the mark grows
    while any(mark in content for content in contents):
        mark += "\ufdd1"
    return mark


def _marked(control: ControlWords, content: str, mark: str) -> str:
    while True:  # again, for a word inside another
        broken = control.words.sub(lambda m: f"{m[0][0]}{mark}{m[0][1:]}", content)
        if broken == content:
            return content
        content = broken


def _encode(tokenizer: Any, pieces: Sequence[str]) -> list[int]:
    return [t for p in pieces if p for t in tokenizer.encode(p, add_special_tokens=False)]


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, none of them a control token, without begin and end."""
    control, mark = control_of(tokenizer), _mark_for([text])
    tokens = _encode(tokenizer, _marked(control, text, mark).split(mark))
    # a tokenizer that normalises first (full-width forms) may still find one
    return _encode(tokenizer, list(text)) if control.count(tokens) else tokens


def _hidden(tokenizer: Any, control: ControlWords, marked: str, mark: str) -> str:
    pieces = marked.split(mark)
    found = control.count(_encode(tokenizer, pieces))
    return mark.join("".join(pieces)) if found else marked


def _plain(turns: Turns, cue: str) -> str:
    parts = [turns[0]["content"]]
    for turn in turns[1:]:
        if turn["role"] == "assistant":
            parts[-1] += " " + turn["content"]
        else:
            parts.append(f"{turn['content']}\n{cue}")
    return "\n\n".join(parts)


def _dated(template: str) -> str:
    fixed = _ASKS_FOR_DATE.sub(lambda m: repr(_TODAY.strftime(m[1] or m[2] or "")), template)
    if changing := _CHANGING.search(fixed):
        raise RaggdError(
            f"the chat template of this backbone uses '{changing[0]}': its prompts would change "
            "from time to time. Write a fixed text there in its chat_template.jinja."
        )
    return fixed


def _apply(tokenizer: Any, turns: Turns) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(turns),
            chat_template=_dated(template_of(tokenizer) or ""),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            thinking=False,
            date_string=_TODAY.strftime("%d %b %Y"),
        )
    )


def _templated(tokenizer: Any, turns: Turns) -> str:
    system = turns[0]["content"]
    try:
        text = _apply(tokenizer, turns)
    except RaggdError:
        raise
    except Exception:  # some templates (Gemma 2) refuse a system turn
        text = ""
    if system.strip() not in text:  # ... and others drop it: join it to the first user turn
        first = {"role": "user", "content": f"{system}\n\n{turns[1]['content']}"}
        try:
            text = _apply(tokenizer, [first, *turns[2:]])
        except Exception as error:
            raise RaggdError(
                f"the chat template of this backbone cannot be rendered ({error}): mend its "
                "chat_template.jinja, or remove it to ask in plain text."
            ) from error
    lost = [turn["content"] for turn in turns if turn["content"].strip() not in text]
    if lost:
        raise RaggdError(
            f"the chat template of this backbone leaves out what is said to it ('{lost[0][:40]}'): "
            "mend its chat_template.jinja, or remove it to ask in plain text."
        )
    thinks = _THINKING.search(text)
    return f"{text.rstrip()}\n\n</{thinks[1]}>\n\n" if thinks else text


def render_turns(tokenizer: Any, turns: Turns, *, cue: str = "") -> str:
    """Render a system turn, then the user's and the assistant's, up to the model's next word.

    The text is the same on every day: a date is a fixed one, and a block of thinking is closed.
    Without a chat template the model's part begins after `cue`. A template that cannot say all the
    turns is refused by a `RaggdError`.
    """
    return _plain(turns, cue) if template_of(tokenizer) is None else _templated(tokenizer, turns)


def turn_tokens(tokenizer: Any, turns: Turns) -> list[int]:
    """Return the tokens of rendered turns; where text could pass for control tokens, refuse."""
    control = control_of(tokenizer)
    contents = [turn["content"] for turn in turns]
    mark = _mark_for(contents)
    said = [_marked(control, content, mark) for content in contents]
    for thorough in (False, True):  # a tokenizer that normalises first finds more of them
        if thorough:
            said = [_hidden(tokenizer, control, content, mark) for content in said]
        shown = [{**turn, "content": c} for turn, c in zip(turns, said, strict=True)]
        pieces = render_turns(tokenizer, shown, cue="Answer:").split(mark)
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
