"""Stopwatch with a clock of its own, and counted operations against PyTorch's counter."""

from types import SimpleNamespace

import pytest
import torch

from raggd.evaluation import timing
from raggd.evaluation.flops import ModelShape
from raggd.evaluation.timing import Stopwatch


class Clock:
    """A clock that is moved by hand, and notes what is asked of it."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.calls: list[str] = []

    def read(self) -> float:
        self.calls.append("read")
        return self.seconds

    def synchronise(self) -> None:
        self.calls.append("synchronise")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=made.read))
    return made


def test_medians_in_milliseconds(clock: Clock) -> None:
    watch = Stopwatch()
    for seconds in (0.010, 0.500, 0.020):  # one slow outlier
        with watch.timed("adapt"):
            clock.seconds += seconds
    with watch.timed("answer", units=8):
        clock.seconds += 4.0
    watch.times["load"] = [7.0]
    assert list(watch.medians()) == ["adapt", "answer", "load"]
    assert list(watch.medians().values()) == pytest.approx([20, 500, 7])


def test_a_failed_block_is_not_counted() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="stop"), watch.timed("adapt"):
        raise ValueError("stop")
    assert watch.medians() == {}


def test_device_is_waited_for_before_each_look_at_the_clock(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", clock.synchronise)
    with Stopwatch(cuda=True).timed("adapt"):
        clock.calls.append("work")
    assert clock.calls == ["synchronise", "read", "work", "synchronise", "read"]


def test_real_clock_moves() -> None:
    watch = Stopwatch()
    with watch.timed("sum"):
        sum(range(10_000))
    assert 0 < watch.medians()["sum"] < 10_000


def test_forward_by_hand() -> None:
    # 3 tokens meet 1 + 2 + 3 keys: 2 * 10 * 3 weights, 4 * 2 * 5 * 6 attention, 2 * 5 * 7 logits.
    got = ModelShape(10, layers=2, width=5, vocabulary=7, hidden=5).forward(3, logits=1)
    assert got == 60 + 240 + 70


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (4, 0), (3, 5)])
def test_decoding_step_by_step_costs_as_much_as_at_once(tokens: int, past: int) -> None:
    shape = ModelShape(1000, layers=3, width=16)
    at_once = shape.forward(tokens, past=past)
    assert at_once == sum(shape.forward(1, past=past + i) for i in range(tokens))
    assert at_once != shape.forward(tokens, past=past + 1)


def test_all_trainable_backward_is_twice_the_forward() -> None:
    forward = ModelShape(1000, layers=3, width=16).forward(7)
    assert ModelShape(0, layers=3, width=16).backward(7, trainable=1000) == 2 * forward
    assert ModelShape(990, layers=3, width=16).backward(7, trainable=10) < 2 * forward


@pytest.mark.parametrize("frozen", [False, True])
def test_counts_equal_those_of_pytorch(frozen: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    width, tokens, vocabulary = 8, 5, 11
    hidden = torch.randn(tokens, width, requires_grad=True)
    q, k, v, o = (torch.randn(width, width, requires_grad=not frozen) for _ in range(4))
    head = torch.randn(vocabulary, width)

    def loss() -> object:
        # Token by token, so that only the keys before a token are multiplied.
        queries, keys, values = hidden @ q.T, hidden @ k.T, hidden @ v.T
        rows = [(queries[i : i + 1] @ keys[: i + 1].T) @ values[: i + 1] for i in range(tokens)]
        return (torch.cat(rows) @ o.T @ head.T).sum()

    with FlopCounterMode(display=False) as counter:
        total = loss()
    forward = counter.get_total_flops()
    weights = 4 * width * width
    sizes = {"layers": 1, "width": width, "vocabulary": vocabulary, "hidden": width}
    assert forward == ModelShape(weights, **sizes).forward(tokens, logits=tokens)
    with FlopCounterMode(display=False) as counter:
        total.backward()
    trained = 0 if frozen else weights
    shape = ModelShape(weights - trained, **sizes)
    expected = shape.backward(tokens, trainable=trained, logits=tokens)
    assert counter.get_total_flops() == expected
