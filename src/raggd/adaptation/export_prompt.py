"""The prompt that an exported adapter was trained with, as text and as a chat template.

An adapter reads what it was trained to read: under other words it answers otherwise. The template
puts raggd's instruction, and the examples that an adapted state shows, before a conversation that
has no system turn, so that a stock engine needs nothing but the user's turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.backbone.load import Backbone
from raggd.data.prompts import ANSWER_CUE, system_text, user_text
from raggd.data.rendering import render_turns, template_of
from raggd.files import write_text
from raggd.records import Demonstration, Passage

TEMPLATE_FILE, PROMPT_FILE = "chat_template.jinja", "prompt.txt"
_PLAIN = (
    "{{- messages[0]['content'] -}}{%- for m in messages[1:] -%}{%- if m['role'] == 'assistant' -%}"
    "{{- ' ' + m['content'] -}}{%- else -%}{{- '\\n\\n' + m['content'] + '\\n"
    + ANSWER_CUE
    + "' -}}"
    "{%- endif -%}{%- endfor -%}"
)
"""What raggd writes for a tokenizer without a template."""


def opening_turns(
    shown: Sequence[Demonstration], instruction: str, reads: bool = True
) -> list[dict[str, str]]:
    """Return the turns before the user's own: the instruction, and examples with their answers."""
    turns = [{"role": "system", "content": system_text(reads, instruction)}]
    for example in shown:
        text = user_text(example.question, example.passages)
        turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": example.answer},
        ]
    return turns


def chat_template(
    tokenizer: Any, shown: Sequence[Demonstration] = (), instruction: str = ""
) -> str:
    """Make the backbone's chat template, in Jinja, say what raggd says where nobody says otherwise.

    `shown` are examples that stand before the question; without an `instruction` it is raggd's own.
    """
    turns = json.dumps(opening_turns(shown, instruction), ensure_ascii=False)
    # what is no JSON in Jinja: nothing; strings of both are written alike
    put = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = " + turns
    put += " + messages -%}{%- endif -%}"
    return put + _joined(tokenizer) + (template_of(tokenizer) or _PLAIN)


def _joined(tokenizer: Any) -> str:
    # a template that refuses a system turn gets its words in the first turn of the user
    if template_of(tokenizer) is None:
        return ""
    turns = [{"role": "system", "content": "S0"}, {"role": "user", "content": "U0"}]
    if "S0\n\nU0" not in render_turns(tokenizer, turns):
        return ""
    return (
        "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + "
        "messages[1]['content']}] + messages[2:] -%}"
    )


def write_prompt(
    folder: Path,
    backbone: Backbone,
    shown: Sequence[Demonstration],
    instruction: str,
    stem: str = "",
    *,
    sources: bool = False,
) -> list[str]:
    """Write ``prompt.txt``, to be read by people, and ``chat_template.jinja``, for engines.

    They lie in `folder`, beside the adapter, with `stem` before both names, which are returned;
    `shown` and `instruction` are those of the adapted state, and `sources` says whether passages
    are shown with the names of their files.
    """
    names = [f"{stem}{PROMPT_FILE}", f"{stem}{TEMPLATE_FILE}"]
    passage = Passage("1", "{text of the first passage}", "{its title}", "{its file}")
    asked = user_text("{question}", [passage], sources)
    turns = [*opening_turns(shown, instruction), {"role": "user", "content": asked}]
    write_text(folder / names[0], render_turns(backbone.tokenizer, turns, cue=ANSWER_CUE) + "\n")
    write_text(folder / names[1], chat_template(backbone.tokenizer, shown, instruction))
    return names
