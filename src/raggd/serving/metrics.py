"""What the server counts and times, for Prometheus. No text of anyone ever goes in here."""

from __future__ import annotations

from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        """Register everything, also memory and processor time of this process."""
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        count, gauge = partial(Counter, registry=own), partial(Gauge, registry=own)
        rows = partial(Histogram, buckets=_ROWS, registry=own)
        time = partial(Histogram, buckets=_SECONDS, registry=own)
        self.requests = count("raggd_requests", "Requests answered.", ["route", "status"])
        self.seconds = time("raggd_request_seconds", "Time to answer a request.", ["route"])
        self.waiting = gauge("raggd_waiting", "Answers waiting to be begun.")
        self.running = gauge("raggd_running", "Answers being written.")
        self.batch = rows("raggd_batch_rows", "Rows of a decoding step.")
        self.adaptation = time("raggd_adaptation_seconds", "Time to adapt to a support set.")
        self.read = time("raggd_read_seconds", "Time to read joining prompts.")
        self.step = time("raggd_decode_step_seconds", "Time of a decoding step.")
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

    def text(self) -> bytes:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry)
