"""`python -m benchmarks.follow_ups`: what to search for when a question leans on the one before.

The questions are about the documentation of Starlette 1.10 (`docs/` of its source archive, without
the release notes); each names words of the passage that answers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_app
from raggd.api import Rag, load
from raggd.backbone.generate import decode, read_prompts
from raggd.cli.shared import emit_json
from raggd.data.prompts import Prompt, turn_tokens
from raggd.files import read_json_lines, write_json
from raggd.serving.service import passages_for, searches_for

QUESTIONS = Path(__file__).parent / "follow_ups.jsonl"
DEPTHS = (1, 3, 5)
BATCH = 6
Turn = Mapping[str, str]
"""``earlier``, its right ``answer``, the follow-up ``question``, and what the passage ``holds``."""

REWRITE = "Rewrite the follow-up as one question that can be understood alone."
EXAMPLE = (
    "Question: Who wrote Dracula?\nAnswer: Bram Stoker\nFollow-up: And when?",
    "When did Bram Stoker write Dracula?",
)
app = typer.Typer(add_completion=False)


def answers_of(rag: Rag, turns: list[Turn]) -> dict[str, str]:
    """Return what the base adapter answers to the earlier questions."""
    asked = sorted({turn["earlier"] for turn in turns})
    return {a.question: a.text for a in rag.answer_many(asked)}


def rewritten(rag: Rag, turns: list[Turn]) -> list[str]:
    """Return what the bare backbone makes of the follow-ups when it is told to rewrite them."""
    backbone = rag.parts.backbone

    def prompt(turn: Turn) -> Prompt:
        asked = "Question: {earlier}\nAnswer: {answer}\nFollow-up: {question}".format(**turn)
        messages = [
            {"role": "system", "content": REWRITE},
            {"role": "user", "content": EXAMPLE[0]},
            {"role": "assistant", "content": EXAMPLE[1]},
            {"role": "user", "content": asked},
        ]
        return Prompt(tuple(turn_tokens(backbone.tokenizer, messages)), 0, 0)

    texts: list[str] = []
    for at in range(0, len(turns), BATCH):
        prompts = [prompt(turn) for turn in turns[at : at + BATCH]]
        texts += decode(backbone, read_prompts(backbone, prompts), 32)
    return texts


def _flat(text: str) -> str:
    return " ".join(text.split())


def share_found(turns: list[Turn], rag: Rag, searches: list[list[str]], depth: int) -> float:
    """Return the share of follow-ups whose passage is among the first `depth`."""
    retriever = rag.parts.index.retriever
    hits = [
        any(_flat(turn["holds"]) in _flat(p.text) for p in passages_for(texts, retriever, depth))
        for turn, texts in zip(turns, searches, strict=True)
    ]
    return round(sum(hits) / len(hits), 3)


@app.command()
def follow_ups(
    corpus: Annotated[Path, typer.Argument(help="Folder of the documentation.")],
    out: Annotated[Path, typer.Option(help="Record to write.")] = Path("runs/follow_ups.json"),
) -> None:
    """Compare what may be searched for, by how often the passage is found."""
    rag = load(corpus)
    turns: list[Turn] = [line for _, line in read_json_lines(QUESTIONS)]
    said, new = answers_of(rag, turns), rewritten(rag, turns)
    right = [searches_for(t["question"], [(t["earlier"], t["answer"])]) for t in turns]
    own = [searches_for(t["question"], [(t["earlier"], said[t["earlier"]])]) for t in turns]
    ways = {
        "the question alone": [[t["question"]] for t in turns],
        "the earlier question and the question": [texts[:1] for texts in own],
        "the same with the model's answer": [texts[1:] for texts in own],
        "both, fused": own,
        "the same with the right answer": [texts[1:] for texts in right],
        "both with the right answer, fused": right,
        "rewritten by the model": [[text] for text in new],
        "rewritten by the model, and the question": [
            [f"{text} {t['question']}"] for text, t in zip(new, turns, strict=True)
        ],
    }
    record: dict[str, Any] = {
        "passages": len(rag.parts.index.retriever),
        "questions": len(turns),
        "found": {
            name: {str(k): share_found(turns, rag, searches, k) for k in DEPTHS}
            for name, searches in ways.items()
        },
        "answered": said,
        "rewritten": new,
    }
    write_json(out, record)
    emit_json(json.loads(out.read_text(encoding="utf-8"))["found"])


if __name__ == "__main__":
    run_app(app)
