"""A support set per customer: one batch answers for all of them, each row with its own update."""

from pathlib import Path

import raggd

HANDBOOK = Path(__file__).parent / "handbook"
CUSTOMERS = {
    "garden centre": [
        ("How much does the P40 weigh?", "6 kilograms"),
        ("How much water does the P40 move?", "40 litres per minute"),
        ("Where is the P40 stored in winter?", "in a dry room"),
    ],
    "building firm": [
        ("When was the P90 first sold?", "2016"),
        ("When does the warranty begin?", "on the day of delivery"),
        ("How long does a repair take?", "two weeks"),
    ],
}
QUESTION = "Where are broken pumps repaired?"


def main() -> dict[str, raggd.Answer]:
    """Adapt once per customer, keep the updates, answer for everybody at once."""
    rag = raggd.load(corpus=HANDBOOK)
    updates = {name: rag.adapt(examples) for name, examples in CUSTOMERS.items()}
    answers = rag.answer_many([QUESTION] * len(updates), list(updates.values()))
    for name, answer in zip(updates, answers, strict=True):
        print(f"{name}: {answer.text}")
    return dict(zip(updates, answers, strict=True))


if __name__ == "__main__":
    main()
