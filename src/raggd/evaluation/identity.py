"""Which settings decide an answer: stored answers stay valid while these stay as they are.

Names are listed one by one, so that a new setting elsewhere leaves finished work valid.
"""

from __future__ import annotations

import json

from raggd.settings import Settings

DECIDING = {
    "backbone": ("device", "dtype", "context_tokens"),
    "target": ("steps", "learning_rate", "max_tokens"),
    "evaluation": ("batch", "max_answer_tokens", "answer_loss"),
}
"""Settings that change what a method answers, apart from the backbone, the weights, the questions
and their evidence, which are covered by fingerprints of their own. The batch counts, since padding
changes rounding."""


def deciding_values(settings: Settings) -> str:
    """Return the values of `DECIDING` as JSON text: equal for settings that give equal answers."""
    values = {
        section: {name: getattr(getattr(settings, section), name) for name in names}
        for section, names in DECIDING.items()
    }
    return json.dumps(values, sort_keys=True)
