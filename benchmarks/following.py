"""What an answer costs under three examples that were read before, against the base adapter's."""

from __future__ import annotations

import torch

from benchmarks.measured import Measured
from benchmarks.setting import BenchSetting
from raggd.backbone.batch import padded_length
from raggd.backbone.capture import steps_from
from raggd.backbone.generate import read_prompts
from raggd.data.prompts import Prompt
from raggd.evaluation.timing import Work, in_turn, ratio_of
from raggd.methods.answering import adapted_rows, extract_of, rules_of
from raggd.methods.base import Adapted

ABOUT = "one question: under three examples, read before, and with the base adapter"
ANSWERS = {"": 8, "_1_token": 1}  # tokens of every answer, by the end of the ratio's name


@torch.no_grad()
def answer(setting: BenchSetting, row: Adapted, prompt: Prompt, tokens: int) -> list[int]:
    """Answer as `answer_rows` does, for so many tokens: all ways do the same work."""
    backbone, found = setting.backbone, []
    with adapted_rows(backbone, [row]):
        rules = rules_of([row], [prompt])
        reading = read_prompts(backbone, [prompt], prefixes=[row.prefix], rules=rules)
        extract, logits = extract_of(backbone, row, prompt), reading.logits
        step = steps_from(backbone, reading, tokens)
        for left in reversed(range(tokens)):
            chosen = (extract.limit(logits[0])[None] if extract else logits).argmax(-1)
            found.append(int(chosen))
            if extract:
                extract.push(found[-1])
            logits = step(chosen) if left else logits
    return found


def run(setting: BenchSetting) -> Measured:
    """Answer the same questions both ways, one after another.

    Returns:
        ``following_vs_base``, of eight tokens, and ``following_vs_base_1_token``.
    """
    support = setting.supports[:1]
    ways = {
        "examples": setting.parts.method("examples").adapt(support)[0],
        "base": Adapted(setting.base),
    }
    prompts = {name: setting.prompts([row] * len(setting.questions), max(ANSWERS.values()))
               for name, row in ways.items()}  # fmt: skip

    def work(name: str, tokens: int) -> Work:
        def answers() -> None:
            for prompt in prompts[name]:
                answer(setting, ways[name], prompt, tokens)

        return answers

    setting.say("following: answers under examples and with the base adapter, in turn")
    works = {f"{name}, {n} tokens": work(name, n) for n in ANSWERS.values() for name in ways}
    times = in_turn(works, setting.few)
    lengths = {name: [len(p.tokens) for p in own] for name, own in prompts.items()}
    read = ways["examples"].prefix
    return Measured(
        ratios={
            f"following_vs_base{end}": ratio_of(
                times[f"examples, {n} tokens"], times[f"base, {n} tokens"]
            )
            for end, n in ANSWERS.items()
        },
        times=times,
        facts={
            "examples_tokens": len(read.tokens) if read else 0,
            "prompt_tokens": {n: sum(map(padded_length, v)) / len(v) for n, v in lengths.items()},
        },
    )
