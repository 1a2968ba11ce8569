"""What methods are called, and what they do, for a reader who does not know the paper."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MethodWords:
    """How a method is called and explained."""

    label: str
    explanation: str


METHODS = {
    "query-only": MethodWords(
        "Query only",
        "The frozen model answers from the question alone, without passages: what it knows by "
        "heart.",
    ),
    "vanilla-rag": MethodWords(
        "Vanilla RAG",
        "The frozen model reads the retrieved passages in its prompt. Nothing is adapted.",
    ),
    "vanilla-few-shot": MethodWords(
        "Vanilla + few shot",
        "Vanilla RAG with the demonstrations of the task, passages included, in its prompt. They "
        "are read once and serve every question.",
    ),
    "base": MethodWords(
        "Base adapter",
        "The model with one small adapter that was trained once to use passages. It is the same "
        "for every task, and the starting point of the methods below.",
    ),
    "base-few-shot": MethodWords(
        "Base + few shot",
        "The base adapter with the demonstrations of the task in its prompt.",
    ),
    "prompt-tuning": MethodWords(
        "Prompt tuning",
        "The frozen model with a trained prefix of artificial words before its prompt, in the "
        "place of the base adapter and from the same examples.",
    ),
    "hyper-tuning": MethodWords(
        "HyperTuning",
        "The network of RAG-GD, trained to lower the loss of other answers of the task instead of "
        "imitating gradient steps.",
    ),
    "mean-update": MethodWords(
        "Mean update",
        "The base adapter plus one fixed change, the average of all training targets. A control: "
        "it never looks at the demonstrations of the task.",
    ),
    "mean-tuned": MethodWords(
        "Mean update, tuned",
        "One fixed change for all tasks, trained on the answers that RAG-GD, tuned, learns from. A "
        "control: what is left when the demonstrations are not read.",
    ),
    "task-mean": MethodWords(
        "Task mean",
        "The base adapter plus the average change that gradient steps make on many demonstrations "
        "of the task. A control: it knows the task, but reads no demonstrations at test time.",
    ),
    "tt-sgd-k1": MethodWords("TT-SGD, K = 1", "Test-time training with one gradient step."),
    "tt-sgd": MethodWords(
        "TT-SGD",
        "Test-time training. The adapter takes real gradient steps on the demonstrations of the "
        "task, forwards and backwards through the model, before it answers.",
    ),
    "tt-sgd-k10": MethodWords("TT-SGD, K = 10", "Test-time training with ten gradient steps."),
    "rag-gd-k1": MethodWords(
        "RAG-GD, K = 1", "RAG-GD with a predictor that learned the change of one gradient step."
    ),
    "rag-gd": MethodWords(
        "RAG-GD",
        "The method of the paper. A trained predictor reads the demonstrations once and emits the "
        "change that gradient steps would make. There is no backward pass.",
    ),
    "rag-gd-k10": MethodWords(
        "RAG-GD, K = 10", "RAG-GD with a predictor that learned the change of ten gradient steps."
    ),
    "rag-gd-ridge": MethodWords(
        "RAG-GD, closed form",
        "RAG-GD whose predictor was not trained in steps but solved for: a regression on what the "
        "changes of a task have in common.",
    ),
    "rag-gd-tuned": MethodWords(
        "RAG-GD, tuned",
        "RAG-GD whose predictor was trained on through the loss of other answers, as in "
        "HyperTuning.",
    ),
    "rag-gd-made": MethodWords(
        "RAG-GD, made",
        "RAG-GD with demonstrations that the model made from passages, without answered questions.",
    ),
    "rag-gd-gated": MethodWords(
        "RAG-GD, gated",
        "RAG-GD, tuned, with a gate that scales the change, or withholds it, by the gain that it "
        "expects.",
    ),
    "rag-gd-step": MethodWords(
        "RAG-GD, then one step",
        "The predicted change, and from there one real gradient step on the demonstrations.",
    ),
    "shuffled-support": MethodWords(
        "Shuffled support",
        "RAG-GD given the demonstrations of another task. A control.",
    ),
    "irrelevant-passages": MethodWords(
        "Irrelevant passages",
        "RAG-GD answering from the passages of another question. A control.",
    ),
    "rag-gd-x0.5": MethodWords("RAG-GD x 0.5", "RAG-GD with half the predicted change."),
    "rag-gd-x2": MethodWords("RAG-GD x 2", "RAG-GD with twice the predicted change."),
}
"""The methods in the order in which tables list them; others follow as they come."""


def method_label(name: str) -> str:
    """Return the readable name of a method (its own name when it is not in `METHODS`)."""
    return METHODS[name].label if name in METHODS else name
