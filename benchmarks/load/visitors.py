"""What visitors of a soak do: ask and check, hang up, lose patience, send garbage."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.load.client import BUSY, CHAT, Busy, LoadClient, Said, chat_body
from raggd.records import RaggdError

GARBAGE: tuple[tuple[str, bytes], ...] = (
    (CHAT, b""),
    (CHAT, b'{"model": "base", "messages": ['),
    (CHAT, b"\xff\xfe\x00garbage"),
    (CHAT, b"[" * 100_000),
    (CHAT, b'{"model": "nothing", "messages": [{"role": "user", "content": "x"}]}'),
    (CHAT, b'{"model": "adapted/../../x", "messages": [{"role": "user", "content": "x"}]}'),
    (CHAT, b'{"model": "base", "messages": [{"role": "user", "content": "a\\u0000b"}]}'),
    (CHAT, b'{"model": "base", "messages": [{"role": "user", "content": " "}]}'),
    (CHAT, b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "n": 3}'),
    (CHAT, b'{"x": "' + b"y" * (3 << 20) + b'"}'),
    ("/v1/supports", b'{"demonstrations": [{"question": "x"}]}'),
    ("/v1/supports", b'{"demonstrations": []}'),
    ("/v1/supports/../../etc/passwd", b"{}"),
    ("/nothing", b"{}"),
)
"""Paths and bodies, each of which is to be refused with a 4xx."""
LONG_TOKENS = 64
WEIGHTS = {
    "ask": 44,
    "stream": 20,
    "inline": 8,
    "several": 4,
    "hang_up": 8,
    "lose_patience": 6,
    "garbage": 6,
    "raw_garbage": 2,
    "come_and_go": 2,
}
"""How often each thing is done."""


@dataclass
class Tally:
    """What happened, counted from all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    largest_batch: int = 0
    examples: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def add(self, what: str, example: str = "") -> None:
        """Count something; the first twenty examples are kept."""
        with self._lock:
            self.counts[what] += 1
            if example and len(self.examples) < 20:
                self.examples.append(f"{what}: {example}")

    def took(self, said: Said) -> None:
        """Note the time of an answer."""
        with self._lock:
            self.times.append(said.ms)
            self.largest_batch = max(self.largest_batch, said.batch)


Expected = Mapping[tuple[str, str], Said]
"""By question and model, what the server said when it was asked alone."""


@dataclass
class Visitor:
    """One thread's visitor."""

    client: LoadClient
    expected: Expected  # what is right
    # demonstrations by the model that they are stored as
    inline: Mapping[str, list[dict[str, str]]]
    spare: list[list[dict[str, str]]]  # demonstrations of sets that come and go
    tolerance: float  # largest difference of a log-probability that counts as the same
    tally: Tally
    dice: random.Random  # of its own, seeded

    def visit(self) -> None:
        """Do one thing; whatever goes wrong is counted."""
        (name,) = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        self.tally.add("requests")
        try:
            getattr(self, f"_{name}")()
        except Busy as error:
            self.tally.add(str(error))
        except (RaggdError, httpx.HTTPError, OSError) as error:
            self.tally.add("lost", f"{name}: {type(error).__name__} {error}")

    def _any(self) -> tuple[str, str]:
        return self.dice.choice(list(self.expected))

    def _check(self, question: str, model: str, said: Said) -> None:
        self.tally.took(said)
        own = said.distance(self.expected[question, model])
        if own <= self.tolerance:
            self.tally.add("right")
            return
        others = {m: said.distance(e) for (q, m), e in self.expected.items() if q == question}
        nearest = min(others, key=lambda name: others[name])
        what = "wrong" if nearest == model or others[nearest] > self.tolerance else "another's"
        self.tally.add(what, f"{model} by {own:.3g}, nearest {nearest} by {others[nearest]:.3g}")

    def _ask(self) -> None:
        question, model = self._any()
        self._check(question, model, self.client.ask(question, model))

    def _stream(self) -> None:
        question, model = self._any()
        self._check(question, model, self.client.stream(question, model))

    def _inline(self) -> None:
        question, model = self._any()
        if model in self.inline:
            shown = {"demonstrations": self.inline[model]}
            self._check(question, model, self.client.ask(question, "raggd", raggd=shown))
        else:
            self._check(question, model, self.client.ask(question, model))

    def _several(self) -> None:
        _, model = self._any()
        asked = [q for q, m in self.expected if m == model][:3]
        body = {"model": model, "prompt": asked}
        found = self.client.checked(self.client.http.post("/v1/completions", json=body))
        texts = [choice["text"] for choice in found.json()["choices"]]
        right = texts == [self.expected[q, model].text for q in asked]
        self.tally.add("right" if right else "wrong", "" if right else f"several of {model}")

    def _hang_up(self) -> None:
        question, model = self._any()
        more = {"max_tokens": LONG_TOKENS, "ignore_eos": True, "stream": True}
        with self.client.http.stream("POST", CHAT, json=chat_body(question, model, **more)) as got:
            self.client.checked(got)
            wanted = self.dice.randrange(4)
            for number, _ in enumerate(got.iter_lines()):
                if number >= wanted:
                    break
        self.tally.add("hung up")

    def _lose_patience(self) -> None:
        question, model = self._any()
        body = chat_body(question, model, max_tokens=LONG_TOKENS, ignore_eos=True)
        try:
            patience = self.dice.uniform(0.02, 0.5)
            found = self.client.http.post(CHAT, json=body, timeout=patience)
        except httpx.TimeoutException:
            self.tally.add("lost patience")
            return
        self.client.checked(found)
        self.tally.add("was quick")

    def _garbage(self) -> None:
        path, body = self.dice.choice(GARBAGE)
        headers = {"content-type": "application/json"}
        found = self.client.http.post(path, content=body, headers=headers)
        self._expect_refusal(found.status_code, f"{path} {body[:60]!r}")

    def _expect_refusal(self, status: int, what: str) -> None:
        if 400 <= status < 500:
            self.tally.add("garbage refused")
        else:
            self.tally.add("garbage not refused", f"{status} for {what}")

    def _raw_garbage(self) -> None:
        address = urlsplit(self.client.url)
        place = (address.hostname or "", address.port or 80)
        with socket.create_connection(place, timeout=60) as connection:
            try:
                connection.sendall(self.dice.randbytes(200) + b"\r\n\r\n")
                answer = connection.recv(200)
            except ConnectionError:  # closed before all of it was read: refused without a word
                answer = b""
        status = int(answer.split()[1]) if answer.startswith(b"HTTP/") else 400
        self._expect_refusal(status, "raw bytes")

    def _come_and_go(self) -> None:
        question, _ = self._any()
        model = self.client.store(self.dice.choice(self.spare))
        found = self.client.http.post(CHAT, json=chat_body(question, model))
        gone = self.client.http.delete(f"/v1/supports/{model.partition('/')[2]}")
        # visitors share the spare sets, so another one may have deleted this one before
        fine = {found.status_code, gone.status_code} <= {200, 404, *BUSY}
        what = "sets that came and went" if fine else "lost"
        self.tally.add(what, "" if fine else f"{found.status_code} {gone.status_code}")


def summary(tally: Tally) -> dict[str, Any]:
    """Summarise what happened to all visitors.

    Returns:
        ``counts``, ``ms`` (p50, p95, p99), ``largest_batch`` and ``examples`` of what went wrong.
    """
    times = sorted(tally.times)

    def quantile(share: float) -> float:
        return round(times[int(share * (len(times) - 1))], 1) if times else 0.0

    return {
        "counts": dict(sorted(tally.counts.items())),
        "ms": {f"p{int(100 * q)}": quantile(q) for q in (0.5, 0.95, 0.99)},
        "largest_batch": tally.largest_batch,
        "examples": tally.examples,
    }
