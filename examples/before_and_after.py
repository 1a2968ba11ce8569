"""The same questions before and after: the bare model, the base adapter, and two updates of it."""

from pathlib import Path

import raggd

HANDBOOK = Path(__file__).parent / "handbook"
QUESTIONS = {
    "How long does the warranty last?": "24 months",
    "How much water does the P90 move?": "90 litres per minute",
    "Where are spare parts sent from?": "the store in Lyon",
}


def main() -> dict[str, list[str]]:
    """Print a table: one line per question, one column per way of answering it."""
    rag = raggd.load(corpus=HANDBOOK)
    examples = HANDBOOK.with_name("answered.jsonl")
    predicted = rag.adapt(examples)
    trained = rag.adapt(examples, method="tt-sgd")  # five real gradient steps: the slow way
    asked = list(QUESTIONS)
    columns = {
        "bare model": rag.answer_many(asked, method="vanilla-rag"),
        "base adapter": rag.answer_many(asked),
        "predicted update": rag.answer_many(asked, [predicted] * len(asked)),
        "five gradient steps": rag.answer_many(asked, [trained] * len(asked)),
    }
    for row, (question, wanted) in enumerate(QUESTIONS.items()):
        print(f"{question} (wanted: {wanted})")
        for name, answers in columns.items():
            print(f"  {name}: {answers[row].text}")
    return {name: [answer.text for answer in answers] for name, answers in columns.items()}


if __name__ == "__main__":
    main()
