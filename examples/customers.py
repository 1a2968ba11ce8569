"""Three customers, three sets of examples: JSON, German, and a refusal where nothing is found."""

import json
from pathlib import Path

import raggd

HANDBOOK = Path(__file__).parent / "handbook"
FACTS = [
    ("How much does the P40 weigh?", "6 kilograms"),
    ("How much water does the P40 move?", "40 litres of water per minute"),
    ("When was the P90 first sold?", "2016"),
]
CUSTOMERS = {
    "shop system": [(question, json.dumps({"answer": fact})) for question, fact in FACTS],
    "Berlin office": [(question, f"Die Antwort ist {fact}.") for question, fact in FACTS],
    "help desk": [*FACTS[:2], ("Who founded the company?", "not in the handbook")],
}
QUESTION = "How long does a repair take?"


def main() -> dict[str, raggd.Answer]:
    """Read each customer's examples once, then answer for all of them in one batch."""
    rag = raggd.load(corpus=HANDBOOK)
    states = {name: rag.adapt(examples) for name, examples in CUSTOMERS.items()}
    answers = rag.answer_many([QUESTION] * len(states), list(states.values()))
    for name, answer in zip(states, answers, strict=True):
        print(f"{name}: {answer.text}")
    return dict(zip(states, answers, strict=True))


if __name__ == "__main__":
    main()
