"""Whether to refuse: read from how sure any other answer is, and how much the passages speak of.

Asked whether its passages hold an answer, a small model's own words know nothing of it. How likely
its likeliest other answer begins tells more, and so does what share of the question's words stands
close together in a passage. A line through the two decides the first token: the refusal's, or any
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError, content_id

KIND = "raggd refusal rule"
SURE = 10.0  # how far the logit of a refusal's first token is put above all others


@dataclass(frozen=True, slots=True)
class RefusalRule:
    """Refuses where ``confidence * log p + coverage * share + bias`` is positive."""

    # weight of the log-probability, in nats, of the likeliest first token of any other answer
    confidence: float
    # weight of the share of the question's terms that a window of a passage holds
    # (`retrieval.evidence.coverage`)
    coverage: float
    bias: float
    token: int  # that a refusal begins with

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides."""
        return content_id(*map(repr, asdict(self).values()))

    def covering(self, share: float) -> RefusalRule:
        """Return the rule for a prompt whose coverage is known."""
        return replace(self, coverage=0.0, bias=self.bias + self.coverage * share)

    def odds(self, confidence: float) -> float:
        """Return the log-odds of refusing; the coverage is known by now."""
        return self.confidence * confidence + self.bias

    def save(self, path: Path, identity: str) -> None:
        """Write it with the hash of the step under which it was fitted."""
        weights = torch.tensor([self.confidence, self.coverage, self.bias], dtype=torch.float64)
        about = {"kind": KIND, "step": identity, "token": str(self.token)}
        save_tensors(path, {"weights": weights}, about)


def load_rule(path: Path, identity: str) -> RefusalRule:
    """Read what `RefusalRule.save` wrote; one that was fitted under another step is refused."""
    advice = "make it again with `raggd train refusals`."
    tensors, about = load_tensors(path, KIND, advice)
    if about["step"] != identity:
        raise RaggdError(
            f"{path} was fitted under step {about['step']}, but the one in use is {identity}: "
            f"{advice}"
        )
    sure, covered, bias = tensors["weights"].tolist()
    return RefusalRule(sure, covered, bias, int(about["token"]))


def confidence(logits: Tensor, token: int) -> Tensor:
    """Return the log-probability, (rows,) in nats, of the likeliest first token but `token`."""
    left_out = torch.tensor([token], device=logits.device)
    others = logits.float().index_fill(-1, left_out, -torch.inf)
    return others.log_softmax(-1).amax(-1)


def decided(logits: Tensor, rules: Sequence[RefusalRule | None]) -> Tensor:
    """Return the first logits (rows, vocabulary) as rules that know their coverage decide."""
    logits = logits.clone()
    for row, rule in enumerate(rules):
        if rule is None:
            continue
        refuses = rule.odds(float(confidence(logits[row : row + 1], rule.token))) > 0
        lowest, highest = logits[row].aminmax()
        # finite either way: log-probabilities are told
        logits[row, rule.token] = highest + SURE if refuses else lowest
    return logits
