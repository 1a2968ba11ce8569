"""A client that keeps what an answer says about the update it was written with."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from raggd.records import RaggdError

CHAT = "/v1/chat/completions"


BUSY = {429: "turned away (429)", 504: "too slow (504)"}
"""How a server says that it has no room or no time, and what that is counted as."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer."""

    text: str
    # of each token, logarithms: they tell one update from another even where the words are the same
    logprobs: tuple[float, ...]
    ms: float = 0.0  # time that the client waited
    batch: int = 0  # most answers that were written together with it

    def distance(self, other: Said) -> float:
        """Return the largest difference of a token's log-probability; infinite for other words."""
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return math.inf
        pairs = zip(self.logprobs, other.logprobs, strict=True)
        return max((abs(a - b) for a, b in pairs), default=0.0)


class Busy(Exception):  # noqa: N818  not an error of the server
    """The server had no room (429) or no time (504), and said so."""


def chat_body(question: str, model: str, **more: Any) -> dict[str, Any]:
    """Return the body of a chat that asks for log-probabilities, with other fields."""
    turns = [{"role": "user", "content": question}]
    return {"model": model, "messages": turns, "logprobs": True} | more


def _lines(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if line and data != "[DONE]":
            yield json.loads(data)


class LoadClient:
    """Talks to one server; one per thread."""

    def __init__(self, url: str, timeout: float = 300.0) -> None:
        """Connect lazily; `timeout` is in seconds."""
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=timeout)

    def checked(self, response: httpx.Response) -> httpx.Response:
        """Refuse an answer, whose body may still be unread, that is not a success.

        Raises:
            Busy: the server had no room or no time.
            RaggdError: anything else.
        """
        if response.status_code in BUSY:
            raise Busy(BUSY[response.status_code])
        if response.status_code not in {200, 201}:
            response.read()
            raise RaggdError(f"the server answered {response.status_code}: {response.text[:300]}")
        return response

    def ask(self, question: str, model: str, **more: Any) -> Said:
        """Ask a model one question, with other fields of the body."""
        started = time.perf_counter()
        body = chat_body(question, model, **more)
        found = self.checked(self.http.post(CHAT, json=body)).json()
        choice = found["choices"][0]
        tokens = (choice["logprobs"] or {}).get("content", [])
        logprobs = tuple(token["logprob"] for token in tokens)
        ms = (time.perf_counter() - started) * 1000
        return Said(choice["message"]["content"], logprobs, ms, found["raggd"]["batch"])

    def stream(self, question: str, model: str, **more: Any) -> Said:
        """Ask one question and put the pieces of the stream together.

        Raises:
            Busy: the server's time limit came first.
            RaggdError: the stream broke off.
        """
        text, logprobs, ended, batch = "", [], False, 0
        started = time.perf_counter()
        body = chat_body(question, model, stream=True, **more)
        with self.http.stream("POST", CHAT, json=body) as response:
            for chunk in _lines(self.checked(response)):
                if chunk.get("error", {}).get("code") == "timeout":
                    raise Busy(BUSY[504])
                if "error" in chunk:
                    raise RaggdError(f"the stream broke off: {chunk['error']['message']}")
                choice = chunk["choices"][0]
                text += choice["delta"].get("content") or ""
                logprobs += [t["logprob"] for t in (choice["logprobs"] or {}).get("content", [])]
                if choice["finish_reason"]:
                    ended, batch = True, chunk["raggd"]["batch"]
        if not ended:
            raise RaggdError("the stream ended without a reason.")
        return Said(text, tuple(logprobs), (time.perf_counter() - started) * 1000, batch)

    def store(self, demonstrations: Sequence[dict[str, str]]) -> str:
        """Store demonstrations (``question``, ``answer``) and return the model that has them."""
        body = {"demonstrations": list(demonstrations)}
        return str(self.checked(self.http.post("/v1/supports", json=body)).json()["model"])

    def metric(self, name: str) -> float:
        """Read one of the server's metrics, by its name without labels.

        Raises:
            RaggdError: there is none of that name.
        """
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise RaggdError(f"the server has no metric '{name}'.")


@contextmanager
def load_client(url: str, timeout: float = 300.0) -> Iterator[LoadClient]:
    """Open a client for a block; `timeout` is in seconds."""
    client = LoadClient(url, timeout)
    try:
        yield client
    finally:
        client.http.close()
