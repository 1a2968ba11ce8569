"""Whether to refuse: read from what the model would do, how sure it is, and what passages speak of.

These decide an answer's first token, the refusal's or any other, by a line that is fitted through
them so that few answers are lost.
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
    """Refuses where ``own * odds + confidence * log p + coverage * share + bias`` is positive."""

    own: float  # weight of the model's log-odds, in nats, of beginning a refusal
    # weight of the log-probability, in nats, of the likeliest first token of any other answer
    confidence: float
    coverage: float  # weight of a question's `retrieval.evidence.coverage` by its passages
    bias: float
    token: int  # that a refusal begins with

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides."""
        return content_id(*map(repr, asdict(self).values()))

    def covering(self, share: float) -> RefusalRule:
        """Return the rule for a prompt whose coverage is known."""
        return replace(self, coverage=0.0, bias=self.bias + self.coverage * share)

    def odds(self, own: float, confidence: float) -> float:
        """Return the log-odds of refusing; the coverage is known by now."""
        return self.own * own + self.confidence * confidence + self.bias

    def save(self, path: Path, identity: str) -> None:
        """Write it with the hash of the step under which it was fitted."""
        line = [self.own, self.confidence, self.coverage, self.bias]
        weights = torch.tensor(line, dtype=torch.float64)
        about = {"kind": KIND, "step": identity, "token": str(self.token)}
        save_tensors(path, {"weights": weights}, about)


def load_rule(path: Path, identity: str) -> RefusalRule:
    """Read what `RefusalRule.save` wrote; one that was fitted under another step is refused."""
    advice = "make it again with `raggd train refusals`"
    tensors, about = load_tensors(path, KIND, advice)
    if about["step"] != identity:
        raise RaggdError(
            f"{path} was fitted under step {about['step']}, but the one in use is {identity}: "
            f"{advice}."
        )
    if tensors["weights"].shape != (4,):
        raise RaggdError(
            f"{path} is of an older version, which knew two of three numbers: {advice}."
        )
    own, sure, covered, bias = tensors["weights"].tolist()
    return RefusalRule(own, sure, covered, bias, int(about["token"]))


def doubts(logits: Tensor, token: int) -> Tensor:
    """Return what first logits (rows, vocabulary) tell of refusing, (rows, 2) in nats, float32.

    The log-odds of `token`, with which a refusal begins, and the log-probability of the likeliest
    other one, of all others.
    """
    left_out = torch.tensor([token], device=logits.device)
    others = logits.float().index_fill(-1, left_out, -torch.inf)
    own = logits[..., token].float() - others.logsumexp(-1)
    return torch.stack([own, others.log_softmax(-1).amax(-1)], -1)


def decided(logits: Tensor, rules: Sequence[RefusalRule | None]) -> Tensor:
    """Return the first logits (rows, vocabulary) as rules that know their coverage decide."""
    logits = logits.clone()
    for row, rule in enumerate(rules):
        if rule is None:
            continue
        refuses = rule.odds(*doubts(logits[row], rule.token).tolist()) > 0
        lowest, highest = logits[row].aminmax()
        # finite either way: log-probabilities are told
        logits[row, rule.token] = highest + SURE if refuses else lowest
    return logits
