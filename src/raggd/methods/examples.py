"""The examples as a cached prefix: read once per support set, followed by every answer.

The questions and answers of the demonstrations, without their passages, stand before the question
as keys and values. A constant step on top of W0 was trained to follow them; beside it may stand an
update predicted from the states of the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raggd.adaptation.predictors.modulation import Modulation, load_modulation, read_examples
from raggd.backbone.batch import Prefix, read_prefix
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.backbone.refusal import RefusalRule, load_rule
from raggd.core.low_rank import BaseAdapter, Update, load_update
from raggd.data.prompts import FOLLOW, answer_tokens, follow_text, prefix_tokens
from raggd.data.reading import READING, template_of
from raggd.data.shown import names_files, refusals_of, without_passages
from raggd.methods.base import Adapted
from raggd.methods.spec import (
    EXAMPLES_FILE,
    FILES_OF,
    REFUSALS_FILE,
    Parts,
    weight_file,
    weights_hash,
)
from raggd.records import RaggdError, SupportSet, content_id

ROOM, LEAST = 2, 8  # an answer may be twice as long as the longest that was shown, and some tokens


@dataclass(frozen=True, slots=True)
class ExamplesPrefix:
    """Reads each support set once and answers in the way that it shows."""

    name: str
    backbone: Backbone
    base: BaseAdapter | None  # W0; None for the bare backbone
    step: Update | None  # from W0, trained to follow examples; None for none
    limit: int  # most tokens of a prefix
    weights: str = ""  # hash of the step's file
    modulation: Modulation | None = None  # turns the step up and down for each set; None for none
    prefixed: bool = True  # whether the examples stand before the question
    # decides whether to refuse, where the examples show it; None leaves it to the model
    rule: RefusalRule | None = None
    templated: bool = True  # whether the template that they settle is taken out and put back
    passages: bool = False  # whether the examples keep their passages (MetaICL)
    instruction: str = FOLLOW  # that the examples stand under
    told: bool = False  # whether it says more: the model is used as it is, without a trained W0

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Of all that a state is made from: base adapter, step, another instruction than ours."""
        hashes = {"base": self.base.fingerprint} if self.base else {}
        hashes |= {"reading": READING} if self.templated else {}
        hashes |= {"examples": self.weights} if self.weights else {}
        hashes |= {"refusals": self.rule.fingerprint} if self.rule else {}
        ours = self.instruction in {FOLLOW, ""}
        return hashes | ({} if ours else {"instruction": content_id(self.instruction)})

    def under(self, instruction: str) -> ExamplesPrefix:
        """Return the method that reads the examples under a user's instruction."""
        return replace(self, instruction=instruction)

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Read the examples of each set: base, step and prefix."""
        return [self._read(*self._shown(support)) for support in supports]

    def unread(self, support: SupportSet) -> tuple[Adapted, Sequence[int]]:
        """Return the state of a set before it is read, and the tokens that the modulation reads."""
        shown, tokens = self._shown(support)
        encoded = tokens if self.modulation is not None else ()
        if not self.prefixed:
            return replace(shown, shown=()), encoded
        return replace(shown, prefix=Prefix(tokens, ())), encoded

    def _read(self, shown: Adapted, tokens: tuple[int, ...]) -> Adapted:
        update = self.step
        if self.modulation is not None and self.base is not None:
            read = read_examples(self.backbone, self.base, [tokens])
            update = self.modulation(self.base, *read).row(0)
        if not self.prefixed:
            return replace(shown, update=update, shown=())
        with attach(self.backbone, self.base, update):
            return replace(shown, update=update, prefix=read_prefix(self.backbone, tokens))

    def _shown(self, support: SupportSet) -> tuple[Adapted, tuple[int, ...]]:
        # the state of a set before it is read, and the tokens that its prompts begin with
        template, plain = None, support.demonstrations
        if self.templated:
            template, plain = template_of(plain)
        shown = plain if self.passages else without_passages(plain)
        tokenizer, instruction = self.backbone.tokenizer, self.instruction
        if instruction == FOLLOW:
            instruction = follow_text(shown, self.told)
        tokens = prefix_tokens(tokenizer, shown, instruction)
        if len(tokens) > self.limit:
            number = len(shown)
            raise RaggdError(
                f"the instruction and {number} example{'' if number == 1 else 's'} take "
                f"{len(tokens)} tokens, more than the {self.limit} that leave room for passages: "
                "show fewer or shorter ones, or raise backbone.context_tokens."
            )
        state = Adapted(
            base=self.base,
            update=self.step,
            shown=shown,
            instruction=instruction,
            lines=any("\n" in d.answer.strip() for d in shown),
            most=ROOM * max(len(answer_tokens(tokenizer, d.answer)) for d in shown) + LEAST,
            refusals=refusals_of(support.demonstrations),
            template=template,
            rule=self.rule if template and template.refusals else None,
            sources=names_files(plain),
        )
        return state, tokens


def build(
    parts: Parts,
    name: str,
    base: bool = True,
    step: bool = True,
    prefix: bool = True,
    predict: bool = False,
    template: bool = True,
    passages: bool = False,
) -> ExamplesPrefix:
    """Return a method that follows examples, with or without each of its parts."""
    device = parts.backbone.device
    path = weight_file(parts.weights, FILES_OF[name][1]) if step else None
    fitted, rule = parts.weights / REFUSALS_FILE, None
    # of the step; where none lies beside it, of the model that reads the examples without one
    own = prefix and base and not (parts.weights / EXAMPLES_FILE).is_file()
    if (path.name == EXAMPLES_FILE if path else own) and template and fitted.is_file():
        rule = load_rule(fitted, weights_hash(path) if path else parts.base.fingerprint)
    return ExamplesPrefix(
        name,
        parts.backbone,
        parts.base if base else None,
        load_update(path).to(device) if path and not predict else None,
        parts.settings.backbone.context_tokens * (3 if passages else 2) // 4,
        weights_hash(path) if path else "",
        load_modulation(path).to(device) if path and predict else None,
        prefix,
        rule,
        template,
        passages,
        FOLLOW if step or prefix else "",  # W0 alone knows its own
        prefix and (not base or parts.base.untrained),
    )
