"""What decides an answer besides the adapter: weights, tokenizer, template and wording.

A fingerprint is written ``weights-vocabulary-special-end-template-wording``, so that two of them
say by themselves which part differs. Files made before there were parts name the weights alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from raggd.backbone.embedded import known_fingerprint, shipped_fingerprint
from raggd.data.prompts import (
    ANSWER_CUE,
    WITH_PASSAGES,
    WITHOUT_PASSAGES,
    control_of,
    render_turns,
    template_of,
    user_text,
)
from raggd.records import Passage, RaggdError, content_id

PARTS = ("weights", "vocabulary", "special tokens", "end tokens", "chat template", "prompt wording")
_DIGITS = 8
_PROBE = "The 12,345 cafés of Zürich – «10 % off»!\n\tif x_1 >= 0: 図書館 المدرسة 🙂 naïve\u00ad"
_CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Question: one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Question: two?"},
]


def model_fingerprint(model: nn.Module) -> str:
    """Hash shape and 256 values of every parameter, rounded to bfloat16: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256]
        digest.update(f"{path}{tuple(parameter.shape)}".encode())
        digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Return the tokens that end a text, the tokenizer's and the settings'; none is refused."""
    own = tokenizer.eos_token_id
    if own is None:
        raise RaggdError(
            "the tokenizer of this backbone has no end token, so no answer can end: name its "
            "eos_token in tokenizer_config.json."
        )
    others = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = others if isinstance(others, list) else [] if others is None else [others]
    return list(dict.fromkeys([own, *sorted(listed)]))


def stop_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Return the tokens that end an answer: end tokens; a line break without a chat template."""
    stops = set(end_tokens(tokenizer, model))
    if template_of(tokenizer) is None:
        for text in ("\n", "\n\n"):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            if len(tokens) == 1:
                stops.add(tokens[0])
    return sorted(stops)


def _vocabulary(tokenizer: Any) -> str:
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    digest = hashlib.sha256("\0".join(word for word, _ in entries).encode(errors="replace"))
    digest.update(str(tokenizer.encode(_PROBE, add_special_tokens=False)).encode())
    return digest.hexdigest()[:_DIGITS]


def fingerprint_of(model: Any, tokenizer: Any) -> str:
    """Say what decides an answer besides the adapter: end tokens as they are, the rest hashed."""
    special = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    control = control_of(tokenizer)
    asked = user_text("q", [Passage("1", "text", "title"), Passage("2", "text")])
    parts = [
        model_fingerprint(model),
        _vocabulary(tokenizer),
        content_id(str(special), str(sorted(control.ids)), control.words.pattern, length=_DIGITS),
        "+".join(map(str, end_tokens(tokenizer, model))),
        content_id(render_turns(tokenizer, _CONVERSATION, cue=ANSWER_CUE), length=_DIGITS),
        content_id(WITH_PASSAGES, WITHOUT_PASSAGES, ANSWER_CUE, asked, length=_DIGITS),
    ]
    return "-".join(parts)


def differences(recorded: str, now: str) -> list[str]:
    """Name the `PARTS` in which two fingerprints differ, end tokens with their ids.

    A recorded one that names the weights alone agrees with all tokenizers, unless it is an embedded
    backbone's, whose tokenizer is known.

    >>> differences("aa-bb-cc-2-dd-ee", "aa-bb-cc-1+2-dd-ff")
    ['end tokens (2 then, 1+2 now)', 'prompt wording']
    """
    then = known_fingerprint(recorded).split("-")
    pairs = zip(PARTS, then, now.split("-"), strict=False)
    return [
        f"{name} ({a} then, {b} now)" if name == "end tokens" else name
        for name, a, b in pairs
        if a != b
    ]


def check_same(recorded: str, now: str, thing: str, name: str, advice: str) -> None:
    """Refuse a thing made for another backbone or tokenizer than `now`, called `name`."""
    wrong = differences(recorded, now)
    if wrong and wrong[0] == PARTS[0]:
        raise RaggdError(
            f"{thing} was made for backbone {recorded}, but '{name}' is {now}: {advice}."
        )
    if wrong:
        raise RaggdError(
            f"{thing} was made for backbone '{name}' with another tokenizer: {', '.join(wrong)} "
            f"differ. Put back the tokenizer's files that it was made with, or {advice}."
        )


def check_embedded(name: str, folder: str, now: str, parts: Sequence[str]) -> None:
    """Refuse an embedded backbone that is not the one that was shipped, in some of its parts."""
    found = differences(shipped_fingerprint(name), now)
    wrong = [part for part in found if part.partition(" (")[0] in parts]
    if wrong:
        raise RaggdError(
            f"the files of '{name}' in {folder} are not those that raggd makes: {', '.join(wrong)} "
            "differ. Remove that folder: it is made again."
        )
