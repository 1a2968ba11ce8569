"""What every request passes before it reaches a route: host, key, size; how it is counted.

Keys have names, so that the log says who asked and one key can be withdrawn alone.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raggd.files import open_text, reason_of
from raggd.records import RaggdError
from raggd.serving.errors import LOG, ApiError, as_api_error, internal_error, refuse_doubled_keys

OPEN = ("/", "/health", "/openapi.json")  # paths that need no key, beside the page's own files
LARGEST_BODY = 1 << 20  # bytes
_DRAIN = 64  # times that are read and thrown away: the client is to see the answer, no reset
_BODY_S = 30.0

Keys = Mapping[str, str]  # API keys by the names of those who have them; none lets all in
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)  # memory and processor time
        PlatformCollector(registry=own)
        count, gauge = partial(Counter, registry=own), partial(Gauge, registry=own)
        rows = partial(Histogram, buckets=_ROWS, registry=own)
        timed = partial(Histogram, buckets=_SECONDS, registry=own)
        self.requests = count("raggd_requests", "Requests answered.", ["route", "status"])
        self.seconds = timed("raggd_request_seconds", "Time to answer a request.", ["route"])
        self.waiting = gauge("raggd_waiting", "Answers waiting to be begun.")
        self.running = gauge("raggd_running", "Answers being written.")
        self.batch = rows("raggd_batch_rows", "Rows of a decoding step.")
        self.adaptation = timed("raggd_adaptation_seconds", "Time to adapt to a support set.")
        self.read = timed("raggd_read_seconds", "Time to read joining prompts.")
        self.step = timed("raggd_decode_step_seconds", "Time of a decoding step.")
        self.prompt_tokens = count("raggd_prompt_tokens", "Prompt tokens read.")
        self.answer_tokens = count("raggd_answer_tokens", "Tokens written.")
        self.cancelled = count("raggd_cancelled", "Answers given up by client or timeout.")
        self.update_hits = count("raggd_update_cache_hits", "Adapted states that were kept.")
        self.update_misses = count("raggd_update_cache_misses", "Adapted states made anew.")
        self.update_bytes = gauge("raggd_update_cache_bytes", "Memory of adapted states.")
        self.updates_dropped = gauge("raggd_update_cache_dropped", "Adapted states dropped so far.")
        self.passages = gauge("raggd_passages", "Passages of the index in use.")
        self.index_swaps = count("raggd_index_swaps", "Times that changed documents were indexed.")
        self.index_failures = count("raggd_index_failures", "Times that they could not be.")


def read_keys(path: Path) -> Keys:
    """Read API keys: a name and a key on each line, each once; a word's ``#`` begins a comment."""
    try:
        with open_text(path) as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise RaggdError(f"cannot read the API keys in {path}: {reason_of(error)}.") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match re.split(r"(?:^|\s)#", line)[0].split():  # a key may hold one
            case []:
                continue
            case [name, key] if name not in keys and key not in keys.values():
                keys[name] = key
            case _:
                raise RaggdError(
                    f"{path}, line {number}: expected a name and a key, each of them once in the "
                    "file, for instance 'alice 3f9a...'."
                )
    if not keys:
        raise RaggdError(f"{path} holds no API key: write a name and a key on each line.")
    return keys


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a server on that address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def _read(scope: Scope, receive: Receive) -> Receive:
    """Read and check the body; return what gives it to the application once more."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in Request(scope, receive).stream():
                size += len(part)
                if size <= LARGEST_BODY:
                    parts.append(part)
                elif size > LARGEST_BODY * _DRAIN:
                    break
    except TimeoutError as error:
        told = "the body did not arrive in time."
        raise ApiError(told, code="body_timeout", status=408) from error
    if size > LARGEST_BODY:
        told = f"the body is larger than {LARGEST_BODY // 1024} KiB: send less."
        raise ApiError(told, code="body_too_large", status=413)
    body = b"".join(parts)
    refuse_doubled_keys(body)
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


class RequestGate:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, keys: Keys, local: bool) -> None:
        """Wrap an application; without keys all are let in.

        If the server listens on this machine only (`local`) and asks for no key, only this
        machine's names are taken as its host, so that a web page elsewhere cannot reach it by a
        name of its own; with keys, a proxy may pass on the name that it was asked by.
        """
        self._app, self._metrics, self._local = app, metrics, local and not keys
        self._keys = {name: key.encode() for name, key in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, who = time.perf_counter(), 499, ""
        # HEAD is a GET whose body the connection keeps back; the route is noted in the scope
        inner = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            who = self._checked(scope["path"], Headers(scope=scope))
            if scope["method"] in {"POST", "PUT", "PATCH", "DELETE"}:
                receive = await _read(scope, receive)
            await self._app(inner, receive, sending)
        except ClientDisconnect:
            pass
        except Exception as error:
            if status == 499:  # nothing was sent yet
                await as_api_error(error).response()(scope, receive, sending)
            elif status != 500:  # a stream broke; 500 was logged where it was made
                internal_error(error)
        finally:
            # the route's own pattern: a path may hold anything
            route = str(getattr(inner.get("route"), "path", "other"))
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            LOG.info("%s %s %d %.0f ms%s", scope["method"], route, status, seconds * 1000, who)

    def _checked(self, path: str, headers: Headers) -> str:
        # refuses a wrong host or key; says whose key it is, for the log
        host = headers.get("host", "")
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if self._local and host and not is_local(name):
            raise ApiError(
                "this server answers on this machine only: use http://127.0.0.1, or start it with "
                "another --host.",
                code="wrong_host",
                status=403,
            )
        if not self._keys or path in OPEN or path.startswith("/static/"):
            return ""
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        sent_key = sent.strip(" \t").encode("latin-1")  # of UTF-8, too
        # all are compared, so that the time says nothing about any
        names = [name for name, key in self._keys.items() if hmac.compare_digest(sent_key, key)]
        if scheme.lower() != "bearer" or not names:
            raise ApiError(
                "the API key is missing or wrong: send 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return f" {names[0]}"
