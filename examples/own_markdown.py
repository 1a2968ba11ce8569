"""Answer questions from a folder of Markdown, adapted to three answered questions."""

from pathlib import Path

import raggd

HANDBOOK = Path(__file__).parent / "handbook"
QUESTIONS = [
    "How long does the warranty last?",
    "What is the housing of the P40 made of?",
    "Who leads the service desk?",
]


def main() -> list[raggd.Answer]:
    """Index the folder, adapt once, ask."""
    rag = raggd.load(corpus=HANDBOOK)
    update = rag.adapt(HANDBOOK.with_name("answered.jsonl"))
    answers = [rag.answer(question, update) for question in QUESTIONS]
    for answer in answers:
        print(f"{answer.question}\n  {answer.text}   [from: {answer.passages[0].title}]")
    return answers


if __name__ == "__main__":
    main()
